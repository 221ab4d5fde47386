"""Options and fixtures that all tests share."""

from __future__ import annotations

from pathlib import Path

import pytest

HERE = Path(__file__).parent


def pytest_addoption(parser: pytest.Parser) -> None:
    """Golden sets can be swapped for others in the same layout."""
    parser.addoption("--golden-pruners", type=Path, default=HERE / "golden" / "pruners", help="pruner arrays")
    parser.addoption("--golden-glamm", type=Path, default=HERE / "golden" / "glamm", help="GLaMM checkpoint and arrays")
    parser.addoption("--plugin", action="append", default=[], help="pruner files to test for conformance as well")


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Say how many golden arrays were compared."""
    done = [dict(report.user_properties).get("arrays", 0) for report in terminalreporter.stats.get("passed", ())]
    if sum(done):
        terminalreporter.write_line(f"golden arrays compared: {sum(done)}")


@pytest.fixture(scope="session")
def golden_pruners_dir(request: pytest.FixtureRequest) -> Path:
    """Folder with the official pruners' inputs and outputs."""
    return request.config.getoption("--golden-pruners")


@pytest.fixture(scope="session")
def golden_glamm_dir(request: pytest.FixtureRequest) -> Path:
    """Folder with the official tiny GLaMM."""
    return request.config.getoption("--golden-glamm")
