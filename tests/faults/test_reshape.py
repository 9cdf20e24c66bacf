"""A gallery gets other shards and another index while it is searched and written to, and nobody notices."""

import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
from tests.integration.oracle import Clustered, Oracle, clustered
from tests.integration.processes import ServerProcess, serving

from likewise.client import Client, F, FailedPrecondition, Gallery, IndexSpec, LikewiseError

ITEMS = 5_000
DIM = 32
QUERIES = 8
K = 10
CHEAP = 100
WRITTEN = 5
"""Items of one write; they lie at right angles to everything else, so no answer to `data.queries` has any of them."""

MODES = [pytest.param("embedded", id="embedded"), pytest.param("ray", id="ray", marks=pytest.mark.cluster)]
IDS = [f"item-{row:05d}" for row in range(ITEMS)]
PAUSE_S = 0.03
"""Between a caller's calls: what is built needs a share of a small machine too."""
PRICES = np.arange(ITEMS) % 1_000


@pytest.fixture(scope="module")
def data() -> Clustered:
    return clustered(ITEMS, DIM, queries=QUERIES)


@pytest.fixture(scope="module")
def truth(data: Clustered) -> dict[bool, list[list[str]]]:
    """Answers of a perfect search by whether only the cheap items are asked for."""
    masks, oracle = {False: None, True: PRICES < CHEAP}, Oracle(data.vectors)
    return {
        cheap: [[IDS[row] for row in oracle.best(query, K, allowed=mask)[0]] for query in data.queries]
        for cheap, mask in masks.items()
    }


@pytest.fixture(params=MODES)
def server(request: pytest.FixtureRequest) -> Iterator[ServerProcess]:
    with serving(request.param) as process:
        yield process


def _client(server: ServerProcess) -> Client:
    # Without retries: what fails has to show.
    return Client(server.address, timeout=60, options=[("grpc.enable_retries", 0)])


def _wide(vectors: np.ndarray) -> np.ndarray:
    return np.pad(vectors, ((0, 0), (0, 1)))


def _fill(client: Client, data: Clustered) -> Gallery:
    gallery = client.create_gallery("g", dim=DIM + 1, shards=2, index="flat", attributes={"price": "int64"})
    gallery.upsert(IDS, vectors=_wide(data.vectors), attributes={"price": PRICES.tolist()}, progress=False)
    gallery.count()  # every shard has them then, for callers without this client's token too
    return gallery


