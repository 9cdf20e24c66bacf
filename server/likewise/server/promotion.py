"""Promote and roll back: from one line-up of a family to another, checked, compared on live queries, and switched to.

The order is: everything that can refuse first, then the comparison, then one atomic switch that is on record before the
first query sees it. Nothing is half done: a refusal or a vanished caller leaves the line-up in use as it was.
"""

import contextlib
import logging
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from likewise.export.manifest import Manifest
from likewise.server.errors import FailedPrecondition, InvalidRequest
from likewise.server.lineup import History, Lineup, Versions, changed, check_change, check_galleries
from likewise.server.model_control import ModelControl
from likewise.server.protocols import Family, Galleries, Models
from likewise.server.recent_queries import RecentQueries
from likewise.server.shadow import NOT_COMPARED, Comparison, compare
from likewise.shards.spec import SpaceSpec

_LOG = logging.getLogger(__name__)


class VersionedModels(Models, ModelControl, Protocol):
    """Models whose versions can be changed while the server runs."""

    def manifest(self, name: str, version: int) -> Manifest:
        """The manifest of a known version.

        Raises:
            NotFound: If there is no such model or version.
        """
        ...

    def history(self, family: str) -> History | None:
        """What is in use of a family and what is kept beside it; None if it serves nothing yet."""
        ...

    def candidate(self, lineup: Lineup) -> Family:
        """The family as it would be with that line-up; hold its lease while it is tried.

        Raises:
            FailedPrecondition: MODEL_NOT_LOADED if one of its versions is not ready.
        """
        ...

    async def switch(self, history: History, *, expected: Versions | None) -> None:
        """Make `history.current` what new queries get, durably, and free what `history` no longer keeps.

        Args:
            history: Of one family, from now on.
            expected: Versions that have to be in use until then; None for a family that serves nothing yet.

        Raises:
            FailedPrecondition: MODELS_CHANGED if others are in use; MODEL_NOT_LOADED.
        """
        ...


@dataclass(frozen=True, slots=True)
class Promoted:
    """What a promotion or a rollback came to."""

    history: History
    comparison: Comparison = NOT_COMPARED


class Promotions:
    """Changes which versions are in use.

    Args:
        models: The models of this process.
        galleries: What they are used for.
        recent: Live queries to compare on.
    """

    def __init__(self, models: VersionedModels, galleries: Galleries, recent: RecentQueries) -> None:
        self._models = models
        self._galleries = galleries
        self._recent = recent

    async def promote(self, wanted: Mapping[str, int], *, min_overlap: float = 0.0, force: bool = False) -> Promoted:
        """Use these versions of one family's models from now on.

        Args:
            wanted: Version of each model, by name; at least one. The family's other models stay.
            min_overlap: Least mean overlap of the comparison, in [0, 1].
            force: Do not compare.

        Raises:
            NotFound: If a version is not known.
            InvalidRequest: FAMILIES_MIXED.
            FailedPrecondition: MODEL_NOT_LOADED, SPACE_MISMATCH, FAMILY_INCOMPLETE, OVERLAP_TOO_LOW, NO_LIVE_QUERIES or
                MODELS_CHANGED.
        """
        started = time.perf_counter()
        manifests = [self._models.manifest(name, version) for name, version in wanted.items()]
        family = _one_family(manifests)
        before = self._models.history(family)
        lineup = changed(family, before.current if before is not None else None, manifests)
        if before is not None and lineup.versions == before.current.versions:
            return Promoted(before)
        if before is not None:
            check_change(before.current, lineup)
        check_galleries(lineup, self._spaces())
        candidate = self._models.candidate(lineup)
        comparison = NOT_COMPARED
        if before is not None and not force:
            comparison = await self._compare(family, candidate)
            _check_overlap(comparison, min_overlap, lineup)
        after = History(lineup, previous=before.current if before is not None else None)
        await self._models.switch(after, expected=before.current.versions if before is not None else None)
        _log("promotion", before, after, comparison, started)
        return Promoted(after, comparison)

    async def rollback(self, name: str) -> Promoted:
        """Go back to the line-up before the last promotion, for the family of the model `name`.

        Versions that were freed meanwhile are loaded again first.

        Raises:
            NotFound: If there is no such model.
            FailedPrecondition: NO_VERSION_BEFORE, MODEL_FAILED, SPACE_MISMATCH or MODELS_CHANGED.
        """
        started = time.perf_counter()
        family = self._family_of(name)
        before = self._models.history(family)
        if before is None or before.previous is None:
            raise FailedPrecondition(
                f"the models {family!r} have no version to go back to: nothing was promoted since "
                f"{'the last rollback' if before is not None and before.withdrawn is not None else 'they are served'}",
                reason="NO_VERSION_BEFORE",
                metadata={"family": family},
            )
        check_galleries(before.previous, self._spaces())
        for key in sorted(before.previous.keys - before.current.keys):
            await self._models.load(*key)
        after = History(before.previous, withdrawn=before.current)
        await self._models.switch(after, expected=before.current.versions)
        _log("rollback", before, after, NOT_COMPARED, started)
        return Promoted(after)

    async def _compare(self, family: str, candidate: Family) -> Comparison:
        old = self._models.family(family)
        with _leased(old, candidate):
            return await compare(self._recent.of(family), old, candidate, self._galleries)

    def _spaces(self) -> list[tuple[str, SpaceSpec]]:
        return [(handle.spec.name, space) for handle in self._galleries.handles() for space in handle.spec.spaces]

    def _family_of(self, name: str) -> str:
        for model in self._models.models():
            if model.name == name:
                return model.family
        # Says which there are.
        return self._models.manifest(name, 0).family


@contextlib.contextmanager
def _leased(*families: Family) -> Iterator[None]:
    with contextlib.ExitStack() as held:
        for family in families:
            held.enter_context(family.lease())
        yield


def _one_family(manifests: Sequence[Manifest]) -> str:
    families = sorted({one.family for one in manifests})
    if len(families) > 1:
        raise InvalidRequest(
            f"the models are of the families {families}: one promotion changes one family",
            reason="FAMILIES_MIXED",
            field="also",
        )
    return families[0]


def _check_overlap(comparison: Comparison, least: float, lineup: Lineup) -> None:
    if not least:
        return
    if not comparison.compared:
        raise FailedPrecondition(
            f"min_overlap {least:g} cannot be judged for {lineup}: no live query that the models take part in was seen "
            "yet; send some, leave min_overlap out, or force",
            reason="NO_LIVE_QUERIES",
            field="min_overlap",
        )
    if comparison.overlap < least:
        raise FailedPrecondition(
            f"{lineup} keep {comparison.overlap:.3f} of the top 10 of {comparison.compared} live queries, min_overlap "
            f"is {least:g}; lower it, or force",
            reason="OVERLAP_TOO_LOW",
            field="min_overlap",
            metadata={"overlap": f"{comparison.overlap:.6f}", "compared": str(comparison.compared)},
        )


def _log(what: str, before: History | None, after: History, comparison: Comparison, started: float) -> None:
    _LOG.info(
        "%s family=%s from=%r to=%r space=%s compared=%d overlap=%s duration_ms=%.3f",
        what,
        after.current.family,
        str(before.current) if before is not None else "",
        str(after.current),
        after.current.space,
        comparison.compared,
        f"{comparison.overlap:.3f}" if comparison.compared else "-",
        (time.perf_counter() - started) * 1e3,
    )
