"""Runs of clips that are killed or shared by several processes: the same rows and frames as without."""

from __future__ import annotations

import os
import random
import signal
import time
from collections import Counter
from pathlib import Path

import pandas as pd
import pytest

from harness.engine.runner import Plan
from harness.store import records
from pruners import parse
from tests.fake_video import FakeVideo, write_clips
from tests.faults.crew import Record, check, finish, send

CLIPS = 6
PAUSE = 0.4  # seconds per clip: two data sets take three processes longer than both waits together


@pytest.fixture(scope="module")
def plan(tmp_path_factory: pytest.TempPathFactory) -> Plan:
    root = write_clips(tmp_path_factory.mktemp("clips"), CLIPS, frames=3)
    pairs = (("ref-davis17", "val"), ("mevis", "valid_u"))
    return Plan(tuple(parse("none,uniform,random")), (9,), pairs, data=str(root))


@pytest.fixture(scope="module")
def whole(plan: Plan, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run that nothing interrupted."""
    folder = tmp_path_factory.mktemp("runs") / "whole"
    finish(Path(), folder, plan=plan, make=FakeVideo)
    return folder


def same_frames(folder: Path, whole: Path) -> None:
    pd.testing.assert_frame_equal(records.load_records(folder), records.load_records(whole))


@pytest.mark.parametrize("workers", [1, 2, 3])
def test_killed_and_continued_by_any_number_of_processes(
    plan: Plan, whole: Path, tmp_path: Path, workers: int, record_property: Record
) -> None:
    draw, folder = random.Random(workers), tmp_path / "run"
    hit = 0
    for _ in range(2):
        crew = [send(Path(), folder, PAUSE, plan=plan, make=FakeVideo) for _ in range(workers)]
        time.sleep(draw.uniform(0.3, 0.9))
        for process in crew:
            os.kill(process.pid, signal.SIGKILL)  # type: ignore[arg-type]
            process.join()
            hit += process.exitcode == -signal.SIGKILL
    assert hit == 2 * workers, "the run was too short to be killed"
    record_property("faults", Counter({"processes killed": hit}))
    crew = [send(Path(), folder, 0.01, plan=plan, make=FakeVideo) for _ in range(workers)]
    for process in crew:
        process.join()
        assert process.exitcode == 0
    finish(Path(), folder, plan=plan, make=FakeVideo)
    check(folder, whole, record_property)
    same_frames(folder, whole)
