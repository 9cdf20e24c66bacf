"""A full disk and damaged files: refused clearly or read rightly, never half, and nothing acknowledged is lost."""

import asyncio
import multiprocessing
import os
import resource
import shutil
import subprocess
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import numpy as np
import pytest
from tests.faults import report
from tests.faults.options import OPTIONS
from tests.integration.processes import ServerProcess

from likewise.client import Client, Gallery, LikewiseError
from likewise.server.galleries import EmbeddedGalleries, StoreOptions
from likewise.shards.protocols import SearchOptions, ShardError
from likewise.shards.spec import SpecError

DIM: Final = 16
DISK_BYTES: Final = 24 << 20
ROWS: Final = 2_000
"""Rows of one write: 128 KB of vectors."""


@contextmanager
def small_disk(folder: Path) -> Iterator[bool]:
    """A file system of `DISK_BYTES` at `folder`, where mounting is permitted; says whether it was."""
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", f"size={DISK_BYTES}", "tmpfs", str(folder)]
    mounted = shutil.which("mount") is not None and subprocess.run(command, capture_output=True).returncode == 0
    try:
        yield mounted
    finally:
        if mounted:
            subprocess.run(["umount", "--lazy", str(folder)], check=True)


def fill_disk(folder: Path, server: ServerProcess, mounted: bool) -> Callable[[], None]:
    """Let the server write nothing (more than a few bytes a file) from now on; the result ends that."""
    if mounted:
        filler = folder / "filler"
        with filler.open("wb", buffering=0) as file:
            try:
                while True:
                    file.write(bytes(1 << 16))
            except OSError:
                pass
        return filler.unlink
    before = resource.prlimit(server.pid, resource.RLIMIT_FSIZE, (1_000, resource.RLIM_INFINITY))
    return lambda: (resource.prlimit(server.pid, resource.RLIMIT_FSIZE, before), None)[1]


def _vectors(batch: int) -> np.ndarray:
    return np.random.default_rng(batch).normal(size=(ROWS, DIM)).astype(np.float32)


def _write(gallery: Gallery, batch: int) -> None:
    gallery.upsert([f"b{batch:03d}-{row:04d}" for row in range(ROWS)], vectors=_vectors(batch))


