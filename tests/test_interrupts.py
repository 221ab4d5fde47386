"""Ctrl-C: the first is answered at once, the second ends the process whatever it is in, and the last line is
the command that goes on."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import pytest

from backbones.base import Encoding, Pixels
from harness.engine import interrupts
from harness.progress import stage
from tests.fake_backbone import FakeBackbone, write_data
from tests.faults.crew import Record, check, finish, written

ROOT = Path(__file__).parent.parent
# a forward pass that no handler of Python's gets into; hashing lets other threads run, as torch does
LONG = "hashlib.pbkdf2_hmac('sha256', b'', b'', 60_000_000)"
SCRIPT = """
import hashlib, sys
from harness.engine.interrupts import Keys, Stops, farewell, goes_on
sys.argv = ["x/__main__.py", "--force", "--out", "a b"]
with Keys(farewell):
    goes_on("--backbones", "glamm-mini", "--out", "a b-2")
    {before}
        print("ready", file=sys.stderr, flush=True)
        {work}
"""


def started(before: str, work: str, **more: str) -> subprocess.Popen[str]:
    """A process that has come to its work."""
    words = [sys.executable, "-c", SCRIPT.format(before=before, work=work)]
    known = {name: value for name, value in os.environ.items() if not name.startswith(("RANK", "WORLD"))}
    process = subprocess.Popen(words, cwd=ROOT, stderr=subprocess.PIPE, text=True, env=known | more)
    assert process.stderr is not None and process.stderr.readline() == "ready\n"
    time.sleep(0.2)
    return process


def word(process: subprocess.Popen[str]) -> str:
    """The next line that it says."""
    assert process.stderr is not None
    return process.stderr.readline().rstrip()


def test_the_first_is_answered_amid_a_long_pass_and_the_second_ends_it() -> None:
    process = started("with Stops('these images'):", LONG)
    begin = time.monotonic()
    process.send_signal(signal.SIGINT)
    assert word(process) == "stopping after these images; Ctrl-C again to stop now"
    assert time.monotonic() - begin < 1
    assert process.poll() is None
    process.send_signal(signal.SIGINT)
    assert (
        word(process) == "stopped, nothing recorded is lost; to go on: "
        "python -m harness --out 'a b' --backbones glamm-mini --out 'a b-2'"
    )
    assert process.wait(10) == 130
    assert time.monotonic() - begin < 5, "it waited for the pass"
    assert process.stderr is not None and not process.stderr.read()


def test_a_first_one_outside_of_a_run_stops_at_once() -> None:
    process = started("if True:", "import time; time.sleep(30)")
    process.send_signal(signal.SIGINT)
    assert word(process) == interrupts.NOW
    assert process.wait(10) not in (0, None)


def test_a_worker_that_reads_ahead_neither_answers_nor_counts() -> None:
    """Ctrl-C goes to all processes of a terminal."""
    fork = "import os, time; child = os.fork(); time.sleep(1 if child else 2); child or os._exit(0)"
    process = started("with Stops() as stops:", f"{fork}; stops.check()")
    children = subprocess.run(
        ["pgrep", "-P", str(process.pid)], capture_output=True, text=True
    ).stdout.split()
    assert len(children) == 1
    os.kill(int(children[0]), signal.SIGINT)
    assert process.wait(10) == 0, "the parent took the child's signal for its own"
    assert word(process) == ""


def test_other_ranks_are_silent() -> None:
    process = started("with Stops():", "import time; time.sleep(0.5)", RANK="1", WORLD_SIZE="2")
    process.send_signal(signal.SIGINT)
    assert process.wait(10) == 0
    assert word(process) == ""


def test_what_an_import_makes_of_it_is_no_error(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A C extension that is interrupted while it is imported raises an ImportError of its own."""
    from harness import cli

    def broken(*_: object, **__: object) -> int:
        os.kill(os.getpid(), signal.SIGINT)
        try:
            time.sleep(2)
        except KeyboardInterrupt:
            raise ImportError("numpy.core failed to import") from None
        return 0

    monkeypatch.setattr(cli, "app", broken)
    monkeypatch.setattr(sys, "argv", ["harness/__main__.py", "gate"])
    assert cli.main() == 130
    shown = capsys.readouterr().err
    assert "Traceback" not in shown
    assert shown.splitlines()[-1].endswith("to begin again: python -m harness gate")


def test_a_launchers_command_is_not_guessed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "0")
    assert "under its launcher" in interrupts.farewell()


def test_signals_wake_whom_they_woke_before() -> None:
    """An event loop around the command, as a notebook's, hears of signals through the same descriptor."""
    read, write = os.pipe()
    os.set_blocking(write, False)
    before = signal.set_wakeup_fd(write)
    try:
        with interrupts.Keys(interrupts.farewell):
            pass
        assert signal.set_wakeup_fd(before) == write
    finally:
        signal.set_wakeup_fd(before)
        os.close(read), os.close(write)


class Swallowing(FakeBackbone):
    """Gets Ctrl-C twice in the first image, in a library that makes an error of its own of it."""

    def encode_pixels(self, pixels: Sequence[Pixels]) -> list[Encoding]:
        try:
            os.kill(os.getpid(), signal.SIGINT)
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(2)
        except KeyboardInterrupt:
            raise RuntimeError("the kernel was cancelled") from None
        return super().encode_pixels(pixels)


def test_a_second_one_that_a_library_swallows_makes_no_image_a_bad_one(
    tmp_path: Path, no_figures: None, record_property: Record
) -> None:
    root = write_data(tmp_path / "data")
    with pytest.raises(KeyboardInterrupt):
        finish(root, tmp_path / "run", make=Swallowing)
    assert not [row for row in written(tmp_path / "run") if "failed" in row]
    finish(root, tmp_path / "run")
    finish(root, tmp_path / "whole")
    check(tmp_path / "run", tmp_path / "whole", record_property)


def test_a_ctrl_c_that_a_library_swallows_stops_at_the_next_step(capsys: pytest.CaptureFixture[str]) -> None:
    with interrupts.Keys(interrupts.farewell), stage("drawing", total=3) as progress:
        progress.advance()
        try:
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(1)
        except BaseException:  # as a bare `except` in a library does
            pass
        with pytest.raises(KeyboardInterrupt):
            progress.advance()
    with stage("drawing again", total=1) as progress:
        progress.advance()
