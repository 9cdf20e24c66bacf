"""Checkers of the rpcs that make, change and end galleries and snapshots.

None of them is tried again by the SDK, so one that was cut off is in doubt and may still be under way. So each round of
a caller has a name of its own, and what earlier rounds left is cleared away.
"""

import contextlib
import itertools
from typing import Final

import numpy as np
from tests.faults.checker import TIMEOUT_S, Caller, Checker

from likewise.client import NotFound
from likewise.client.galleries import IndexSpec

DIM: Final = 4
ROWS: Final = 3

_ROUND: Final = itertools.count()


def _gallery(caller: Caller) -> None:
    for left in _galleries(caller):
        with contextlib.suppress(NotFound):
            caller.client.delete_gallery(left, timeout=TIMEOUT_S)
    name, ef = f"{_prefix(caller)}{next(_ROUND)}", caller.rng.randrange(16, 1_000)
    made = caller.client.create_gallery(name, dim=DIM, index=IndexSpec(kind="hnsw", ef=8), timeout=TIMEOUT_S)
    made.upsert(["x", "y", "z"], vectors=np.eye(ROWS, DIM, dtype=np.float32), timeout=TIMEOUT_S)
    assert made.update(index=IndexSpec(kind="hnsw", ef=ef), timeout=TIMEOUT_S).index.ef == ef
    assert made.search(vector=[0.0, 1.0, 0.0, 0.0], k=1, timeout=TIMEOUT_S).ids == ["y"]
    assert caller.client.gallery(name).info(timeout=TIMEOUT_S).index.ef == ef
    caller.client.delete_gallery(name, timeout=TIMEOUT_S)
    assert name not in _galleries(caller), f"{name} is deleted, and still there"


def _snapshots(caller: Caller) -> None:
    gallery, before = caller.gallery, caller.gallery.version
    for left in gallery.snapshots(timeout=TIMEOUT_S):
        if left.name.startswith(_prefix(caller)):
            with contextlib.suppress(NotFound):
                gallery.delete_snapshot(left.name, timeout=TIMEOUT_S)
    name = f"{_prefix(caller)}{next(_ROUND)}"
    made = gallery.create_snapshot(name, timeout=TIMEOUT_S)
    assert before is None or made.version >= before.version, "the snapshot is older than what this client has seen"
    (listed,) = [snapshot for snapshot in gallery.snapshots(timeout=TIMEOUT_S) if snapshot.name == name]
    assert (listed.version, listed.rows) == (made.version, made.rows)


def _prefix(caller: Caller) -> str:
    return f"by-{caller.number}-"


def _galleries(caller: Caller) -> list[str]:
    """Those that this caller made."""
    names = [info.name for info in caller.client.galleries(timeout=TIMEOUT_S)]
    return [name for name in names if name.startswith(_prefix(caller))]


SNAPSHOTS: Final[dict[str, Checker]] = {"GalleryService.CreateSnapshot, ListSnapshots, DeleteSnapshot": _snapshots}
"""Where making a gallery starts processes, which takes longer than a call of a load may, these alone."""

GALLERIES: Final[dict[str, Checker]] = {"GalleryService.Create, Update, Delete": _gallery, **SNAPSHOTS}
