"""Which versions of a family serve together, and to which others it may go from there. Values and pure functions.

A line-up has one version of each kind, all of one space; it is what one answer never mixes. A family goes from line-up
to line-up as a whole, so no check here looks at a single model.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from likewise.export.manifest import Kind, Manifest, ManifestError
from likewise.server import spaces
from likewise.server.errors import FailedPrecondition
from likewise.shards.spec import SpaceSpec

Versions = Mapping[str, int]
"""Model name to version."""


class LineupError(ValueError):
    """Models that cannot serve together.

    Attributes:
        spaces: The two digests when they are of two spaces: the odd one's, the image encoder's; else empty.
    """

    def __init__(self, message: str, *, spaces: tuple[str, ...] = ()) -> None:
        super().__init__(message)
        self.spaces = spaces


@dataclass(frozen=True, slots=True)
class Lineup:
    """Versions that serve together; made by `lineup_of`, which checks them."""

    image: Manifest
    text: Manifest | None = None
    composer: Manifest | None = None

    @property
    def members(self) -> tuple[Manifest, ...]:
        """The models there are: image encoder, text encoder, composer."""
        return tuple(one for one in (self.image, self.text, self.composer) if one is not None)

    @property
    def versions(self) -> dict[str, int]:
        """Version of each model, by name."""
        return {one.name: one.version for one in sorted(self.members, key=lambda one: one.name)}

    @property
    def keys(self) -> frozenset[tuple[str, int]]:
        """(name, version) of each model."""
        return frozenset((one.name, one.version) for one in self.members)

    @property
    def family(self) -> str:
        """The family's name."""
        return self.image.family

    @property
    def space(self) -> str:
        """Digest of the space they share."""
        return self.image.space

    @property
    def dim(self) -> int:
        """Its dimension."""
        return self.image.dim

    @property
    def compatible_with(self) -> dict[str, int]:
        """The older spaces that every one of them declares, with the same number of leading numbers."""
        others = [dict(one.compatible_with) for one in self.members[1:]]
        return {
            digest: leading
            for digest, leading in self.image.compatible_with.items()
            if all(other.get(digest) == leading for other in others)
        }

    def __str__(self) -> str:
        return ", ".join(f"{name}/{version}" for name, version in self.versions.items())


@dataclass(frozen=True, slots=True)
class History:
    """A family's line-up and the one kept beside it.

    Attributes:
        current: In use.
        previous: In use before the last promotion; a rollback goes back to it.
        withdrawn: What the last rollback left; kept to be looked at or promoted again, until the next promotion.
    """

    current: Lineup
    previous: Lineup | None = None
    withdrawn: Lineup | None = None

    @property
    def keys(self) -> frozenset[tuple[str, int]]:
        """(name, version) of everything that is in use or kept."""
        kept = (one for one in (self.current, self.previous, self.withdrawn) if one is not None)
        return frozenset(key for one in kept for key in one.keys)


def lineup_of(family: str, manifests: Iterable[Manifest]) -> Lineup:
    """The line-up of a family's models.

    Raises:
        LineupError: If two are of one kind, there is no image encoder, or they are not of one space.
    """
    kinds: dict[Kind, Manifest] = {}
    for one in manifests:
        other = kinds.setdefault(one.kind, one)
        if other is not one:
            raise LineupError(f"family {family!r} has two models of kind {one.kind}: {other.name!r} and {one.name!r}")
    image = kinds.get("image_encoder")
    if image is None:
        raise LineupError(f"family {family!r} has no image encoder")
    made = Lineup(image, kinds.get("text_encoder"), kinds.get("composer"))
    for one in made.members:
        if one.space != image.space:
            raise LineupError(
                f"family {family!r}: {one.name}/{one.version} is of space {one.space}, "
                f"{image.name}/{image.version} of {image.space}",
                spaces=(one.space, image.space),
            )
    return made


def highest(family: str, manifests: Iterable[Manifest]) -> Lineup:
    """The highest version of each model; errors as for `lineup_of`."""
    own = sorted((one for one in manifests if one.family == family), key=lambda one: one.version)
    return lineup_of(family, {one.name: one for one in own}.values())


