"""What large pages are worth to HNSW: two copies of one index, one of them moved, searched in turn in one process.

`cold`: other work went through the caches before each search, and the processor slept for 3 ms.
"""

import argparse
import statistics
import tempfile
import time
from collections import defaultdict
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from likewise.cli.benchmark import dataset as data
from likewise.shards import index, index_build
from likewise.shards.recipe import recipe
from likewise.shards.spec import IndexSpec

K = 15
ROUNDS = 6
OTHER_NUMBERS = 8 << 20


def main() -> None:
    """Print microseconds a query: medians, by batch, page size and what went before."""
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--items", type=int, default=50_000)
    arguments.add_argument("--dim", type=int, default=512)
    arguments.add_argument("--ef", type=int, default=24)
    arguments.add_argument("--batches", type=int, nargs="+", default=[1, 8, 32])
    options = arguments.parse_args()
    made = data.clustered(options.items, options.dim, queries=1_024, seed=0)
    spec = IndexSpec(kind="hnsw")
    wanted = recipe(spec, options.items)
    built = index_build.build(options.items, options.dim, wanted, spec, gather=made.base.__getitem__)
    small, large = (_copy(built) for _ in range(2))
    del built
    before, started = _large_kib(), time.perf_counter()
    index.use_large_pages(large)
    moved_ms = (time.perf_counter() - started) * 1e3
    print(f"moved {(_large_kib() - before) >> 10} MiB into large pages in {moved_ms:.0f} ms")
    other = np.random.default_rng(0).random(OTHER_NUMBERS)
    for size in options.batches:
        times: defaultdict[str, list[float]] = defaultdict(list)
        for _ in range(ROUNDS):
            for name, one in (("small", small), ("large", large)):
                for cold in (False, True):
                    times[f"{name} {'cold' if cold else 'hot'}"] += _times(
                        one, made.queries, size, options.ef, other if cold else None
                    )
        print(f"batch {size}: " + ", ".join(f"{name} {statistics.median(all_):.0f} us" for name, all_ in times.items()))


def _times(one: index.SealedIndex, queries: Any, size: int, ef: int, other: Any) -> list[float]:
    times = []
    for start in range(0, len(queries) - size, max(size, len(queries) // 50)):
        batch = np.ascontiguousarray(queries[start : start + size])
        if other is not None:
            other.sum()
            time.sleep(0.003)
        started = time.perf_counter()
        one.search(batch, K, ef=ef, nprobe=0)
        times.append((time.perf_counter() - started) / size * 1e6)
    return times


def _copy(one: index.SealedIndex) -> index.SealedIndex:
    with tempfile.NamedTemporaryFile() as file:
        index.write(one, file.write)
        file.flush()
        return replace(one, faiss_index=index.read(Path(file.name)))


def _large_kib() -> int:
    """KiB of this process in large pages."""
    lines = Path("/proc/self/smaps_rollup").read_text().splitlines()
    return sum(int(line.split()[1]) for line in lines if line.startswith("AnonHugePages"))


if __name__ == "__main__":
    main()
