"""A local Ray cluster below the router's seams: the same answers as in process, and parts that come back."""

import asyncio
import os
import socket
from collections.abc import AsyncIterator, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import pytest_asyncio
import ray

from likewise.server.cluster.bootstrap import ClusterOptions, RayCluster
from likewise.server.cluster.controller_actor import ControllerOptions, RemoteController, Started
from likewise.server.cluster.hosts import HostOptions
from likewise.server.cluster.ray_placement import CONTROLLER
from likewise.server.cluster.router import Routing
from likewise.server.errors import NotFound, Unavailable
from likewise.server.galleries import EmbeddedGalleries, StoreOptions
from likewise.server.protocols import Galleries, GalleryHandle
from likewise.shards import layout
from likewise.shards.lock import StoreLock
from likewise.shards.protocols import F32, SearchOptions, ShardHits
from likewise.shards.protocols import Unavailable as PartUnavailable
from likewise.shards.spec import AttributeSpec, GallerySpec, SpaceSpec, vector_space_digest
from likewise.v1 import common_pb2

pytestmark = [
    pytest.mark.cluster,
    # Ray's own, while it starts and stops processes.
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore:lance is not fork-safe"),
    pytest.mark.asyncio(loop_scope="module"),
]

NAMESPACE = "likewise"
PATIENCE_S = 180
"""With other tests beside it a small machine takes half a minute to start one process; nothing is measured by it."""
ROWS = 600
SPEC = GallerySpec(
    name="g",
    gallery_id="0" * 32,
    spaces=(SpaceSpec("default", 16, vector_space_digest(16)),),
    attributes=(AttributeSpec("price", common_pb2.ATTRIBUTE_TYPE_INT64),),
    shards=2,
)
CHEAP = common_pb2.Filter(
    comparison=common_pb2.Comparison(
        attribute="price",
        operator=common_pb2.COMPARISON_OPERATOR_LESS,
        value=common_pb2.Value(int64_value=10),
    )
).SerializeToString(deterministic=True)


def _vectors(n: int, seed: int) -> F32:
    vectors = np.random.default_rng(seed).standard_normal((n, 16)).astype(np.float32)
    return np.asarray(vectors / np.linalg.norm(vectors, axis=1, keepdims=True), np.float32)


def _rows(n: int = ROWS, *, prefix: str = "i", seed: int = 1) -> pa.RecordBatch:
    columns = {
        "id": pa.array([f"{prefix}{row:04d}" for row in range(n)]),
        "content": pa.array(range(n), pa.int64()),
        "vector_default": pa.FixedSizeListArray.from_arrays(pa.array(_vectors(n, seed).ravel()), 16),
        "norm_default": pa.array(np.ones(n, np.float32)),
        "price": pa.array([row % 100 for row in range(n)], pa.int64()),
    }
    return pa.RecordBatch.from_pydict(columns, schema=layout.input_schema(SPEC))


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RayCluster]:
    store = StoreOptions(str(tmp_path_factory.mktemp("cluster") / "store"))
    cluster = RayCluster(ClusterOptions("local", ControllerOptions(HostOptions(store, log_level="ERROR"))))
    yield cluster
    cluster.close()


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def galleries(cluster: RayCluster) -> AsyncIterator[Galleries]:
    routing = Routing(cluster.resolve)
    await cluster.resolve()
    await routing.start(timeout_s=120)
    yield routing.galleries
    await routing.close()
    await cluster.stop_parts()


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def gallery(galleries: Galleries) -> GalleryHandle:
    """Filled, and as the tests leave it; the last one deletes it."""
    handle = await galleries.create(SPEC)
    await handle.writer.upsert(_rows())
    return handle


async def test_a_cluster_answers_as_one_process_does(gallery: GalleryHandle, tmp_path: Path) -> None:
    embedded = EmbeddedGalleries(StoreOptions(str(tmp_path / "store")))
    await embedded.open()
    near = await embedded.create(SPEC)
    near_version = (await near.writer.upsert(_rows())).version
    far_version = await gallery.writer.version()

    for number in range(2):
        for filter in (b"", CHEAP):
            options = {"space": "default", "k": 10, "filter": filter, "attributes": ("price",), "vectors": True}
            left = await near.shards[number].search(
                _vectors(4, 9),
                SearchOptions(**options, min_version=near_version),  # type: ignore[arg-type]  # by name
            )
            right = await gallery.shards[number].search(
                _vectors(4, 9),
                SearchOptions(**options, min_version=far_version),  # type: ignore[arg-type]  # by name
            )
            _assert_same(left, right)
    await embedded.close()


async def test_a_reader_who_sends_the_version_back_reads_its_own_write(gallery: GalleryHandle) -> None:
    for attempt in range(5):
        rows = _rows(8, prefix=f"own{attempt}-", seed=attempt + 50)
        ids = rows.column("id").to_pylist()

        written = await gallery.writer.upsert(rows)
        found = [await shard.fetch(ids, space="default", min_version=written.version) for shard in gallery.shards]

        assert sorted(item_id for part in found for item_id in part.batch.column("id").to_pylist()) == ids
        deleted = await gallery.writer.delete(ids=ids)
        counts = [await shard.count(b"", min_version=deleted.version) for shard in gallery.shards]
        assert sum(count for count, _ in counts) == ROWS


