import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from likewise.export.training.split import split_images


@given(st.lists(st.integers(0, 40), min_size=12, max_size=200), st.floats(0.05, 0.6), st.integers(0, 5))
def test_no_image_is_in_two_parts_and_copies_stay_together(marks: list[int], held_out: float, seed: int) -> None:
    fingerprints = [str(mark).encode() for mark in marks]

    split = split_images(fingerprints, held_out=held_out, seed=seed)

    parts = [set(part.tolist()) for part in (split.training, split.validation, split.test)]
    assert sorted(row for part in parts for row in part) == list(range(len(marks)))
    seen = [{fingerprints[row] for row in part} for part in parts]
    assert seen[0].isdisjoint(seen[1] | seen[2])
    assert seen[1].isdisjoint(seen[2])


def test_the_shares_are_those_asked_for() -> None:
    split = split_images([str(i).encode() for i in range(1000)], held_out=0.2, seed=0)

    assert [len(part) for part in (split.training, split.validation, split.test)] == [800, 100, 100]
    assert all((np.diff(part) > 0).all() for part in (split.training, split.validation, split.test))


def test_another_seed_draws_another_split() -> None:
    marks = [str(i).encode() for i in range(100)]

    assert (
        split_images(marks, held_out=0.2, seed=0).test.tolist()
        != split_images(marks, held_out=0.2, seed=1).test.tolist()
    )


@pytest.mark.parametrize("share", [0.0, 1.0, -0.1])
def test_a_share_that_leaves_a_part_empty_is_refused(share: float) -> None:
    with pytest.raises(ValueError, match="must lie between 0 and 1"):
        split_images([b"a", b"b"], held_out=share, seed=0)