def changed(family: str, current: Lineup | None, manifests: Sequence[Manifest]) -> Lineup:
    """`current` with these models in place of those of their kind.

    Raises:
        FailedPrecondition: SPACE_MISMATCH or FAMILY_INCOMPLETE if they cannot serve with the rest.
    """
    kinds = {one.kind for one in manifests}
    rest = [one for one in current.members if one.kind not in kinds] if current is not None else []
    try:
        return lineup_of(family, [*rest, *manifests])
    except LineupError as error:
        if not error.spaces:
            raise FailedPrecondition(str(error), reason="FAMILY_INCOMPLETE", metadata={"family": family}) from error
        got, expected = error.spaces
        names = ", ".join(one.name for one in rest)
        raise FailedPrecondition(
            f"{error}: one answer would mix two spaces. Promote versions of one space together, {names} as well",
            reason="SPACE_MISMATCH",
            metadata={"got": got, "expected": expected, "family": family},
        ) from error


def check_place(new: Manifest, known: Iterable[Manifest]) -> None:
    """Refuse a model that its family, or another family, has no place for.

    Raises:
        ManifestError: If other versions of it are of another kind or family, or its family has one of its kind.
    """
    for other in known:
        if other.name == new.name and (other.family, other.kind) != (new.family, new.kind):
            if other.version == new.version:
                continue
            raise ManifestError(
                f"version {other.version} is the {other.kind} of {other.family!r}, this one the {new.kind} of "
                f"{new.family!r}: a model keeps its kind and family"
            )
        if (other.family, other.kind) == (new.family, new.kind) and other.name != new.name:
            raise ManifestError(f"family {new.family!r} has a model of kind {new.kind} already, {other.name!r}")


def check_current(family: str, history: History | None, expected: Versions | None) -> None:
    """Refuse a switch that was decided on what is not in use any more.

    Raises:
        FailedPrecondition: MODELS_CHANGED.
    """
    if (history.current.versions if history is not None else None) != expected:
        raise FailedPrecondition(
            f"the models {family!r} were changed meanwhile, {history.current if history else 'none'} is in use: look "
            "again before promoting",
            reason="MODELS_CHANGED",
            metadata={"family": family},
        )


def check_change(old: Lineup, new: Lineup) -> None:
    """Refuse a promotion between spaces that do not compare.

    The way back from a compatible space is open too; whether a gallery was made for it since, `check_galleries` knows.

    Raises:
        FailedPrecondition: SPACE_MISMATCH with both digests, and what to do instead.
    """
    if _leading(new, old.space, old.dim) is None and _leading(old, new.space, new.dim) is None:
        raise _new_generation(f"{new.family!r} serves the space {old.space}", new, old.space, old.dim)


def check_galleries(new: Lineup, galleries: Iterable[tuple[str, SpaceSpec]]) -> None:
    """Refuse line-ups that would leave a gallery without models.

    Args:
        new: The line-up to come.
        galleries: Name and space of each gallery that the family encodes for.

    Raises:
        FailedPrecondition: SPACE_MISMATCH with both digests, naming the first such gallery.
    """
    for name, space in galleries:
        if space.encoder == new.family and _leading(new, space.digest, space.dim) is None:
            raise _new_generation(
                f"gallery {name!r} holds vectors of the space {space.digest}", new, space.digest, space.dim
            )


def _leading(new: Lineup, digest: str, dim: int) -> int | None:
    return spaces.leading(new.space, new.dim, new.compatible_with, other=digest, other_dim=dim)


def _new_generation(what: str, new: Lineup, digest: str, dim: int) -> FailedPrecondition:
    declared = new.compatible_with.get(digest)
    shares = (
        "does not declare it compatible"
        if declared is None
        else f"declares {declared} leading numbers compatible where its vectors have {dim}"
    )
    return FailedPrecondition(
        f"{what}; {new} would encode into {new.space}, which {shares}. Vectors of the two cannot be compared: a new "
        "gallery generation is required. Export the models under a family name of their own, load and promote them, "
        "create a gallery with that encoder, ingest the items again, and move the callers to it",
        reason="SPACE_MISMATCH",
        metadata={"got": new.space, "expected": digest, "family": new.family},
    )
