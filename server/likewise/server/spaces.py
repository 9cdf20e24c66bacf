"""How the models of a family fit a gallery: of its space, or of a newer one that declares itself compatible with it.

A model trained to be backward compatible writes vectors whose first n numbers, once brought to unit length, compare
with the vectors of an older model (orthogonal alignment, stationary representations). So a gallery of n numbers goes on
being searched and filled by the newer models: whole vectors are encoded and composed, the first n numbers are taken.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from likewise.server.errors import FailedPrecondition
from likewise.server.protocols import Family, Models
from likewise.shards.protocols import F32
from likewise.shards.spec import GallerySpec, SpaceSpec


@dataclass(frozen=True, slots=True)
class Fit:
    """The models of a gallery.

    Attributes:
        family: The models as they were when the query began.
        leading: How many first numbers of their vectors the gallery's are; None when both are of one space.
    """

    family: Family
    leading: int | None = None

    def taken(self, vectors: F32) -> F32:
        """(n, gallery's dim) of raw (n, family's dim) vectors."""
        return vectors if self.leading is None else np.ascontiguousarray(vectors[:, : self.leading])


def leading(space: str, dim: int, compatible_with: Mapping[str, int], *, other: str, other_dim: int) -> int | None:
    """How many leading numbers of a vector of `space` compare with whole vectors of `other`; None if they do not.

    Args:
        space: Digest of the models' space.
        dim: Its dimension.
        compatible_with: What the models declare.
        other: Digest of the vectors to compare with.
        other_dim: Their dimension. Fewer declared numbers than that are not enough: a part of the stored vectors would
            be compared with nothing.
    """
    if space == other:
        return dim
    declared = compatible_with.get(other)
    return declared if declared == other_dim else None


def fit(models: Models, space: SpaceSpec, spec: GallerySpec) -> Fit | None:
    """The models that encode into a gallery's space; None for vectors only.

    Hold `Fit.family.lease()` while they are used.

    Raises:
        FailedPrecondition: SPACE_MISMATCH if the models of that name are others than those the gallery was filled with,
            and not compatible with them.
    """
    if not space.encoder:
        return None
    family = models.family(space.encoder)
    if family.space == space.digest:
        return Fit(family)
    first = leading(family.space, family.dim, family.compatible_with, other=space.digest, other_dim=space.dim)
    if first is None:
        raise FailedPrecondition(
            f"gallery {spec.name!r} holds vectors of the space {space.digest!r}, "
            f"the models {family.name!r} that are loaded encode into {family.space!r}",
            reason="SPACE_MISMATCH",
            metadata={"got": family.space, "expected": space.digest},
        )
    return Fit(family, first)
