"""Replicas of one shard are put on nodes of their own where there are enough. Nothing here runs on Ray."""

import dataclasses

import pytest
from tests.unit.server.cluster.placement import SPEC

from likewise.server.cluster.parts import EncoderPart, ShardPart, WriterPart
from likewise.server.cluster.spread import node_of

GALLERY = dataclasses.replace(SPEC, gallery_id="0" * 32)
CPU = {"num_cpus": 0.02, "num_gpus": 0.0}
NODES = {name: {"CPU": 8.0} for name in ("a", "b", "c")}


@pytest.mark.parametrize("shard", range(4))
def test_the_replicas_of_a_shard_have_a_node_each_while_there_are_enough(shard: int) -> None:
    nodes = {node_of(ShardPart(GALLERY, shard, replica), NODES, CPU) for replica in range(3)}

    assert nodes == {"a", "b", "c"}


def test_a_gallerys_shards_go_round_all_nodes() -> None:
    assert {node_of(ShardPart(GALLERY, shard, 0), NODES, CPU) for shard in range(3)} == {"a", "b", "c"}


def test_the_encoders_of_a_family_have_a_node_each_while_there_are_enough() -> None:
    assert {node_of(EncoderPart("shapes", replica), NODES, CPU) for replica in range(3)} == {"a", "b", "c"}


def test_only_nodes_that_have_what_a_part_needs_are_chosen() -> None:
    nodes = {**NODES, "d": {"CPU": 8.0, "GPU": 1.0}, "e": {"CPU": 8.0, "GPU": 2.0}, "f": {"CPU": 8.0, "GPU": 0.25}}
    need = {"num_cpus": 1.0, "num_gpus": 0.5}

    assert {node_of(ShardPart(GALLERY, 0, replica), nodes, need) for replica in range(4)} == {"d", "e"}


def test_ray_chooses_where_there_is_nothing_to_choose_from() -> None:
    assert node_of(ShardPart(GALLERY, 0, 1), {"a": {"CPU": 8.0}}, CPU) is None
    assert node_of(ShardPart(GALLERY, 0, 1), NODES, {"num_gpus": 1.0}) is None
    assert node_of(WriterPart(GALLERY), NODES, CPU) is None
