"""Rows, queries and filters that the tests of a shard share."""

from pathlib import Path
from typing import Any

import numpy as np
from tests.unit.shards.fakes import MemoryStore, gallery, unit

from likewise.shards.filter import filter_key
from likewise.shards.protocols import SearchOptions
from likewise.shards.spec import IndexSpec
from likewise.v1 import common_pb2 as common

RNG = np.random.default_rng(7)
DIM = 16
IDS = [f"i{i:04d}" for i in range(1_500)]
VECTORS = unit(RNG.standard_normal((1_500, DIM)))
QUERIES = unit(RNG.standard_normal((5, DIM)))
TEN = SearchOptions(space="", k=10)
HNSW = IndexSpec(kind="hnsw", m=8)


def filled(**options: Any) -> MemoryStore:
    store = MemoryStore(gallery(dim=DIM, **options))
    store.commit(IDS, VECTORS, {"count": list(range(1_500)), "colour": ["red", None, "blue"] * 500})
    return store


def below(count: int) -> bytes:
    comparison = common.Comparison(
        attribute="count", operator=common.COMPARISON_OPERATOR_LESS, value=common.Value(int64_value=count)
    )
    return filter_key(common.Filter(comparison=comparison))


def files(folder: Path) -> list[str]:
    """Names of what lies in a folder."""
    return [path.name for path in folder.iterdir()]
