"""The checks can fail: each kind of wrong answer is told from a right one."""

import time
from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from tests.faults import operations, reads
from tests.faults.filters import Compare
from tests.faults.ledger import Ledger
from tests.faults.model import GalleryModel
from tests.faults.operations import Count, Delete, Get, ListItems, Read, Search, Upsert, item_id
from tests.faults.tally import Tally

from likewise.client import Unavailable

SEED = 3
CHEAP = Compare("price", "<", 50.0)
QUERY = Search(np.ones(operations.DIM, np.float32), 10, CHEAP, True)


class FakeGallery:
    """A gallery that answers from an oracle, through `spoil`."""

    def __init__(self, model: GalleryModel, spoil: Callable[[Any], None] = lambda answer: None) -> None:
        self._model = model
        self._spoil = spoil

    def get(self, ids: Sequence[str], *, vectors: bool) -> Any:
        slots = [int(one[-5:]) for one in ids]
        there = [slot for slot in slots if self._model.live[slot]]
        return self._spoiled(
            ids=[item_id(slot) for slot in there],
            missing=[item_id(slot) for slot in slots if not self._model.live[slot]],
            attributes=[self._model.attributes(slot) for slot in there],
            vectors=self._model.vectors[there],
        )

    def count(self, *, where: object) -> int:
        matching = self._model.matching(None if where is None else CHEAP)
        return int(self._spoiled(count=matching.sum()).count)

    def list(self, *, where: object, page_size: int) -> Any:
        slots = np.flatnonzero(self._model.matching(None if where is None else CHEAP)).tolist()
        items = [SimpleNamespace(id=item_id(slot), attributes=self._model.attributes(slot)) for slot in slots]
        return self._spoiled(items=items).items

    def search(self, **_: object) -> Any:
        expected = self._model.expected(QUERY)
        assert expected is not None
        live = int(self._model.live.sum())
        return self._spoiled(
            ids=[item_id(slot) for slot in expected.best.tolist()],
            scores=expected.scores[expected.best].astype(np.float32),
            attributes=[self._model.attributes(slot) for slot in expected.best.tolist()],
            coverage=SimpleNamespace(
                fraction=1.0, degradations=(), items_searched=live, items_total=live, shards_ok=1, shards_total=1
            ),
            plan=SimpleNamespace(shards=[SimpleNamespace(kind="exact_filtered")], summary=""),
        )

    def _spoiled(self, **answer: Any) -> Any:
        made = SimpleNamespace(**answer)
        self._spoil(made)
        return made


@pytest.fixture
def model() -> GalleryModel:
    model = GalleryModel()
    model.apply(Upsert(operations.first_rows(SEED, 0)))
    model.apply(Delete(np.arange(0, operations.SLOTS, 7)))
    return model


def _outside(model: GalleryModel) -> int:
    """A live item that `CHEAP` refuses."""
    return int(np.flatnonzero(model.live & ~CHEAP.mask(model._columns()))[0])


def _replace_last(answer: Any, model: GalleryModel, slot: int) -> None:
    answer.ids[-1], answer.attributes[-1] = item_id(slot), model.attributes(slot)


READS: list[Read] = [
    Get(np.arange(20)),
    Count(None),
    Count(CHEAP),
    ListItems(CHEAP, 5),
    QUERY,
]


@pytest.mark.parametrize("read", READS, ids=lambda read: type(read).__name__)
def test_right_answers_pass(model: GalleryModel, read: Read) -> None:
    reads.check_read(FakeGallery(model), model, read, Tally())  # type: ignore[arg-type]  # as much of one as is used


SPOILED: dict[str, tuple[Read, Callable[[Any, GalleryModel], None]]] = {
    "a lost item": (Get(np.arange(20)), lambda answer, _: answer.missing.append(answer.ids.pop())),
    "a deleted item": (Get(np.arange(20)), lambda answer, _: answer.ids.insert(0, item_id(0))),
    "another vector": (Get(np.arange(20)), lambda answer, _: answer.vectors.__imul__(-1)),
    "a wrong count": (Count(CHEAP), lambda answer, _: setattr(answer, "count", answer.count + 1)),
    "a left out row": (ListItems(CHEAP, 5), lambda answer, _: answer.items.pop(2)),
    "a deleted hit": (QUERY, lambda answer, model: _replace_last(answer, model, 7)),
    "a leaking filter": (QUERY, lambda answer, model: _replace_last(answer, model, _outside(model))),
    "the same hit twice": (QUERY, lambda answer, _: answer.ids.__setitem__(0, answer.ids[1])),
    "a starving filter": (QUERY, lambda answer, _: answer.ids.pop()),
    "another order": (QUERY, lambda answer, _: answer.ids.reverse()),
    "a wrong score": (QUERY, lambda answer, _: answer.scores.__isub__(0.01)),
    "an attribute of another write": (QUERY, lambda answer, _: answer.attributes[0].update(bucket=-1)),
    "coverage that claims too much": (QUERY, lambda answer, _: setattr(answer.coverage, "items_total", 1)),
    "an approximate way": (QUERY, lambda answer, _: setattr(answer.plan.shards[0], "kind", "ann")),
}


@pytest.mark.parametrize("wrong", SPOILED)
def test_wrong_answers_are_noticed(model: GalleryModel, wrong: str) -> None:
    read, spoil = SPOILED[wrong]
    gallery: Any = FakeGallery(model, lambda answer: spoil(answer, model))

    with pytest.raises(AssertionError):
        reads.check_read(gallery, model, read, Tally())


def test_what_a_store_lost_kept_and_altered_is_named(model: GalleryModel) -> None:
    other = model.copy()
    other.live[[1, 7]] = False, True
    other.bucket[2] += 1
    gallery: Any = FakeGallery(other)

    assert reads.differences(gallery, model) == {"lost": [1], "resurrected": [7], "altered": [2]}


def test_an_operation_depends_on_seed_lane_and_number_alone() -> None:
    first = [repr(operations.operation(SEED, 1, number)) for number in range(300)]
    again = [repr(operations.operation(SEED, 1, number)) for number in reversed(range(300))]

    assert first == again[::-1]
    assert first != [repr(operations.operation(SEED, 2, number)) for number in range(300)]


def test_a_read_may_see_the_last_acknowledged_write_and_those_under_way_or_cut_off() -> None:
    ledger = Ledger()
    before = time.monotonic()
    with ledger.writing({"a": 1}):
        assert ledger.possible("a", before, time.monotonic()) == {1, None}
    assert ledger.possible("a", time.monotonic(), time.monotonic()) == {1}
    with pytest.raises(Unavailable), ledger.writing({"a": 2}):
        raise Unavailable("cut off")
    assert ledger.possible("a", time.monotonic(), time.monotonic()) == {1, 2}
    with ledger.writing({"a": None}):
        assert ledger.certain("a") is None
    after = time.monotonic()
    assert ledger.possible("a", after, after) == {None}
    assert ledger.live_bounds(after, after) == (0, 0)
    assert ledger.possible("a", before, after) == {1, 2, None}
