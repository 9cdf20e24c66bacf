from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from likewise.cli.benchmark.echo import echo_command
from likewise.cli.benchmark.load import LoadFailed, run_load, write_requests
from likewise.cli.benchmark.search import one_reply
from likewise.cli.server_process import ServerProcess
from likewise.v1 import search_service_pb2 as pb
from likewise.wire import encode_vector


def by_vector() -> pb.SearchRequest:
    """A search that the SDK can make again of its parts."""
    request = pb.SearchRequest(gallery="g", k=2)
    request.reference.vector.CopyFrom(encode_vector(np.ones(2, dtype=np.float32)))
    return request


REPLY = pb.SearchResponse(hits=pb.Hits(ids=["a", "b"]))


@pytest.fixture
def echo(tmp_path: Path) -> Iterator[str]:
    reply = tmp_path / "reply"
    reply.write_bytes(REPLY.SerializeToString())
    with ServerProcess(echo_command(reply), log_path=tmp_path / "echo.log") as server:
        yield server.address


def test_the_echo_answers_a_search_with_the_bytes_it_was_given(echo: str) -> None:
    assert one_reply(echo, pb.SearchRequest(gallery="any")) == REPLY.SerializeToString()


def test_load_measures_calls_and_keeps_the_answers(echo: str, tmp_path: Path) -> None:
    requests = write_requests([pb.SearchRequest(gallery="g", k=k) for k in (1, 2)], tmp_path / "requests")

    load = run_load(echo, requests, callers=2, measure_s=0.2, warm_up_s=0.05)

    assert load.answers == [["a", "b"], ["a", "b"]]
    assert load.speed.qps > 0


@pytest.mark.parametrize("client", ["sdk", "threads"])
def test_the_sdk_asks_for_the_same(echo: str, tmp_path: Path, client: str) -> None:
    requests = write_requests([by_vector()], tmp_path / "requests")

    load = run_load(echo, requests, callers=1, measure_s=0.2, warm_up_s=0.05, client=client)

    assert load.answers == [["a", "b"]]
    assert load.speed.qps > 0


@pytest.mark.parametrize(
    ("client", "told"), [("stub", "UNAVAILABLE"), ("sdk", "Unavailable"), ("threads", "Unavailable")]
)
def test_load_on_nobody_fails_with_the_status(tmp_path: Path, client: str, told: str) -> None:
    requests = write_requests([by_vector()], tmp_path / "requests")

    with pytest.raises(LoadFailed, match=told):
        run_load("127.0.0.1:1", requests, callers=1, measure_s=0.1, warm_up_s=0.0, client=client)
