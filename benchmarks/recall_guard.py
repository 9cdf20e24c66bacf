"""What a shard's recall guard promises, keeps and costs: see `--help`.

A shard in this process answers one half of the queries while the guard checks some of them. Then the other half is
asked once for each target: the recall it really has, how hard the shard looked, and the time. One JSON line a target.
"""

import argparse
import asyncio
import json
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

# The rows are made by the script beside this one.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.item_memory import GeneratedRows, gallery

from likewise.cli.benchmark.dataset import F32, Dataset, as_ids, clustered, exact_topk
from likewise.shards.protocols import SearchOptions
from likewise.shards.recall import recall_at_k
from likewise.shards.shard import Shard, ShardLimits

K = 10


class DatasetRows(GeneratedRows):
    """The rows of a data set."""

    def __init__(self, spec: Any, dataset: Dataset) -> None:
        super().__init__(spec, len(dataset.base))
        self._base = dataset.base

    def vectors(self, start: int, stop: int) -> F32:
        """See `GeneratedRows.vectors`."""
        return self._base[start:stop]


async def measured(options: argparse.Namespace) -> None:
    """Measure and print."""
    dataset = clustered(options.items, options.dim, queries=2 * options.queries)
    spec = gallery(options.dim, options.index)
    with tempfile.TemporaryDirectory() as folder:
        limits = ShardLimits(recall_share=options.share, exact_rows=0)
        shard = Shard(spec, 0, DatasetRows(spec, dataset), cache=Path(folder), limits=limits)
        await shard.start()
        await shard.settled()
        await shard.checked()
        stand_ins = (await shard.stats()).recall_seconds
        searched_s = 0.0
        for query in dataset.queries[: options.queries]:
            started = time.perf_counter()
            await shard.search(query[np.newaxis], SearchOptions("", K, exact=False))
            searched_s += time.perf_counter() - started
            await asyncio.sleep(options.pause_ms / 1e3)
        await shard.checked()
        stats = await shard.stats()
        checks_s = stats.recall_seconds - stand_ins
        for estimate in stats.recall:
            report: dict[str, Any] = {"queries": estimate.queries, "recall": estimate.recall, "low": estimate.low}
            report |= {"high": estimate.high, "live": estimate.live, "local_dimension": estimate.local_dimension}
            report |= {"stand_ins_s": stand_ins, "checks_s": checks_s, "searched_s": searched_s}
            print(json.dumps({"what": "estimate", "index": options.index, **rounded(report)}), flush=True)
        asked = dataset.queries[options.queries :]
        truth = as_ids(exact_topk(dataset.base, asked, K)[0])
        for target in options.targets:
            found, started = [], time.perf_counter()
            for query in asked:
                hits = await shard.search(query[np.newaxis], SearchOptions("", K, target_recall=target))
                found.append(list(hits.ids))
            took_s = time.perf_counter() - started
            line: dict[str, Any] = {
                "target": target,
                "recall": recall_at_k(found, truth, K),
                "ms": 1e3 * took_s / len(asked),
            }
            line |= {"ef": hits.plan.ef, "nprobe": hits.plan.nprobe, "plan": int(hits.plan.kind)}
            print(json.dumps({"what": "target", "index": options.index, **rounded(line)}), flush=True)
        await shard.close()


def rounded(values: dict[str, Any]) -> dict[str, Any]:
    """The values to four places."""
    return {name: round(value, 4) if isinstance(value, float) else value for name, value in values.items()}


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure one index."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--items", type=int, default=50_000)
    parser.add_argument("--dim", type=int, default=512)
    parser.add_argument("--index", default="hnsw", help="as in a gallery's index.kind")
    parser.add_argument("--queries", type=int, default=500, help="before, and for each target")
    parser.add_argument("--targets", type=float, nargs="+", default=[0.8, 0.9, 0.95, 0.99, 0.999])
    parser.add_argument("--share", type=float, default=0.01, help="of the searches' time, for checks")
    parser.add_argument("--pause-ms", type=float, default=5.0, help="between queries before the targets")
    asyncio.run(measured(parser.parse_args(arguments)))


if __name__ == "__main__":
    main()
