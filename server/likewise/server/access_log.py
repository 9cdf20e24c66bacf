"""What one call did, in one line, and how the process writes its lines.

A servicer fills in the record of its call; the interceptor writes it when the call ends. Libraries never configure
logging: `configure` is called from `main` alone.
"""

import functools
import logging
import re
import sys
import time
from contextvars import ContextVar
from dataclasses import dataclass
from json import JSONEncoder
from typing import Final, TextIO

from likewise.server.log_writer import LogWriter

access = logging.getLogger("likewise.access")


@dataclass(slots=True)
class CallRecord:
    """One call, filled in while it runs; unset fields are left out of its line.

    Attributes:
        request_id: The caller's, or made here.
        method: "likewise.v1.SearchService/Search".
        code: gRPC status name.
        duration_ms: Time in the server.
        gallery: Gallery meant.
        k: Hits wanted.
        rows: Items written, read or deleted; searches of a batch.
        hits: Hits returned.
        plan: Plan summary.
        coverage: Share of the gallery searched, when not all of it.
        error: Reason of a refusal, as in google.rpc.ErrorInfo.
    """

    request_id: str = ""
    method: str = ""
    code: str = ""
    duration_ms: float = 0.0
    gallery: str = ""
    k: int | None = None
    rows: int | None = None
    hits: int | None = None
    plan: str = ""
    coverage: float | None = None
    error: str = ""

    def given(self) -> dict[str, object]:
        """The fields that were filled in, in order."""
        values = {}
        for name in self.__slots__:
            value = getattr(self, name)
            if value is not None and value != "":
                values[name] = value
        return values


_current: ContextVar[CallRecord | None] = ContextVar("likewise_call", default=None)


def begin(record: CallRecord) -> None:
    """Make `record` the one that this task and its children fill in."""
    _current.set(record)


def current() -> CallRecord:
    """The record of the call in progress; outside a call one that nobody reads."""
    return _current.get() or CallRecord()


def write(record: CallRecord) -> None:
    """Log one finished call at INFO."""
    if access.isEnabledFor(logging.INFO):
        # Made here: `access.info` would look for its caller's file and line, which nobody prints.
        line = logging.LogRecord(access.name, logging.INFO, "", 0, "call", None, None)
        line.__dict__["call"] = record
        access.handle(line)


class JsonFormatter(logging.Formatter):
    """One JSON object a line."""

    def format(self, record: logging.LogRecord) -> str:
        """Time (UTC, ISO 8601), level, logger and message, or the fields of a call."""
        line: dict[str, object] = {
            "time": _timestamp(record),
            "level": record.levelname,
            "logger": record.name,
            "message": record.getMessage(),
        }
        call = getattr(record, "call", None)
        if isinstance(call, CallRecord):
            line |= call.given()
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return _as_json(line)


class TextFormatter(logging.Formatter):
    """Time, level, logger and message in columns; a call as key=value pairs."""

    def format(self, record: logging.LogRecord) -> str:
        """One line, and the stack of an exception below it."""
        call = getattr(record, "call", None)
        if isinstance(call, CallRecord):
            message = " ".join([f"{name}={_quoted(value)}" for name, value in call.given().items()])
        else:
            message = record.getMessage()
        line = f"{_timestamp(record)} {record.levelname:<7} {record.name}: {message}"
        return f"{line}\n{self.formatException(record.exc_info)}" if record.exc_info else line


def configure(*, format: str, level: str, stream: TextIO | None = None) -> None:
    """Send every record of the process to `stream` (standard error by default) as "text" or "json" lines."""
    # Nothing of it is printed, and each line would look it up.
    logging.logThreads = logging.logMultiprocessing = logging.logProcesses = False
    handler = LogWriter(stream or sys.stderr)
    handler.setFormatter(JsonFormatter() if format == "json" else TextFormatter())
    logging.basicConfig(level=level, handlers=[handler], force=True)


_as_json: Final = JSONEncoder(ensure_ascii=False).encode
_is_plain: Final = re.compile(r"[A-Za-z0-9\-_.:/@]*").fullmatch


def _quoted(value: object) -> str:
    text = f"{value:.3f}" if isinstance(value, float) else str(value)
    return text if _is_plain(text) else _as_json(text)


def _timestamp(record: logging.LogRecord) -> str:
    return f"{_to_the_second(int(record.created))}.{int(record.msecs):03d}Z"


@functools.lru_cache(maxsize=2)
def _to_the_second(seconds: int) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(seconds))
