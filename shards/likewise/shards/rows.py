"""Rows of a partition in memory: append-only slots, and immutable snapshots of them.

A row version takes a slot and keeps it; replacing or deleting a row only marks its slot dead. So a snapshot is a length
and a bitmap over shared arrays, and a search that began before a write goes on undisturbed. Slots below `sealed` are
the positions of the sealed indexes, the others are the fresh rows. Only a new seal or a reload renumbers slots, and
that makes a new `LiveRows`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Generic, TypeVar

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from likewise.shards import attributes
from likewise.shards.copies import ContentOrder
from likewise.shards.index import SealedIndex, retuned
from likewise.shards.protocols import F32, I64
from likewise.shards.spec import GallerySpec

Mask = npt.NDArray[np.bool_]
_T = TypeVar("_T", bound=np.generic)


class Growing(Generic[_T]):
    """An array that grows at its end; views of its front stay valid and unchanged."""

    def __init__(self, front: npt.NDArray[_T]) -> None:
        self._array = front

    def extended(self, size: int, rows: npt.NDArray[Any]) -> npt.NDArray[_T]:
        """View of the first `size` rows followed by `rows`, which replace whatever was staged there before."""
        end = size + len(rows)
        if end > len(self._array):
            larger = np.empty((max(end, size + size // 2, 1_024), *self._array.shape[1:]), dtype=self._array.dtype)
            larger[:size] = self._array[:size]
            self._array = larger
        self._array[size:end] = rows
        return self._array[:end]


@dataclass(frozen=True, slots=True)
class SpaceRows:
    """Vectors of one space.

    Attributes:
        sealed: (sealed, dim) float32; the sealed index's own storage where that is possible.
        fresh: (fresh, dim) float32.
        norms: (size,) float32 raw norms.
        index: Over `sealed`; None where those rows are only compared exactly.
    """

    sealed: F32
    fresh: F32
    norms: F32
    index: SealedIndex | None

    @property
    def reduced(self) -> F32 | None:
        """(sealed, width) float32 the sealed rows as the index's reduction has them; None without one."""
        return None if self.index is None else self.index.reduced

    def vectors(self, slots: I64) -> F32:
        """(m, dim) copies of the rows at `slots`."""
        return self.copy(slots, np.empty((len(slots), self.sealed.shape[1]), dtype=np.float32))

    def copy(self, slots: I64, room: F32) -> F32:
        """The rows at `slots`, copied to (m, dim) `room`, which is returned."""
        first = len(self.sealed)
        if len(self.fresh) == 0 or (is_sealed := slots < first).all():
            # "clip" as numpy would otherwise copy twice; every slot is there.
            return np.take(self.sealed, slots, axis=0, out=room, mode="clip")
        room[is_sealed] = self.sealed[slots[is_sealed]]
        room[~is_sealed] = self.fresh[slots[~is_sealed] - first]
        return room


@dataclass(frozen=True, slots=True)
class Snapshot:
    """Rows as of one store version.

    Attributes:
        version: Store version.
        generation: Numbering of the slots; equal generations agree on every slot both have.
        mutation: Grows with every change of what is alive.
        size: Slots.
        sealed: Slots below which rows are in the sealed block.
        ids: Id of each slot; longer than `size` when newer snapshots share it.
        content: (size,) int64.
        by_content: Order of the first of them.
        stamps: (size,) int64.
        table: Content and attributes, `size` rows.
        alive: (size,) booleans.
        live: How many of them are true.
        sealed_live: How many of those are sealed.
        spaces: By name.
    """

    version: int
    generation: int
    mutation: int
    size: int
    sealed: int
    ids: Sequence[str]
    content: I64
    by_content: ContentOrder
    stamps: I64
    table: pa.Table
    alive: Mask
    live: int
    sealed_live: int
    spaces: Mapping[str, SpaceRows]

    @property
    def fresh(self) -> int:
        """Slots that are not sealed, dead ones included."""
        return self.size - self.sealed

    @property
    def tombstones(self) -> int:
        """Dead slots."""
        return self.size - self.live


@dataclass(frozen=True, slots=True)
class Staged:
    """A change that is ready to be shown."""

    snapshot: Snapshot
    slots: Mapping[str, int]
    gone: Sequence[str]


