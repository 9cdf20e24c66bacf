"""What a scrape shows."""

import asyncio
import urllib.request

import pytest
from prometheus_client import generate_latest
from tests.unit.server.fakes import FakeGalleries, fake_server
from tests.unit.server.stubs import by_vector, connected, equals, shop, vectors

from likewise.server.batcher import BatchReport
from likewise.server.metrics import Metrics
from likewise.v1 import gallery_service_pb2

QUERY = vectors(1)[0]
FAMILIES = (
    "likewise_rpc_requests_total",
    "likewise_rpc_duration_seconds",
    "likewise_stage_duration_seconds",
    "likewise_batch_size",
    "likewise_queue_depth",
    "likewise_plan_total",
    "likewise_coverage_ratio",
    "likewise_filter_selectivity_ratio",
    "likewise_index_items",
    "likewise_model_info",
    "likewise_info",
)


async def test_a_scrape_shows_calls_plans_items_and_models() -> None:
    galleries = FakeGalleries()
    async with shop(galleries) as _:
        pass
    server = fake_server(galleries, metrics_port=0)
    async with connected(server) as stubs:
        await stubs.search.Search(by_vector(QUERY, filter=equals("colour", "red")))
        text = await asyncio.to_thread(_get, f"http://{server.metrics_address}/metrics")

    assert [family for family in FAMILIES if f"# HELP {family}" not in text and family not in text] == []
    assert 'likewise_rpc_requests_total{code="OK",method="likewise.v1.SearchService/Search"} 1.0' in text
    assert 'likewise_plan_total{plan="exact_filtered"} 2.0' in text
    assert 'likewise_index_items{gallery="shop",shard="0",state="live"}' in text
    assert 'likewise_model_info{kind="unspecified",model="fake-image_encoder"' in text
    assert "likewise_coverage_ratio_count 1.0" in text


def test_a_models_batches_show_their_sizes_times_and_waits() -> None:
    metrics = Metrics(version="1")

    metrics.model_batch(BatchReport("clip/1", waiting=3, queue_s=(0.02, 0.0003), run_s=0.2, failed=False))
    metrics.model_batch(BatchReport("clip/1", waiting=0, queue_s=(0.0003,), run_s=0.2, failed=True))

    def value(name: str, **labels: str) -> float | None:
        return metrics.registry.get_sample_value(name, {"part": "clip/1", **labels})

    assert value("likewise_batch_size_bucket", le="1.0") == 1
    assert (value("likewise_batch_size_count"), value("likewise_batch_size_sum")) == (2, 3)
    # Every row counts with its own wait, not a batch with its longest.
    assert value("likewise_queue_duration_seconds_bucket", le="0.0005") == 2
    assert value("likewise_queue_duration_seconds_count") == 3
    assert value("likewise_batch_duration_seconds_sum") == pytest.approx(0.4)
    assert (value("likewise_batch_failures_total"), value("likewise_queue_depth")) == (1, 0)


async def test_two_servers_of_one_process_count_apart() -> None:
    first, second = fake_server(FakeGalleries()), fake_server(FakeGalleries())
    async with connected(first) as stubs, connected(second):
        await stubs.galleries.List(gallery_service_pb2.GalleryServiceListRequest())

    labels = {"method": "likewise.v1.GalleryService/List", "code": "OK"}
    assert first.metrics.registry.get_sample_value("likewise_rpc_requests_total", labels) == 1
    assert second.metrics.registry.get_sample_value("likewise_rpc_requests_total", labels) is None


def _get(url: str) -> str:
    with urllib.request.urlopen(url) as response:
        text: str = response.read().decode()
    return text


async def test_a_scrape_shows_the_recall_of_shards_and_how_sure_it_is() -> None:
    metrics = Metrics(version="1")
    stats = gallery_service_pb2.GalleryServiceStatsResponse()
    stats.gallery.spec.name = "shop"
    shard = stats.shards.add(shard=1, recall_seconds=2.5, partial_indexes=3)
    shard.recall.add(space="default", max_share=1, queries=64, recall=0.96, low=0.88, high=0.99, local_dimension=17.5)
    shard.recall.add(space="default", max_share=0.3, queries=9, recall=0.5, low=0.2, high=0.8)
    metrics.watch_galleries(lambda: [stats])

    text = generate_latest(metrics.registry).decode()

    where = 'gallery="shop",shard="1"'
    assert f'likewise_recall_ratio{{{where},share="1",space="default"}} 0.96' in text
    assert f'likewise_recall_low_ratio{{{where},share="0.3",space="default"}} 0.2' in text
    assert f'likewise_recall_local_dimension{{{where},share="1",space="default"}} 17.5' in text
    assert f'likewise_recall_local_dimension{{{where},share="0.3"' not in text
    assert f"likewise_recall_check_seconds_total{{{where}}} 2.5" in text
    assert f"likewise_partial_indexes{{{where}}} 3.0" in text
