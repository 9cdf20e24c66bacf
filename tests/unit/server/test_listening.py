"""A Unix socket beside the port: who is answered there, and what is told where it cannot be had."""

import asyncio
import socket
from pathlib import Path

import pytest
from grpc import aio
from grpc_health.v1 import health_pb2, health_pb2_grpc
from tests.unit.server.fakes import FakeGalleries, FakeModels

from likewise.client import AsyncClient
from likewise.server.app import Server, ServerOptions, StartupError, serving


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "likewise.sock"


@pytest.fixture
def left_behind(path: Path) -> Path:
    """A socket whose server was killed: bound, and nobody listens."""
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(path))
    return path


def _server(path: Path) -> Server:
    return Server(ServerOptions(port=0, socket=path), models=FakeModels(), galleries=FakeGalleries())


async def _answers(address: str) -> bool:
    async with aio.insecure_channel(address) as channel:
        health = await health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(), timeout=10)
    return bool(health.status == health_pb2.HealthCheckResponse.SERVING)


async def test_a_server_answers_at_its_socket_and_at_its_port(path: Path) -> None:
    server = _server(path)
    async with serving(server) as address:
        assert server.socket_address == f"unix:{path}"
        assert await _answers(address)
        assert await _answers(f"unix:{path}")


def test_the_socket_is_gone_when_its_server_is(path: Path) -> None:
    async def run() -> bool:
        async with serving(_server(path)):
            return await _answers(f"unix:{path}")

    assert asyncio.run(run())
    assert not path.exists()


async def test_the_sdk_reaches_a_server_by_its_socket(path: Path) -> None:
    async with serving(_server(path)), AsyncClient(f"unix:{path}") as client:
        assert (await client.health()).serving


async def test_a_socket_that_a_killed_server_left_is_taken(left_behind: Path) -> None:
    async with serving(_server(left_behind)):
        assert await _answers(f"unix:{left_behind}")


async def test_a_socket_is_not_taken_from_the_server_that_listens_on_it(path: Path) -> None:
    async with serving(_server(path)):
        with pytest.raises(StartupError, match=rf"cannot listen on unix:{path}: another server listens .* --socket"):
            await _server(path).start()

        assert await _answers(f"unix:{path}")


def test_a_file_where_the_socket_should_be_is_left_alone(path: Path) -> None:
    path.write_text("not yours")

    async def start() -> None:
        await _server(path).start()

    with pytest.raises(StartupError, match="what is there is no socket"):
        asyncio.run(start())

    assert path.read_text() == "not yours"


async def test_a_path_that_cannot_be_a_socket_is_told_why(tmp_path: Path) -> None:
    for path, why in (
        (tmp_path / "none" / "likewise.sock", f"there is no folder {tmp_path / 'none'}"),
        (tmp_path / ("a" * 120), "path too long"),
    ):
        with pytest.raises(StartupError, match=why):
            await _server(path).start()
