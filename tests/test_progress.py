"""Something moves: on a terminal, without one, inside a part, before torch is loaded; and of several ranks
one speaks."""

from __future__ import annotations

import io
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest

from backbones.base import READ
from backbones.glamm.backbone import GlammBackbone
from harness import progress
from harness.engine import runner
from harness.engine.evaluate import fill
from harness.engine.prefetch import Parts
from harness.engine.splits import parts, samples_of
from harness.engine.steps import Steps
from harness.plan import Plan
from harness.progress import Stage, each, say, stage

ROOT = Path(__file__).parent.parent
RANKS = ("RANK", "WORLD_SIZE", "SLURM_PROCID", "SLURM_NTASKS")


class Terminal(io.StringIO):
    """What a terminal was told."""

    def isatty(self) -> bool:
        return True


@pytest.fixture(autouse=True)
def alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """No launcher."""
    for name in RANKS:
        monkeypatch.delenv(name, raising=False)


def test_a_log_gets_a_line_at_once_and_more_while_one_step_takes_long(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(progress, "LINE_EVERY", 0.2)
    with stage("evaluating", 1200, "images x cells", 200) as shown:
        assert capsys.readouterr().err == "evaluating: 1,200 images x cells, 200 done already ...\n"
        time.sleep(1.1)
        shown.advance(500, "masks, refshapes:val 1-8")
        time.sleep(0.3)
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "evaluating: 200 of 1,200 images x cells, 0:00 elapsed"
    assert "evaluating: 700 of 1,200 images x cells, 0:01 elapsed, about 0:01 left" in lines[-2]
    assert lines[-2].endswith("left (masks, refshapes:val 1-8)")
    assert lines[-1] == "evaluating: done in 0:01"


def test_a_terminal_gets_a_bar_whose_clock_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "DRAW_EVERY", 0.2)
    monkeypatch.setattr(sys, "stderr", terminal := Terminal())
    with stage("evaluating", 96, "images") as shown:
        shown.at(12, "masks")
        time.sleep(1.3)
        say("left out: one")
        shown.at(95.6)
    told = terminal.getvalue()
    assert re.search(r"evaluating:  12%[^\r]* 12/96 images \[00:01<00:\d\d\], masks", told), told
    assert "left out: one\n" in told
    assert "96/96" in told
    assert "\n" not in told.replace("left out: one\n", ""), "a short stage leaves no bar behind"


def test_a_terminal_without_a_size_gets_a_bar_too() -> None:
    """tqdm hides one where the terminal has no lines, as `docker exec -t` and `script` make them."""
    script = (
        "from harness.progress import stage\nwith stage('evaluating', 4, 'images') as shown:\n    shown.at(1)"
    )
    read, write = os.openpty()
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, stderr=write)
    os.close(write)
    assert done.returncode == 0
    assert b"0/4 images" in os.read(read, 4096)
    os.close(read)


def test_what_has_no_number_shows_its_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stderr", terminal := Terminal())
    with stage("loading glamm-mini"), stage("reading the data sets", 0, "images") as inner:
        inner.more(4)
        inner.at(4)
    assert "loading glamm-mini: 00:00" in terminal.getvalue()
    assert "4/4 images" in terminal.getvalue()


def test_the_innermost_stage_speaks(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(progress, "LINE_EVERY", 0.1)
    with stage("outer"):
        for _ in each([1], "inner"):
            capsys.readouterr()
            time.sleep(0.35)
            said = capsys.readouterr().err
    assert "inner: 0 of 1 images" in said and "outer" not in said


@pytest.mark.parametrize("names", [("RANK", "WORLD_SIZE"), ("SLURM_PROCID", "SLURM_NTASKS")])
def test_other_ranks_show_nothing(
    names: tuple[str, str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for rank, expected in (("0", 2), ("1", 0)):
        monkeypatch.setenv(names[0], rank)
        monkeypatch.setenv(names[1], "2")
        with stage("evaluating", 3, "images"):
            say("left out: one")
        assert len(capsys.readouterr().err.splitlines()) == expected


def test_no_process_is_forked_in_the_middle_of_a_line() -> None:
    """A child would wait for ever for a thread that it does not have."""
    with progress._writing:
        child = os.fork()
        if not child:
            os._exit(0 if progress._writing.acquire(timeout=5) else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def test_the_steps_of_a_part_are_told_as_they_are_done(glamm: GlammBackbone) -> None:
    plan = Plan(pruners="none,random,fastv(layer=1)", budgets="8", datasets="refshapes:val", limit=2, seeds=1)
    (split,) = runner.prepare(plan, glamm)
    _, loaded = Parts(samples_of([split], parts([split])), glamm.preprocess)[0]
    asks = {sample.id: split.jobs for sample in split.samples}
    for share in (True, False):
        told = []
        steps = Steps(lambda *now, told=told: told.append(now))  # type: ignore[misc]
        rows = list(fill(loaded, asks, glamm, "glamm", 0, share=share, steps=steps))
        assert {row["status"] for row in rows} == {"ok"}
        assert told[-1][0] == pytest.approx(1)
        assert len({done for done, step in told if step == READ}) >= 3, "one jump is no movement"
    assert told[0][0] < 0.2
    assert "tell" not in vars(glamm), "the backbone goes on telling"


def test_a_run_moves_inside_of_a_part(
    glamm: GlammBackbone, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[tuple[float, float | None, str]] = []

    class Watched(Stage):
        def at(self, done: float, note: str | None = None) -> None:
            super().at(done, note)
            if self.what == "evaluating":
                seen.append((self.done, self.total, self.note))

    monkeypatch.setattr(progress, "Stage", Watched)
    plan = Plan(pruners="none,visionzip", budgets="8", datasets="refshapes:val", limit=10)
    assert runner.run(plan, glamm, runner.prepare(plan, glamm), tmp_path / "run")
    done = [one for one, _, _ in seen]
    assert done == sorted(done) and done[-1] == 20
    assert {total for _, total, _ in seen} == {20}
    first = [one for one in done if one < 16]
    assert len(set(first)) > 10, "eight images are one step"
    assert any(note == "language model, images 1 to 4 of 10" for _, _, note in seen)


def test_the_header_comes_before_torch(tmp_path: Path) -> None:
    script = (
        "import sys\nsys.modules['torch'] = None\nfrom harness.cli import main\n"
        "sys.argv = ['harness', '--pruners', 'none,random', '--budgets', '64,33%', "
        f"'--out', {str(tmp_path)!r}, '--datasets', 'refshapes:val', '--limit', '2', '--threads', '1']\n"
        "main()"
    )
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True)
    lines = done.stderr.splitlines()
    assert lines[0] == "glamm-mini on device auto, 1 thread: as --threads says"
    assert lines[1] == (
        "pruners none,random at 2 budgets (64,33%) on data refshapes:val, 2 images of each split, into "
        f"{tmp_path}; then costs, then the report"
    )
    assert lines[2] == "loading torch and the methods ..."
