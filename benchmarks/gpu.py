"""Indexes on a GPU beside the card's own limits: see `--help`. Needs `likewise[gpu]` and a CUDA device.

Exact search of one query reads every vector once, so that memory bandwidth bounds it; in large batches it is one matrix
product, bound by the tensor cores. Both limits are measured in the same run, with torch where it is installed, else
they are taken from --bandwidth-gb and --teraflops.
"""

import argparse
import functools
import json
import time
from collections.abc import Callable, Sequence
from typing import Any, Final

import numpy as np

from likewise.cli.benchmark.dataset import Dataset, clustered, exact_topk
from likewise.shards import gpu
from likewise.shards.recipe import Recipe
from likewise.shards.spec import IndexSpec

K: Final = 10
BATCHES: Final = (1, 32, 256, 1_024)
SHARES: Final = (None, 0.33, 0.01)


def per_second(work: Callable[[], Any], seconds: float) -> float:
    """Calls a second, after three unmeasured ones."""
    for _ in range(3):
        work()
    calls, started = 0, time.perf_counter()
    while (elapsed := time.perf_counter() - started) < seconds:
        work()
        calls += 1
    return calls / elapsed


def measured_limits(seconds: float) -> tuple[float, float] | None:
    """Gigabytes a second that the card copies (read and written), and its teraflops in half precision; by torch."""
    try:
        import torch
    except ImportError:
        return None
    if not torch.cuda.is_available():
        return None
    source = torch.empty(1 << 30, dtype=torch.uint8, device="cuda")
    target = torch.empty_like(source)
    left = torch.randn(8_192, 8_192, dtype=torch.float16, device="cuda")

    def copy() -> None:
        target.copy_(source)
        torch.cuda.synchronize()

    def multiply() -> None:
        torch.matmul(left, left)
        torch.cuda.synchronize()

    bandwidth = per_second(copy, seconds) * 2 * source.numel() / 1e9
    return bandwidth, per_second(multiply, seconds) * 2 * 8_192**3 / 1e12


def lines(
    dataset: Dataset, kind: str, bandwidth_gb: float | None, teraflops: float | None, seconds: float
) -> list[dict[str, Any]]:
    """A result a batch and filter."""
    rows, dim = dataset.base.shape
    started = time.perf_counter()
    made = gpu.build(rows, dim, Recipe(kind), IndexSpec(kind=kind), gather=lambda positions: dataset.base[positions])
    build_s = time.perf_counter() - started
    found = []
    for share in SHARES:
        mask = None if share is None else dataset.share < share
        truth, _ = exact_topk(dataset.base, dataset.queries, K, allowed=mask)
        positions = made.search(dataset.queries, K, ef=128, nprobe=made.traits.nprobe, mask=mask).positions
        recall = np.mean([len(set(a) & set(b)) / K for a, b in zip(positions.tolist(), truth.tolist(), strict=True)])
        for batch in BATCHES:
            queries = np.resize(dataset.queries, (batch, dim))
            ask = functools.partial(made.search, queries, K, ef=128, nprobe=made.traits.nprobe, mask=mask)
            rate = per_second(ask, seconds) * batch
            line: dict[str, Any] = {"kind": kind, "n": rows, "dim": dim, "k": K, "filter": share, "batch": batch}
            line |= {"qps": round(rate, 1), "recall_at_k": round(float(recall), 4), "build_s": round(build_s, 2)}
            if kind == gpu.FLAT and bandwidth_gb:
                line["of_bandwidth"] = round(rate / batch / (bandwidth_gb * 1e9 / (rows * made.row_bytes)), 3)
            if kind == gpu.FLAT and teraflops:
                line["of_matmul"] = round(rate / (teraflops * 1e12 / (2 * rows * dim)), 3)
            found.append(line)
    return found


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure and print a JSON line for each result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--items", type=int, default=1_000_000)
    parser.add_argument("--dim", type=int, default=512)
    parser.add_argument("--kind", nargs="+", choices=gpu.KINDS, default=list(gpu.KINDS))
    parser.add_argument("--seconds", type=float, default=2.0, help="of each measurement")
    parser.add_argument("--bandwidth-gb", type=float, help="of the card, GB/s; default: measured with torch")
    parser.add_argument("--teraflops", type=float, help="of the card in half precision; default: measured with torch")
    options = parser.parse_args(arguments)
    if gpu.gpus() == 0:
        parser.error("needs a CUDA device and faiss-gpu-cuvs: pip install 'likewise[gpu]'")
    measured = measured_limits(options.seconds) or (None, None)
    bandwidth, teraflops = options.bandwidth_gb or measured[0], options.teraflops or measured[1]
    print(json.dumps({"limit": "card", "bandwidth_gb_s": bandwidth, "teraflops_half": teraflops}), flush=True)
    dataset = clustered(options.items, options.dim, queries=1_000)
    for kind in options.kind:
        for line in lines(dataset, kind, bandwidth, teraflops, options.seconds):
            print(json.dumps(line), flush=True)


if __name__ == "__main__":
    main()
