"""Galleries, models and health through both clients; every test runs on each."""

from typing import Any

import pytest
from grpc import StatusCode
from tests.unit.client.conftest import Connect
from tests.unit.client.fake_failures import Failure
from tests.unit.client.fake_server import FakeServer

from likewise.client import (
    AlreadyExists,
    ClientClosed,
    DeadlineExceeded,
    FailedPrecondition,
    IndexSpec,
    InvalidArgument,
    NotFound,
    Unavailable,
)
from likewise.v1 import gallery_service_pb2


def test_galleries_are_made_listed_and_deleted(client: Any) -> None:
    for number in range(5):
        client.create_gallery(f"g{number}", dim=2, shards=2, index=IndexSpec(kind="hnsw", m=16))
    client.delete_gallery("g0")

    found = client.galleries()

    assert [one.name for one in found] == ["g1", "g2", "g3", "g4"]
    assert (found[0].dim, found[0].shards, found[0].index) == (2, 2, IndexSpec(kind="hnsw", m=16))
    with pytest.raises(NotFound):
        client.delete_gallery("g0")


def test_exist_ok_takes_the_same_gallery_and_no_other(client: Any) -> None:
    client.create_gallery("g", dim=2, attributes={"a": int, "b": str})

    again = client.create_gallery("g", dim=2, attributes={"a": "int64"}, exist_ok=True)

    assert again.info().attributes == {"a": "int64", "b": "string"}
    with pytest.raises(AlreadyExists):
        client.create_gallery("g", dim=2)
    with pytest.raises(AlreadyExists, match="its dimension is 2, not 3"):
        client.create_gallery("g", dim=3, exist_ok=True)
    with pytest.raises(AlreadyExists, match="'a' is int64, not string"):
        client.create_gallery("g", dim=2, attributes={"a": str}, exist_ok=True)


def test_update_names_what_changes_and_keeps_the_attributes(server: FakeServer, filled: Any) -> None:
    info = filled.update(shards=4, attributes={"size": "int64"}, index="flat", min_recall=0.5)

    request = server.calls("Update")[-1].request
    assert sorted(request.update_mask.paths) == ["attributes", "index", "shards"]
    assert info.attributes == {"price": "double", "colour": "string", "size": "int64"}
    assert (info.shards, info.index.kind) == (4, "flat")
    with pytest.raises(InvalidArgument, match="nothing to update"):
        filled.update()


def test_an_attribute_that_another_client_added_is_known_at_once(connect: Connect) -> None:
    mine, other = connect(), connect()
    gallery = mine.create_gallery("g", dim=2, attributes={"a": int})
    other.gallery("g").update(attributes={"b": int})

    gallery.upsert(["x"], vectors=[[1, 0]], attributes={"b": [7]})

    assert gallery.get(["x"])[0].attributes == {"a": None, "b": 7}


def test_the_schema_is_fetched_once(server: FakeServer, client: Any, filled: Any) -> None:
    gallery = client.gallery("g")

    for number in range(3):
        gallery.upsert([f"n{number}"], vectors=[[1, 0]], attributes={"price": [1.0]})

    assert [call.request.name for call in server.received if call.method == "Get"] == ["g"]


def test_wait_until_ready_waits_for_the_index(server: FakeServer, filled: Any) -> None:
    server.index_states.extend([gallery_service_pb2.INDEX_STATE_LOADING, gallery_service_pb2.INDEX_STATE_BUILDING])

    stats = filled.wait_until_ready()

    assert (len(server.calls("Stats")), stats.items, stats.shards[0].state) == (3, 3, "ready")
    server.index_states.append(gallery_service_pb2.INDEX_STATE_FAILED)
    with pytest.raises(FailedPrecondition, match="out of memory"):
        filled.wait_until_ready()
    server.index_states.extend([gallery_service_pb2.INDEX_STATE_BUILDING] * 5)
    with pytest.raises(DeadlineExceeded, match="shard 0 is building"):
        filled.wait_until_ready(timeout=0.05)


def test_models_and_health_are_reported(client: Any) -> None:
    assert [(model.name, model.version) for model in client.models()] == [("a", 1), ("a", 2), ("b", 1)]
    assert (client.model("a").version, client.model("a", 1).version) == (2, 1)
    assert client.model("b").files == {"model.onnx": "ab"}
    assert client.health().serving


def test_versions_are_loaded_promoted_rolled_back_and_unloaded(client: Any, server: FakeServer) -> None:
    loaded = client.load_model("a")
    promotion = client.promote_model("a", 2, together={"b": 3}, min_overlap=0.5)
    forced = client.promote_model("a", 1, force=True)
    back = client.rollback_model("a")
    client.unload_model("a", 2)

    assert (loaded.version, loaded.in_use) == (2, False)
    assert (promotion.model.name, promotion.model.version, promotion.model.in_use) == ("a", 2, True)
    assert [(one.name, one.version) for one in promotion.models] == [("a", 2), ("b", 3)]
    assert promotion.model.compatible_with == {"old": 2}
    assert (promotion.overlap, promotion.compared) == (0.75, 4)
    assert (forced.overlap, forced.compared) == (None, 0)
    assert [(one.name, one.version) for one in back.models] == [("a", 1), ("b", 1)]
    (sent,) = server.calls("Load")
    assert not sent.request.HasField("version")
    first, second = (call.request for call in server.calls("Promote"))
    assert (first.name, first.version, first.min_overlap, first.force) == ("a", 2, 0.5, False)
    assert [(one.name, one.version) for one in first.also] == [("b", 3)]
    assert second.force
    assert [(call.request.name, call.request.version) for call in server.calls("Unload")] == [("a", 2)]


@pytest.mark.parametrize("version", [0, -1, 1 << 63])
def test_a_version_that_cannot_be_is_refused_before_it_is_sent(client: Any, server: FakeServer, version: int) -> None:
    for call in (client.load_model, client.promote_model, client.unload_model):
        with pytest.raises(InvalidArgument, match="version must be a version from 1"):
            call("a", version)
    with pytest.raises(InvalidArgument, match=r"together\['b'\] must be a version from 1"):
        client.promote_model("a", 1, together={"b": version})

    assert not server.calls("Load") + server.calls("Promote") + server.calls("Unload")


def test_a_promotion_is_not_sent_twice_by_itself(client: Any, server: FakeServer) -> None:
    for method in ("Promote", "Rollback"):
        server.fail(method, Failure(StatusCode.UNAVAILABLE, "restarting", "PART_UNAVAILABLE"))

    with pytest.raises(Unavailable):
        client.promote_model("a", 1)
    with pytest.raises(Unavailable):
        client.rollback_model("a")

    assert (len(server.calls("Promote")), len(server.calls("Rollback"))) == (1, 1)


def test_a_closed_client_says_so(client: Any, filled: Any) -> None:
    client.close()

    with pytest.raises(ClientClosed):
        filled.count()
