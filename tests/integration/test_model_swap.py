"""Versions are swapped under constant load: nothing is lost, nothing is mixed, and each answer is its version's own.

The long form, with its figures, is benchmarks/swap.py.
"""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from tests.integration.processes import ServerProcess, serving
from tests.unit.server.model_fixtures import png, write_repository
from tests.unit.server.version_fixtures import other_space, other_words, same_space, wider

from likewise.cli.benchmark import swap
from likewise.cli.benchmark.report import Report
from likewise.client import Client, FailedPrecondition, Gallery, Hits

KINDS = ("image", "text", "composer")
RED = (255, 0, 0)
CALLERS = 4


@pytest.fixture(scope="module")
def folder(mode: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """1 and 4 answer alike, 2 reads words otherwise, 3 is of a wider space that contains theirs, 5 of another."""
    made = write_repository(tmp_path_factory.mktemp(f"swap-{mode}") / "repository")
    other_words(made, 2)
    wider(made, 3)
    same_space(made, 4)
    return made


@pytest.fixture(scope="module")
def own_server(mode: str, folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    store = tmp_path_factory.mktemp("store")
    with serving(mode, store, ["--models", str(folder)]) as process:
        yield process


def switch_to(client: Client, version: int) -> None:
    for kind in KINDS:
        client.load_model(f"tiny-{kind}", version, timeout=120)
    client.promote_model(
        "tiny-image", version, together={"tiny-text": version, "tiny-composer": version}, timeout=120, force=True
    )


def ask(gallery: Gallery) -> Hits:
    return gallery.search(image=png(RED), condition="small red", k=10)


def version_of(hits: Hits) -> int:
    versions = {model.version for model in hits.models}
    assert len(hits.models) == len(KINDS)
    assert len(versions) == 1, hits.models
    assert len({model.space for model in hits.models}) == 1, hits.models
    return versions.pop()


@dataclass
class Load:
    """Callers that never pause, and what they saw."""

    gallery: Gallery
    expected: dict[int, list[str]]
    answered: int = 0
    failures: list[BaseException] = field(default_factory=list)
    seen: list[list[int]] = field(default_factory=list)
    stop: threading.Event = field(default_factory=threading.Event)
    news: threading.Condition = field(default_factory=threading.Condition)

    def call(self, mine: list[int]) -> None:
        while not self.stop.is_set():
            try:
                hits = ask(self.gallery)
                version = version_of(hits)
                assert list(hits.ids) == self.expected[version]
            except BaseException as error:
                with self.news:
                    self.failures.append(error)
                    self.news.notify_all()
                return
            mine.append(version)
            with self.news:
                self.answered += 1
                self.news.notify_all()

    def wait_for(self, more: int) -> None:
        with self.news:
            until = self.answered + more
            assert self.news.wait_for(lambda: self.answered >= until or bool(self.failures), timeout=120)
        assert not self.failures, self.failures

    @contextmanager
    def running(self) -> Iterator["Load"]:
        self.seen = [[] for _ in range(CALLERS)]
        threads = [threading.Thread(target=self.call, args=(mine,)) for mine in self.seen]
        for thread in threads:
            thread.start()
        try:
            yield self
        finally:
            self.stop.set()
            for thread in threads:
                thread.join()


def test_swaps_under_load_lose_and_mix_nothing(own_server: ServerProcess, mode: str) -> None:
    swaps = (2, 3, 1, 2, 3, 1) if mode == "embedded" else (2, 3, 1)
    with Client(own_server.address) as client:
        assert {model.version for model in client.models() if model.in_use and model.family == "tiny"} == {4}
        switch_to(client, 1)
        gallery = client.create_gallery("swaps", encoder="tiny", shards=2)
        colours = [(r, g, b) for r in (0, 90, 180, 255) for g in (0, 120, 240) for b in (0, 130, 250)]
        gallery.upsert([f"i{i:02d}" for i in range(len(colours))], images=[png(colour) for colour in colours])
        expected: dict[int, list[str]] = {}
        for version in (2, 3, 1):
            switch_to(client, version)
            hits = ask(gallery)
            assert version_of(hits) == version
            expected[version] = list(hits.ids)
        assert expected[1] != expected[2]

        with Load(gallery, expected).running() as load:
            load.wait_for(CALLERS)
            for version in swaps:
                switch_to(client, version)
                # Whatever begins after the acknowledgement is answered by the new version.
                assert version_of(ask(gallery)) == version
                load.wait_for(2 * CALLERS)

        order = [1, *swaps]
        for mine in load.seen:
            moved = [version for i, version in enumerate(mine) if not i or version != mine[i - 1]]
            # Each caller sees the versions in the order of the swaps, some perhaps not at all.
            position = iter(order)
            assert all(version in position for version in moved), (moved, order)
        if mode == "embedded":
            with pytest.raises(FailedPrecondition) as caught:
                client.unload_model("tiny-text", 1)
            assert caught.value.reason == "MODEL_IN_USE"


def test_a_space_that_does_not_fit_is_refused_and_answers_go_on(own_server: ServerProcess, folder: Path) -> None:
    other_space(folder, 5)
    with Client(own_server.address) as client:
        gallery = client.gallery("swaps")
        before = ask(gallery)
        for kind in KINDS:
            client.load_model(f"tiny-{kind}", 5, timeout=120)

        with pytest.raises(FailedPrecondition, match="a new gallery generation is required") as caught:
            client.promote_model("tiny-image", 5, together={"tiny-text": 5, "tiny-composer": 5}, timeout=120)

        assert caught.value.reason == "SPACE_MISMATCH"
        assert caught.value.details["expected"] == before.models[0].space
        after = ask(gallery)
        assert (version_of(after), list(after.ids)) == (version_of(before), list(before.ids))


def test_a_rollback_reaches_the_answers(own_server: ServerProcess) -> None:
    with Client(own_server.address) as client:
        gallery = client.gallery("swaps")
        switch_to(client, 2)
        assert version_of(ask(gallery)) == 2

        promotion = client.rollback_model("tiny-composer", timeout=120)

        assert {model.version for model in promotion.models} == {1}
        assert version_of(ask(gallery)) == 1


def test_a_restart_serves_what_was_promoted(mode: str, tmp_path: Path) -> None:
    if mode == "ray":
        pytest.skip("starts two clusters; the controller's own tests restart it on its record")
    folder = write_repository(tmp_path / "repository")
    same_space(folder, 3)
    arguments = ["--models", str(folder)]
    with serving(mode, tmp_path / "store", arguments) as server, Client(server.address) as client:
        same_space(folder, 2)
        switch_to(client, 2)
    same_space(folder, 4)

    with serving(mode, tmp_path / "store", arguments) as server, Client(server.address) as client:
        in_use = {model.version for model in client.models() if model.in_use and model.family == "tiny"}

    assert in_use == {2}


def test_the_long_benchmark_runs_in_a_short_form(mode: str) -> None:
    if mode == "ray":
        pytest.skip("the swaps themselves are tested above")
    report = Report(as_json=False)

    outcome = swap.run(swap.Plan(swaps=2, items=30, queries=6, callers=2, baseline_s=0.5, pause_s=0.05), report)

    assert (outcome.lost, outcome.mixed, outcome.backwards, outcome.stale, outcome.wrong) == ([], 0, 0, 0, 0)
    assert outcome.overlaps == [1.0, 1.0]
    (line,) = report.measurements
    assert line.setting is not None
    assert line.setting["swaps"] == 2