async def test_a_write_repeated_with_its_request_id_is_committed_once(gallery: GalleryHandle) -> None:
    first = await gallery.writer.upsert(_rows(1), request_id="once")

    assert await gallery.writer.upsert(_rows(1), request_id="once") == first


async def test_a_killed_shard_comes_back_with_its_rows(gallery: GalleryHandle) -> None:
    options = SearchOptions(space="default", k=10, min_version=await gallery.writer.version())
    before = await gallery.shards[0].search(_vectors(2, 9), options)

    await _kill(f"{gallery.spec.gallery_id}-shard-0-of-2-replica-0")
    after = await _answered(gallery, options)

    _assert_same(before, after)


async def test_a_killed_writer_comes_back_and_its_shards_follow_it(gallery: GalleryHandle) -> None:
    await _kill(f"{gallery.spec.gallery_id}-writer")
    async with asyncio.timeout(PATIENCE_S):
        while True:
            try:
                written = await gallery.writer.upsert(_rows(1), request_id="after")
                break
            except PartUnavailable:
                await asyncio.sleep(0.05)

    # Pushed, not caught up with: nobody asks for the version.
    async with asyncio.timeout(PATIENCE_S):
        while min([(await shard.stats()).version for shard in gallery.shards]) < written.version:  # noqa: ASYNC110
            await asyncio.sleep(0.05)


async def test_a_killed_controller_comes_back_and_knows_its_galleries(
    cluster: RayCluster, galleries: Galleries, gallery: GalleryHandle
) -> None:
    before = await cluster.resolve()
    await _kill(CONTROLLER)
    other = replace(SPEC, name="h", shards=1)
    async with asyncio.timeout(PATIENCE_S):
        while await cluster.resolve() == before:  # noqa: ASYNC110
            await asyncio.sleep(0.05)
        while True:
            try:
                await galleries.create(other)
                break
            except Unavailable:  # this router has not found it yet
                await asyncio.sleep(0.05)

    assert [handle.spec.name for handle in galleries.handles()] == ["g", "h"]
    assert galleries.get("g") is gallery
    await galleries.delete("h")


async def test_a_second_cluster_on_the_same_store_is_refused(cluster: RayCluster, gallery: GalleryHandle) -> None:
    controller = cluster.options.controller
    remote: Any = RemoteController
    other = remote.options(num_cpus=0).remote(replace(controller, namespace="second", lock_wait_s=0.0))

    started: Started = await other.start.remote()

    assert "is in use by process" in started.failure
    ray.kill(other)


async def test_a_controller_whose_start_failed_can_be_started_again_on_its_port(
    cluster: RayCluster, tmp_path: Path
) -> None:
    controller = cluster.options.controller
    host = replace(controller.host, store=StoreOptions(str(tmp_path / "store")), listen="127.0.0.1")
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    remote: Any = RemoteController
    # In a namespace where no part is another controller's.
    other = remote.options(num_cpus=0, namespace="again").remote(
        replace(controller, host=host, namespace="again", port=port, lock_wait_s=0.0)
    )

    with StoreLock(tmp_path / "store"):
        first: Started = await other.start.remote()
    second: Started = await other.start.remote()

    assert "is in use by process" in first.failure
    assert second == Started(address=f"127.0.0.1:{port}")
    await other.stop.remote()
    ray.kill(other)


async def test_a_deleted_gallery_is_gone_with_its_parts(galleries: Galleries, gallery: GalleryHandle) -> None:
    await galleries.delete("g")

    with pytest.raises(NotFound):
        galleries.get("g")
    with pytest.raises(PartUnavailable):
        await gallery.shards[0].count(b"")


async def _answered(gallery: GalleryHandle, options: SearchOptions) -> ShardHits:
    async with asyncio.timeout(PATIENCE_S):
        while True:
            try:
                return await gallery.shards[0].search(_vectors(2, 9), options)
            except PartUnavailable:
                await asyncio.sleep(0.05)


def _assert_same(left: ShardHits, right: ShardHits) -> None:
    assert list(left.ids) == list(right.ids)
    np.testing.assert_array_equal(left.offsets, right.offsets)
    np.testing.assert_allclose(left.scores, right.scores, rtol=0, atol=1e-6)
    assert left.attributes == right.attributes
    if left.vectors is not None:
        np.testing.assert_array_equal(left.vectors, right.vectors)


async def _kill(name: str) -> None:
    """End an actor's process; returns when it is gone, since until then it may answer as if nothing had happened."""
    actor = ray.get_actor(name, namespace=NAMESPACE)
    process: int = await actor.__ray_call__.remote(lambda _: os.getpid())
    ray.kill(actor, no_restart=False)
    async with asyncio.timeout(PATIENCE_S):
        while _runs(process):  # noqa: ASYNC110
            await asyncio.sleep(0.05)


def _runs(process: int) -> bool:
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except (FileNotFoundError, ProcessLookupError):
        return False
