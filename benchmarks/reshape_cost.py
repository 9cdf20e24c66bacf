"""What a change of shape costs: how long it takes, what searches notice of it, and the memory of two generations.

Run: python benchmarks/reshape_cost.py
"""

import argparse
import asyncio
import resource
import tempfile
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa

from likewise.server.galleries import EmbeddedGalleries, StoreOptions
from likewise.shards import layout
from likewise.shards.protocols import F32, SearchOptions
from likewise.shards.spec import GallerySpec, IndexSpec, SpaceSpec, vector_space_digest

CHUNK = 5_000
PAUSE_S = 0.01


def _rows(spec: GallerySpec, vectors: F32, first: int) -> pa.RecordBatch:
    n, dim = vectors.shape
    columns = {
        "id": pa.array([f"item-{first + row:07d}" for row in range(n)]),
        "content": pa.array(range(first, first + n), pa.int64()),
        "vector_default": pa.FixedSizeListArray.from_arrays(pa.array(vectors.ravel()), dim),
        "norm_default": pa.array(np.ones(n, np.float32)),
    }
    return pa.RecordBatch.from_pydict(columns, schema=layout.input_schema(spec))


async def _searches(galleries: EmbeddedGalleries, queries: F32, seconds: list[float], end: asyncio.Event) -> None:
    """Exact searches of all shards, one after the other with a pause between, until told to end."""
    turn = 0
    while not end.is_set():
        handle, query = galleries.get("g"), queries[turn % len(queries)][np.newaxis]
        began = time.perf_counter()
        await asyncio.gather(
            *(shard.search(query, SearchOptions("default", 10, exact=True)) for shard in handle.shards)
        )
        seconds.append(time.perf_counter() - began)
        turn += 1
        await asyncio.sleep(PAUSE_S)


async def _noticed(galleries: EmbeddedGalleries, queries: F32, during: "asyncio.Future[object]") -> list[float]:
    seconds: list[float] = []
    end = asyncio.Event()
    searching = asyncio.create_task(_searches(galleries, queries, seconds, end))
    await during
    end.set()
    await searching
    return seconds


def _line(what: str, seconds: Sequence[float]) -> str:
    p50, p99 = np.percentile(seconds, (50, 99)) * 1e3
    return (
        f"{what:<8} {len(seconds):>6} searches  p50 {p50:7.1f} ms  p99 {p99:7.1f} ms  max {max(seconds) * 1e3:7.1f} ms"
    )


def _peak_mb() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


async def _main(items: int, dim: int, folder: Path) -> None:
    spec = GallerySpec(
        "g", "0" * 32, (SpaceSpec("default", dim, vector_space_digest(dim)),), shards=2, index=IndexSpec("flat")
    )
    vectors = np.random.default_rng(0).standard_normal((items, dim)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    galleries = EmbeddedGalleries(StoreOptions(str(folder / "store")))
    await galleries.open()
    handle = await galleries.create(spec)
    for first in range(0, items, CHUNK):
        written = await handle.writer.upsert(_rows(spec, vectors[first : first + CHUNK], first))
    await asyncio.gather(*(shard.count(b"", min_version=written.version) for shard in handle.shards))
    await asyncio.gather(*(shard.settled() for shard in galleries._open["g"].shards))
    del handle
    print(f"{items} items of {dim} numbers, 2 shards, flat; peak so far {_peak_mb():.0f} MB")
    queries = vectors[:64]
    before = await _noticed(galleries, queries, asyncio.ensure_future(asyncio.sleep(5)))
    began = time.perf_counter()
    wanted = replace(galleries.get("g").spec, shards=4, index=IndexSpec("hnsw"))
    during = await _noticed(galleries, queries, asyncio.ensure_future(galleries.update(wanted, min_recall=0.0)))
    took = time.perf_counter() - began
    after = await _noticed(galleries, queries, asyncio.ensure_future(asyncio.sleep(5)))
    print(f"to 4 shards, hnsw: {took:.1f} s; peak {_peak_mb():.0f} MB")
    for what, seconds in (("before", before), ("during", during), ("after", after)):
        print(_line(what, seconds))
    await galleries.close()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--items", type=int, default=50_000)
    parser.add_argument("--dim", type=int, default=128)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        asyncio.run(_main(arguments.items, arguments.dim, Path(name)))
