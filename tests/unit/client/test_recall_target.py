"""A recall to expect, and the recall that is measured, through the SDK's calls."""

import pytest

from likewise.client import IndexSpec, RecallEstimate
from likewise.client.errors import InvalidType
from likewise.client.galleries import create_call
from likewise.client.gallery_stats import stats_call
from likewise.v1 import gallery_service_pb2 as pb


def create(index: IndexSpec) -> pb.GalleryServiceCreateRequest:
    call = create_call("g", encoder=None, dim=4, attributes=None, shards=None, replicas=None, index=index)
    assert isinstance(call.request, pb.GalleryServiceCreateRequest)
    return call.request


def test_a_gallerys_target_travels_and_comes_back() -> None:
    asked = create(IndexSpec(kind="hnsw", target_recall=0.95))

    assert asked.spec.index == pb.IndexSpec(kind="hnsw", target_recall=0.95)
    call = create_call("g", encoder=None, dim=4, attributes=None, shards=None, replicas=None, index=None)
    gallery = pb.Gallery(
        spec=pb.GallerySpec(name="g", spaces=[pb.Space(name="default", dim=4)], index=asked.spec.index)
    )
    assert call.decode(pb.GalleryServiceCreateResponse(gallery=gallery)).index.target_recall == 0.95


def test_a_target_that_is_no_number_is_refused() -> None:
    with pytest.raises(InvalidType, match="target_recall"):
        create(IndexSpec(target_recall="high"))  # type: ignore[arg-type]


def test_statistics_tell_the_recall_that_was_measured() -> None:
    stats = pb.GalleryServiceStatsResponse()
    stats.gallery.spec.spaces.add(name="default", dim=4)
    shard = stats.shards.add(shard=0)
    shard.recall.add(space="default", max_share=1, queries=64, recall=0.75, low=0.5, high=1, live=True)
    shard.recall.add(space="default", max_share=0.5, queries=2, recall=1, low=0.5, high=1, local_dimension=8)

    (found,) = stats_call("g").decode(stats).shards

    assert found.recall == (
        RecallEstimate("default", 1, 64, 0.75, 0.5, 1, True, None),
        RecallEstimate("default", 0.5, 2, 1, 0.5, 1, False, 8),
    )
