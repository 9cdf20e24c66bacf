"""The life of a server process: what it says, when it stops, and what it leaves alone meanwhile."""

import asyncio
import gc
import os
import signal
from collections.abc import Iterator
from typing import Any

import pytest

from likewise.server.app import serve


class Stopped:
    """A server that ends its process with a signal as soon as it has started."""

    address = "127.0.0.1:1"
    socket_address = None
    metrics_address = None

    def __init__(self) -> None:
        self.before = gc.get_freeze_count()
        self.set_aside = 0

    async def start(self) -> None:
        asyncio.get_running_loop().call_later(0, os.kill, os.getpid(), signal.SIGTERM)

    async def stop(self) -> None:
        self.set_aside = gc.get_freeze_count() - self.before


@pytest.fixture(autouse=True)
def _as_before() -> Iterator[None]:
    yield
    gc.unfreeze()


def test_a_server_serves_until_it_is_told_to_stop_and_then_drains(capsys: pytest.CaptureFixture[str]) -> None:
    server: Any = Stopped()

    asyncio.run(serve(server, note=", for a test"))

    assert capsys.readouterr().out.splitlines() == [
        "likewise: serving on 127.0.0.1:1, for a test",
        "likewise: draining",
        "likewise: stopped",
    ]


def test_what_a_server_has_made_by_its_start_is_not_searched_for_cycles_again() -> None:
    server: Any = Stopped()

    asyncio.run(serve(server))

    assert server.set_aside > 10_000
