"""What a scrape shows."""

import asyncio
import urllib.request

from tests.unit.server.fakes import FakeGalleries, fake_server
from tests.unit.server.stubs import by_vector, connected, equals, shop, vectors

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
