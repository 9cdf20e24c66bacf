"""Several writes as one commit: what is left of them, and what each of them did.

Within a group the order of the requests decides: the last write of an id wins, deletes included. What a request reports
is what it would have reported had it been committed alone in its turn.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa


@dataclass(frozen=True, slots=True)
class Upsert:
    """Rows to write, in `layout.input_schema`; of an id given twice the last row wins."""

    rows: pa.RecordBatch


@dataclass(frozen=True, slots=True)
class Delete:
    """Ids to delete."""

    ids: Sequence[str]


@dataclass(frozen=True, slots=True)
class Tally:
    """How many ids a request wrote or deleted.

    Attributes:
        certain: Known without the store.
        if_stored: Ids that count if the store held them before the group.
    """

    certain: int
    if_stored: frozenset[str] = frozenset()

    def rows(self, existed: frozenset[str]) -> int:
        """The number, given the ids that the store held before the group."""
        return self.certain + len(self.if_stored & existed)


@dataclass(frozen=True, slots=True)
class Group:
    """One commit.

    Attributes:
        upserts: The rows to write, each id once; None for none.
        deleted_ids: Ids to delete, none of them in `upserts`.
        tallies: One a request, in order.
    """

    upserts: pa.Table | None
    deleted_ids: list[str]
    tallies: list[Tally]


def fold(writes: Sequence[Upsert | Delete]) -> Group:
    """Make one commit of writes, oldest first."""
    rows = 0
    batches: list[pa.RecordBatch] = []
    tallies: list[Tally] = []
    # Row of the id's last write in the concatenated batches, or -1 where that was a delete.
    last: dict[str, int] = {}
    for write in writes:
        if isinstance(write, Upsert):
            own = dict(zip(write.rows.column("id").to_pylist(), range(rows, rows + write.rows.num_rows), strict=True))
            last.update(own)
            batches.append(write.rows)
            rows += write.rows.num_rows
            tallies.append(Tally(len(own)))
        else:
            ids = set(write.ids)
            untouched = frozenset(item_id for item_id in ids if item_id not in last)
            tallies.append(Tally(sum(last.get(item_id, -1) >= 0 for item_id in ids), untouched))
            last.update(dict.fromkeys(ids, -1))
    deleted = [item_id for item_id, row in last.items() if row < 0]
    kept = np.sort(np.fromiter((row for row in last.values() if row >= 0), dtype=np.int64))
    if not len(kept):
        return Group(None, deleted, tallies)
    table = pa.Table.from_batches(batches)
    return Group(table if len(kept) == rows else table.take(pa.array(kept)), deleted, tallies)
