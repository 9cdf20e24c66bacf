"""Writes that were answered, so that one that is sent again is not applied again.

A write is known by its request id or by its place in a stream. Answers are kept in memory and, with every commit, in
the store: as a property of the very Lance transaction that applied the write, so that neither is there without the
other.
A writer that takes a gallery over reads the newest commits' answers back.
"""

import json
import logging
from collections import OrderedDict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from likewise.shards.protocols import StreamPosition, WriteResult

READ_BACK: Final = 256
"""Commits whose answers a new writer reads; 0.4 ms each. Clean-ups leave at least `MaintenancePolicy.keep_versions`."""

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Mark:
    """What a write is known by; neither: it cannot be told from another.

    Attributes:
        request_id: The caller's id of it, "" for none.
        position: Its place in a stream; counts instead of the id.
    """

    request_id: str = ""
    position: StreamPosition | None = None

    @property
    def key(self) -> str | tuple[str, int]:
        """Equal for a write and its repetition; "" for none."""
        return self.request_id if self.position is None else (self.position.stream_id, self.position.sequence)


@dataclass(slots=True)
class _Stream:
    settled: int = 0
    done: set[int] = field(default_factory=set)


class Answers:
    """The answers of one writer; belongs to its event loop.

    Args:
        limit: Answers, and streams, remembered; the oldest is forgotten first.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._results: OrderedDict[str | tuple[str, int], WriteResult] = OrderedDict()
        self._streams: OrderedDict[str, _Stream] = OrderedDict()

    def find(self, mark: Mark, *, version: int) -> WriteResult | None:
        """The answer to this write, if it had one.

        Args:
            mark: What it is known by.
            version: Newest store version: that of an answer of which only is remembered that there was one.
        """
        if not mark.key:
            return None
        known = self._results.get(mark.key)
        if (
            known is None
            and mark.position is not None
            and mark.position.sequence <= self.settled(mark.position.stream_id)
        ):
            return WriteResult(0, version)
        return known

    def add(self, mark: Mark, result: WriteResult) -> None:
        """Remember that a write was committed."""
        if not mark.key:
            return
        self._results[mark.key] = WriteResult(result.rows, result.version)
        if len(self._results) > self._limit:
            self._results.popitem(last=False)
        if (position := mark.position) is None:
            return
        stream = self._streams.setdefault(position.stream_id, _Stream())
        self._streams.move_to_end(position.stream_id)
        if len(self._streams) > self._limit:
            self._streams.popitem(last=False)
        stream.done.add(position.sequence)
        stream.settled = max(stream.settled, position.settled)
        if len(stream.done) > self._limit:
            # So long ago refused, and never confirmed: its answer was written before those of all these.
            stream.settled = max(stream.settled, min(stream.done))
        while stream.settled + 1 in stream.done:
            stream.settled += 1
        stream.done = {sequence for sequence in stream.done if sequence > stream.settled}

    def settled(self, stream_id: str) -> int:
        """Sequence up to which every message of a stream is settled; 0 for a stream that is not known."""
        stream = self._streams.get(stream_id)
        return 0 if stream is None else stream.settled

    def read_back(self, commits: Iterable[tuple[int, str]]) -> None:
        """Remember the answers that commits have kept: (store version, `to_text`), oldest first."""
        for version, text in commits:
            for mark, rows in _from_text(text, version):
                self.add(mark, WriteResult(rows, version))


def to_text(answers: Iterable[tuple[Mark, int]]) -> str:
    """The marks of a commit's writes and the rows of each, to be kept with it; "" if none has a mark."""
    ids: dict[str, int] = {}
    streams: dict[str, list[tuple[int, int, int]]] = {}
    for mark, rows in answers:
        if (position := mark.position) is not None:
            streams.setdefault(position.stream_id, []).append((position.sequence, position.settled, rows))
        elif mark.request_id:
            ids[mark.request_id] = rows
    kept: Mapping[str, Any] = {"requests": ids, "streams": streams}
    return json.dumps(kept, separators=(",", ":")) if ids or streams else ""


def _from_text(text: str, version: int) -> list[tuple[Mark, int]]:
    try:
        kept = json.loads(text)
        found = [(Mark(str(request_id)), int(rows)) for request_id, rows in kept["requests"].items()]
        for stream_id, messages in kept["streams"].items():
            for sequence, settled, rows in messages:
                position = StreamPosition(str(stream_id), int(sequence), int(settled))
                found.append((Mark(position=position), int(rows)))
    except (ValueError, TypeError, KeyError, AttributeError):
        # Of a newer release: a repetition would be applied again, as it would be after the commit is forgotten.
        _log.warning("the answers kept with version %d cannot be read", version)
        return []
    return found
