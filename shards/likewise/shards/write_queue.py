"""The writes that wait for a gallery's commit thread: how many may, and which of them form the next commit."""

import asyncio
from collections import deque
from dataclasses import dataclass, field
from typing import Final

from likewise.shards.answers import Mark
from likewise.shards.committer import Write
from likewise.shards.protocols import Overloaded, WriteResult
from likewise.v1 import common_pb2

_SHORTEST_WAIT_S: Final = 0.05
_LONGEST_WAIT_S: Final = 5.0


@dataclass(frozen=True, slots=True)
class WriterLimits:
    """How much may wait and how much one commit takes.

    Attributes:
        queue_rows: Rows (or ids to delete) that may wait.
        queue_bytes: Bytes of rows that may wait.
        group_rows: A commit takes no further request once it has so many rows.
        group_bytes: Likewise in bytes.
        results: Answers remembered by request id or place in a stream, and streams.
        pause_s: Idle time after which maintenance begins.
        drain_s: How long `GalleryWriter.close` waits for followers; they catch up from the store later.
    """

    queue_rows: int = 400_000
    queue_bytes: int = 512 << 20
    group_rows: int = 8_192
    group_bytes: int = 32 << 20
    results: int = 10_000
    pause_s: float = 1.0
    drain_s: float = 5.0


@dataclass(slots=True, eq=False)
class WriteRequest:
    """One write that waits, and all who wait for it: whoever repeats it waits with the first.

    Attributes:
        write: What is to be committed.
        mark: What it is known by to those that repeat it.
        rows: Rows, or ids to delete.
        size: Bytes.
        started: It is part of a commit.
        waiters: Given the answer.
    """

    write: Write
    mark: Mark
    rows: int
    size: int
    started: bool = False
    waiters: list[asyncio.Future[WriteResult]] = field(default_factory=list)


class WriteQueue:
    """Writes in the order in which they came.

    Args:
        limits: How much may wait and how much one commit takes.
    """

    def __init__(self, limits: WriterLimits) -> None:
        self._limits = limits
        self._requests: deque[WriteRequest] = deque()
        self._rows = 0
        self._bytes = 0
        self._pending: dict[str | tuple[str, int], WriteRequest] = {}
        self._rows_per_s = 10_000.0

    def __len__(self) -> int:
        """How many wait that are in no commit yet."""
        return len(self._requests)

    def find(self, mark: Mark) -> WriteRequest | None:
        """The request of that mark that is not answered yet; None if there is none."""
        return self._pending.get(mark.key) if mark.key else None

    def add(self, write: Write, mark: Mark, *, rows: int, size: int) -> WriteRequest:
        """Let a write wait.

        Raises:
            Overloaded: If too much waits already.
        """
        self._admit(rows, size)
        request = WriteRequest(write, mark, rows, size)
        self._requests.append(request)
        if mark.key:
            self._pending[mark.key] = request
        return request

    def take(self) -> list[WriteRequest]:
        """The requests of the next commit, in order; a delete by filter has to see all before it, so it goes alone."""
        limits = self._limits
        requests: list[WriteRequest] = []
        rows = size = 0
        while self._requests:
            head = self._requests[0]
            alone = isinstance(head.write, common_pb2.Filter)
            too_much = rows + head.rows > limits.group_rows or size + head.size > limits.group_bytes
            if requests and (alone or too_much):
                break
            self._requests.popleft()
            head.started = True
            requests.append(head)
            rows += head.rows
            size += head.size
            if alone:
                break
        return requests

    def withdraw(self, request: WriteRequest) -> None:
        """Take out a request that is in no commit yet."""
        self._requests.remove(request)
        self.forget(request)

    def forget(self, request: WriteRequest) -> None:
        """Give back the room of a request that was answered or withdrawn."""
        self._rows -= request.rows
        self._bytes -= request.size
        if request.mark.key:
            self._pending.pop(request.mark.key, None)

    def took(self, rows: int, seconds: float) -> None:
        """Learn how long a commit of so many rows took."""
        rate = rows / max(1e-6, seconds)
        # Smoothed over about the last eight groups, only for telling the overloaded when to come back.
        self._rows_per_s += (rate - self._rows_per_s) / 8

    def back_off_s(self) -> float:
        """How long until half of what may wait is done; 0 while less than that is waiting."""
        limits = self._limits
        load = max(self._rows / limits.queue_rows, self._bytes / limits.queue_bytes)
        if load <= 0.5:
            return 0.0
        return min(_LONGEST_WAIT_S, max(_SHORTEST_WAIT_S, (1 - 0.5 / load) * self._rows / self._rows_per_s))

    def _admit(self, rows: int, size: int) -> None:
        limits = self._limits
        full = self._rows + rows > limits.queue_rows or self._bytes + size > limits.queue_bytes
        # A request larger than the whole queue is let in when nothing waits; it could never be done otherwise.
        if full and self._rows:
            raise Overloaded(
                f"the write queue is full: {self._rows} rows and {self._bytes} bytes wait, "
                f"at most {limits.queue_rows} rows and {limits.queue_bytes} bytes may; got {rows} rows, {size} bytes",
                retry_after_s=min(_LONGEST_WAIT_S, max(_SHORTEST_WAIT_S, self._rows / self._rows_per_s)),
            )
        self._rows += rows
        self._bytes += size
