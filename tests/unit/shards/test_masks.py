"""What a filter leaves is worked out once and kept within a bound of bytes."""

import numpy as np
import pyarrow as pa
from tests.unit.shards.fakes import unit

from likewise.shards.copies import ContentOrder
from likewise.shards.filter import filter_key
from likewise.shards.index import SealedIndex, adopt, faiss
from likewise.shards.masks import GATHERED_SHARE, FilterCache
from likewise.shards.recipe import recipe
from likewise.shards.reduction import Reduction
from likewise.shards.rows import Snapshot, SpaceRows
from likewise.shards.spec import AttributeSpec, IndexSpec
from likewise.shards.strips import Part, Transposed
from likewise.v1 import common_pb2

DIM, ROWS, SEALED = 8, 100, 60
PRICE = AttributeSpec("price", common_pb2.ATTRIBUTE_TYPE_INT64)


def snapshot(*, mutation: int = 0, dead: int | slice | None = None, index: SealedIndex | None = None) -> Snapshot:
    """Rows priced 0 to 99, the first 60 sealed."""
    vectors = unit(np.random.default_rng(0).standard_normal((ROWS, DIM)))
    alive = np.ones(ROWS, dtype=bool)
    if dead is not None:
        alive[dead] = False
    return Snapshot(
        version=1,
        generation=0,
        mutation=mutation,
        size=ROWS,
        sealed=SEALED,
        ids=[f"{i:03d}" for i in range(ROWS)],
        content=np.arange(ROWS),
        by_content=ContentOrder.of(np.arange(ROWS)),
        stamps=np.arange(ROWS),
        table=pa.table({"content": np.arange(ROWS), "price": np.arange(ROWS)}),
        alive=alive,
        live=int(alive.sum()),
        sealed_live=int(alive[:SEALED].sum()),
        spaces={"s": SpaceRows(vectors[:SEALED], vectors[SEALED:], np.ones(ROWS, np.float32), index)},
    )


def at_least(price: int) -> bytes:
    value = common_pb2.Value(int64_value=price)
    operator = common_pb2.COMPARISON_OPERATOR_GREATER_OR_EQUAL
    return filter_key(
        common_pb2.Filter(comparison=common_pb2.Comparison(attribute="price", operator=operator, value=value))
    )


def test_the_rows_of_a_filter_are_copied_once_and_anew_after_a_change() -> None:
    cache, before = FilterCache([PRICE]), snapshot()
    after = snapshot(mutation=1, dead=70)

    first = cache.gathered(before, cache.allowed(before, at_least(55)), "s")
    again = cache.gathered(before, cache.allowed(before, at_least(55)), "s")
    later = cache.gathered(after, cache.allowed(after, at_least(55)), "s")

    assert first is again
    assert isinstance(first, Part)
    assert isinstance(later, Part)
    assert first.slots is not None
    assert later.slots is not None
    assert first.slots.tolist() == list(range(55, 100))
    assert first.vectors.tobytes() == before.spaces["s"].vectors(first.slots).tobytes()
    assert later.slots.tolist() == [slot for slot in range(55, 100) if slot != 70]


def reduced_index() -> SealedIndex:
    """Of rows of 4 numbers in place of 8."""
    spec = IndexSpec("flat")
    reduction = Reduction(np.eye(DIM, dtype=np.float32)[:3], slack=0.0)
    vectors = snapshot().spaces["s"].sealed
    index = faiss.IndexFlatIP(reduction.width)
    index.add(reduction.of(vectors))
    return adopt(index, recipe(spec, SEALED), spec, trained_rows=SEALED, reduction=reduction, vectors=vectors)


def meant(part: Part | Transposed | None) -> list[int]:
    """Slots of the rows that are compared."""
    assert isinstance(part, Transposed)
    return np.delete(part.slots, [] if part.gone is None else part.gone).tolist()


def test_reduced_rows_of_a_filter_are_used_until_many_of_them_are_gone() -> None:
    cache, index = FilterCache([PRICE]), reduced_index()

    def gathered(mutation: int, dead: int | slice | None = None) -> Part | Transposed | None:
        rows = snapshot(mutation=mutation, dead=dead, index=index)
        return cache.gathered(rows, cache.allowed(rows, at_least(20)), "s")

    first, fewer, again = gathered(0), gathered(1, 30), gathered(1, 30)
    fresh_died, half = gathered(2, 70), gathered(3, slice(30, 50))

    assert index.reduced is not None
    assert isinstance(first, Transposed)
    assert isinstance(fewer, Transposed)
    assert isinstance(half, Transposed)
    assert first.numbers.T.tobytes() == index.reduced[20:SEALED].tobytes()
    assert meant(first) == meant(fresh_died) == list(range(20, SEALED))
    assert meant(fewer) == [slot for slot in range(20, SEALED) if slot != 30]
    assert fewer.numbers is first.numbers
    assert again is fewer
    assert meant(half) == [*range(20, 30), *range(50, SEALED)]
    assert half.total == half.compared == 20


def test_a_search_of_older_rows_than_those_copied_has_its_own() -> None:
    cache, index = FilterCache([PRICE]), reduced_index()
    before, after = snapshot(index=index), snapshot(mutation=1, dead=30, index=index)

    newer = cache.gathered(after, cache.allowed(after, at_least(20)), "s")
    older = cache.gathered(before, cache.allowed(before, at_least(20)), "s")

    assert 30 not in meant(newer)
    assert 30 in meant(older)


def test_more_rows_than_a_share_of_the_cache_are_not_copied_and_all_of_it_stays_in_bound() -> None:
    most = 4_000
    cache, rows = FilterCache([PRICE], max_bytes=most), snapshot()
    row_bytes = 4 * DIM + 8
    fitting = most // GATHERED_SHARE // row_bytes

    fit, one_more = cache.allowed(rows, at_least(ROWS - fitting)), cache.allowed(rows, at_least(ROWS - fitting - 1))
    assert cache.gathers(rows, fit, "s")
    assert not cache.gathers(rows, one_more, "s")
    assert cache.gathered(rows, fit, "s") is not None
    assert cache.gathered(rows, one_more, "s") is None
    for price in range(ROWS - fitting, ROWS):
        cache.gathered(rows, cache.allowed(rows, at_least(price)), "s")
        assert cache.size_bytes <= most


def test_without_a_filter_nothing_is_copied() -> None:
    cache, rows = FilterCache([PRICE]), snapshot()

    assert cache.gathered(rows, cache.allowed(rows, b""), "s") is None


def test_a_filter_is_held_until_it_is_evaluated_anew_or_its_rows_are_let_go() -> None:
    row_bytes = 4 * DIM + 8
    cache, before = FilterCache([PRICE], max_bytes=2 * 45 * row_bytes + 600), snapshot()
    after = snapshot(mutation=1, dead=70)
    filter = at_least(55)

    assert not cache.holds(before, filter)
    allowed = cache.allowed(before, filter)
    assert cache.holds(before, filter)
    assert not cache.holds(after, filter)
    assert cache.gathered(before, allowed, "s") is not None
    assert cache.holds(before, filter)
    for price in (56, 57):  # whose rows take the place of those
        cache.allowed(before, filter)
        assert cache.gathered(before, cache.allowed(before, at_least(price)), "s") is not None
    assert not cache.holds(before, filter)
