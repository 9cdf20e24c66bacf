"""Cuts a corpus into training, validation and test images, so that no image is in two of them."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

I64 = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Split:
    """Ascending rows of each part.

    Attributes:
        training: Learnt from.
        validation: Decides when to stop, and which weight a sum has.
        test: Measured on, once.
    """

    training: I64
    validation: I64
    test: I64


def split_images(fingerprints: Sequence[bytes], *, held_out: float, seed: int) -> Split:
    """Draw the parts by image: rows with the same fingerprint, copies of one image, stay together.

    Args:
        fingerprints: One per row.
        held_out: Share of the images for validation and for the test, half each; above 0 and below 1.
        seed: Another seed, another split.
    """
    if not 0 < held_out < 1:
        raise ValueError(f"the held-out share must lie between 0 and 1, got {held_out}")
    groups: dict[bytes, list[int]] = {}
    for row, mark in enumerate(fingerprints):
        groups.setdefault(mark, []).append(row)
    order = np.random.default_rng((seed, 11)).permutation(len(groups))
    members = list(groups.values())
    half = max(1, round(held_out * len(groups) / 2))
    parts = (order[2 * half :], order[:half], order[half : 2 * half])
    training, validation, test = (
        np.sort(np.asarray([r for g in part for r in members[g]], np.int64)) for part in parts
    )
    return Split(training, validation, test)
