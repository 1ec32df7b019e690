"""`make chaos` ends with a table of what was counted."""

from tests.support.tally import TALLIES, table

import pytest


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Every test here is one of chaos."""
    for item in items:
        if "tests/chaos/" in item.nodeid:
            item.add_marker(pytest.mark.chaos)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    if TALLIES:
        terminalreporter.section("chaos")
        for line in table():
            terminalreporter.write_line(line)
