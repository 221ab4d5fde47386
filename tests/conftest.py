"""Options and fixtures that all tests share."""

from __future__ import annotations

import gc
import os
import shutil
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:  # at run time models are imported when one is asked for: pytest's own process, which
    from backbones.glamm.backbone import GlammBackbone  # hands out the tests, needs none

# before torch is imported: the cores are shared by pytest's workers and by processes that tests start
os.environ.setdefault("OMP_NUM_THREADS", "1")

# started in the background (`&` in a script) it ignores Ctrl-C, and so would the processes that tests stop
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

HERE = Path(__file__).parent
FEW = 5  # files whose tests one process has done sooner than others have started
MOST_WORKERS = 8  # each takes a GB of memory


def pytest_xdist_auto_num_workers(config: pytest.Config) -> int:
    """Processes that `pytest` starts by default: one per core, none for a few files or on one core."""
    named = [Path(str(argument).partition("::")[0]) for argument in config.args]
    files = {file for path in named for file in (path.rglob("test_*.py") if path.is_dir() else [path])}
    cores = min(len(os.sched_getaffinity(0)), MOST_WORKERS)
    return cores if len(files) > FEW and cores > 1 else 0


@pytest.hookimpl(trylast=True)
def pytest_collection_finish() -> None:
    """What is imported by now stays: it is not looked through again whenever garbage is collected."""
    gc.collect()
    gc.freeze()


def pytest_addoption(parser: pytest.Parser) -> None:
    """Golden sets can be swapped for others in the same layout."""
    parser.addoption(
        "--golden-lisa", type=Path, default=HERE / "golden" / "lisa", help="LISA checkpoint and arrays"
    )
    parser.addoption("--golden-pruners", type=Path, default=HERE / "golden" / "pruners", help="pruner arrays")
    parser.addoption(
        "--golden-pruners2", type=Path, default=HERE / "golden" / "pruners2", help="arrays of further pruners"
    )
    parser.addoption(
        "--golden-glamm", type=Path, default=HERE / "golden" / "glamm", help="GLaMM checkpoint and arrays"
    )
    parser.addoption(
        "--golden-reasonseg",
        type=Path,
        default=HERE / "golden" / "reasonseg",
        help="ReasonSeg's files, masks and scores",
    )
    parser.addoption(
        "--golden-video", type=Path, default=HERE / "golden" / "video", help="masks of clips with J and F"
    )
    parser.addoption(
        "--plugin",
        action="append",
        default=[],
        help="files with pruners or backbones: test these for conformance, and no others",
    )
    parser.addoption(
        "--backbones",
        default="",
        help="backbone list, as on the command line: test these for conformance alone",
    )
    parser.addoption(
        "--pruners", default="", help="pruner list, as on the command line: test these for conformance alone"
    )


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Say how many golden arrays were compared, how many faults were injected, and what they cost."""
    reports = [*terminalreporter.stats.get("passed", ()), *terminalreporter.stats.get("failed", ())]
    told = [pair for report in reports for pair in report.user_properties]
    if arrays := sum(count for name, count in told if name == "arrays"):
        terminalreporter.write_line(f"golden arrays compared: {arrays}")
    faults = sum((Counter(counts) for name, counts in told if name == "faults"), Counter())
    if faults:
        terminalreporter.write_line(
            "faults injected: " + ", ".join(f"{count} {what}" for what, count in faults.items())
        )
    rows = sum((Counter(counts) for name, counts in told if name == "rows"), Counter())
    if rows:
        terminalreporter.write_line(
            f"rows compared with runs that nothing stopped: {rows['compared']:,}, "
            f"lost {rows['lost']}, doubled {rows['doubled']}; tables equal: {rows['tables equal']}"
        )


@pytest.fixture(scope="session", autouse=True)
def _no_waiting_for_the_disk() -> Iterator[None]:
    """Without `fsync`, here and in forks: it is for a machine that loses its power, which no test does, and
    takes milliseconds a hundred times a minute."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda _: None)
        yield


@pytest.fixture
def record_property(record_property: Callable[[str, object], None]) -> Callable[[str, object], None]:
    """pytest's own; counts are plain, so that a worker can send them."""
    return lambda name, value: record_property(name, dict(value) if isinstance(value, Counter) else value)


@pytest.fixture
def no_figures(monkeypatch: pytest.MonkeyPatch) -> None:
    """Reports without them: drawing takes longer than a run of most tests."""
    monkeypatch.setattr("reports.figures.draw_figures", lambda *_: [])


@pytest.fixture
def text_only(no_figures: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Reports of tables alone: the page shows every image again."""
    from reports import page

    monkeypatch.setattr(page, "page", lambda *_: page.Page("", {}, ()))


@pytest.fixture(scope="session")
def golden_lisa_dir(request: pytest.FixtureRequest) -> Path:
    """Folder with the official tiny LISA."""
    return request.config.getoption("--golden-lisa")


@pytest.fixture(scope="session")
def golden_pruners_dir(request: pytest.FixtureRequest) -> Path:
    """Folder with the official pruners' inputs and outputs."""
    return request.config.getoption("--golden-pruners")


@pytest.fixture(scope="session")
def golden_pruners2_dir(request: pytest.FixtureRequest) -> Path:
    """Folder with further official pruners' inputs and outputs; their towers are in `golden_pruners_dir`."""
    return request.config.getoption("--golden-pruners2")


@pytest.fixture(scope="session")
def golden_glamm_dir(request: pytest.FixtureRequest) -> Path:
    """Folder with the official tiny GLaMM."""
    return request.config.getoption("--golden-glamm")


@pytest.fixture(scope="session")
def golden_reasonseg_dir(request: pytest.FixtureRequest) -> Path:
    """Folder with ReasonSeg as the official code reads it."""
    return request.config.getoption("--golden-reasonseg")


@pytest.fixture(scope="session")
def golden_video_dir(request: pytest.FixtureRequest) -> Path:
    """Folder with clips as the official code of referring video segmentation scores them."""
    return request.config.getoption("--golden-video")


@pytest.fixture(scope="session")
def sample_site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the sample plugin, really installed; for the path of another process."""
    folder = tmp_path_factory.mktemp("sample")
    shutil.copytree(HERE / "sample_plugin", folder / "source", ignore=shutil.ignore_patterns("*cache*"))
    install = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-build-isolation"]
    subprocess.run(
        [*install, "--target", folder / "site", folder / "source"], check=True, capture_output=True
    )
    return folder / "site"


@pytest.fixture(scope="session")
def glamm_folder(golden_glamm_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint folder as a user has it, with the grounding encoder's numbers inside."""
    target = tmp_path_factory.mktemp("glamm")
    shutil.copytree(golden_glamm_dir / "checkpoint", target / "checkpoint")
    shutil.copytree(golden_glamm_dir / "clip", target / "clip")
    shutil.copy(golden_glamm_dir / "sam_dims.json", target / "checkpoint" / "sam_dims.json")
    return target


@pytest.fixture(scope="session")
def glamm(glamm_folder: Path) -> GlammBackbone:
    """The tiny GLaMM, loaded."""
    from tests.tiny_glamm import load

    return load(glamm_folder)
