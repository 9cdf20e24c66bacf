"""The command line against the fake server."""

from collections.abc import Iterator
from typing import Any

import pytest
from tests.unit.client.command_line.shell import Shell
from tests.unit.client.fake_server import FakeServer

from likewise.client import Client


@pytest.fixture
def shell(server: FakeServer) -> Shell:
    return Shell(server.address)


@pytest.fixture
def client(server: FakeServer) -> Iterator[Client]:
    with Client(server.address) as made:
        yield made


@pytest.fixture
def shapes(client: Client) -> Any:
    return client.create_gallery("shapes", encoder="shapes")
