"""An in-memory store for shards to load from and follow, and a numpy oracle of what they should answer."""

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from likewise.shards.attributes import ARROW_TYPES
from likewise.shards.protocols import Changes, Delta, HistoryGone
from likewise.shards.spec import AttributeSpec, GallerySpec, IndexSpec, SpaceSpec, shard_hash
from likewise.v1 import common_pb2 as pb

F32 = npt.NDArray[np.float32]

ATTRIBUTES = (
    AttributeSpec("colour", pb.ATTRIBUTE_TYPE_STRING),
    AttributeSpec("count", pb.ATTRIBUTE_TYPE_INT64),
    AttributeSpec("price", pb.ATTRIBUTE_TYPE_DOUBLE),
    AttributeSpec("sold", pb.ATTRIBUTE_TYPE_BOOL),
    AttributeSpec("made", pb.ATTRIBUTE_TYPE_TIMESTAMP),
    AttributeSpec("tags", pb.ATTRIBUTE_TYPE_STRING_LIST),
)


def gallery(
    *,
    dim: int = 8,
    shards: int = 1,
    index: IndexSpec | None = None,
    attributes: Sequence[AttributeSpec] = ATTRIBUTES,
    gallery_id: str = "0" * 32,
    spaces: Sequence[str] = ("default",),
) -> GallerySpec:
    return GallerySpec(
        name="things",
        gallery_id=gallery_id,
        spaces=tuple(SpaceSpec(name, dim, f"vectors:{dim}") for name in spaces),
        attributes=tuple(attributes),
        shards=shards,
        index=index or IndexSpec(),
    )


def unit(vectors: npt.ArrayLike) -> F32:
    array = np.asarray(vectors, dtype=np.float32)
    result: F32 = (array / np.linalg.norm(array, axis=1, keepdims=True)).astype(np.float32)
    return result


def arrow_rows(
    spec: GallerySpec,
    ids: Sequence[str],
    vectors: F32 | Mapping[str, F32],
    attributes: Mapping[str, Sequence[Any] | npt.NDArray[Any]] | None = None,
    *,
    stamps: Sequence[int],
    content: Sequence[int] | None = None,
) -> pa.RecordBatch:
    """Rows in the store's schema."""
    by_space = vectors if isinstance(vectors, Mapping) else {space.name: vectors for space in spec.spaces}
    columns: dict[str, pa.Array] = {
        "id": pa.array(ids, pa.string()),
        "shard_hash": pa.array([shard_hash(item_id) for item_id in ids], pa.int64()),
        "stamp": pa.array(stamps, pa.int64()),
        "content": pa.array(content if content is not None else list(stamps), pa.int64()),
    }
    for space in spec.spaces:
        flat = np.ascontiguousarray(by_space[space.name], dtype=np.float32).reshape(-1)
        columns[f"vector_{space.name}"] = pa.FixedSizeListArray.from_arrays(pa.array(flat), space.dim)
        columns[f"norm_{space.name}"] = pa.array(np.full(len(ids), 2.0, dtype=np.float32))
    for attribute in spec.attributes:
        if attributes and attribute.name in attributes:
            columns[attribute.name] = pa.array(attributes[attribute.name], ARROW_TYPES[attribute.type])
        else:
            columns[attribute.name] = pa.nulls(len(ids), ARROW_TYPES[attribute.type])
    return pa.RecordBatch.from_pydict(columns)


