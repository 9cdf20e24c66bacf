"""Reads against the oracle: what every answer has to be, whatever happened before."""

from itertools import islice
from typing import Final

import numpy as np
import pytest
from tests.faults.model import Expected, GalleryModel
from tests.faults.operations import SLOTS, Count, Get, ListItems, Read, Search, item_id
from tests.faults.tally import Tally

from likewise.client import Gallery, NotFound
from likewise.client.hits import Hits

TIED: Final = 2e-6
"""Scores that differ by less may come in either order: float32 and its order of summation tell no more."""

_SLOT: Final = {item_id(slot): slot for slot in range(SLOTS)}


def check_read(gallery: Gallery, model: GalleryModel, read: Read, tally: Tally) -> None:
    """Make a read and compare its answer with the oracle's.

    Raises:
        AssertionError: If they differ.
        LikewiseError: If the call fails.
    """
    match read:
        case Get():
            _get(gallery, model, read)
        case Count(where):
            got = gallery.count(where=None if where is None else where.sent())
            assert got == (wanted := int(model.matching(where).sum())), f"counted {got}, there are {wanted}"
        case ListItems():
            _list(gallery, model, read)
        case Search():
            _search(gallery, model, read, tally)


def differences(gallery: Gallery, model: GalleryModel) -> dict[str, list[int]]:
    """Slots in which the gallery is not what the oracle is: "lost", "resurrected", "altered"; all empty when equal."""
    got = gallery.get([item_id(slot) for slot in range(SLOTS)], vectors=True)
    slots = np.array([_SLOT[one] for one in got.ids], np.int64)
    there = np.zeros(SLOTS, bool)
    there[slots] = True
    assert got.vectors is not None or not len(slots)
    same = np.ones(SLOTS, bool)
    if got.vectors is not None:
        same[slots] = np.isclose(got.vectors, model.vectors[slots], rtol=1e-5, atol=1e-6).all(axis=1)
    attributes = got.attributes
    for row, slot in enumerate(slots.tolist()):
        same[slot] &= not model.live[slot] or attributes[row] == model.attributes(slot)
    return {
        "lost": np.flatnonzero(model.live & ~there).tolist(),
        "resurrected": np.flatnonzero(there & ~model.live).tolist(),
        "altered": np.flatnonzero(there & model.live & ~same).tolist(),
    }


def _get(gallery: Gallery, model: GalleryModel, read: Get) -> None:
    wanted = read.slots[model.live[read.slots]]
    got = gallery.get([item_id(slot) for slot in read.slots.tolist()], vectors=True)
    assert got.ids == [item_id(slot) for slot in wanted.tolist()]
    assert got.missing == [item_id(slot) for slot in read.slots.tolist() if not model.live[slot]]
    assert got.attributes == [model.attributes(slot) for slot in wanted.tolist()]
    if len(wanted):
        assert got.vectors is not None
        np.testing.assert_allclose(got.vectors, model.vectors[wanted], rtol=1e-5, atol=1e-6)


def _list(gallery: Gallery, model: GalleryModel, read: ListItems) -> None:
    where = None if read.where is None else read.where.sent()
    got = list(islice(gallery.list(where=where, page_size=read.limit), read.limit))
    wanted = np.flatnonzero(model.matching(read.where))[: read.limit].tolist()
    assert [item.id for item in got] == [item_id(slot) for slot in wanted]
    assert [item.attributes for item in got] == [model.attributes(slot) for slot in wanted]


def _search(gallery: Gallery, model: GalleryModel, search: Search, tally: Tally) -> None:
    expected = model.expected(search)
    if expected is None:
        assert isinstance(search.reference, int)
        with pytest.raises(NotFound):
            gallery.search(id=item_id(search.reference), k=search.k)
        return
    where = None if search.where is None else search.where.sent()
    if isinstance(search.reference, int):
        hits = gallery.search(
            id=item_id(search.reference), k=search.k, where=where, exact=bool(search.exact), attributes=True
        )
    else:
        hits = gallery.search(
            vector=search.reference, k=search.k, where=where, exact=bool(search.exact), attributes=True
        )
    slots = _check_hits(hits, model, expected, search)
    if any(not plan.kind.startswith(("exact", "empty")) for plan in hits.plan.shards):
        assert not search.exact, f"an exact search was answered by {hits.plan.summary}"
        tally.searches["approximate"] += 1
        tally.recall += len(np.intersect1d(slots, expected.best)) / max(1, len(expected.best))
    elif np.array_equal(slots, expected.best):
        tally.searches["identical"] += 1
    else:
        scores = expected.scores
        np.testing.assert_allclose(scores[slots], scores[expected.best], rtol=0, atol=TIED)
        tally.searches["equal scores"] += 1


def _check_hits(hits: Hits, model: GalleryModel, expected: Expected, search: Search) -> np.ndarray:
    """What holds of every answer, exact or not; gives the slots of the hits."""
    slots = np.array([_SLOT[one] for one in hits.ids], np.int64)
    assert len(np.unique(slots)) == len(slots), f"an item is there twice: {hits.ids}"
    wrong = slots[~expected.allowed[slots]]
    gone = wrong[~model.live[wrong]]
    assert not len(gone), f"deleted items came back: {gone.tolist()}"
    assert not len(wrong), f"the filter {search.where} let through {wrong.tolist()}, or copies of the reference"
    allowed = int(expected.allowed.sum())
    assert len(slots) == min(search.k, allowed), f"{len(slots)} hits of {allowed} allowed, k={search.k}"
    np.testing.assert_allclose(hits.scores, expected.scores[slots], rtol=0, atol=1e-5)
    order = np.lexsort((slots, -hits.scores))
    assert order.tolist() == list(range(len(slots))), "not by (score descending, id ascending)"
    assert hits.attributes == [model.attributes(slot) for slot in slots.tolist()]
    coverage, live = hits.coverage, int(model.live.sum())
    assert (coverage.fraction, coverage.degradations) == (1.0, ())
    assert (coverage.items_searched, coverage.items_total) == (live, live)
    assert coverage.shards_ok == coverage.shards_total == len(hits.plan.shards)
    return slots
