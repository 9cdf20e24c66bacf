"""The conversation between the harness and a driver process, with a fake peer at its end."""

import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from benchmarks.peers import process as processes
from benchmarks.peers.driver.pace import Pace
from benchmarks.peers.process import Asked, Job, PeerFailed, PeerProcess

ROWS, QUERIES, K = 40, 6, 3
PYTHON = Path(sys.executable)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    rng = np.random.default_rng(3)
    base = rng.standard_normal((ROWS, 4)).astype(np.float32)
    np.save(folder / "base.npy", base / np.linalg.norm(base, axis=1, keepdims=True))
    np.save(folder / "share.npy", np.arange(ROWS) / ROWS)
    np.save(folder / "cluster_share.npy", np.zeros(ROWS))
    np.save(folder / "measured.npy", base[:QUERIES])
    return folder


def _job(data: Path, folder: Path, style: str) -> Job:
    return Job("tests.unit.benchmarks.fake_adapter", data, folder, 1, {"style": style})


@pytest.fixture(params=["threads", "loop"])
def peer(request: pytest.FixtureRequest, data: Path, tmp_path: Path) -> Iterator[PeerProcess]:
    with PeerProcess(PYTHON, _job(data, tmp_path / "peer", request.param)) as started:
        started.load()
        yield started
    assert (tmp_path / "peer" / "closed").exists()


def _exact(data: Path, below: float | None = None) -> list[list[int]]:
    base, share = np.load(data / "base.npy"), np.load(data / "share.npy")
    scores = np.load(data / "measured.npy") @ base.T
    if below is not None:
        scores[:, share >= below] = -np.inf
    return [row[:K].tolist() for row in np.argsort(-scores, axis=1, kind="stable")]


def test_one_pass_gives_an_answer_to_every_query(peer: PeerProcess, data: Path) -> None:
    ran = peer.ask(Asked("measured", K, None, {}), Pace("once", 2))

    assert peer.versions == {"fake": "1.2"}
    assert ran.answers.tolist() == _exact(data)
    assert len(ran.latencies_s) == QUERIES


def test_an_answer_shorter_than_k_is_padded(peer: PeerProcess, data: Path) -> None:
    ran = peer.ask(Asked("measured", K, 2 / ROWS, {}), Pace("once", 1))

    assert (ran.answers[:, 2] == -1).all()
    assert ran.answers[:, :2].tolist() == [row[:2] for row in _exact(data, 2 / ROWS)]


def test_a_closed_loop_asks_in_turn_until_its_time_is_over(peer: PeerProcess) -> None:
    ran = peer.ask(Asked("measured", K, None, {}), Pace("closed", 2, 0.0, 0.1))

    assert ran.wall_s == 0.1
    assert len(ran.latencies_s) >= QUERIES
    assert (ran.answers >= 0).all()


def test_an_open_loop_answers_what_arrives(peer: PeerProcess) -> None:
    ran = peer.ask(Asked("measured", K, None, {}), Pace("open", 4, 0.0, 0.2, rate=200.0, seed=5))

    assert 0 < ran.offered == len(ran.latencies_s)
    assert ran.in_time <= ran.offered


def test_a_failing_call_is_told_and_the_peer_can_be_asked_again(peer: PeerProcess, data: Path) -> None:
    with pytest.raises(PeerFailed, match=r"ValueError: the engine is \[out\] of order") as caught:
        peer.ask(Asked("measured", K, None, {"fail": True}), Pace("once", 2))

    assert not caught.value.gone
    assert peer.ask(Asked("measured", K, None, {}), Pace("once", 1)).answers.tolist() == _exact(data)


def test_a_pace_that_makes_no_sense_is_refused(peer: PeerProcess) -> None:
    with pytest.raises(PeerFailed, match="measure_s must be positive, got 0"):
        peer.ask(Asked("measured", K, None, {}), Pace("closed", 1))


def test_a_process_that_dies_is_gone(data: Path, tmp_path: Path) -> None:
    with PeerProcess(PYTHON, _job(data, tmp_path / "peer", "threads")) as peer:
        peer.load()
        with pytest.raises(PeerFailed, match="its process ended") as caught:
            peer.ask(Asked("measured", K, None, {"die": True}), Pace("once", 1))

    assert caught.value.gone


def test_a_peer_that_does_not_answer_is_ended_and_stops_what_it_had(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(processes, "_ANSWER_S", 0.2)

    with PeerProcess(PYTHON, _job(data, tmp_path / "peer", "threads")) as peer:
        peer.load()
        with pytest.raises(PeerFailed, match="no answer within 0 s") as caught:
            peer.ask(Asked("measured", K, None, {"silent": True}), Pace("once", 1))

    assert caught.value.gone
    assert (tmp_path / "peer" / "closed").exists()


def test_a_peer_that_cannot_start_says_why(data: Path, tmp_path: Path) -> None:
    with (
        pytest.raises(PeerFailed, match="RuntimeError: there is no such engine"),
        PeerProcess(PYTHON, _job(data, tmp_path / "peer", "broken")),
    ):
        pass
