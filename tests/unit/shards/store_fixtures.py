"""Small galleries, rows and followers for the tests of the store and the writer."""

import asyncio
from collections.abc import Iterable
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from likewise.shards import snapshots
from likewise.shards.gallery_store import GalleryStore
from likewise.shards.layout import input_schema
from likewise.shards.protocols import Delta, UnknownAttribute
from likewise.shards.spec import AttributeSpec, GallerySpec, SpaceSpec
from likewise.shards.store import Store
from likewise.v1 import common_pb2 as pb

DIM = 4

SPEC = GallerySpec(
    name="shapes",
    gallery_id="0123456789abcdef0123456789abcdef",
    spaces=(SpaceSpec("default", DIM, f"vectors:{DIM}"),),
    attributes=(
        AttributeSpec("colour", pb.ATTRIBUTE_TYPE_STRING),
        AttributeSpec("price", pb.ATTRIBUTE_TYPE_INT64),
        AttributeSpec("tags", pb.ATTRIBUTE_TYPE_STRING_LIST),
        AttributeSpec("seen", pb.ATTRIBUTE_TYPE_TIMESTAMP),
    ),
    shards=2,
)


def rows(items: dict[str, int] | Iterable[tuple[str, int]], *, spec: GallerySpec = SPEC) -> pa.RecordBatch:
    """Rows of the writer's input layout: item id -> price; everything else follows from the two."""
    pairs = list(items.items() if isinstance(items, dict) else items)
    n = len(pairs)
    prices = [price for _, price in pairs]
    dim = spec.spaces[0].dim
    vectors = np.zeros((n, dim), np.float32)
    vectors[np.arange(n), np.array(prices, np.int64) % dim] = 1
    made = {
        "id": pa.array([item_id for item_id, _ in pairs], pa.string()),
        "content": pa.array(prices, pa.int64()),
        "vector_default": pa.FixedSizeListArray.from_arrays(pa.array(vectors.reshape(-1)), dim),
        "norm_default": pa.array(np.ones(n, np.float32)),
        "colour": pa.array(["red" if price % 2 else None for price in prices], pa.string()),
        "price": pa.array(prices, pa.int64()),
        "tags": pa.array([["a"] * (price % 3) for price in prices], pa.list_(pa.string())),
        "seen": pa.array(prices, pa.timestamp("us", "UTC")),
    }
    schema = input_schema(spec)
    columns = [made.get(field.name, pa.nulls(n, field.type)) for field in schema]
    return pa.record_batch(columns, schema=schema)


def table(items: dict[str, int]) -> pa.Table:
    """`rows` as a table."""
    return pa.Table.from_batches([rows(items)])


def prices(batches: Iterable[pa.RecordBatch]) -> dict[str, int]:
    """id -> price of stored rows; fails on an id that is there twice."""
    found: dict[str, int] = {}
    for batch in batches:
        for item_id, price in zip(batch.column("id").to_pylist(), batch.column("price").to_pylist(), strict=True):
            assert item_id not in found, f"{item_id} is there twice"
            found[item_id] = price
    return found


def match_price(rows: pa.Table, condition: pb.Filter) -> npt.NDArray[np.bool_]:
    """The filter "price OPERATOR value" for EQUAL and LESS: all that the writer's tests need."""
    comparison = condition.comparison
    if comparison.attribute != "price":
        raise UnknownAttribute("filter.comparison.attribute", f"no attribute {comparison.attribute!r}")
    column = rows["price"].to_numpy(zero_copy_only=False)
    value = comparison.value.int64_value
    mask: npt.NDArray[np.bool_]
    mask = column < value if comparison.operator == pb.COMPARISON_OPERATOR_LESS else column == value
    return mask


def cheaper_than(price: int, *, attribute: str = "price") -> pb.Filter:
    """price < `price`."""
    return pb.Filter(
        comparison=pb.Comparison(
            attribute=attribute, operator=pb.COMPARISON_OPERATOR_LESS, value=pb.Value(int64_value=price)
        )
    )


class Follower:
    """A sink that applies deltas to a dict and notes gaps."""

    def __init__(self, version: int) -> None:
        self.version = version
        self.items: dict[str, int] = {}
        self.gaps = 0
        self.deltas: list[Delta] = []

    async def apply(self, delta: Delta) -> None:
        self.deltas.append(delta)
        if delta.base_version != self.version:
            self.gaps += 1
        for item_id in delta.deleted_ids:
            self.items.pop(item_id)
        self.items |= prices([delta.upserts])
        self.version = delta.version


class StuckFollower(Follower):
    """A follower that takes nothing until it is let go."""

    def __init__(self, version: int) -> None:
        super().__init__(version)
        self.go = asyncio.Event()

    async def apply(self, delta: Delta) -> None:
        await self.go.wait()
        await super().apply(delta)


def restore(store: Store, gallery: GalleryStore, snapshot: str, name: str, **options: Any) -> GalleryStore:
    """A gallery made of a snapshot, in the store."""
    with snapshots.restored(store, gallery, snapshot, name, **options) as staged:
        return store.publish(staged, name)
