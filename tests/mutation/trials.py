"""Runs tests in processes of their own, which start with everything loaded but the code under test.

`python -m tests.mutation.trials` stands in a copy of the tree and takes one job a line, in JSON. What takes
longest of a short test is loading torch and pandas, so this process loads them once, and forks for every job.
"""

from __future__ import annotations

import contextlib
import gc
import importlib
import json
import os
import resource
import signal
import sys
import threading
import time
import traceback
from collections.abc import Generator, Iterable
from pathlib import Path
from types import FrameType
from typing import Any

import pytest

OURS = ("harness", "pruners", "backbones", "reports", "tests")  # what a job loads itself
MEMORY = 24 * 2**30  # bytes of address space; a loop that no longer ends also fills it
# neither workers nor a cache, and the same numbers from hypothesis each time
OPTIONS = ["-q", "-x", "--no-header", "-n", "0", "-p", "no:cacheprovider", "--hypothesis-seed=0"]


class Selected:
    """A plugin of pytest that runs the named tests in their order and notes the first that fails."""

    def __init__(self, order: list[str]) -> None:
        self.order = order
        self.failed = ""

    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        """Keep those that were asked for."""
        by_name = {item.nodeid: item for item in items}
        items[:] = [by_name[name] for name in self.order if name in by_name]

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """What failed first."""
        if report.failed:
            self.failed = self.failed or report.nodeid


class Traced:
    """A plugin of pytest that notes which lines of some files each test runs.

    Attributes:
        loaded: lines that ran before any test, by file.
        lines: lines of each test. What a fixture runs is also written down for its file's other tests.
        seconds: how long each took.
        apart: tests that waited for another process, whose lines are not seen.
        failed: tests that did not pass.
    """

    def __init__(self, files: Iterable[Path]) -> None:
        self.hits: dict[str, set[int]] = {str(file): set() for file in files}
        self.loaded: dict[str, list[int]] = {}
        self.lines: dict[str, dict[str, list[int]]] = {}
        self.fixtures: dict[str, dict[str, list[int]]] = {}
        self.seconds: dict[str, float] = {}
        self.apart: list[str] = []
        self.failed: list[str] = []

    def start(self) -> None:
        """Watch every thread from here on."""
        threading.settrace(self._calls)
        sys.settrace(self._calls)

    def _calls(self, frame: FrameType, event: str, argument: object) -> Any:
        lines = self.hits.get(frame.f_code.co_filename)
        if lines is None:
            return None

        def inside(frame: FrameType, event: str, argument: object) -> Any:
            if event == "line":
                lines.add(frame.f_lineno)
            return inside

        return inside

    def _taken(self) -> dict[str, list[int]]:
        found = {name: sorted(lines) for name, lines in self.hits.items() if lines}
        for lines in self.hits.values():
            lines.clear()
        return found

    def pytest_collection_finish(self) -> None:
        """Everything is imported."""
        self.loaded = self._taken()

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_setup(self, item: pytest.Item) -> Generator[None, object, object]:
        """Lines of fixtures."""
        try:
            return (yield)
        finally:
            shared = self.fixtures.setdefault(item.nodeid.partition("::")[0], {})
            for name, lines in self._taken().items():
                shared[name] = sorted({*shared.get(name, ()), *lines})

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_protocol(self, item: pytest.Item) -> Generator[None, object, object]:
        """Lines of the test, its time, and whether there were other processes."""
        before, start = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
        try:
            return (yield)
        finally:
            self.seconds[item.nodeid] = time.perf_counter() - start
            self.lines[item.nodeid] = self._taken()
            if resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime > before.ru_utime:
                self.apart.append(item.nodeid)

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """What cannot tell a change from none."""
        if report.failed:
            self.failed.append(report.nodeid)

    def found(self) -> dict[str, Any]:
        """All of it, and what of third parties was loaded for it."""
        sys.settrace(None)
        third = [name for name in sys.modules if name.partition(".")[0] not in (*OURS, "__main__")]
        return {
            "loaded": self.loaded,
            "lines": self.lines,
            "fixtures": self.fixtures,
            "seconds": self.seconds,
            "apart": self.apart,
            "failed": self.failed,
            "modules": third,
        }


def _child(job: dict[str, Any], answer: Path) -> int:
    """The forked process: the tests of a job."""
    os.setsid()
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    sink = os.open(answer.with_suffix(".out"), os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(sink, 1)
    os.dup2(sink, 2)
    place = answer.parent / "tests"
    if "trace" in job:
        sys.dont_write_bytecode = False  # pytest's rewritten tests, which all later jobs read
        traced = Traced(map(Path, job["trace"]))
        traced.start()
        options = [option for option in OPTIONS if option != "-x"]
        code = int(pytest.main([*options, f"--basetemp={place}", *job["files"]], plugins=[traced]))
        answer.write_text(json.dumps(traced.found()))
        return code
    selected = Selected(job["tests"])
    files = list(dict.fromkeys(name.partition("::")[0] for name in job["tests"]))
    code = int(pytest.main([*OPTIONS, f"--basetemp={place}", *files], plugins=[selected]))
    answer.write_text(json.dumps({"failed": selected.failed}))
    return code


def ended(pid: int, limit: float) -> int | None:
    """Exit status, or None where the time is over; whatever the process started ends too."""
    end, pause = time.monotonic() + limit, 0.02
    status = None
    while time.monotonic() < end and status is None:
        done, found = os.waitpid(pid, os.WNOHANG)
        status = os.waitstatus_to_exitcode(found) if done else None
        if status is None:
            time.sleep(pause)
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(pid, signal.SIGKILL)
    if status is None:
        os.waitpid(pid, 0)
    return status


def _run(job: dict[str, Any], answer: Path) -> dict[str, Any]:
    answer.unlink(missing_ok=True)
    gc.collect()
    gc.freeze()  # pytest collects garbage several times a run: not of what was loaded before
    start = time.monotonic()
    pid = os.fork()
    if not pid:
        try:
            code = _child(job, answer)
        except BaseException:
            traceback.print_exc()
            code = 70
        os._exit(code)
    status = ended(pid, job["limit"])
    told = json.loads(answer.read_text()) if answer.exists() else {}
    return {**told, "code": status, "took": time.monotonic() - start}


def main() -> None:
    """Load, then do job after job until there is none."""
    sys.dont_write_bytecode = True
    answer = Path(sys.argv[1])
    for line in sys.stdin:
        job = json.loads(line)
        if "load" in job:
            for name in job["load"]:
                with contextlib.suppress(Exception):
                    importlib.import_module(name)
            told: dict[str, Any] = {}
        else:
            told = _run(job, answer)
        print(json.dumps(told), flush=True)


if __name__ == "__main__":
    main()
