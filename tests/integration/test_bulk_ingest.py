"""Bulk ingest on a local Ray cluster: written by its workers, encoded by its encoders, committed once."""

import asyncio
from collections.abc import AsyncIterator, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import pytest_asyncio
from PIL import Image

from likewise.cli.bulk import plan as plans
from likewise.cli.bulk.plan import Unit
from likewise.cli.bulk.progress_file import Outcome
from likewise.cli.bulk.run import Options, Result, ingest, on_ray, server_at
from likewise.cli.bulk.worker import Job, UnitWriter
from likewise.client import AsyncClient
from likewise.client.cli.sources import Columns
from likewise.client.versions import VersionToken
from likewise.server.app import Server, ServerOptions, serving
from likewise.server.cluster.bootstrap import ClusterOptions, RayCluster
from likewise.server.cluster.controller_actor import ControllerOptions
from likewise.server.cluster.hosts import HostOptions
from likewise.server.cluster.router import Routing
from likewise.server.galleries import StoreOptions

pytestmark = [
    pytest.mark.cluster,
    pytest.mark.slow,
    # Ray's own, while it starts and stops processes.
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::UserWarning"),
    pytest.mark.asyncio(loop_scope="module"),
]

DIM = 16


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RayCluster]:
    store = StoreOptions(str(tmp_path_factory.mktemp("bulk") / "store"))
    made = RayCluster(ClusterOptions("local", ControllerOptions(HostOptions(store, log_level="ERROR"))))
    yield made
    made.close()


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def address(cluster: RayCluster) -> AsyncIterator[str]:
    routing = Routing(cluster.resolve)
    await cluster.resolve()
    await routing.start(timeout_s=120)
    server = Server(
        ServerOptions(port=0),
        models=routing.models,
        galleries=routing.galleries,
        controller=lambda: routing.controller,
    )
    async with serving(server) as where:
        yield where
    await routing.close()
    await cluster.stop_parts()


async def _ingest(address: str, source: Path, progress: Path, run: Any = None) -> Result:
    def work() -> Result:
        with server_at(address) as server:
            return ingest(server, run or on_ray(workers=1), "g", source, Options(Columns(), 0.0, progress))

    return await asyncio.to_thread(work)


def _here(job: Job, units: Sequence[Unit]) -> Iterator[Outcome]:
    """Runs units in this process: starting Ray Data takes longer than all else here."""
    return map(UnitWriter(job).write, units)


def _dying(job: Job, units: Sequence[Unit]) -> Iterator[Outcome]:
    """Dies with one unit written."""
    yield from _here(job, units[:1])
    raise KeyboardInterrupt


async def test_vectors_written_by_workers_are_found_and_an_interrupted_run_goes_on(
    address: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(plans, "UNIT_BYTES", 1)
    vectors = np.random.default_rng(1).normal(size=(300, DIM)).astype(np.float32)
    ids = [f"i{row:03d}" for row in range(300)]
    table = pa.table({"id": ids, "vector": list(vectors), "price": list(range(300))})
    pq.write_table(table, tmp_path / "rows.parquet", row_group_size=100)
    async with AsyncClient(address) as client:
        gallery = await client.create_gallery("g", dim=DIM, attributes={"price": "int64"}, shards=2)
        await gallery.upsert(["i000", "kept"], vectors=np.ones((2, DIM)))
        progress = tmp_path / "progress.jsonl"
        with pytest.raises(KeyboardInterrupt):
            await _ingest(address, tmp_path / "rows.parquet", progress, _dying)
        assert await gallery.count() == 2

        result = await _ingest(address, tmp_path / "rows.parquet", progress)

        written = VersionToken((await gallery.info()).gallery_id, result.version)
        hits = await gallery.search(vector=vectors[217], k=1, attributes=True, at_least=written)
        counted = await gallery.count(at_least=written)
        await client.delete_gallery("g")
    assert (result.stored, result.resumed) == (300, 100)
    assert counted == 301
    assert (hits.ids, hits.attributes[0]["price"]) == (["i217"], 217)


async def test_images_are_encoded_as_the_server_encodes_them(address: str, tmp_path: Path) -> None:
    folder = tmp_path / "pictures"
    folder.mkdir()
    colours = np.random.default_rng(2).integers(0, 255, size=(40, 3))
    for number, colour in enumerate(colours.tolist()):
        Image.new("RGB", (48, 48), tuple(colour)).save(folder / f"{number:02d}.png")
    async with AsyncClient(address) as client:
        gallery = await client.create_gallery("g", encoder="shapes")
        result = await _ingest(address, folder, tmp_path / "progress.jsonl", _here)
        await gallery.upsert(["by the server"], images=[(folder / "07.png").read_bytes()])

        found = await gallery.get(["07.png", "by the server"], vectors=True)
        await client.delete_gallery("g")
    assert result.stored == 40
    assert found.vectors is not None
    np.testing.assert_allclose(found.vectors[0], found.vectors[1], rtol=1e-4, atol=1e-5)
