"""What an operator and a plain gRPC client see: health, reflection, metrics, tokens, streams, drain."""

import re
import urllib.request
from collections.abc import Iterator

import grpc
import numpy as np
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from tests.integration.processes import ServerProcess, serving

from likewise.client import Client, F


def test_health_check_and_watch_say_serving(server: ServerProcess) -> None:
    with grpc.insecure_channel(server.address) as channel:
        stub = health_pb2_grpc.HealthStub(channel)
        for service in ("", "likewise.v1.SearchService"):
            request = health_pb2.HealthCheckRequest(service=service)
            assert stub.Check(request, timeout=20).status == health_pb2.HealthCheckResponse.SERVING
            watch: Iterator[health_pb2.HealthCheckResponse] = stub.Watch(request, timeout=20)
            assert next(watch).status == health_pb2.HealthCheckResponse.SERVING
            watch.cancel()  # type: ignore[attr-defined]


def test_reflection_lists_the_public_services(server: ServerProcess) -> None:
    request = reflection_pb2.ServerReflectionRequest(list_services="")
    with grpc.insecure_channel(server.address) as channel:
        stub = reflection_pb2_grpc.ServerReflectionStub(channel)
        (answer,) = list(stub.ServerReflectionInfo(iter([request]), timeout=20))

    services = {service.name for service in answer.list_services_response.service}
    wanted = {f"likewise.v1.{name}Service" for name in ("Search", "Item", "Gallery", "Model")}
    assert wanted | {"grpc.health.v1.Health"} <= services


def test_a_write_is_seen_by_the_reader_who_sends_its_token(server: ServerProcess, client: Client, name: str) -> None:
    gallery = client.create_gallery(name, dim=4, shards=2)

    for number in range(50):
        written = gallery.upsert([f"i{number}"], vectors=np.eye(4)[[number % 4]])
        assert written.version is not None
        with Client(server.address) as other:
            hits = other.gallery(name).search(vector=np.eye(4)[number % 4], k=100, at_least=written.version)
        assert f"i{number}" in hits.ids

    client.delete_gallery(name)


def test_updates_and_deletes_are_seen(client: Client, name: str) -> None:
    gallery = client.create_gallery(name, dim=2, shards=2, attributes={"n": "int64"})
    gallery.upsert(["a", "b", "c"], vectors=np.eye(2)[[0, 0, 1]], attributes={"n": [1, 2, 3]})

    gallery.upsert(["a"], vectors=np.eye(2)[[1]], attributes={"n": [10]})
    gallery.delete(["b", "nobody"])

    assert gallery.search(vector=[0, 1]).ids == ["a", "c"]
    assert gallery.count() == 2
    assert gallery.delete(where=F.n >= 10) == 1
    assert [item.id for item in gallery.list()] == ["c"]
    client.delete_gallery(name)


def test_items_are_listed_in_id_order_over_all_shards(client: Client, name: str) -> None:
    gallery = client.create_gallery(name, dim=2, shards=3, attributes={"n": "int64"})
    ids = [f"é{number:03d}" if number % 2 else f"z{number:03d}" for number in range(250)]
    gallery.upsert(ids, vectors=np.ones((250, 2)), attributes={"n": list(range(250))})

    listed = [item.id for item in gallery.list(where=F.n < 200, page_size=30)]

    assert listed == sorted(ids[:200], key=str.encode)
    client.delete_gallery(name)


def test_a_stored_reference_and_its_exact_copies_are_left_out_unless_asked_for(client: Client, name: str) -> None:
    gallery = client.create_gallery(name, dim=2, shards=2)
    gallery.upsert(["a", "copy", "other"], vectors=[[3.0, 4.0], [3.0, 4.0], [1.0, 0.0]])

    assert gallery.search(id="a").ids == ["other"]
    assert gallery.search(id="a", include_reference=True).ids == ["a", "copy", "other"]
    client.delete_gallery(name)


def test_min_score_cuts_after_the_merge_and_an_empty_answer_is_fine(client: Client, name: str) -> None:
    gallery = client.create_gallery(name, dim=2, shards=2)
    gallery.upsert(["a", "b"], vectors=np.eye(2))

    assert gallery.search(vector=[1, 0], min_score=0.5).ids == ["a"]
    assert gallery.search(vector=[-1, -1], min_score=0.5).ids == []
    client.delete_gallery(name)


def test_vectors_come_back_as_they_were_given(client: Client, name: str) -> None:
    gallery = client.create_gallery(name, dim=3)
    given = np.array([[3.0, 4.0, 0.0], [0.1, 0.0, 0.0]], dtype=np.float32)
    gallery.upsert(["a", "b"], vectors=given)

    stored = gallery.get(["b", "a"], vectors=True).vectors
    assert stored is not None
    np.testing.assert_allclose(stored, given[::-1], rtol=1e-5)
    client.delete_gallery(name)


def test_metrics_and_access_lines_tell_what_happened(mode: str) -> None:
    with serving(mode, arguments=["--metrics-port", "0"]) as server:
        with Client(server.address) as client:
            gallery = client.create_gallery("g", dim=2, shards=2)
            gallery.upsert(["a"], vectors=np.ones((1, 2)))
            gallery.search(vector=[1, 0], request_id="find-me")
        port = next(match[1] for line in server.log if (match := re.search(r"metrics on \S+?:(\d+)", line)))
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=20) as answer:
            text = answer.read().decode()
    assert re.search(r'likewise_rpc_requests_total\{[^}]*method="[^"]*Search"[^}]*\} 1\.0', text)
    for family in ("rpc_duration_seconds", "stage_duration_seconds", "plan_total", "coverage_ratio", "index_items"):
        assert f"likewise_{family}" in text
    assert any("find-me" in line for line in server.log)


@pytest.mark.parametrize("shards", [1, 3])
def test_changing_the_shard_count_changes_no_answer(client: Client, name: str, shards: int) -> None:
    gallery = client.create_gallery(name, dim=8, shards=2)
    vectors = np.random.default_rng(0).normal(size=(200, 8))
    gallery.upsert([f"i{row:03d}" for row in range(200)], vectors=vectors)
    before = gallery.search(vector=vectors[0], k=20).ids

    gallery.update(shards=shards)

    assert client.gallery(name).search(vector=vectors[0], k=20).ids == before
    client.delete_gallery(name)
