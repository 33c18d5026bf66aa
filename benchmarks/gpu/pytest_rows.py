"""pytest plugin: a row for each test, and tests that passed in an earlier run are left out."""

from __future__ import annotations

from pathlib import Path

import pytest

from gpu.rows import Rows


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the files of rows."""
    parser.addoption("--rows", type=Path)
    parser.addoption("--done", type=Path, nargs="*", default=[])


def pytest_configure(config: pytest.Config) -> None:
    """Write rows in the main process only, not in the workers of xdist."""
    config.pluginmanager.register(_Rows(config, writes=not hasattr(config, "workerinput")))


class _Rows:
    """Hooks that read and write the rows of tests."""

    def __init__(self, config: pytest.Config, *, writes: bool) -> None:
        self.rows = Rows(config.getoption("--rows"), config.getoption("--done"))
        self.writes = writes

    def pytest_collection_modifyitems(self, config: pytest.Config, items: list[pytest.Item]) -> None:
        """Leave out tests that have a row without an error."""
        done = [item for item in items if self.rows.is_done(_key(item.nodeid))]
        items[:] = [item for item in items if not self.rows.is_done(_key(item.nodeid))]
        config.hook.pytest_deselected(items=done)

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Write the row of a test when it was called, or what kept it from being called."""
        if not self.writes or (report.when != "call" and report.passed):
            return
        error = {"error": report.longreprtext.splitlines()[-1], "trace": report.longreprtext[-2000:]} if report.failed else {}
        self.rows.add(_key(report.nodeid), kind="test", outcome=report.outcome, seconds=report.duration, **error)


def _key(nodeid: str) -> str:
    return f"test {nodeid}"
