"""What the store's own errors mean to whoever waits for a write or a read."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from likewise.shards.protocols import ShardError, StoreFailure
from likewise.shards.spec import SpecError

_log = logging.getLogger(__name__)

# Lance hands the system's errors on as text.
_MEANINGS: Final = (
    ("os error 28", "no space left on the store's device"),
    ("os error 122", "the disk quota of the store is used up"),
    ("os error 27", "a file of the store grew past the size limit of this process"),
    ("os error 13", "permission denied"),
    ("os error 30", "the store's device is read-only"),
    ("os error 5", "the store's device reports an input/output error"),
    ("os error 24", "this process has too many open files"),
    ("commit conflict", "another process committed to the same rows; a gallery has one writer"),
)


def meaning(error: BaseException) -> str | None:
    """The cause in words, without paths; None if it is not one that we know."""
    text = str(error).lower()
    for sign, words in _MEANINGS:
        if sign in text and not text[text.index(sign) + len(sign) :][:1].isdigit():
            return words
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return None


def is_missing(error: BaseException) -> bool:
    """Whether the error says that a file or a version is not there (any more)."""
    text = str(error).lower()
    return isinstance(error, FileNotFoundError) or "not found" in text or "os error 2)" in text


@contextmanager
def told_apart(doing: str) -> Iterator[None]:
    """Turn what goes wrong inside into `StoreFailure("<doing>: <cause>")`, logging the original; ours pass through."""
    try:
        yield
    except (ShardError, SpecError):
        raise
    except BaseException as error:
        if not isinstance(error, Exception) and not _is_panic(error):
            raise
        cause = meaning(error)
        # A full disk fails every write that waits: a line each is enough. What we do not know needs its traceback.
        _log.warning("%s: %s", doing, error, exc_info=None if cause else error)
        raise StoreFailure(f"{doing}: {cause or f'unexpected {type(error).__name__}'}") from error


def _is_panic(error: BaseException) -> bool:
    """Whether Lance met something that it takes for impossible, as in a damaged manifest.

    Such an error is no `Exception`, and its class cannot be imported.
    """
    return (type(error).__module__, type(error).__name__) == ("pyo3_runtime", "PanicException")
