"""Who may commit to a gallery: every writer raises an epoch in the dataset when it takes the gallery over.

A writer that was presumed dead (paused, cut off, on another machine) may wake up in the middle of a commit, long after
its successor began. No check before a commit can stop it: the pause may come right after the check. So the commit
itself has to fail, and Lance's is the only arbiter. A take-over is two Lance commits:

1. The claim: the next epoch, in the schema metadata. Whoever reads the gallery from here on knows of the successor, and
   a writer with an older epoch refuses to go on.
2. The barrier: a Merge that changes nothing. Lance rebases most commits over each other, appends above all, but lets
   neither a Merge over a write nor any write over a Merge (rust/lance/src/io/commit/conflict_resolver.rs; tried with
   pylance 14.0.2 for Update, Rewrite, UpdateConfig and Merge). What was prepared before the barrier is thus refused by
   Lance, and what is prepared after it has seen the claim.

Lance learns of a barrier only while the version that made it is in the store, so clean-ups keep everything from it on,
and a writer sets a new one from time to time (`GalleryStore.renew_barrier`), or nothing could ever be cleaned up.
"""

import json
import os
import socket
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any, Final, Self

from likewise.shards.protocols import StoreFailure, Unavailable

CLAIM_KEY: Final = "likewise.writer"
"""Schema metadata key of the newest writer's claim."""

TAKE_OVER_ATTEMPTS: Final = 20
"""Tries of each half of a take-over against a predecessor that still commits; every try takes some ms."""


class Fenced(Unavailable):
    """Another writer has taken the gallery over; whoever holds this one is to write through the other."""


class GalleryReadOnly(StoreFailure):
    """The gallery takes no writes."""


@dataclass(frozen=True, slots=True)
class Claim:
    """A writer's claim of a gallery.

    Attributes:
        epoch: Greater than that of every writer before; 0 while nobody ever took the gallery over.
        version: A store version before the barrier that goes with it, 0 if there is none.
        pid: Process id on its host, for people.
        host: Host name, for people.
        since: Unix time in seconds of the take-over, for people: nothing depends on clocks.
    """

    epoch: int = 0
    version: int = 0
    pid: int = 0
    host: str = ""
    since: float = 0.0

    def successor(self, version: int) -> Self:
        """The next claim, this process's, made on top of a store version."""
        return type(self)(self.epoch + 1, version, os.getpid(), socket.gethostname(), time.time())

    def to_json(self) -> str:
        """The claim as stored."""
        return json.dumps(asdict(self), sort_keys=True)


def claim_in(metadata: Mapping[bytes, bytes] | None) -> Claim:
    """The claim in a dataset's schema metadata.

    Raises:
        StoreFailure: If it cannot be read: a writer that cannot tell who else writes must not.
    """
    text = (metadata or {}).get(CLAIM_KEY.encode())
    if text is None:
        return Claim()
    try:
        fields = json.loads(text)
        return Claim(**{name: fields[name] for name in Claim.__slots__ if name in fields})
    except (ValueError, TypeError) as error:
        raise StoreFailure(f"the dataset's {CLAIM_KEY!r} cannot be read: {error}") from error


class Fence:
    """One writer's hold on a gallery; belongs to the thread that commits, but for `oldest_needed`.

    Whoever opens a gallery without taking it over may write until somebody does take it over.

    Args:
        reader: A `lance.LanceDataset` of the gallery's newest version.
        gallery: Its name, for messages.
        barrier: Makes the barrier on top of the newest version and returns the version that it is.
    """

    def __init__(self, reader: Any, gallery: str, barrier: Callable[[], int]) -> None:
        self._reader = reader
        self._gallery = gallery
        self._make_barrier = barrier
        self._claim = claim_in(reader.schema.metadata)
        self._barrier: int | None = None

    def take_over(self) -> None:
        """Claim the gallery and set the barrier; tried again when a commit of the predecessor comes between.

        Raises:
            Fenced: If yet another writer takes it over at the same time.
            OSError: If the store refused.
        """
        _insist(self._put_claim)
        _insist(self.renew)

    def renew(self) -> None:
        """Set the barrier anew, so that the versions before it may be forgotten."""
        self._barrier = self._make_barrier()

    def age(self, version: int) -> int:
        """Versions since the barrier; 0 without one."""
        return 0 if self._barrier is None else version - self._barrier

    def check(self, dataset: Any, *, doubt: bool = False) -> None:
        """Refuse to go on if a version holds a newer claim.

        Args:
            dataset: A `lance.LanceDataset` at that version.
            doubt: A commit was made before this was found; whether the successor saw it is not known.

        Raises:
            Fenced: If it does.
        """
        found = claim_in(dataset.schema.metadata)
        if found.epoch <= self._claim.epoch:
            return
        since = time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(found.since))
        outcome = "whether this write was stored is not known" if doubt else "nothing was written"
        raise Fenced(
            f"the writer of gallery {self._gallery!r} (epoch {self._claim.epoch}) has been succeeded by process "
            f"{found.pid} on {found.host} (epoch {found.epoch}, since {since}): {outcome}; write through that one"
        )

    def check_newest(self, *, doubt: bool) -> None:
        """`check` of the newest version in the store."""
        self.check(self._reader.checkout_version(self._reader.latest_version), doubt=doubt)

    def oldest_needed(self, newest: Any) -> int:
        """The oldest version that a clean-up must leave, given a `lance.LanceDataset` of the newest."""
        found = claim_in(newest.schema.metadata)
        if found.epoch > self._claim.epoch:
            return 0  # what may go is for the successor to say
        if self._barrier is not None:
            return self._barrier
        return found.version if found.epoch else int(newest.version)

    def _put_claim(self) -> None:
        dataset = self._reader.checkout_version(self._reader.latest_version)
        claim = claim_in(dataset.schema.metadata).successor(int(dataset.version))
        dataset.update_schema_metadata({CLAIM_KEY: claim.to_json()})
        self._claim = claim


def is_conflict(error: BaseException) -> bool:
    """Whether Lance refused a commit for another one that was made meanwhile."""
    text = str(error).lower()
    return "commit conflict" in text or "incompatible transaction" in text


def _insist(step: Callable[[], None]) -> None:
    for _ in range(TAKE_OVER_ATTEMPTS - 1):
        try:
            return step()
        except OSError as error:
            if not is_conflict(error):
                raise
    return step()
