"""Acknowledged means durable: what a killed server acknowledged is there when it comes back."""

import contextlib
import threading
from pathlib import Path

import numpy as np
import pytest
from tests.integration.oracle import Oracle, clustered
from tests.integration.processes import ServerProcess, serving

from likewise.client import Client, F, LikewiseError

DIM = 32


def _vectors(batch: int) -> np.ndarray:
    return np.random.default_rng(batch).normal(size=(20, DIM)).astype(np.float32)


def _ids(batch: int) -> list[str]:
    return [f"b{batch:05d}-{row:02d}" for row in range(20)]


class _Stream:
    """Writes batches, deleting every third one again, until the server goes away; remembers what was acknowledged."""

    def __init__(self, address: str) -> None:
        self.stored: list[int] = []
        self.deleted: list[int] = []
        self.unknown: set[int] = set()
        self.enough = threading.Event()
        self.thread = threading.Thread(target=self._run, args=(address,))

    def _run(self, address: str) -> None:
        with Client(address) as client, contextlib.suppress(LikewiseError):
            gallery = client.gallery("stream")
            for batch in range(100_000):
                self.unknown = {batch}
                gallery.upsert(_ids(batch), vectors=_vectors(batch), attributes={"batch": [batch] * 20}, timeout=20)
                self.unknown = set()
                self.stored.append(batch)
                if batch % 3 == 0:
                    self.unknown = {batch}
                    gallery.delete(_ids(batch), timeout=20)
                    self.unknown = set()
                    self.deleted.append(batch)
                if batch >= 60:
                    self.enough.set()
        self.enough.set()


@pytest.mark.slow
def test_a_killed_server_loses_nothing_it_acknowledged(mode: str, tmp_path: Path) -> None:
    store = tmp_path / "store"
    data = clustered(3_000, DIM, queries=20)
    ids = [f"base-{row:05d}" for row in range(3_000)]
    extra = ["--ray", "local"] if mode == "ray" else []
    server = ServerProcess(store, extra).start()
    with Client(server.address) as client:
        base = client.create_gallery("base", dim=DIM, index="hnsw", shards=2)
        base.upsert(ids, vectors=data.vectors)
        base.wait_until_ready(timeout=120)
        before = [base.search(vector=query, k=10).ids for query in data.queries]
        client.create_gallery("stream", dim=DIM, attributes={"batch": "int64"}, shards=2)
    stream = _Stream(server.address)
    stream.thread.start()
    assert stream.enough.wait(120)

    server.kill()
    stream.thread.join(120)

    with serving(mode, store) as again, Client(again.address) as client:
        gallery = client.gallery("stream")
        kept = sorted(set(stream.stored) - set(stream.deleted) - stream.unknown)
        assert len(kept) > 20
        rows = gallery.get([item for batch in kept for item in _ids(batch)], vectors=True)
        assert rows.missing == []
        assert rows.vectors is not None
        np.testing.assert_allclose(rows.vectors, np.concatenate([_vectors(batch) for batch in kept]), rtol=1e-5)
        gone = sorted(set(stream.deleted) - stream.unknown)
        assert gallery.get([item for batch in gone for item in _ids(batch)]).ids == []
        in_doubt = sum(gallery.count(where=F.batch == batch) for batch in stream.unknown)
        assert in_doubt in {0, 20}, "a write was half done"
        assert gallery.count() == 20 * len(kept) + in_doubt
        assert client.gallery("base").count() == 3_000
        after = [client.gallery("base").search(vector=query, k=10).ids for query in data.queries]
        assert after == before
        oracle = Oracle(data.vectors)
        truth = [[ids[row] for row in oracle.best(query, 10)[0]] for query in data.queries]
        assert np.mean([len(set(a) & set(b)) / 10 for a, b in zip(after, truth, strict=True)]) >= 0.95


@pytest.mark.slow
def test_a_terminated_server_drains_and_comes_back(mode: str, tmp_path: Path) -> None:
    store = tmp_path / "store"
    with serving(mode, store) as server:
        with Client(server.address) as client:
            client.create_gallery("g", dim=2).upsert(["a"], vectors=np.ones((1, 2)))
        assert server.terminate() == 0
        server.start()
        with Client(server.address) as client:
            assert client.gallery("g").count() == 1
