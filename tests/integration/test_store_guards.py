"""A store is opened by one server of a fitting release, and a damaged cache is noticed and rebuilt."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from tests.integration.oracle import clustered
from tests.integration.processes import ServerProcess, serving

from likewise.client import Client

SERVE = [sys.executable, "-m", "likewise.client.cli", "serve", "--port", "0", "--store"]


def _refused(store: Path) -> str:
    done = subprocess.run([*SERVE, str(store)], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode not in (0, None)
    assert "Traceback" not in done.stderr
    return done.stdout + done.stderr


def test_a_second_server_on_the_same_store_is_refused_with_the_holder(tmp_path: Path) -> None:
    store = tmp_path / "store"
    with serving("embedded", store) as holder:
        said = _refused(store)

        assert holder.address in said
        with Client(holder.address) as client:
            client.create_gallery("g", dim=2)


def test_a_store_of_a_newer_format_is_refused(tmp_path: Path) -> None:
    store = tmp_path / "store"
    with serving("embedded", store) as server, Client(server.address) as client:
        client.create_gallery("g", dim=2).upsert(["a"], vectors=np.ones((1, 2)))
    marker = store / "likewise.json"
    before = json.loads(marker.read_text())
    marker.write_text(json.dumps({**before, "format": before["format"] + 1}))

    said = _refused(store)

    assert str(before["format"] + 1) in said
    marker.write_text(json.dumps(before))
    with serving("embedded", store) as server, Client(server.address) as client:
        assert client.gallery("g").count() == 1


@pytest.mark.slow
def test_a_damaged_index_cache_is_noticed_and_rebuilt(tmp_path: Path) -> None:
    store = tmp_path / "store"
    data = clustered(3_000, 16, queries=5)
    with serving("embedded", store) as server, Client(server.address) as client:
        gallery = client.create_gallery("g", dim=16, index="hnsw")
        gallery.upsert([f"i{row:04d}" for row in range(3_000)], vectors=data.vectors)
        gallery.wait_until_ready(timeout=60)
        before = [gallery.search(vector=query, k=10, exact=True).ids for query in data.queries]
    caches = [
        path for path in store.rglob("*") if path.is_file() and "cache" in str(path) and path.stat().st_size > 10_000
    ]
    assert caches, "there is no cache to damage"
    for path in caches:
        content = bytearray(path.read_bytes())
        content[len(content) // 2] ^= 0xFF
        path.write_bytes(content)

    server = ServerProcess(store).start()

    try:
        with Client(server.address) as client:
            gallery = client.gallery("g")
            gallery.wait_until_ready(timeout=60)
            assert [gallery.search(vector=query, k=10, exact=True).ids for query in data.queries] == before
    finally:
        server.terminate()
    assert any("checksum" in line or "damaged" in line for line in server.log)
