"""A restart changes no answer: what was found before is found after, exactly and approximately, filtered or not."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.integration.oracle import Oracle, clustered
from tests.integration.processes import ServerProcess

from likewise.client import Client, F, Gallery

DIM = 16
ROWS = 3_000
K = 10
IDS = [f"i{row:05d}" for row in range(ROWS)]
INDEXES = {"flat": "flat", "graph": "hnsw", "lists": "ivf", "codes": "SQ8"}
DATA = clustered(ROWS, DIM, queries=20)
ORACLE = Oracle(DATA.vectors)


def _answers(gallery: Gallery) -> list[Any]:
    found: list[Any] = []
    for query in DATA.queries:
        for options in ({}, {"exact": True}, {"where": F.price < 20}):
            hits = gallery.search(vector=query, k=K, attributes=True, **options)
            found.append((hits.ids, hits.scores.tolist(), hits.attributes, hits.coverage))
    return found


def _recall(answers: list[Any]) -> float:
    shares = [
        len({IDS[row] for row in ORACLE.best(query, K)[0]} & set(ids)) / K
        for query, (ids, *_) in zip(DATA.queries, answers[::3], strict=True)
    ]
    return float(np.mean(shares))


@pytest.mark.slow
@pytest.mark.parametrize("how", ["killed", pytest.param("ended", marks=pytest.mark.long)])
def test_recall_and_answers_are_the_same_after_a_restart(tmp_path: Path, how: str) -> None:
    server = ServerProcess(tmp_path / "store", ["--log-level", "ERROR"]).start()
    try:
        before = {}
        with Client(server.address) as client:
            for name, index in INDEXES.items():
                gallery = client.create_gallery(name, dim=DIM, index=index, shards=2, attributes={"price": "int64"})
                gallery.upsert(IDS, vectors=DATA.vectors, attributes={"price": [row % 100 for row in range(ROWS)]})
                gallery.wait_until_ready(timeout=120)
                before[name] = _answers(gallery)
        if how == "killed":
            server.kill()
        else:
            assert server.terminate() == 0
        server.start()
        with Client(server.address) as client:
            for name in INDEXES:
                client.gallery(name).wait_until_ready(timeout=120)
                after = _answers(client.gallery(name))
                assert after == before[name], name
                assert _recall(after) >= 0.9, name
    finally:
        server.kill()
