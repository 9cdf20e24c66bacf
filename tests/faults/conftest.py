"""One local Ray cluster for the tests that break parts of it and wait until it is whole again."""

import re
import socket
from collections.abc import Iterator

import pytest
from tests.faults.attack import Cluster
from tests.integration.processes import serving


@pytest.fixture(scope="session")
def cluster() -> Iterator[Cluster]:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    with serving("ray", arguments=["--controller-port", str(port)]) as server:
        told = [
            match[1] for line in server.log if (match := re.search(r"the controller serves routers at (\S+)", line))
        ]
        assert told == [f"127.0.0.1:{port}"], server.log
        yield Cluster(server.address, told[0])
