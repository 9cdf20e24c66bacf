"""Lines of finished calls, formatted and written many at once by a thread; everything else at once, in order.

A line took 61 us of the event loop to format and write, and takes 10 to keep. What is told about a call does not change
after it, so it can wait a moment; a warning may be the last thing a process says, and does not.
"""

import logging
import threading
import time
from collections import deque
from typing import Final, TextIO

MAX_WAITING: Final = 20_000
"""Lines of calls held; further ones are counted and left out."""

WRITE_EVERY_S: Final = 0.05


class LogWriter(logging.Handler):
    """Writes records to a stream; those that carry a `call` later, together.

    Args:
        stream: Where to.
        most: Lines of calls held before further ones are left out.
    """

    def __init__(self, stream: TextIO, *, most: int = MAX_WAITING) -> None:
        super().__init__()
        self._stream = stream
        self._most = most
        self._waiting: deque[logging.LogRecord] = deque()
        self._left_out = 0
        self._writing = threading.Lock()
        self._some = threading.Event()
        self._closed = False
        self._thread: threading.Thread | None = None

    def emit(self, record: logging.LogRecord) -> None:
        """Keep the line of a call; write any other, and what waits before it."""
        if not hasattr(record, "call"):
            self._write([record])
            return
        if len(self._waiting) >= self._most:
            self._left_out += 1
            return
        self._waiting.append(record)
        if not self._some.is_set():
            self._some.set()
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="likewise-log", daemon=True)
                self._thread.start()

    def flush(self) -> None:
        """Write what waits."""
        self._write([])

    def close(self) -> None:
        """Write what waits and end the thread."""
        self._closed = True
        self._some.set()
        if self._thread is not None:
            self._thread.join()
        self.flush()
        super().close()

    def _run(self) -> None:
        while not self._closed:
            self._some.wait()
            if not self._closed:
                time.sleep(WRITE_EVERY_S)
            self._some.clear()
            self._write([])

    def _write(self, last: list[logging.LogRecord]) -> None:
        with self._writing:
            # Only here anything is taken out; what comes meanwhile waits for the next time.
            records = [self._waiting.popleft() for _ in range(len(self._waiting))]
            left_out, self._left_out = self._left_out, 0
            if left_out:
                text = f"{left_out} lines of calls were left out: {self._most} waited to be written"
                records.append(logging.LogRecord(__name__, logging.WARNING, "", 0, text, None, None))
            lines = [line for record in (*records, *last) if (line := self._line(record)) is not None]
            if not lines:
                return
            try:
                self._stream.write("\n".join(lines) + "\n")
                self._stream.flush()
            except (OSError, ValueError):  # the stream is closed or full: there is nowhere to tell it
                return

    def _line(self, record: logging.LogRecord) -> str | None:
        try:
            return self.format(record)
        except Exception:
            self.handleError(record)
            return None
