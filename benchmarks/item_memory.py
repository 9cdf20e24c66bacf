"""Bytes that one item costs: in a shard's memory by index, and on disk; see `--help`.

Each index is measured in a process of its own: a shard loads rows that are made as they are read, so that nothing but
the shard keeps them, and the growth of its resident memory is divided by their number.
"""

import argparse
import asyncio
import ctypes
import gc
import json
import multiprocessing
import resource
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Final

import lance
import numpy as np
import pyarrow as pa

from likewise.cli.benchmark.dataset import clustered, item_id
from likewise.shards import layout
from likewise.shards.protocols import F32, I64, Changes
from likewise.shards.shard import Shard
from likewise.shards.spec import AttributeSpec, GallerySpec, IndexSpec, SpaceSpec
from likewise.v1 import common_pb2, gallery_service_pb2

BLOCK: Final = 4_096
COLOURS: Final = ("red", "green", "blue", "yellow")


def gallery(dim: int, kind: str) -> GallerySpec:
    """A gallery with a string and a number beside each vector."""
    return GallerySpec(
        name="measured",
        gallery_id="0" * 32,
        spaces=(SpaceSpec("default", dim, f"vectors:{dim}"),),
        attributes=(
            AttributeSpec("colour", common_pb2.ATTRIBUTE_TYPE_STRING),
            AttributeSpec("price", common_pb2.ATTRIBUTE_TYPE_DOUBLE),
        ),
        index=IndexSpec(kind=kind),
    )


class GeneratedRows:
    """A `PartitionSource` that keeps nothing: every block is made when it is read."""

    def __init__(self, spec: GallerySpec, items: int) -> None:
        self._spec = spec
        self._items = items

    def version(self) -> int:
        """See `PartitionSource.version`."""
        return 1

    def load(self, version: int, *, held: I64 | None = None) -> Iterator[pa.RecordBatch]:
        """See `PartitionSource.load`."""
        dim = self._spec.space().dim
        for start in range(0, self._items, BLOCK):
            rows = range(start, min(start + BLOCK, self._items))
            vectors = self.vectors(start, rows.stop)
            columns = {
                "id": pa.array([item_id(row) for row in rows]),
                "content": pa.array(rows, pa.int64()),
                "vector_default": pa.FixedSizeListArray.from_arrays(pa.array(vectors.reshape(-1)), dim),
                "norm_default": pa.array(np.ones(len(rows), dtype=np.float32)),
                "colour": pa.array([COLOURS[row % len(COLOURS)] for row in rows]),
                "price": pa.array([float(row) for row in rows]),
            }
            schema = layout.input_schema(self._spec)
            yield layout.stamped(pa.table(columns, schema=schema), self._spec, 1 + start // BLOCK)

    def vectors(self, start: int, stop: int) -> F32:
        """(stop - start, dim) unit vectors, all of them near one surface, as those of one encoder are."""
        there = clustered(BLOCK, self._spec.space().dim, queries=1).base
        mixed = (there + 0.3 * np.roll(there, 1 + start // BLOCK, axis=0))[: stop - start]
        unit: F32 = mixed / np.linalg.norm(mixed, axis=1, keepdims=True)
        return unit

    def changes(self, since: int, until: int) -> Changes:
        """See `PartitionSource.changes`."""
        return Changes(until, layout.empty_batch(self._spec), ())


def resident_bytes() -> int:
    """Resident memory of this process, after everything freed was given back."""
    gc.collect()
    pa.default_memory_pool().release_unused()
    ctypes.CDLL(None).malloc_trim(0)
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize()


async def shard_bytes(spec: GallerySpec, items: int, cache: Path) -> dict[str, Any]:
    """Load a shard, wait until its index is built, and say what it takes."""
    small = Shard(spec, 0, GeneratedRows(spec, 1_000))
    await small.start()  # what libraries allocate once is not the items'
    before = resident_bytes()
    shard = Shard(spec, 0, GeneratedRows(spec, items), cache=cache)
    started = time.perf_counter()
    await shard.start()
    while (stats := await shard.stats()).state != gallery_service_pb2.INDEX_STATE_READY:
        if stats.state == gallery_service_pb2.INDEX_STATE_FAILED:
            raise RuntimeError(stats.message)
        await asyncio.sleep(0.1)
    seconds = time.perf_counter() - started
    await shard.settled()  # written to the cache too
    grown = resident_bytes() - before
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 - before
    await shard.close()
    await small.close()
    return {
        "index": stats.index,
        "memory_bytes_item": round(grown / items),
        "estimate_bytes_item": round(stats.memory_bytes / items),
        "peak_bytes_item": round(peak / items),
        "load_and_build_s": round(seconds, 1),
    }


def disk_bytes(spec: GallerySpec, items: int) -> dict[str, Any]:
    """Write the rows as one Lance dataset and say what it takes."""
    with tempfile.TemporaryDirectory() as folder:
        uri = f"{folder}/rows.lance"
        batches = GeneratedRows(spec, items).load(1)
        lance.write_dataset(batches, uri, schema=layout.store_schema(spec))
        size = sum(file.stat().st_size for file in Path(uri).rglob("*") if file.is_file())
    return {"index": "(Lance, on disk)", "disk_bytes_item": round(size / items)}


def measured(dim: int, items: int, kind: str) -> dict[str, Any]:
    """One line of the result, in this process."""
    spec = gallery(dim, kind)
    if kind == "disk":
        return disk_bytes(spec, items)
    with tempfile.TemporaryDirectory() as cache:
        return asyncio.run(shard_bytes(spec, items, Path(cache)))


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure each index and print a JSON line for it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--items", type=int, default=50_000, help="rows of the shard (default 50000)")
    parser.add_argument("--dim", type=int, default=512, help="numbers of a vector (default 512)")
    parser.add_argument(
        "--index",
        nargs="+",
        default=["flat", "hnsw", "HNSW32,SQfp16", "HNSW32,SQ8", "SQ8", "IVF256,SQ8", "IVF256,PQ64", "disk"],
        help="flat, hnsw, ivf, a FAISS factory string, or disk for the store",
    )
    options = parser.parse_args(arguments)
    if options.items < BLOCK:
        parser.error(f"--items must be at least {BLOCK}, got {options.items}")
    context = multiprocessing.get_context("spawn")
    for kind in options.index:
        with context.Pool(1) as pool:
            line = pool.apply(measured, (options.dim, options.items, kind))
        print(json.dumps({"items": options.items, "dim": options.dim, "asked": kind, **line}))
        sys.stdout.flush()


if __name__ == "__main__":
    main()
