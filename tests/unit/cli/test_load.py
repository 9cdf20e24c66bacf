from collections.abc import Iterator
from pathlib import Path

import pytest

from likewise.cli.benchmark.echo import echo_command
from likewise.cli.benchmark.load import LoadFailed, run_load, write_requests
from likewise.cli.benchmark.search import one_reply
from likewise.cli.server_process import ServerProcess
from likewise.v1 import search_service_pb2 as pb

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


def test_load_on_nobody_fails_with_the_status(tmp_path: Path) -> None:
    requests = write_requests([pb.SearchRequest(gallery="g")], tmp_path / "requests")

    with pytest.raises(LoadFailed, match="UNAVAILABLE"):
        run_load("127.0.0.1:1", requests, callers=1, measure_s=0.1, warm_up_s=0.0)
