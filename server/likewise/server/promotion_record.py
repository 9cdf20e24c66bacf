"""What a store serves, on record: the versions in use of each family, and those kept to go back to.

The record lies in the store as `models.json`. It is written at the first start and by every promotion and rollback, and
read at each start, so that a restart serves what was promoted and not whatever version was put into a repository since.
"""

import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Protocol

from likewise.export.manifest import Manifest
from likewise.server.lineup import History, Lineup, LineupError, Versions, highest, lineup_of
from likewise.server.model_folders import ModelsError

DOCUMENT: Final = "models.json"
FORMAT: Final = 1

_LOG = logging.getLogger(__name__)


class Documents(Protocol):
    """Where the record is kept; `galleries.EmbeddedGalleries` is one."""

    async def read_document(self, name: str) -> Any:
        """The JSON document of that name, None if there is none."""
        ...

    async def write_document(self, name: str, value: Any) -> None:
        """Replace it; durable when this returns."""
        ...


@dataclass(frozen=True, slots=True)
class Recorded:
    """Versions of one family; the two others are None where there are none. See `lineup.History`."""

    current: Versions
    previous: Versions | None = None
    withdrawn: Versions | None = None


def to_json(families: Mapping[str, Recorded]) -> dict[str, Any]:
    """The document."""
    return {
        "format": FORMAT,
        "families": {
            family: {
                name: dict(versions)
                for name, versions in (
                    ("current", recorded.current),
                    ("previous", recorded.previous),
                    ("withdrawn", recorded.withdrawn),
                )
                if versions is not None
            }
            for family, recorded in sorted(families.items())
        },
    }


def histories_to_json(histories: Mapping[str, History]) -> dict[str, Any]:
    """The document of the families' histories."""
    return to_json({family: recorded(history) for family, history in histories.items()})


def from_json(document: Any) -> dict[str, Recorded]:
    """What a document says; nothing for None.

    Raises:
        ModelsError: If it is none of ours, or a newer release wrote it.
    """
    if document is None:
        return {}
    try:
        written = int(document["format"])
        if written > FORMAT:
            raise ModelsError(f"{DOCUMENT} of the store has format {written}, this release reads {FORMAT}: upgrade")
        return {
            str(family): Recorded(
                _versions(entry["current"]),
                _versions(entry["previous"]) if "previous" in entry else None,
                _versions(entry["withdrawn"]) if "withdrawn" in entry else None,
            )
            for family, entry in document["families"].items()
        }
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise ModelsError(
            f"{DOCUMENT} of the store is no record of models in use ({error!r}): mend it, or delete it to serve the "
            "highest version of each model"
        ) from error


def recorded(history: History) -> Recorded:
    """A history as it is written."""
    return Recorded(
        history.current.versions,
        history.previous.versions if history.previous is not None else None,
        history.withdrawn.versions if history.withdrawn is not None else None,
    )


def restored(family: str, record: Recorded | None, manifests: Sequence[Manifest]) -> History:
    """The line-ups of a family at a start.

    Without a record it is the highest version of each model. With one it is the recorded versions; a kind that was not
    there when they were recorded is filled with its highest version if that is of their space. When a recorded version
    is gone from the repository, the highest are served and an error is logged: galleries are protected by their space.

    Args:
        family: Its name.
        record: What the store says.
        manifests: Every version of every model that the repositories have.

    Raises:
        LineupError: If the highest versions are needed and do not fit together.
    """
    if record is None:
        return History(highest(family, manifests))
    known = {(one.name, one.version): one for one in manifests if one.family == family}
    current = _chosen(family, record.current, known)
    if current is None:
        newest = highest(family, manifests)
        was = ", ".join(f"{name}/{version}" for name, version in record.current.items())
        _LOG.error(
            "family %s: %s was in use and is gone from the repository or changed; serving %s", family, was, newest
        )
        return History(newest)
    current = _completed(family, current, known.values())
    newer = sorted(f"{n}/{v}" for n, v in known if v > current.versions.get(n, v))
    if newer:
        _LOG.warning("family %s serves %s as promoted; not in use: %s", family, current, ", ".join(newer))
    return History(current, _chosen(family, record.previous, known), _chosen(family, record.withdrawn, known))


def _chosen(family: str, versions: Versions | None, known: Mapping[tuple[str, int], Manifest]) -> Lineup | None:
    found = [known.get(key) for key in (versions or {}).items()]
    try:
        return lineup_of(family, [one for one in found if one is not None]) if found and None not in found else None
    except LineupError:
        # A manifest was changed in place.
        return None


def _completed(family: str, current: Lineup, manifests: Iterable[Manifest]) -> Lineup:
    kinds = {one.kind for one in current.members}
    added: dict[str, Manifest] = {}
    for one in sorted(manifests, key=lambda one: one.version):
        if one.kind not in kinds and one.space == current.space:
            added[one.kind] = one
    return lineup_of(family, [*current.members, *added.values()])


def _versions(value: Any) -> dict[str, int]:
    return {str(name): int(version) for name, version in value.items()}
