"""A virtual environment for each peer, made once and kept: nobody needs anybody else's packages."""

import hashlib
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Final

_READY: Final = "installed.txt"
_DRIVER_NEEDS: Final = ("numpy",)
_TAIL_CHARS: Final = 1_500


class InstallFailed(RuntimeError):
    """An environment could not be made; the message ends with what pip said."""


def default_cache() -> Path:
    """Where environments are kept: LIKEWISE_PEERS_CACHE, else in the user's cache folder."""
    if chosen := os.environ.get("LIKEWISE_PEERS_CACHE"):
        return Path(chosen)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "likewise" / "peers"


def folder_of(cache: Path, name: str, requirements: Sequence[str]) -> Path:
    """The folder of an environment; other requirements or another Python make another one."""
    what = "\n".join([sys.version.split()[0], *sorted(requirements)])
    return cache / f"{name}-{hashlib.sha256(what.encode()).hexdigest()[:10]}"


def python_of(folder: Path) -> Path:
    """Its interpreter."""
    return folder / ("Scripts/python.exe" if os.name == "nt" else "bin/python")


def python_of_harness() -> Path:
    """This interpreter, for what is no other's package."""
    return Path(sys.executable)


def is_made(folder: Path) -> bool:
    """Whether everything was installed into it."""
    return (folder / _READY).exists()


def make(folder: Path, requirements: Sequence[str]) -> Path:
    """Make an environment unless it is there; its interpreter.

    Raises:
        InstallFailed: If a package cannot be installed; nothing is left then.
    """
    python = python_of(folder)
    if is_made(folder):
        return python
    shutil.rmtree(folder, ignore_errors=True)
    folder.parent.mkdir(parents=True, exist_ok=True)
    try:
        _run([sys.executable, "-m", "venv", str(folder)])
        _run([str(python), "-m", "pip", "install", "--quiet", "--no-input", *_DRIVER_NEEDS, *requirements])
        installed = _run([str(python), "-m", "pip", "freeze"])
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise
    # Written last: a folder without it is a half-made one.
    (folder / _READY).write_text(installed)
    return python


def _run(command: Sequence[str]) -> str:
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL)
    except OSError as error:
        raise InstallFailed(f"{command[0]}: {error}") from error
    if done.returncode:
        said = (done.stderr or done.stdout).strip()[-_TAIL_CHARS:]
        raise InstallFailed(f"{' '.join(command[1:4])} ended with {done.returncode}: {said}")
    return done.stdout
