"""What a client may do to a gallery, drawn at random.

Operation `number` of a lane depends on seed, lane and number alone, and not on what the ones before it made of the
gallery: a failure is repeated by naming them.
"""

from dataclasses import dataclass
from typing import Any, Final, Literal

import numpy as np
import numpy.typing as npt
from tests.faults.filters import Both, Compare, Exists, Not, OneOf, Where

F32 = npt.NDArray[np.float32]
I64 = npt.NDArray[np.int64]
F64 = npt.NDArray[np.float64]

DIM: Final = 8
SLOTS: Final = 3_200
"""Items that a gallery may have: enough for two shards to build graph indexes of."""

BUCKETS: Final = 48
COLOURS: Final = ("amber", "blue", "cyan", "green", "red")
ATTRIBUTES: Final[dict[str, object]] = {"bucket": "int64", "price": "double", "colour": "string"}

POOL: Final = 32
"""Vectors that many items share, so that scores tie and copies exist."""

RESTARTS: Final = 0.001
"""Probability of a restart, an operation."""

RESHAPES: Final = 0.0005
"""Probability of a change of index kind or shard count, an operation."""

RESHAPE_SHARDS: Final = True
"""Whether a served gallery can change its number of shards; False leaves the index kind alone to be changed."""

INDEX_KINDS: Final = ("flat", "hnsw", "auto", "ivf")
SHARDS: Final = (1, 2, 4)


@dataclass(frozen=True, slots=True)
class Rows:
    """Items to be written, m of them; a slot that is there twice counts by its last row.

    Attributes:
        slots: (m,) which items.
        keys: (m,) int64 identity of each vector: equal keys mean equal vectors.
        vectors: (m, DIM) float32, of any length but zero.
        bucket: (m,) int64.
        price: (m,) float64, NaN for no value.
        colour: (m,) index in `COLOURS`, -1 for no value.
    """

    slots: I64
    keys: I64
    vectors: F32
    bucket: I64
    price: F64
    colour: I64

    def attributes(self) -> dict[str, list[Any]]:
        """As the SDK takes them."""
        return {
            "bucket": self.bucket.tolist(),
            "price": [None if np.isnan(value) else value for value in self.price.tolist()],
            "colour": [None if code < 0 else COLOURS[code] for code in self.colour.tolist()],
        }


@dataclass(frozen=True, slots=True)
class Upsert:
    """Write rows."""

    rows: Rows


@dataclass(frozen=True, slots=True)
class Delete:
    """Delete items, there or not."""

    slots: I64


@dataclass(frozen=True, slots=True)
class DeleteWhere:
    """Delete what a filter matches."""

    where: Where


@dataclass(frozen=True, slots=True)
class Get:
    """Read items, there or not, with vectors and attributes."""

    slots: I64


@dataclass(frozen=True, slots=True)
class Count:
    """Count what a filter leaves; None for all."""

    where: Where | None


@dataclass(frozen=True, slots=True)
class ListItems:
    """The first `limit` items in id order that a filter leaves."""

    where: Where | None
    limit: int


@dataclass(frozen=True, slots=True)
class Search:
    """The k items most like a vector, or like a stored item, which then is left out with its exact copies.

    Attributes:
        reference: A vector, or the slot of an item.
        k: Hits wanted.
        where: Filter.
        exact: Ask for an exact search; None leaves the way to the server.
    """

    reference: F32 | int
    k: int
    where: Where | None
    exact: bool | None


@dataclass(frozen=True, slots=True)
class Restart:
    """End the server and start it again; `during` is written while it ends, `delay_s` after the write began."""

    how: Literal["kill", "terminate"]
    during: Upsert | Delete | None
    delay_s: float


@dataclass(frozen=True, slots=True)
class Reshape:
    """Change the gallery's index kind, shard count, or both; None leaves one as it is."""

    index: str | None
    shards: int | None


Write = Upsert | Delete | DeleteWhere
Read = Get | Count | ListItems | Search
Operation = Write | Read | Restart | Reshape

_WEIGHTS: Final[dict[str, float]] = {
    "upsert": 7,
    "update": 3,
    "delete": 2,
    "delete_where": 1,
    "get": 12,
    "count": 12,
    "list": 5,
    "search": 30,
    "filtered_search": 28,
}
_CHANCES: Final = np.cumsum(list(_WEIGHTS.values())) / sum(_WEIGHTS.values())


def item_id(slot: int) -> str:
    """Ids sort as their slots do."""
    return f"item-{slot:05d}"


def pool_vectors(seed: int) -> F32:
    """(POOL, DIM) float32."""
    return np.random.default_rng((seed, 0)).normal(size=(POOL, DIM)).astype(np.float32)


def first_rows(seed: int, lane: int) -> Rows:
    """What a gallery starts with: every slot."""
    return _rows(np.random.default_rng((seed, 1, lane)), seed, np.arange(SLOTS))


