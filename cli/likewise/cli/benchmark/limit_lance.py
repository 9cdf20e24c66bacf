"""The limit of any durable write into Lance: the same rows in one write, nothing in between."""

import time
from pathlib import Path

import lance
import pyarrow as pa

from likewise.cli.benchmark.dataset import Dataset, item_id


def write(dataset: Dataset, folder: Path) -> float:
    """Write ids, vectors and attributes as a new Lance dataset; seconds taken, without making the columns."""
    rows, dim = dataset.base.shape
    table = pa.table(
        {
            "id": pa.array([item_id(row) for row in range(rows)]),
            "vector": pa.FixedSizeListArray.from_arrays(pa.array(dataset.base.reshape(-1)), dim),
            "share": pa.array(dataset.share),
            "cluster_share": pa.array(dataset.cluster_share),
        }
    )
    started = time.perf_counter()
    lance.write_dataset(table, str(folder), enable_stable_row_ids=True)
    return time.perf_counter() - started
