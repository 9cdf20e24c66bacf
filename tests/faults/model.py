"""The oracle: one gallery as plain columns, and what a perfect server would answer from them."""

from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt
from tests.faults.filters import Column, Columns, Where
from tests.faults.operations import COLOURS, DIM, F32, F64, I64, SLOTS, Delete, DeleteWhere, Rows, Search, Upsert, Write

_COLOURS: Final = np.array([*COLOURS, ""])
"""Code -1 is the last one, "": the column says that it is not there."""


@dataclass(frozen=True, slots=True)
class Expected:
    """What a search may answer.

    Attributes:
        allowed: (SLOTS,) items that may be among the hits.
        scores: (SLOTS,) float64 similarity of every item, there or not.
        best: Slots of the k best allowed items by (float32 score descending, slot ascending).
    """

    allowed: npt.NDArray[np.bool_]
    scores: F64
    best: I64


class GalleryModel:
    """What a gallery holds, a row for each slot."""

    def __init__(self) -> None:
        self.live = np.zeros(SLOTS, bool)
        self.vectors: F32 = np.ones((SLOTS, DIM), np.float32)
        self.keys: I64 = np.zeros(SLOTS, np.int64)
        self.bucket: I64 = np.zeros(SLOTS, np.int64)
        self.price: F64 = np.full(SLOTS, np.nan)
        self.colour: I64 = np.full(SLOTS, -1, np.int64)
        self._unit: F64 = np.zeros((SLOTS, DIM))

    def copy(self) -> "GalleryModel":
        """The same, to be changed apart."""
        made = GalleryModel()
        for name, value in vars(self).items():
            setattr(made, name, value.copy())
        return made

    def apply(self, write: Write) -> int:
        """Make a write, and say how many rows the server should say it touched."""
        match write:
            case Upsert(rows):
                self._put(rows)
                return len(np.unique(rows.slots))
            case Delete(slots):
                there = np.unique(slots[self.live[slots]])
            case DeleteWhere(where):
                there = np.flatnonzero(self.matching(where))
        self.live[there] = False
        return len(there)

    def matching(self, where: Where | None) -> npt.NDArray[np.bool_]:
        """(SLOTS,) live items that the filter leaves."""
        return self.live if where is None else self.live & where.mask(self._columns())

    def expected(self, search: Search) -> Expected | None:
        """What a search should answer; None if its reference is an item that is not there."""
        allowed = self.matching(search.where)
        if isinstance(search.reference, int):
            if not self.live[search.reference]:
                return None
            query = self.vectors[search.reference]
            allowed = allowed & (self.keys != self.keys[search.reference])
        else:
            query = search.reference
        scores = self._unit @ (query.astype(np.float64) / np.linalg.norm(query.astype(np.float64)))
        rows = np.flatnonzero(allowed)
        best = rows[np.lexsort((rows, -scores[rows].astype(np.float32)))][: search.k]
        return Expected(allowed, scores, best)

    def attributes(self, slot: int) -> dict[str, Any]:
        """As the SDK gives them."""
        price, colour = float(self.price[slot]), int(self.colour[slot])
        return {
            "bucket": int(self.bucket[slot]),
            "price": None if np.isnan(price) else price,
            "colour": None if colour < 0 else COLOURS[colour],
        }

    def _put(self, rows: Rows) -> None:
        # numpy keeps the last of equal indexes, as the server does.
        self.live[rows.slots] = True
        self.vectors[rows.slots] = rows.vectors
        self.keys[rows.slots] = rows.keys
        self.bucket[rows.slots] = rows.bucket
        self.price[rows.slots] = rows.price
        self.colour[rows.slots] = rows.colour
        exact = rows.vectors.astype(np.float64)
        self._unit[rows.slots] = exact / np.linalg.norm(exact, axis=1, keepdims=True)

    def _columns(self) -> Columns:
        return {
            "bucket": Column(self.bucket, np.ones(SLOTS, bool)),
            "price": Column(self.price, ~np.isnan(self.price)),
            "colour": Column(_COLOURS[self.colour], self.colour >= 0),
        }
