"""Folders that are made whole out of sight, beside others that sweep up."""

import fcntl
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from likewise.shards import lock, staging
from likewise.shards.staging import STAGING_PREFIX, sweep


def leftover(parent: Path) -> Path:
    folder = parent / f"{STAGING_PREFIX}crashed"
    folder.mkdir()
    (folder / "half").write_bytes(b"x")
    return folder


def with_a_sweep_before(
    monkeypatch: pytest.MonkeyPatch, parent: Path, module: Any, name: str, call: Callable[..., Any]
) -> None:
    """Have the first call sweep up before it does its work."""

    def swept_first(*arguments: Any) -> Any:
        monkeypatch.setattr(module, name, call)
        sweep(parent)
        return call(*arguments)

    monkeypatch.setattr(module, name, swept_first)


def test_a_sweep_removes_what_is_left_and_nothing_that_is_worked_in(tmp_path: Path) -> None:
    old = leftover(tmp_path)

    with staging.staging(tmp_path) as folder:
        (folder / "mine").write_bytes(b"y")
        sweep(tmp_path)
        assert (folder / "mine").read_bytes() == b"y"

    assert not old.exists()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("module", "name", "call"),
    [
        pytest.param(os, "open", os.open, id="before its lock file is made"),
        pytest.param(fcntl, "flock", fcntl.flock, id="before its lock file is locked"),
    ],
)
def test_a_folder_swept_away_before_it_was_locked_is_made_again(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, module: Any, name: str, call: Callable[..., Any]
) -> None:
    with_a_sweep_before(monkeypatch, tmp_path, module, name, call)

    with staging.staging(tmp_path) as folder:
        (folder / "mine").write_bytes(b"y")
        sweep(tmp_path)
        assert (folder / "mine").read_bytes() == b"y"

    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_is_always_swept_away_is_given_up_with_the_reason(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(lock.StoreLock, "holds", False)

    with pytest.raises(OSError, match="swept away before they could be locked"), staging.staging(tmp_path):
        pass

    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_cannot_be_locked_is_not_left_behind(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def full(*_: Any) -> None:
        raise OSError("no space left on device")

    monkeypatch.setattr(fcntl, "flock", full)

    with pytest.raises(OSError, match="no space left"), staging.staging(tmp_path):
        pass

    assert list(tmp_path.iterdir()) == []
