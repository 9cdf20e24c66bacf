import sys
from pathlib import Path

import pytest
from benchmarks.peers import environments
from benchmarks.peers.environments import InstallFailed, folder_of, is_made, make, python_of


def test_other_requirements_make_another_environment(tmp_path: Path) -> None:
    one, same = folder_of(tmp_path, "a", ["x==1", "y"]), folder_of(tmp_path, "a", ["y", "x==1"])

    assert one == same
    assert one != folder_of(tmp_path, "a", ["x==2", "y"])
    assert one.parent == tmp_path


def test_an_environment_that_is_there_is_used_as_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "a"
    folder.mkdir()
    (folder / "installed.txt").touch()
    monkeypatch.setattr(sys, "executable", "/nowhere/python")  # nothing could be made with it

    assert make(folder, ["x"]) == python_of(folder)


def test_a_half_made_environment_is_made_anew_and_a_failure_leaves_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "a"
    folder.mkdir()
    (folder / "half").touch()
    monkeypatch.setattr(sys, "executable", "/nowhere/python")

    with pytest.raises(InstallFailed, match="/nowhere/python"):
        make(folder, ["x"])

    assert not folder.exists()
    assert not is_made(folder)


def test_the_cache_can_be_chosen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LIKEWISE_PEERS_CACHE", "/some/where")
    assert environments.default_cache() == Path("/some/where")

    monkeypatch.delenv("LIKEWISE_PEERS_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", "/cache")
    assert environments.default_cache() == Path("/cache/likewise/peers")
