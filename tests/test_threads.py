"""How many threads torch gets: what is allowed, what others leave free, what the user says; and that no digit
depends on it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
import torch

from backbones.glamm.backbone import GlammBackbone
from harness import cli
from harness.engine import runner, threads
from harness.engine.threads import Look, Processors, choose
from harness.plan import Plan
from harness.store import records

ROOT = Path(__file__).parent.parent
FOUR = Processors(8, (0, 1, 2, 3), 4)


@pytest.mark.parametrize(
    ("there", "busy", "environment", "expected"),
    [
        (FOUR, 0.0, {}, 4),
        (FOUR, 0.2, {}, 4),  # a desktop's own noise
        (FOUR, 1.0, {}, 3),
        (FOUR, 2.5, {}, 1),
        (FOUR, 9.0, {}, 1),
        (Processors(8, (0, 1, 2, 3), 2), 0.0, {}, 2),  # two hardware threads of each core
        (Processors(8, (0, 1, 2, 3), 4, quota=2.0), 0.0, {}, 2),
        (Processors(8, (0, 1, 2, 3), 4, quota=2.0), 2.0, {}, 2),  # of four, others leave two
        (Processors(8, (0, 1, 2, 3), 4, quota=1.5), 0.0, {}, 1),
        (Processors(8, (0, 1, 2, 3), 4, quota=0.2), 0.0, {}, 1),
        (FOUR, 1.0, {"LOCAL_WORLD_SIZE": "2"}, 2),  # the one that is busy is the other worker
        (FOUR, 0.0, {"LOCAL_WORLD_SIZE": "8"}, 1),
        (FOUR, 0.0, {"LOCAL_WORLD_SIZE": "many"}, 4),
        (FOUR, 0.0, {"SLURM_NTASKS_PER_NODE": "2", "SLURM_CPUS_PER_TASK": "4"}, 4),
        (FOUR, 4.0, {"OMP_NUM_THREADS": "3"}, 3),
        (FOUR, 4.0, {"MKL_NUM_THREADS": "2"}, 2),
        (FOUR, 0.0, {"OMP_NUM_THREADS": "rubbish"}, 4),
        (FOUR, 0.0, {"OMP_NUM_THREADS": "1", "TORCHELASTIC_RUN_ID": "a", "LOCAL_WORLD_SIZE": "2"}, 2),
    ],
)
def test_as_many_as_are_free(
    there: Processors, busy: float, environment: dict[str, str], expected: int
) -> None:
    chosen = choose(None, environment, there, busy)
    assert chosen.threads == expected, str(chosen)
    assert choose(5, environment, there, busy).threads == 5, "--threads wins"


def test_it_says_why() -> None:
    assert str(choose(None, {}, FOUR, 1.0)) == "3 threads: 4 of 8 processors allowed, others keep 1.0 busy"
    assert "quota 2" in str(choose(None, {}, Processors(8, (0, 1), 2, 2.0), 0.0))
    assert "OMP_NUM_THREADS says so" in str(choose(None, {"OMP_NUM_THREADS": "1"}, FOUR, 0.0))


@pytest.mark.parametrize(
    ("group", "files", "expected"),
    [
        ("0::/", {"cpu.max": "150000 100000"}, 1.5),  # a container sees its own group as the root
        ("0::/a/b", {"cpu.max": "max 100000"}, None),
        (
            "0::/a/b",
            {"a/cpu.max": "200000 100000", "a/b/cpu.max": "max 100000"},
            2.0,
        ),  # the one above holds too
        (
            "3:cpu,cpuacct:/d",
            {"cpu,cpuacct/d/cpu.cfs_quota_us": "50000", "cpu,cpuacct/d/cpu.cfs_period_us": "100000"},
            0.5,
        ),
        ("3:cpu:/d", {"cpu/cpu.cfs_quota_us": "300000", "cpu/cpu.cfs_period_us": "100000"}, 3.0),
        ("3:cpu:/", {"cpu/cpu.cfs_quota_us": "-1", "cpu/cpu.cfs_period_us": "100000"}, None),
        ("0::/", {"cpu.max": "rubbish"}, None),
        ("0::/", {}, None),
    ],
)
def test_a_containers_quota(
    group: str, files: dict[str, str], expected: float | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "proc" / "self").mkdir(parents=True)
    (tmp_path / "proc" / "self" / "cgroup").write_text(f"{group}\n")
    for name, text in files.items():
        path = tmp_path / "sys" / "fs" / "cgroup" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"{text}\n")
    monkeypatch.setattr(threads, "PROC", tmp_path / "proc")
    monkeypatch.setattr(threads, "SYS", tmp_path / "sys")
    assert threads.quota() == expected


def test_what_this_process_does_itself_is_not_others(monkeypatch: pytest.MonkeyPatch) -> None:
    before = Look(100.0, {0: 50.0, 1: 50.0, 2: 0.0}, own=3.0)
    monkeypatch.setattr(Look, "now", lambda: Look(101.0, {0: 51.0, 1: 50.5, 2: 1.0}, own=4.0))
    monkeypatch.setattr(threads.time, "monotonic", lambda: 101.0)
    assert threads.others((0, 1), before) == pytest.approx(0.5)
    assert threads.others((0, 1, 2), before) == pytest.approx(1.5)
    monkeypatch.setattr(threads.os, "getloadavg", lambda: (1.25, 0.0, 0.0))
    assert threads.others((0, 1), Look(100.0, {}, 3.0)) == 1.25, "without clocks the load tells"


def test_torch_begins_with_them_and_does_not_spin() -> None:
    script = (
        "import os\nfrom harness.engine import threads\n"
        "from harness.commands.header import begin\n"
        "with begin('a test', 3):\n    import torch\n"
        "print(torch.get_num_threads(), os.environ['GOMP_SPINCOUNT'])"
    )
    known = {k: v for k, v in os.environ.items() if k not in (*threads.GIVEN, *threads.WAITING)}
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, env=known, capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == ["3", "0"]


@pytest.mark.parametrize("text", ["0", "-1", "abc", "1.5", "100000"])
def test_a_senseless_number_is_refused_before_anything_loads(
    text: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["python -m harness", "--threads", text])
    assert cli.main() == 2
    told = capsys.readouterr().err
    assert len(told.splitlines()) == 1
    assert f"'{text}' is no number of threads; give 1 to " in told


def test_the_same_digits_with_one_thread_and_with_two(glamm: GlammBackbone, tmp_path: Path) -> None:
    plan = Plan(
        pruners=("none", "random", "visionzip", "litelvlm", "fastv(layer=1)", "prumerge"),
        budgets=("8",),
        datasets="refshapes:val",
        limit=2,
        seeds=1,
    )
    splits, frames, before = runner.prepare(plan, glamm), [], torch.get_num_threads()
    try:
        for number in (1, 2):
            torch.set_num_threads(number)
            assert runner.run(plan, glamm, splits, tmp_path / str(number))
            assert records.run_info(tmp_path / str(number))["provenance"]["threads"] == number
            frames.append(records.load_records(tmp_path / str(number)))
    finally:
        torch.set_num_threads(before)
    # a log-probability is no count: MKL and oneDNN add in another order with another number of threads
    one, two = (frame.pop("seg_logprob") for frame in frames)
    pd.testing.assert_series_equal(one, two, rtol=1e-6)
    pd.testing.assert_frame_equal(*frames, check_exact=True)
    assert len(frames[0]) > 20