class LiveRows:
    """The newest snapshot of one numbering of slots, and what leads to the next.

    `stage` is for one caller at a time, in any thread; `publish` and `slots_of` are for the event loop's thread.
    """

    def __init__(self, spec: GallerySpec, snapshot: Snapshot, slot_of: dict[str, int]) -> None:
        self.snapshot = snapshot
        self._spec = spec
        self._slot_of = slot_of
        self._ids: list[str] = list(snapshot.ids[: snapshot.size])
        self.snapshot = replace(snapshot, ids=self._ids)
        self._schema = attributes.table_schema(spec.attributes)
        self._content: Growing[np.int64] = Growing(snapshot.content)
        self._stamps: Growing[np.int64] = Growing(snapshot.stamps)
        self._norms = {name: Growing(space.norms) for name, space in snapshot.spaces.items()}
        self._fresh = {name: Growing(space.fresh) for name, space in snapshot.spaces.items()}

    def slots_of(self, ids: Sequence[str]) -> list[int]:
        """Slots in the newest snapshot of those of `ids` it has, in the order given."""
        return [slot for item_id in ids if (slot := self._slot_of.get(item_id)) is not None]

    def renewed(self, spec: GallerySpec) -> "LiveRows":
        """The same rows under a description with other search parameters or more attributes."""
        now = self.snapshot
        spaces = {
            name: replace(space, index=retuned(space.index, spec.index) if space.index else None)
            for name, space in now.spaces.items()
        }
        table = attributes.align(now.table, attributes.table_schema(spec.attributes))
        return LiveRows(
            spec, replace(now, generation=now.generation + 1, table=table, spaces=spaces), dict(self._slot_of)
        )

    def stage(self, upserts: pa.RecordBatch | pa.Table, deleted_ids: Sequence[str], *, version: int) -> Staged:
        """Prepare a change; nothing is visible before `publish`.

        Rows that are there already, by stamp, are passed over, so a change may be applied again.
        """
        before = self.snapshot
        rows = own_rows(upserts, self._spec, self._slot_of, before.stamps)
        ids: list[str] = rows.column("id").to_pylist()
        size = before.size + len(ids)
        slots = dict(zip(ids, range(before.size, size), strict=True))
        dead = [slot for item_id in (*ids, *deleted_ids) if (slot := self._slot_of.get(item_id)) is not None]
        if len(slots) != len(ids):  # an id twice: the last one stays
            dead += [before.size + i for i, item_id in enumerate(ids) if slots[item_id] != before.size + i]
        alive = np.ones(size, dtype=bool)
        alive[: before.size] = before.alive
        alive[dead] = False
        content, stamps = numbers(rows, "content", np.int64), numbers(rows, "stamp", np.int64)
        spaces = {}
        for space in self._spec.spaces:
            old = before.spaces[space.name]
            vectors, norms = vector_column(rows, space.name, space.dim), numbers(rows, f"norm_{space.name}", np.float32)
            spaces[space.name] = replace(
                old,
                fresh=self._fresh[space.name].extended(before.fresh, vectors),
                norms=self._norms[space.name].extended(before.size, norms),
            )
        del self._ids[before.size :]
        self._ids.extend(ids)
        return Staged(
            snapshot=replace(
                before,
                version=version,
                mutation=before.mutation + (1 if ids or dead else 0),
                size=size,
                content=self._content.extended(before.size, content),
                stamps=self._stamps.extended(before.size, stamps),
                table=attributes.append(before.table, attributes.align(rows, self._schema)),
                alive=alive,
                live=int(np.count_nonzero(alive)),
                sealed_live=int(np.count_nonzero(alive[: before.sealed])),
                spaces=spaces,
            ),
            slots=slots,
            gone=[item_id for item_id in deleted_ids if item_id not in slots],
        )

    def publish(self, staged: Staged) -> None:
        """Show a staged change."""
        self._slot_of.update(staged.slots)
        for item_id in staged.gone:
            self._slot_of.pop(item_id, None)
        self.snapshot = staged.snapshot


def own_rows(
    rows: pa.RecordBatch | pa.Table, spec: GallerySpec, slot_of: Mapping[str, int], stamps: I64
) -> pa.RecordBatch | pa.Table:
    """Those of the rows whose version is not held yet."""
    if rows.num_rows == 0 or not slot_of:
        return rows
    held = np.array([slot_of.get(item_id, -1) for item_id in rows.column("id").to_pylist()], dtype=np.int64)
    known = held >= 0
    known[known] = stamps[held[known]] == numbers(rows, "stamp", np.int64)[known]
    return rows.filter(pa.array(~known)) if known.any() else rows


def numbers(rows: pa.RecordBatch | pa.Table, name: str, dtype: type[_T]) -> npt.NDArray[_T]:
    """A column of numbers without nulls."""
    column = rows.column(name)
    array: npt.NDArray[_T] = (
        column.to_numpy() if isinstance(column, pa.ChunkedArray) else column.to_numpy(zero_copy_only=False)
    )
    return array.astype(dtype, copy=False)


def vector_column(rows: pa.RecordBatch | pa.Table, space: str, dim: int) -> F32:
    """(rows, dim) float32 vectors of a space."""
    column = rows.column(f"vector_{space}")
    if isinstance(column, pa.ChunkedArray):
        column = column.combine_chunks() if column.num_chunks != 1 else column.chunk(0)
    if isinstance(column, pa.ChunkedArray):
        column = pa.concat_arrays(column.chunks)
    # flatten, unlike values, heeds the offset of a sliced column.
    flat: F32 = column.flatten().to_numpy(zero_copy_only=False)
    return flat.astype(np.float32, copy=False).reshape(len(column), dim)