@dataclass
class Load:
    """Callers of one kind each, until told to stop.

    Attributes:
        failures: Whatever a caller was told besides an answer.
        wrong: Answers that are not what they have to be.
        calls: Calls answered.
    """

    server: ServerProcess
    data: Clustered
    truth: dict[bool, list[list[str]]]
    failures: list[str] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)
    calls: dict[str, int] = field(default_factory=dict)
    stopped: threading.Event = field(default_factory=threading.Event)
    threads: list[threading.Thread] = field(default_factory=list)

    def __enter__(self) -> "Load":
        callers: dict[str, Callable[[Gallery, int], str]] = {
            "search": self._search,
            "filtered": self._filtered,
            "write": self._write,
        }
        for name, call in callers.items():
            self.calls[name] = 0
            thread = threading.Thread(target=self._run, args=(name, call), daemon=True)
            self.threads.append(thread)
            thread.start()
        self.every_caller_answered()
        return self

    def __exit__(self, *_: object) -> None:
        self.stopped.set()
        for thread in self.threads:
            thread.join(120)

    def every_caller_answered(self, more: int = 5) -> None:
        """Return after so many more calls of every kind."""
        wanted = {name: count + more for name, count in self.calls.items()}
        until = time.monotonic() + 60
        while any(self.calls[name] < count for name, count in wanted.items()):
            assert not self.failures, self.failures
            assert time.monotonic() < until, f"no more calls are answered: {self.calls}"
            time.sleep(0.02)

    def _run(self, name: str, call: Callable[[Gallery, int], str]) -> None:
        with _client(self.server) as client:
            gallery = client.gallery("g")
            turn = 0
            while not self.stopped.wait(PAUSE_S):
                try:
                    if wrong := call(gallery, turn):
                        self.wrong.append(wrong)
                except LikewiseError as error:
                    self.failures.append(f"{name}: {error}")
                turn += 1
                self.calls[name] += 1

    def _search(self, gallery: Gallery, turn: int) -> str:
        return self._compare(gallery, turn, cheap=False)

    def _filtered(self, gallery: Gallery, turn: int) -> str:
        return self._compare(gallery, turn, cheap=True)

    def _compare(self, gallery: Gallery, turn: int, *, cheap: bool) -> str:
        query = np.append(self.data.queries[turn % QUERIES], 0)
        where = F.price < CHEAP if cheap else None
        hits = gallery.search(vector=query, k=K, exact=True, where=where)
        expected = self.truth[cheap][turn % QUERIES]
        if hits.ids != expected or hits.coverage.fraction != 1.0:
            return f"search, cheap {cheap}: {hits.ids}, coverage {hits.coverage.fraction}, not {expected}"
        return ""

    def _write(self, gallery: Gallery, turn: int) -> str:
        """Write, and see it at once in the count, by id and in a search of its own place."""
        ids = [f"new-{turn:05d}-{i}" for i in range(WRITTEN)]
        vectors = np.zeros((WRITTEN, DIM + 1), np.float32)
        vectors[:, -1] = 1
        gallery.upsert(ids, vectors=vectors, attributes={"price": [5_000 + turn] * WRITTEN}, progress=False)
        place = np.append(np.zeros(DIM), 1)
        found = gallery.search(vector=place, k=K, exact=True, where=F.price == 5_000 + turn).ids
        counted = gallery.count()
        if found != ids or counted != ITEMS + (turn + 1) * WRITTEN or gallery.get(ids).ids != ids:
            return f"write {turn}: found {found}, counted {counted}"
        return ""


def test_two_flat_shards_become_four_of_hnsw_under_load(
    server: ServerProcess, data: Clustered, truth: dict[bool, list[list[str]]]
) -> None:
    with _client(server) as client:
        gallery = _fill(client, data)
        with Load(server, data, truth) as load:
            gallery.update(shards=4, index="hnsw")
            load.every_caller_answered()
            with pytest.raises(
                FailedPrecondition, match=r"check of recall: its recall@10 over 48 stored vectors is 0\."
            ):
                gallery.update(shards=1, index=IndexSpec(kind="ivf", nlist=300, nprobe=1))
            load.every_caller_answered()

        assert (load.failures, load.wrong) == ([], [])
        info = gallery.info()
        assert (info.shards, info.index.kind) == (4, "hnsw")
        stats = gallery.stats()
        assert [shard.index for shard in stats.shards] == ["HNSW32,Flat"] * 4
        assert stats.items == gallery.count() == ITEMS + load.calls["write"] * WRITTEN


def test_a_server_killed_during_a_change_comes_back_in_one_shape_or_the_other(
    tmp_path: Path, data: Clustered, truth: dict[bool, list[list[str]]]
) -> None:
    store = tmp_path / "store"
    with serving("embedded", store) as server:
        with _client(server) as client:
            _fill(client, data)
        change = threading.Thread(target=_update_until_killed, args=(server,), daemon=True)
        change.start()
        until = time.monotonic() + 60
        while not any("are built beside" in line for line in server.log):
            assert time.monotonic() < until, server.log[-5:]
            time.sleep(0.002)
        server.kill()
        change.join(60)

    with serving("embedded", store) as again, _client(again) as client:
        gallery = client.gallery("g")
        info = gallery.info()
        assert (info.shards, info.index.kind) in {(2, "flat"), (4, "hnsw")}
        assert gallery.count() == ITEMS
        found = [gallery.search(vector=np.append(query, 0), k=K, exact=True).ids for query in data.queries]
        assert found == truth[False]
        gallery.update(shards=3)
        assert gallery.stats().items == ITEMS


def _update_until_killed(server: ServerProcess) -> None:
    with _client(server) as client:
        try:
            client.gallery("g").update(shards=4, index="hnsw")
        except LikewiseError:
            return  # the server was killed while it worked
