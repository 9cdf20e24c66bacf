"""Which versions of a gallery stay: tags, versions in use, and what a clean-up may forget."""

import logging
import threading
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Final

from likewise.shards.dataset_files import DatasetFiles
from likewise.shards.failures import is_missing, told_apart
from likewise.shards.protocols import HistoryGone, ShardError, StoreFailure
from likewise.shards.sync import sync_files

_log = logging.getLogger(__name__)


class TagExists(ShardError):
    """The dataset has a tag of that name."""


class TagNotFound(ShardError):
    """The dataset has no tag of that name."""


@dataclass(frozen=True, slots=True)
class Tag:
    """A named version, which no clean-up removes.

    Attributes:
        name: Unique in the dataset.
        version: What it names.
        created: When it was made, UTC; None if the tag does not say.
        metadata: What was stored with it.
    """

    name: str
    version: int
    created: datetime | None
    metadata: Mapping[str, str]


_HOLD: Final = "Held-"
"""Begins the names of the tags that `History.held` makes."""

_LISTINGS: Final = 20
"""Times that tags are listed before their coming and going is taken for something else."""


class History:
    """The versions of one dataset. Blocking; safe in several threads.

    Args:
        reader: A `lance.LanceDataset` of its newest version. Only read through: while one thread changes something
            through a dataset (a tag, too), any call of another on that object fails ("Already mutably borrowed").
        files: What to flush after a tag is made.
        oldest_needed: The oldest version that the gallery's fence needs, given a newest `lance.LanceDataset`.
    """

    def __init__(self, reader: Any, files: DatasetFiles, oldest_needed: Callable[[Any], int]) -> None:
        self._reader = reader
        self._files = files
        self._oldest_needed = oldest_needed
        # Held while anything is removed: what is in use is either named before a clean-up looks, or after it is done.
        self._removing = threading.Lock()
        self._pins: list[int] = []

    def newest_version(self) -> int:
        """The newest version in the store, whoever committed it."""
        with told_apart("reading the store's version"):
            return int(self._reader.latest_version)

    def notes(self, key: str, *, commits: int) -> list[tuple[int, str]]:
        """What the newest commits kept under a key of their transactions: (version, text), oldest first.

        Ends where a version has been cleaned up or came without its transaction, as that of a copied gallery does.
        """
        newest = self.newest_version()
        dataset = self.checkout(newest)
        found: list[tuple[int, str]] = []
        for version in range(newest, max(0, newest - commits), -1):
            try:
                transaction = dataset.read_transaction(version)
            except Exception as error:
                _log.debug("no transaction of version %d: %s", version, error)
                break
            if transaction is not None and (text := (transaction.transaction_properties or {}).get(key)):
                found.append((version, text))
        return found[::-1]

    def checkout(self, version: int) -> Any:
        """A `lance.LanceDataset` at a version.

        Raises:
            HistoryGone: If it has been cleaned up.
            StoreFailure: If it cannot be read or is not there yet.
        """
        try:
            return self._reader.checkout_version(version)
        except Exception as error:
            if not is_missing(error):
                raise StoreFailure(f"store version {version} cannot be read") from error
            newest = self.newest_version()
            if version > newest:
                raise StoreFailure(f"store version {version} is not there yet, the newest is {newest}") from error
            raise HistoryGone(f"store version {version} has been cleaned up, the newest is {newest}") from error

    @contextmanager
    def pinned(self, version: int) -> Iterator[Any]:
        """A `lance.LanceDataset` at a version that no clean-up of this process removes inside the block.

        Raises:
            HistoryGone: If it has been cleaned up already.
            StoreFailure: If it cannot be read or is not there yet.
        """
        with self._removing:
            dataset = self.checkout(version)
            self._pins.append(version)
        try:
            yield dataset
        finally:
            with self._removing:
                self._pins.remove(version)

    @contextmanager
    def held(self, version: int) -> Iterator[Any]:
        """As `pinned`, for clean-ups of other processes too: a tag says so, for as long as the block takes."""
        name = f"{_HOLD}{uuid.uuid4().hex}"
        with self.pinned(version) as dataset:
            self.tag(name, version, {})
            try:
                yield dataset
            finally:
                self._let_go(name)

    def drop_holds(self) -> None:
        """Forget what `held` left in processes that were killed inside its block.

        For whoever has the store's lock, before it holds anything itself.
        """
        try:
            with told_apart("reading what is held"):
                names = [name for name in _listed(self._reader) if name.startswith(_HOLD)]
        except ShardError as error:
            _log.warning("versions may stay held: %s", error)
            return
        for name in names:
            self._let_go(name)

    def _let_go(self, name: str) -> None:
        try:
            self.untag(name)
        except ShardError as error:
            # The gallery may be deleted by now; else the next start forgets it.
            _log.warning("a version stays held: %s", error)

    def clean_up(self, *, older_than_s: float, keep: int) -> int:
        """Remove versions that are older than that and not among the newest `keep`; returns how many went.

        Tagged and pinned versions stay, and so does everything from the newest writer's barrier on (see `fence`).
        """
        with told_apart("the clean-up failed"), self._removing:
            newest = self._reader.checkout_version(self.newest_version())
            oldest = min([self._oldest_needed(newest), *self._pins])
            stats = newest.cleanup_old_versions(
                older_than=timedelta(seconds=older_than_s),
                retain_versions=max(keep, int(newest.version) - oldest + 1),
                error_if_tagged_old_versions=False,
            )
            return int(stats.old_versions)

    def tags(self) -> list[Tag]:
        """All tags by name, but for those of `held`."""
        with told_apart("reading the snapshots"):
            found = _listed(self._reader)
        return [
            Tag(name, int(tag["version"]), tag["created_at"], tag["metadata"] or {})
            for name, tag in sorted(found.items())
            if tag["branch"] is None and not name.startswith(_HOLD)
        ]

    def tag(self, name: str, version: int, metadata: Mapping[str, str]) -> None:
        """Name a version; durable when this returns.

        Raises:
            TagExists: If the name is taken.
            HistoryGone: If the version has been cleaned up.
            StoreFailure: If the store refused, or has no such version yet.
        """
        with self._removing, told_apart("the snapshot could not be stored"):
            dataset = self.checkout(version)
            tags = dataset.tags
            if name in _listed(dataset):
                raise TagExists(name)
            try:
                tags.create(name, version)
            except ValueError as error:
                if is_missing(error):
                    raise HistoryGone(f"store version {version} has been cleaned up") from error
                raise
            try:
                tags.replace_metadata(name, dict(metadata))
                sync_files(self._files.tag(name))
            except Exception:
                tags.delete(name)
                raise

    def untag(self, name: str) -> None:
        """Forget a name; its version goes with one of the next clean-ups.

        Raises:
            TagNotFound: If there is none of that name.
            StoreFailure: If the store refused.
        """
        with self._removing, told_apart("the snapshot could not be deleted"):
            dataset = self.checkout(self.newest_version())
            if name not in _listed(dataset):
                raise TagNotFound(name)
            dataset.tags.delete(name)


def _listed(dataset: Any) -> dict[str, dict[str, Any]]:
    """Every tag, by name.

    Lance lists the files and then reads each: one that another process deletes in between fails the whole (14.0).
    """
    for _ in range(_LISTINGS - 1):
        try:
            found: dict[str, dict[str, Any]] = dataset.tags.list()
            return found
        except ValueError as error:
            if not is_missing(error):
                raise
    last: dict[str, dict[str, Any]] = dataset.tags.list()
    return last
