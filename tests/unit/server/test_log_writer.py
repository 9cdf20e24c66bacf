"""What the process writes: every line once, in order, those of calls a moment later."""

import io
import logging
from collections.abc import Iterator

import pytest

from likewise.server.access_log import CallRecord, TextFormatter
from likewise.server.log_writer import LogWriter


@pytest.fixture
def stream() -> io.StringIO:
    return io.StringIO()


@pytest.fixture
def writer(stream: io.StringIO) -> Iterator[LogWriter]:
    writer = LogWriter(stream, most=3)
    writer.setFormatter(TextFormatter())
    yield writer
    writer.close()


def call(method: str) -> logging.LogRecord:
    record = logging.LogRecord("likewise.access", logging.INFO, "", 0, "call", None, None)
    record.__dict__["call"] = CallRecord(method=method, code="OK")
    return record


def other(text: str, level: int = logging.INFO) -> logging.LogRecord:
    return logging.LogRecord("likewise.server", level, "", 0, text, None, None)


def told(stream: io.StringIO) -> list[str]:
    return [line.split(": ", 1)[1] for line in stream.getvalue().splitlines()]


def test_a_message_is_written_at_once_after_the_calls_before_it(writer: LogWriter, stream: io.StringIO) -> None:
    writer.handle(call("a"))
    writer.handle(call("b"))
    writer.handle(other("draining"))

    assert [line.split()[0] for line in told(stream)] == ["method=a", "method=b", "draining"]


def test_lines_of_calls_are_written_without_anything_after_them(writer: LogWriter, stream: io.StringIO) -> None:
    writer.handle(call("a"))
    writer.close()

    assert [line.split()[0] for line in told(stream)] == ["method=a"]


def test_more_lines_than_may_wait_are_counted_and_left_out(stream: io.StringIO) -> None:
    writer = LogWriter(stream, most=0)
    writer.setFormatter(TextFormatter())
    writer.handle(call("a"))
    writer.handle(call("b"))
    writer.close()

    assert told(stream) == ["2 lines of calls were left out: 0 waited to be written"]


def test_a_stream_that_is_gone_stops_nobody(writer: LogWriter, stream: io.StringIO) -> None:
    stream.close()

    writer.handle(other("draining", logging.WARNING))
    writer.handle(call("a"))
    writer.flush()
