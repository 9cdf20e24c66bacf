"""Every test here runs twice: on the embedded server and on a local Ray cluster."""

from collections.abc import Iterator

import pytest
from tests.integration.processes import ServerProcess, serving

from likewise.client import Client

MODES = [pytest.param("embedded", id="embedded"), pytest.param("ray", id="ray", marks=pytest.mark.cluster)]


@pytest.fixture(scope="session", params=MODES)
def mode(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="session")
def server(mode: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    """One server for all tests that leave it as they found it."""
    exports = tmp_path_factory.mktemp("exports")
    with serving(mode, arguments=["--export-root", str(exports)]) as process:
        yield process


@pytest.fixture
def client(server: ServerProcess) -> Iterator[Client]:
    with Client(server.address) as client:
        yield client


@pytest.fixture
def name(request: pytest.FixtureRequest) -> str:
    """A gallery name of the test's own."""
    return f"t{abs(hash(request.node.nodeid)):x}"[:40]
