"""A fake server, and a client for it in both worlds: what a test says of one must hold of the other."""

import asyncio
import inspect
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from tests.unit.client.fake_server import FakeServer

from likewise.client import AsyncClient, AsyncGallery, Client

Connect = Callable[..., Any]


class Blocking:
    """An async client or gallery with the methods of the sync one: coroutines are awaited, iterators are gathered."""

    def __init__(self, inner: Any, loop: asyncio.AbstractEventLoop) -> None:
        self._inner = inner
        self._loop = loop

    def __getattr__(self, name: str) -> Any:
        attribute = getattr(self._inner, name)
        if not callable(attribute):
            return attribute

        def call(*args: Any, **kwargs: Any) -> Any:
            result = attribute(*args, **kwargs)
            if inspect.isasyncgen(result):
                return iter(self._wait(_gathered(result)))
            if inspect.iscoroutine(result):
                result = self._wait(result)
            return Blocking(result, self._loop) if isinstance(result, AsyncGallery) else result

        return call

    def _wait(self, coroutine: Any) -> Any:
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop).result(30)


async def _gathered(source: Any) -> list[Any]:
    return [item async for item in source]


@pytest.fixture(scope="session")
def loop() -> Iterator[asyncio.AbstractEventLoop]:
    made = asyncio.new_event_loop()
    thread = threading.Thread(target=made.run_forever, daemon=True)
    thread.start()
    yield made
    made.call_soon_threadsafe(made.stop)
    thread.join(10)
    made.close()


@pytest.fixture
def server() -> Iterator[FakeServer]:
    with FakeServer().serving() as fake:
        yield fake


@pytest.fixture(params=["sync", "async"])
def connect(request: pytest.FixtureRequest, server: FakeServer, loop: asyncio.AbstractEventLoop) -> Iterator[Connect]:
    """Makes clients: connect(timeout=1)."""
    made: list[Any] = []

    def make(address: str = "", **options: Any) -> Any:
        target = address or server.address
        client = (
            Client(target, **options) if request.param == "sync" else Blocking(AsyncClient(target, **options), loop)
        )
        made.append(client)
        return client

    yield make
    for client in made:
        client.close()


@pytest.fixture
def client(connect: Connect) -> Any:
    return connect()


@pytest.fixture
def filled(client: Any) -> Any:
    gallery = client.create_gallery("g", dim=2, attributes={"price": "double", "colour": "string"})
    gallery.upsert(
        ["a", "b", "c"],
        vectors=[[1.0, 0.0], [1.0, 1.0], [0.0, 2.0]],
        attributes={"price": [10, 20.5, None], "colour": ["red", "blue", "red"]},
    )
    return gallery
