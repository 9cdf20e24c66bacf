"""Long forms run when asked for, what the tests counted is reported, and one Ray cluster is there to be broken."""

import re
import socket
from collections.abc import Iterator

import pytest
from tests.faults import report
from tests.faults.attack import Cluster
from tests.faults.options import OPTIONS
from tests.integration.processes import serving


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if OPTIONS.long:
        return
    deselected = [item for item in items if item.get_closest_marker("long")]
    if deselected:
        config.hook.pytest_deselected(items=deselected)
        items[:] = [item for item in items if not item.get_closest_marker("long")]


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    if said := report.text():
        terminalreporter.section("faults report")
        terminalreporter.write(said)


def pytest_sessionfinish() -> None:
    if OPTIONS.report is not None:
        report.write(OPTIONS.report)


@pytest.fixture(scope="session")
def cluster() -> Iterator[Cluster]:
    """For tests that wait until it is whole again."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    with serving("ray", arguments=["--controller-port", str(port)]) as server:
        told = [
            match[1] for line in server.log if (match := re.search(r"the controller serves routers at (\S+)", line))
        ]
        assert told == [f"127.0.0.1:{port}"], server.log
        yield Cluster(server.address, told[0])
