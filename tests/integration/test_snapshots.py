"""Snapshots as a user sees them, over processes that are killed and started again."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from tests.integration.oracle import clustered
from tests.integration.processes import ServerProcess, serving

from likewise.client import AlreadyExists, Client, FailedPrecondition, InvalidArgument, NotFound

DIM = 16


def command(server: ServerProcess, *arguments: str) -> tuple[int, str]:
    """Exit code, and what `likewise` printed."""
    line = [sys.executable, "-m", "likewise.client.cli", *arguments, "--address", server.address]
    done = subprocess.run(line, capture_output=True, text=True, check=False)
    return done.returncode, done.stdout + done.stderr


def test_a_snapshot_is_searched_after_its_items_are_gone(client: Client, name: str) -> None:
    data = clustered(300, DIM, queries=5)
    ids = [f"i{row:04d}" for row in range(300)]
    gallery = client.create_gallery(name, dim=DIM, shards=2)
    past = None
    try:
        gallery.upsert(ids, vectors=data.vectors)
        before = [gallery.search(vector=query, k=10).ids for query in data.queries]
        made = gallery.create_snapshot("good", note="all there")
        gallery.delete(ids[:250])

        past = gallery.restore_snapshot("good", f"{name[:35]}-past", read_only=True)

        assert gallery.snapshots() == [made]
        assert made.rows == past.count() == 300
        assert [past.search(vector=query, k=10).ids for query in data.queries] == before
        assert gallery.count() == 50
        assert past.info().read_only
        for refused in (
            lambda: past.upsert(["x"], vectors=np.ones((1, DIM))),
            lambda: past.delete(ids[:1]),
            lambda: past.update(shards=3),
        ):
            with pytest.raises(FailedPrecondition, match="read-only"):
                refused()
        gallery.delete_snapshot("good")
        assert gallery.snapshots() == []
    finally:
        client.delete_gallery(name)
        if past is not None:
            client.delete_gallery(past.name)


def test_an_exported_gallery_comes_back_under_another_name_with_the_same_answers(client: Client, name: str) -> None:
    data = clustered(300, DIM, queries=5)
    ids = [f"i{row:04d}" for row in range(300)]
    gallery = client.create_gallery(name, dim=DIM, shards=2, attributes={"row": "int64"})
    progress: list[tuple[int, int]] = []
    folder, again = f"{name}-out", f"{name[:35]}-back"
    try:
        gallery.upsert(ids, vectors=data.vectors, attributes=[{"row": row} for row in range(300)])
        gallery.create_snapshot("good")
        before = [gallery.search(vector=query, k=10) for query in data.queries]
        gallery.delete(ids[:50])
        export = gallery.export(folder, snapshot="good", progress=lambda done, total: progress.append((done, total)))
        with pytest.raises(AlreadyExists, match="exists already"):
            gallery.export(folder)
        with pytest.raises(InvalidArgument, match="not a path"):
            gallery.export("../out")
    finally:
        client.delete_gallery(name)

    back = client.import_gallery(folder, again)
    try:
        after = [back.search(vector=query, k=10) for query in data.queries]
        assert (export.gallery, export.rows, back.count()) == (name, 300, 300)
        assert [hits.ids for hits in after] == [hits.ids for hits in before]
        assert [list(hits.scores) for hits in after] == [list(hits.scores) for hits in before]
        assert 0 < progress[-1][0] == progress[-1][1]
        with pytest.raises(AlreadyExists, match="exists already"):
            client.import_gallery(folder, again)
        with pytest.raises(NotFound, match="no export 'none'"):
            client.import_gallery("none")
        back.upsert(["new"], vectors=data.vectors[:1], attributes=[{"row": 300}])
        assert back.count() == 301
    finally:
        client.delete_gallery(again)


@pytest.mark.slow
def test_a_snapshot_outlives_a_killed_server_and_brings_deleted_items_back(tmp_path: Path) -> None:
    store = tmp_path / "store"
    data = clustered(500, DIM, queries=10)
    ids = [f"i{row:04d}" for row in range(500)]
    server = ServerProcess(store).start()
    with Client(server.address) as client:
        gallery = client.create_gallery("shop", dim=DIM, shards=2)
        gallery.upsert(ids, vectors=data.vectors)
        before = [gallery.search(vector=query, k=10).ids for query in data.queries]
    assert command(server, "snapshot", "create", "shop", "good", "--note", "all there")[0] == 0
    with Client(server.address) as client:
        client.gallery("shop").delete(ids[:400])

    server.kill()

    with serving("embedded", store) as again, Client(again.address) as client:
        code, listed = command(again, "snapshot", "list", "shop", "--json")
        assert code == 0
        assert [(one["name"], one["rows"], one["note"]) for one in json.loads(listed)] == [("good", 500, "all there")]
        code, _ = command(again, "snapshot", "restore", "shop", "good", "past", "--read-only")
        assert code == 0
        past = client.gallery("past")
        assert [past.search(vector=query, k=10).ids for query in data.queries] == before
        assert client.gallery("shop").count() == 100
        with pytest.raises(FailedPrecondition, match="read-only"):
            past.upsert(["x"], vectors=np.ones((1, DIM)))
        client.gallery("shop").delete_snapshot("good")
        code, said = command(again, "snapshot", "restore", "shop", "good", "more")
        assert (code, said) == (1, "likewise: gallery 'shop' has no snapshot 'good', it has []\n")
        client.delete_gallery("shop")
        assert past.count() == 500
        again.kill()
        again.start()
        with Client(again.address) as later:
            assert later.gallery("past").count() == 500
            assert [one.name for one in later.galleries()] == ["past"]
