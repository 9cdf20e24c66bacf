"""Stored items by id or page by page, from however many shards hold them, as one answer."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Final, TypeVar

import numpy as np
import pyarrow as pa

from likewise import wire
from likewise.server.protocols import GalleryHandle
from likewise.shards import columns
from likewise.shards.protocols import F32, Rows, ShardSearch
from likewise.shards.spec import GallerySpec, shard_hash
from likewise.v1 import item_service_pb2 as pb

S = TypeVar("S")
T = TypeVar("T")

OFF_LOOP_CELLS: Final = 4_096
"""Rows times columns from which packing is worth leaving the event loop: about a millisecond of work."""


@dataclass(frozen=True, slots=True)
class Wanted:
    """What rows are to bring, and from which version on."""

    attributes: tuple[str, ...] = ()
    vectors: bool = False
    min_version: int = 0


@dataclass(frozen=True, slots=True)
class Found:
    """Rows of several shards and the order to give them in.

    Attributes:
        parts: One a shard that was asked.
        ids: All parts' ids, laid end to end.
        take: Positions in that, in the order of the answer.
        version: Oldest store version among the parts.
    """

    parts: tuple[Rows, ...]
    ids: list[str]
    take: list[int]
    version: int

    @property
    def rows(self) -> int:
        """Rows of the answer."""
        return len(self.take)


async def from_all(shards: Sequence[S], call: Callable[[S], Awaitable[T]]) -> list[T]:
    """What every shard answers, asked at once; the first failure cancels the other calls and is raised."""

    async def one(shard: S) -> T:
        return await call(shard)

    try:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(one(shard)) for shard in shards]
    except BaseExceptionGroup as failures:
        raise failures.exceptions[0] from None
    return [task.result() for task in tasks]


async def by_id(handle: GalleryHandle, ids: Sequence[str], wanted: Wanted) -> Found:
    """The items of those ids that are there, in the order given; an id given twice comes twice."""
    space = handle.spec.space().name
    owned: dict[int, list[str]] = {}
    for item_id in dict.fromkeys(ids):
        owned.setdefault(shard_hash(item_id) % len(handle.shards), []).append(item_id)
    # Without any id one shard is asked all the same: the answer states a version.
    owned = owned or {0: []}

    def fetch(number: int) -> Awaitable[Rows]:
        return handle.shards[number].fetch(
            owned[number],
            space=space,
            attributes=wanted.attributes,
            vectors=wanted.vectors,
            min_version=wanted.min_version,
        )

    parts = await from_all(list(owned), fetch)
    found = _ids(parts)
    position = {item_id: i for i, item_id in enumerate(found)}
    return _found(parts, found, [position[item_id] for item_id in ids if item_id in position])


async def page(handle: GalleryHandle, *, after: str, limit: int, filter: bytes, wanted: Wanted) -> tuple[Found, bool]:
    """Up to `limit` matching items with id > `after` in id order, and whether there are more."""
    space = handle.spec.space().name

    def next_rows(shard: ShardSearch) -> Awaitable[Rows]:
        # One more than wanted tells whether another page follows.
        return shard.page(
            after=after,
            limit=limit + 1,
            filter=filter,
            space=space,
            attributes=wanted.attributes,
            vectors=wanted.vectors,
            min_version=wanted.min_version,
        )

    parts = await from_all(handle.shards, next_rows)
    found = _ids(parts)
    # Python compares strings by code point, which is UTF-8 byte order.
    order = sorted(range(len(found)), key=found.__getitem__)
    return _found(parts, found, order[:limit]), len(order) > limit


def pack(found: Found, spec: GallerySpec, wanted: Wanted) -> pb.Items:
    """The rows as columns, vectors as they were given (unit vector times raw norm)."""
    take = np.asarray(found.take, dtype=np.int64)
    items = pb.Items(ids=[found.ids[i] for i in found.take])
    if wanted.attributes:
        table = pa.Table.from_batches([part.attributes for part in found.parts if part.attributes is not None])
        rows = table.take(pa.array(take)).combine_chunks()
        batches = rows.to_batches()
        batch = batches[0] if batches else pa.RecordBatch.from_pylist([], schema=rows.schema)
        items.attributes.extend(columns.batch_to_columns(spec, batch, wanted.attributes))
    if wanted.vectors:
        vectors = np.concatenate([_raw(part, spec) for part in found.parts])[take]
        items.vectors.CopyFrom(wire.encode_vectors(vectors, space=spec.space().digest))
    return items


def _found(parts: Sequence[Rows], ids: list[str], take: list[int]) -> Found:
    return Found(parts=tuple(parts), ids=ids, take=take, version=min(part.version for part in parts))


def _ids(parts: Sequence[Rows]) -> list[str]:
    return [item_id for part in parts for item_id in part.ids]


def _raw(part: Rows, spec: GallerySpec) -> F32:
    if part.vectors is None or part.norms is None:
        return np.empty((0, spec.space().dim), dtype=np.float32)
    return part.vectors * part.norms[:, np.newaxis]
