"""Filters twice over: as the SDK sends them, and as numpy evaluates them on the oracle's columns."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import reduce
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from likewise.client import F
from likewise.client.filters import Filter

Mask = npt.NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class Column:
    """One attribute of all slots: `values` (n,) of any comparable dtype, `there` (n,) where an item has a value."""

    values: npt.NDArray[Any]
    there: Mask


Columns = Mapping[str, Column]


@dataclass(frozen=True, slots=True)
class Compare:
    """`attribute operator value`; an item without the attribute does not match."""

    attribute: str
    operator: Literal["==", "!=", "<", ">="]
    value: Any

    def mask(self, columns: Columns) -> Mask:
        column = columns[self.attribute]
        match self.operator:
            case "==":
                matches = column.values == self.value
            case "!=":
                matches = column.values != self.value
            case "<":
                matches = column.values < self.value
            case ">=":
                matches = column.values >= self.value
        return np.asarray(matches & column.there, bool)

    def sent(self) -> Filter:
        field = F[self.attribute]
        made: Filter
        match self.operator:
            case "==":
                made = field == self.value
            case "!=":
                made = field != self.value
            case "<":
                made = field < self.value
            case ">=":
                made = field >= self.value
        return made


@dataclass(frozen=True, slots=True)
class OneOf:
    """The attribute has one of these values."""

    attribute: str
    values: tuple[Any, ...]

    def mask(self, columns: Columns) -> Mask:
        column = columns[self.attribute]
        return np.asarray(np.isin(column.values, self.values) & column.there, bool)

    def sent(self) -> Filter:
        return F[self.attribute].isin(self.values)


@dataclass(frozen=True, slots=True)
class Exists:
    """The item has the attribute."""

    attribute: str

    def mask(self, columns: Columns) -> Mask:
        return columns[self.attribute].there.copy()

    def sent(self) -> Filter:
        return F[self.attribute].exists()


@dataclass(frozen=True, slots=True)
class Not:
    """The items that `part` does not match, those without the attribute included."""

    part: "Where"

    def mask(self, columns: Columns) -> Mask:
        return ~self.part.mask(columns)

    def sent(self) -> Filter:
        return ~self.part.sent()


@dataclass(frozen=True, slots=True)
class Both:
    """All of `parts`, or any of them."""

    how: Literal["and", "or"]
    parts: tuple["Where", ...]

    def mask(self, columns: Columns) -> Mask:
        masks = [part.mask(columns) for part in self.parts]
        return np.asarray((np.logical_and if self.how == "and" else np.logical_or).reduce(masks), bool)

    def sent(self) -> Filter:
        sent = [part.sent() for part in self.parts]
        return reduce(lambda a, b: a & b if self.how == "and" else a | b, sent)


Where = Compare | OneOf | Exists | Not | Both
