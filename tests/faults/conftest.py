"""Long forms run when asked for, and what the tests counted is reported."""

import pytest
from tests.faults import report
from tests.faults.options import OPTIONS


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