@pytest.mark.slow
def test_a_full_disk_refuses_writes_and_serves_reads_and_goes_on_when_there_is_room_again(tmp_path: Path) -> None:
    acknowledged: list[int] = []
    with small_disk(tmp_path / "disk") as mounted:
        server = ServerProcess(tmp_path / "disk" / "store", ["--log-level", "ERROR"]).start()
        try:
            with Client(server.address, timeout=30) as client:
                gallery = client.create_gallery("g", dim=DIM)
                for batch in range(3):
                    _write(gallery, batch)
                    acknowledged.append(batch)
                make_room = fill_disk(tmp_path / "disk", server, mounted)
                for _ in range(3):
                    with pytest.raises(LikewiseError, match=r"no space left|past the size limit") as refused:
                        _write(gallery, 90)
                    assert "Traceback" not in str(refused.value)
                assert gallery.count() == ROWS * len(acknowledged)
                assert gallery.search(vector=_vectors(1)[5], k=1).ids == ["b001-0005"]
                make_room()
                _write(gallery, 91)
                acknowledged.append(91)
            server.kill()
            server.start()
            with Client(server.address) as client:
                gallery = client.gallery("g")
                assert gallery.count() == ROWS * len(acknowledged)
                for batch in acknowledged:
                    assert gallery.search(vector=_vectors(batch)[7], k=1).ids == [f"b{batch:03d}-0007"]
        finally:
            server.kill()
            kind = "disk full" if mounted else "file size limit reached"
            report.add(
                "full disk",
                {
                    "operations": len(acknowledged) + 3,
                    "acknowledged_writes": len(acknowledged),
                    "faults": {kind: 1},
                    "lost": 0,
                },
            )


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store with every kind of file: rows, retired rows, several versions, a built index."""
    folder = tmp_path_factory.mktemp("whole") / "store"
    server = ServerProcess(folder, ["--log-level", "ERROR"]).start()
    try:
        with Client(server.address) as client:
            gallery = client.create_gallery("g", dim=DIM, index="hnsw")
            for batch in range(2):
                _write(gallery, batch)
            gallery.delete([f"b000-{row:04d}" for row in range(0, ROWS, 10)])
            gallery.wait_until_ready(timeout=60)
        assert server.terminate() == 0
    finally:
        server.kill()
    return folder


def _truncate(path: Path, rng: np.random.Generator) -> None:
    os.truncate(path, int(rng.integers(path.stat().st_size)))


def _flip(path: Path, rng: np.random.Generator) -> None:
    content = bytearray(path.read_bytes())
    content[rng.integers(len(content))] ^= 1 << int(rng.integers(8))
    path.write_bytes(content)


async def _answers(folder: Path) -> list[tuple[str, float]]:
    """Best hits of some searches, exact and approximate, by a server that opens the store."""
    galleries = EmbeddedGalleries(StoreOptions(str(folder)))
    try:
        await galleries.open()
        (shard,) = galleries.get("g").shards
        queries = _vectors(0)[1:4]
        queries /= np.linalg.norm(queries, axis=1, keepdims=True)
        found = []
        for exact in (True, False):
            options = SearchOptions(space="default", k=5, exact=exact, vectors=True)
            hits = await shard.search(
                _vectors(0)[1:4] / np.linalg.norm(_vectors(0)[1:4], axis=1, keepdims=True), options
            )
            found += list(zip(hits.ids, hits.scores.round(5).tolist(), strict=True))
        rows = await shard.fetch([f"b001-{row:04d}" for row in range(ROWS)], space="default", vectors=True)
        assert rows.vectors is not None
        found += [("stored", float(np.abs(rows.vectors).sum().round(2)))]
        return found
    finally:
        await galleries.close()


def _answers_or_refusal(folder: Path) -> list[tuple[str, float]] | str:
    try:
        return asyncio.run(_answers(folder))
    except (ShardError, SpecError, OSError):
        return "refused"


class Opener:
    """Opens stores in a process of its own: Lance ends the one it is in where a damaged length asks for much memory."""

    def __init__(self) -> None:
        self._process = self._started()

    def open(self, folder: Path) -> list[tuple[str, float]] | str:
        """What a process answers that opens the store: its hits, "refused", or "ended" if that was the end of it."""
        try:
            return self._process.submit(_answers_or_refusal, folder).result()
        except BrokenProcessPool:
            self._process = self._started()
            return "ended"

    def close(self) -> None:
        self._process.shutdown()

    def _started(self) -> ProcessPoolExecutor:
        return ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn"))


@pytest.fixture(scope="module")
def opener() -> Iterator[Opener]:
    opener = Opener()
    yield opener
    opener.close()


KINDS: Final = {
    "rows": "g.lance/data/*",
    "retired rows": "g.lance/_deletions/*",
    "index": ".cache/*.sealed",
    "manifest": "g.lance/_versions/*.manifest",
}
CASES: Final = 40 if OPTIONS.long else 1


@pytest.mark.slow
@pytest.mark.parametrize("damage", [_truncate, _flip], ids=["truncated", "a bit flipped"])
@pytest.mark.parametrize("kind", KINDS)
def test_a_damaged_file_is_noticed_or_does_no_harm(
    store: Path, opener: Opener, tmp_path: Path, kind: str, damage: Callable[[Path, np.random.Generator], None]
) -> None:
    whole = opener.open(store)
    assert isinstance(whole, list)
    outcomes = Counter[str]()
    for case in range(CASES):
        rng = np.random.default_rng((OPTIONS.seed, case))
        copy = tmp_path / f"{case}"
        shutil.copytree(store, copy)
        paths = sorted(copy.glob(KINDS[kind]))
        assert paths, f"the store has no file of {kind}"
        damage(paths[0 if kind == "manifest" else rng.integers(len(paths))], rng)
        found = opener.open(copy)
        outcomes[found if isinstance(found, str) else "right" if found == whole else "altered"] += 1
        shutil.rmtree(copy)
    name = f"{kind}, {'truncated' if damage is _truncate else 'a bit flipped'}"
    counts = {outcome: outcomes[outcome] for outcome in ("refused", "right", "altered", "ended")}
    report.add(f"damage: {name}", {"operations": CASES, "faults": {name: CASES}, "lost": 0, **counts})
    # The dataset's own format has no checksums: docs/reliability.md says what a flipped bit can do there.
    if damage is _truncate or kind == "index":
        assert outcomes["altered"] == outcomes["ended"] == 0
    if kind == "index":
        assert outcomes["refused"] == 0, "an index can be built anew"