@dataclass
class MemoryStore:
    """A store that commits at once and remembers every version.

    Attributes:
        spec: The gallery.
        keep_from: Oldest version that `changes` may start from.
    """

    spec: GallerySpec
    keep_from: int = 0
    version: int = 1
    rows: dict[str, tuple[pa.RecordBatch, int]] = field(default_factory=dict)
    commits: list[tuple[int, list[str], list[str]]] = field(default_factory=list)
    _stamps: Iterator[int] = field(default_factory=lambda: itertools.count(1))

    def commit(
        self,
        ids: Sequence[str] = (),
        vectors: F32 | Mapping[str, F32] | None = None,
        attributes: Mapping[str, Sequence[Any] | npt.NDArray[Any]] | None = None,
        *,
        content: Sequence[int] | None = None,
        deleted: Sequence[str] = (),
    ) -> Delta:
        dim = self.spec.spaces[0].dim
        given = vectors if vectors is not None else np.zeros((0, dim), dtype=np.float32)
        stamps = [next(self._stamps) for _ in ids]
        batch = arrow_rows(self.spec, ids, given, attributes, stamps=stamps, content=content)
        base, self.version = self.version, self.version + 1
        for row, item_id in enumerate(ids):
            self.rows[item_id] = (batch, row)
        for item_id in deleted:
            self.rows.pop(item_id, None)
        self.commits.append((self.version, list(ids), list(deleted)))
        return Delta(base_version=base, version=self.version, upserts=batch, deleted_ids=list(deleted))

    def source(self, shard: int = 0) -> "MemorySource":
        return MemorySource(self, shard)


@dataclass
class MemorySource:
    """One partition of a `MemoryStore`."""

    store: MemoryStore
    shard: int
    loads: int = 0
    reads: int = 0
    vectors_read: int = 0  # after a load that held some

    def version(self) -> int:
        return self.store.version

    def load(self, version: int, *, held: npt.NDArray[np.int64] | None = None) -> Iterator[pa.RecordBatch]:
        assert version == self.store.version
        self.loads += 1
        mine = [row for item_id, row in self.store.rows.items() if self._mine(item_id)]
        for start in range(0, len(mine), 1_000):
            batch = _joined(mine[start : start + 1_000])
            if held is None:
                yield batch
                continue
            known = np.isin(batch.column("stamp").to_numpy(), held)
            light = [name for name in batch.schema.names if not name.startswith("vector_")]
            yield batch.filter(pa.array(known)).select(light)
            self.vectors_read += int(np.count_nonzero(~known))
            yield batch.filter(pa.array(~known))

    def changes(self, since: int, until: int) -> Changes:
        self.reads += 1
        if since < self.store.keep_from:
            raise HistoryGone(f"version {since} is gone")
        touched: dict[str, None] = {}
        for version, ids, deleted in self.store.commits:
            if since < version <= until:
                touched |= dict.fromkeys((*ids, *deleted))
        mine = [item_id for item_id in touched if self._mine(item_id)]
        upserts = [self.store.rows[item_id] for item_id in mine if item_id in self.store.rows]
        empty = arrow_rows(self.store.spec, [], np.zeros((0, self.store.spec.spaces[0].dim), np.float32), stamps=[])
        return Changes(
            version=until,
            upserts=_joined(upserts) if upserts else empty,
            deleted_ids=[item_id for item_id in mine if item_id not in self.store.rows],
        )

    def _mine(self, item_id: str) -> bool:
        return shard_hash(item_id) % self.store.spec.shards == self.shard


def _joined(rows: Sequence[tuple[pa.RecordBatch, int]]) -> pa.RecordBatch:
    by_batch: dict[int, tuple[pa.RecordBatch, list[int]]] = {}
    for batch, row in rows:
        by_batch.setdefault(id(batch), (batch, []))[1].append(row)
    tables = [pa.Table.from_batches([batch.take(pa.array(taken))]) for batch, taken in by_batch.values()]
    return pa.concat_tables(tables, promote_options="default").combine_chunks().to_batches()[0]


def oracle(
    ids: Sequence[str], vectors: F32, query: F32, k: int, *, allowed: Sequence[bool] | None = None
) -> tuple[list[str], list[float]]:
    """The k best rows by (score descending, id ascending), computed the plain way."""
    scores = (vectors.astype(np.float64) @ query.astype(np.float64)).astype(np.float32)
    rows = [i for i in range(len(ids)) if allowed is None or allowed[i]]
    rows.sort(key=lambda i: (-scores[i], ids[i]))
    return [ids[i] for i in rows[:k]], [float(scores[i]) for i in rows[:k]]


def hits_of(hits: Any, query: int) -> list[str]:
    """Ids of one query's hits."""
    return list(hits.ids[hits.offsets[query] : hits.offsets[query + 1]])
