import numpy as np
import pytest

from likewise.export.shapes.conditions import KINDS
from likewise.export.shapes.polish import shares
from likewise.export.shapes.triplets import NEGATIVES, Triplets
from likewise.export.shapes.world import THING_ATTRIBUTES


def _triplets(kinds: list[str], attributes: list[int]) -> Triplets:
    n = len(kinds)
    return Triplets(
        kind=np.asarray([KINDS.index(kind) for kind in kinds], np.int8),
        reference=np.zeros(n, np.int64),
        target=np.zeros(n, np.int64),
        negatives=np.full((n, NEGATIVES), -1, np.int64),
        texts=[["same"]] * n,
        attribute=np.asarray(attributes, np.int8),
        wanted=np.full((n, 4), -1, np.int8),
    )


def test_the_same_texture_is_asked_more_often_than_anything_else() -> None:
    texture, colour = THING_ATTRIBUTES.index("texture"), THING_ATTRIBUTES.index("colour")
    kinds = ["focus_attribute", "focus_attribute", "change_attribute", "focus_object"]

    drawn = shares(_triplets(kinds, [texture, colour, texture, -1]))

    assert drawn.sum() == pytest.approx(1.0)
    assert drawn[0] == pytest.approx(3 * drawn[1])
    assert np.ptp(drawn[1:]) == 0
