"""Sealing: rows of a snapshot into a new sealed block, and into partitions loaded or renumbered around it."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from likewise.shards import attributes, gpu, index_build, raw_vectors
from likewise.shards.cache import CachedIndex
from likewise.shards.copies import ContentOrder
from likewise.shards.index import SealedIndex
from likewise.shards.index_build import BuildStopped
from likewise.shards.protocols import F32, I64
from likewise.shards.recipe import recipe
from likewise.shards.rows import LiveRows, Snapshot, SpaceRows, numbers, vector_column
from likewise.shards.spec import GallerySpec

FRESH_ROWS: Final = 1_024
"""Fresh rows, or dead sealed ones, that are never worth a new seal."""

_COPY_ROWS: Final = 4_096

FRESH_SHARE: Final = 0.1
"""Of the sealed rows from which fresh ones are sealed at once; a smaller rest when builds have paused, see `pause`."""

DEAD_SHARE: Final = 0.125


@dataclass(frozen=True, slots=True)
class SealedSpace:
    """One space of a new block: (rows, dim) vectors, and the index over them if there is one."""

    vectors: F32
    index: SealedIndex | None


@dataclass(frozen=True, slots=True)
class SealedBlock:
    """A new sealed block, built from a snapshot.

    Attributes:
        source: The snapshot.
        slots: (rows,) slot in it of each position.
        spaces: By name.
    """

    source: Snapshot
    slots: I64
    spaces: Mapping[str, SealedSpace]


def due(snapshot: Snapshot, spec: GallerySpec) -> bool:
    """Whether a new seal would pay."""
    if snapshot.fresh > max(FRESH_ROWS, FRESH_SHARE * snapshot.sealed):
        return True
    if snapshot.sealed - snapshot.sealed_live > max(FRESH_ROWS, DEAD_SHARE * snapshot.sealed):
        return True
    return not all(
        index_build.serves(space.index, spec.index, snapshot.live, space.sealed.shape[1])
        for space in snapshot.spaces.values()
    )


def has_rest(snapshot: Snapshot, spec: GallerySpec) -> bool:
    """Whether there are fresh rows that are worth adding to the indexes there are, if nothing else is to do.

    Every search compares them one by one: 4,400 of 50,000 cost it more time than all that are sealed.
    """
    return snapshot.fresh > FRESH_ROWS and _extends(snapshot, spec)


def seal(
    snapshot: Snapshot,
    spec: GallerySpec,
    *,
    stop: Callable[[], bool] = lambda: False,
    busy: Callable[[], bool] = lambda: False,
    folder: Path | None = None,
) -> SealedBlock:
    """Build a sealed block of a snapshot's live rows; long, and for a thread of its own.

    Args:
        snapshot: The rows.
        spec: The gallery.
        stop: Gives the build up.
        busy: Searches are running, so that the build should leave them some cores.
        folder: Where raw vectors beside compressed ones lie; None to hold them in memory.

    Raises:
        BuildStopped: If `stop()` was true.
        RuntimeError: FAISS's reason.
        OSError: If the disk refuses.
    """
    wanted = recipe(spec.index, snapshot.live)
    extend = _extends(snapshot, spec)
    if extend:  # positions must stay, and the dead with them
        fresh = np.flatnonzero(snapshot.alive[snapshot.sealed :]) + snapshot.sealed
        slots = np.concatenate((np.arange(snapshot.sealed), fresh))
    else:
        slots = np.flatnonzero(snapshot.alive)
    intact = len(slots) == snapshot.size == snapshot.sealed  # after a load: the rows lie as they are to lie
    spaces = {}
    for described in spec.spaces:
        space = snapshot.spaces[described.name]
        if stop():
            raise BuildStopped
        built: SealedIndex | None = None
        if index_build.is_built(wanted, described.dim):

            def gather(positions: I64, space: SpaceRows = space) -> F32:
                return space.vectors(slots[positions])

            if wanted.factory in gpu.KINDS:
                built = gpu.build(len(slots), described.dim, wanted, spec.index, gather=gather, stop=stop)
            else:
                built = index_build.build(
                    len(slots),
                    described.dim,
                    wanted,
                    spec.index,
                    gather=gather,
                    base=space.index if extend else None,
                    held=space.sealed if intact and space.index is None else None,
                    stop=stop,
                    busy=busy,
                )
        if built is None:
            vectors = space.vectors(slots)
        else:
            vectors = _raw(space, slots, folder) if built.vectors is None else built.vectors
        spaces[described.name] = SealedSpace(vectors, built)
    return SealedBlock(snapshot, slots, spaces)


def _extends(snapshot: Snapshot, spec: GallerySpec) -> bool:
    """Whether the indexes there are can be added to."""
    wanted, dead = recipe(spec.index, snapshot.live), snapshot.sealed - snapshot.sealed_live
    return all(
        index_build.extendable(space.index, wanted, rows=snapshot.live, dead=dead) for space in snapshot.spaces.values()
    )


def _raw(space: SpaceRows, slots: I64, folder: Path | None) -> F32:
    vectors = raw_vectors.allocate(len(slots), space.sealed.shape[1], folder)
    for start in range(0, len(slots), _COPY_ROWS):
        piece = slice(start, start + _COPY_ROWS)
        vectors[piece] = space.vectors(slots[piece])
    return raw_vectors.settle(vectors)


def renumber(partition: LiveRows, block: SealedBlock, spec: GallerySpec) -> LiveRows:
    """The partition's newest rows around a new block, whatever was written while it was built.

    `partition` must be of the generation that the block was built from, and must not change meanwhile.
    """
    now, since = partition.snapshot, block.source
    order = np.concatenate((block.slots, np.arange(since.size, now.size)))
    ids = [now.ids[slot] for slot in order.tolist()]
    alive = now.alive[order]
    content = now.content[order]
    snapshot = Snapshot(
        version=now.version,
        generation=now.generation + 1,
        mutation=now.mutation + 1,
        size=len(order),
        sealed=len(block.slots),
        ids=ids,
        content=content,
        by_content=ContentOrder.of(content),
        stamps=now.stamps[order],
        table=now.table.take(pa.array(order)).combine_chunks(),
        alive=alive,
        live=now.live,
        sealed_live=int(np.count_nonzero(alive[: len(block.slots)])),
        spaces={
            name: SpaceRows(
                sealed=space.vectors,
                fresh=now.spaces[name].fresh[since.fresh :].copy(),
                norms=now.spaces[name].norms[order],
                index=space.index,
            )
            for name, space in block.spaces.items()
        },
    )
    return LiveRows(spec, snapshot, {ids[slot]: slot for slot in np.flatnonzero(alive).tolist()})


def load(
    spec: GallerySpec,
    read: Callable[[I64 | None], Iterable[pa.RecordBatch]],
    cached: Mapping[str, CachedIndex],
    *,
    version: int,
    after: Snapshot | None = None,
    folder: Path | None = None,
) -> LiveRows:
    """A partition from the store's rows and whatever sealed indexes were kept.

    Positions of a kept index whose row version is gone are dead; rows it does not have are fresh. Without one, all rows
    are sealed and only compared exactly.

    Args:
        spec: The gallery.
        read: All rows, in the store's schema; given the stamps, ascending, whose vectors are here already.
        cached: Kept indexes by space.
        version: Store version of the rows.
        after: The snapshot that this one replaces, if any.
        folder: As for `seal`.
    """
    reference = next((kept.stamps for kept in cached.values()), None)
    kept = {
        name: k.index for name, k in cached.items() if reference is not None and np.array_equal(k.stamps, reference)
    }
    rows = _Arrivals(spec, reference, kept, folder)
    for batch in read(rows.held()):
        rows.add(batch)
    return rows.partition(version, after)


class _Arrivals:
    """Rows in the order they arrive, on the way to their slots."""

    def __init__(
        self, spec: GallerySpec, reference: I64 | None, kept: Mapping[str, SealedIndex], folder: Path | None
    ) -> None:
        self._spec = spec
        self._folder = folder
        self._schema = attributes.table_schema(spec.attributes)
        self._kept = kept
        self._positions = 0 if reference is None else len(reference)
        self._by_stamp = np.argsort(reference) if reference is not None else None
        self._sorted = reference[self._by_stamp] if reference is not None else None
        self._ids: list[str] = []
        self._tables: list[pa.Table] = []
        self._columns: dict[str, list[npt.NDArray[Any]]] = {}
        # Where each row's vector goes: in the sealed block when it is given one to fill, else behind it.
        self._vectors: dict[str, list[F32]] = {space.name: [] for space in spec.spaces}

    def held(self) -> I64 | None:
        """Stamps, ascending, of the rows that need no vectors; None where there are no such rows."""
        return self._sorted if all(self._holds(space.name) for space in self._spec.spaces) else None

    def add(self, batch: pa.RecordBatch) -> None:
        if batch.num_rows == 0:
            return
        stamps = numbers(batch, "stamp", np.int64)
        found = self._find(stamps)
        self._ids.extend(batch.column("id").to_pylist())
        self._tables.append(attributes.align(batch, self._schema))
        self._keep("position", found)
        self._keep("stamp", stamps)
        self._keep("content", numbers(batch, "content", np.int64))
        for space in self._spec.spaces:
            self._keep(f"norm_{space.name}", numbers(batch, f"norm_{space.name}", np.float32))
            if f"vector_{space.name}" not in batch.schema.names:  # all of them are held
                continue
            vectors = vector_column(batch, space.name, space.dim)
            self._vectors[space.name].append(vectors[found < 0] if self._holds(space.name) else vectors)

    def partition(self, version: int, after: Snapshot | None) -> LiveRows:
        found = self._column("position", np.int64)
        new = found < 0
        slots = np.where(new, np.cumsum(new) - 1 + self._positions, found)
        size = self._positions + int(np.count_nonzero(new))
        sealed = self._positions if self._positions else size
        slot_of = dict(zip(self._ids, slots.tolist(), strict=True))
        alive = np.zeros(size, dtype=bool)
        alive[list(slot_of.values())] = True
        ids = [""] * size
        for slot, item_id in zip(slots.tolist(), self._ids, strict=True):
            ids[slot] = item_id
        arrival = np.full(size, -1, dtype=np.int64)
        arrival[slots] = np.arange(len(slots))
        table = pa.concat_tables(self._tables) if self._tables else self._schema.empty_table()
        content = _scatter(self._column("content", np.int64), slots, size)
        snapshot = Snapshot(
            version=version,
            generation=after.generation + 1 if after else 0,
            mutation=after.mutation + 1 if after else 0,
            size=size,
            sealed=sealed,
            ids=ids,
            content=content,
            by_content=ContentOrder.of(content),
            stamps=_scatter(self._column("stamp", np.int64), slots, size),
            table=table.take(pa.array(arrival, mask=arrival < 0)).combine_chunks(),
            alive=alive,
            live=int(np.count_nonzero(alive)),
            sealed_live=int(np.count_nonzero(alive[:sealed])),
            spaces={space.name: self._space(space.name, space.dim, slots, size, sealed) for space in self._spec.spaces},
        )
        return LiveRows(self._spec, snapshot, slot_of)

    def _find(self, stamps: I64) -> I64:
        """Position of each row version in the kept indexes, -1 for none."""
        if self._sorted is None or self._by_stamp is None or len(self._sorted) == 0:
            return np.full(len(stamps), -1, dtype=np.int64)
        at = np.minimum(np.searchsorted(self._sorted, stamps), len(self._sorted) - 1)
        return np.where(self._sorted[at] == stamps, self._by_stamp[at], -1)

    def _holds(self, space: str) -> bool:
        """Whether a kept index brings the sealed vectors itself."""
        return space in self._kept and self._kept[space].vectors is not None

    def _keep(self, name: str, values: npt.NDArray[Any]) -> None:
        self._columns.setdefault(name, []).append(values)

    def _column(self, name: str, dtype: type[Any]) -> npt.NDArray[Any]:
        pieces = self._columns.get(name)
        return np.concatenate(pieces) if pieces else np.zeros(0, dtype=dtype)

    def _space(self, name: str, dim: int, slots: I64, size: int, sealed: int) -> SpaceRows:
        kept = self._kept.get(name)
        norms = _scatter(self._column(f"norm_{name}", np.float32), slots, size)
        if kept is not None and kept.vectors is not None:
            fresh = _drain(self._vectors[name], np.arange(size - sealed), np.zeros((size - sealed, dim), np.float32))
            return SpaceRows(sealed=kept.vectors, fresh=fresh, norms=norms, index=kept)
        room = raw_vectors.allocate(size, dim, self._folder if kept is not None else None)
        everything = _drain(self._vectors[name], slots, room)
        fresh = everything[sealed:].copy()
        if kept is not None:
            raw_vectors.settle(everything)
        return SpaceRows(sealed=everything[:sealed], fresh=fresh, norms=norms, index=kept)


def _scatter(values: npt.NDArray[Any], slots: I64, size: int) -> npt.NDArray[Any]:
    result = np.zeros(size, dtype=values.dtype)
    result[slots] = values
    return result


def _drain(pieces: list[F32], slots: I64, room: F32) -> F32:
    """`room` with the rows at their slots; the pieces are let go one by one, so that two copies never exist."""
    pieces.reverse()
    start = 0
    while pieces:
        piece = pieces.pop()
        room[slots[start : start + len(piece)]] = piece
        start += len(piece)
    return room