def operation(seed: int, lane: int, number: int) -> Operation:
    """Operation `number` of a lane."""
    rng = np.random.default_rng((seed, 2, lane, number))
    drawn = rng.random()
    if drawn < RESTARTS:
        return _restart(rng, seed)
    if drawn < RESTARTS + RESHAPES:
        return _reshape(rng)
    match list(_WEIGHTS)[int(np.searchsorted(_CHANCES, rng.random(), side="right"))]:
        case "upsert":
            many = 64 if rng.random() < 0.1 else 8
            return Upsert(_rows(rng, seed, rng.integers(SLOTS, size=rng.integers(1, many + 1))))
        case "update":  # neighbours: most of them are there, and some twice
            slots = (rng.integers(SLOTS) + rng.integers(3, size=rng.integers(1, 5))) % SLOTS
            return Upsert(_rows(rng, seed, slots))
        case "delete":
            return Delete(rng.integers(SLOTS, size=rng.integers(1, 5)))
        case "delete_where":
            cheap = Compare("price", "<", float(rng.integers(10, 600)) / 10)
            return DeleteWhere(Both("and", (Compare("bucket", "==", int(rng.integers(BUCKETS))), cheap)))
        case "get":
            return Get(rng.choice(SLOTS, size=rng.integers(1, 9), replace=False))
        case "count":
            return Count(_where(rng) if rng.random() < 0.7 else None)
        case "list":
            return ListItems(_where(rng) if rng.random() < 0.7 else None, int(rng.integers(1, 30)))
        case "search":
            return _search(rng, seed, None)
        case _:
            return _search(rng, seed, _where(rng))


def _rows(rng: np.random.Generator, seed: int, slots: I64) -> Rows:
    n = len(slots)
    keys = np.where(rng.random(n) < 0.2, rng.integers(POOL, size=n), rng.integers(POOL, 1 << 62, size=n))
    vectors = (rng.normal(size=(n, DIM)) * rng.uniform(0.5, 3.0, size=(n, 1))).astype(np.float32)
    shared = keys < POOL
    vectors[shared] = pool_vectors(seed)[keys[shared]]
    return Rows(
        slots=slots,
        keys=keys,
        vectors=vectors,
        bucket=rng.integers(BUCKETS, size=n),
        price=np.where(rng.random(n) < 0.1, np.nan, rng.integers(1_000, size=n) / 10),
        colour=np.where(rng.random(n) < 0.2, -1, rng.integers(len(COLOURS), size=n)),
    )


def _search(rng: np.random.Generator, seed: int, where: Where | None) -> Search:
    reference: F32 | int
    drawn = rng.random()
    if drawn < 0.15:
        reference = int(rng.integers(SLOTS))
    elif drawn < 0.4:
        reference = pool_vectors(seed)[rng.integers(POOL)]
    else:
        reference = rng.normal(size=DIM).astype(np.float32)
    return Search(reference, int(rng.integers(1, 41)), where, True if rng.random() < 0.5 else None)


def _where(rng: np.random.Generator, depth: int = 0) -> Where:
    drawn = rng.random()
    if depth < 2 and drawn < 0.25:
        parts = tuple(_where(rng, depth + 1) for _ in range(rng.integers(2, 4)))
        return Both("and" if rng.random() < 0.5 else "or", parts)
    if depth < 2 and drawn < 0.35:
        return Not(_where(rng, depth + 1))
    match int(rng.integers(6)):
        case 0:
            return Compare("bucket", "==", int(rng.integers(BUCKETS)))
        case 1:
            return Compare("price", "<", float(rng.integers(1_000)) / 10)
        case 2:
            return Compare("price", ">=", float(rng.integers(1_000)) / 10)
        case 3:
            chosen = rng.choice(len(COLOURS), size=rng.integers(1, 4), replace=False)
            return OneOf("colour", tuple(COLOURS[code] for code in chosen))
        case 4:
            return Compare("colour", "!=", COLOURS[rng.integers(len(COLOURS))])
        case _:
            return Exists("price" if rng.random() < 0.5 else "colour")


def _restart(rng: np.random.Generator, seed: int) -> Restart:
    rows = _rows(rng, seed, rng.integers(SLOTS, size=rng.integers(1, 65)))
    during = (Upsert(rows), Delete(rows.slots), None)[rng.integers(3)]
    return Restart("terminate" if rng.random() < 0.2 else "kill", during, float(rng.random() * 0.03))


def _reshape(rng: np.random.Generator) -> Reshape:
    index = INDEX_KINDS[rng.integers(len(INDEX_KINDS))]
    shards = SHARDS[rng.integers(len(SHARDS))] if RESHAPE_SHARDS else None
    return (Reshape(index, None), Reshape(None, shards), Reshape(index, shards))[rng.integers(3 if shards else 1)]
