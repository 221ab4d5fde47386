"""Processes of a run that can be killed: forks of the test, so that no test waits for imports."""

from __future__ import annotations

import multiprocessing
import os
import resource
import signal
from collections import Counter
from collections.abc import Callable
from multiprocessing.context import ForkProcess
from pathlib import Path

import pandas as pd
import torch

from harness.engine.ranks import Place
from harness.engine.runner import Plan, Way, prepare, run
from harness.store import records
from pruners import UserError, parse
from tests.fake_backbone import FakeBackbone, SlowBackbone

Record = Callable[[str, object], None]  # pytest's record_property, summed up at the end of the session
FORK = multiprocessing.get_context("fork")
PAIRS = (("refcoco", "val"), ("refcoco", "testA"))


def plan_of(root: Path, pruners: str = "none,fastv,litelvlm,random") -> Plan:
    return Plan(tuple(parse(pruners)), (8,), PAIRS, data=str(root))


Make = Callable[[float], FakeBackbone]


def work(
    plan: Plan, folder: Path, pause: float, way: Way, most_bytes: int | None, make: Make = SlowBackbone
) -> None:
    torch.set_num_threads(1)
    if most_bytes is not None:  # a file that would grow beyond it cannot be written: what a full disk does
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (most_bytes, resource.RLIM_INFINITY))
    backbone = make(pause)
    try:
        run(plan, backbone, prepare(plan, backbone), folder, way)
    except UserError as error:
        resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
        Path(f"{folder}.said").write_text(str(error)) if most_bytes is not None else print(error)
        os._exit(2)
    os._exit(0)


def send(
    root: Path,
    folder: Path,
    pause: float = 0.0,
    way: Way | None = None,
    most_bytes: int | None = None,
    plan: Plan | None = None,
    make: Make = SlowBackbone,
) -> ForkProcess:
    """A process that works on the run."""
    given = (plan or plan_of(root), folder, pause, way or Way(), most_bytes, make)
    process = FORK.Process(target=work, args=given)
    process.start()
    return process


def finish(
    root: Path,
    folder: Path,
    place: Place | None = None,
    plan: Plan | None = None,
    make: Callable[[], FakeBackbone] = FakeBackbone,
) -> None:
    """Work on the run in this process until it is done."""
    backbone = make()
    plan = plan or plan_of(root)
    assert run(plan, backbone, prepare(plan, backbone), folder, Way(place=place or Place()))


def written(folder: Path) -> Counter[tuple[object, ...]]:
    """How often every row stands in the record files, all processes' together."""
    files = (folder / records.FOLDER).glob("*/*.jsonl")
    return Counter(records.row_key(row) for file in files for row in records.read_lines(file))


def check(folder: Path, wanted: Path, record: Record) -> None:
    """No row lost, none doubled, and the same frame; `record` is told the counts."""
    there, expected = written(folder), written(wanted)
    lost, doubled = expected - there, there - expected
    record("rows", Counter({"compared": expected.total(), "lost": lost.total(), "doubled": doubled.total()}))
    assert not lost, f"lost: {lost}"
    assert not doubled, f"doubled: {doubled}"
    pd.testing.assert_frame_equal(records.load_records(folder), records.load_records(wanted))
    pd.testing.assert_frame_equal(records.samples(folder), records.samples(wanted))
    record("rows", Counter({"tables equal": 1}))
