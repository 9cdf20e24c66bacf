"""Which errors of the store become failures that a caller is told, and which are nobody's to catch."""

import pytest

from likewise.shards.failures import told_apart
from likewise.shards.protocols import StoreFailure, Unavailable

PanicException = type("PanicException", (BaseException,), {"__module__": "pyo3_runtime"})
"""As Lance raises it: no `Exception`, and made in a module that cannot be imported."""


@pytest.mark.parametrize("error", [ValueError("a wrong tag"), PanicException("called `unwrap()` on an `Err`")])
def test_what_lance_raises_is_a_failure_of_the_store(error: BaseException) -> None:
    refusal = pytest.raises(StoreFailure, match=f"opening the gallery: unexpected {type(error).__name__}")
    with refusal, told_apart("opening the gallery"):
        raise error


@pytest.mark.parametrize("error", [Unavailable("the shard is closing"), KeyboardInterrupt(), SystemExit(1)])
def test_what_is_not_the_stores_passes_through(error: BaseException) -> None:
    with pytest.raises(type(error)) as caught, told_apart("opening the gallery"):
        raise error

    assert caught.value is error
