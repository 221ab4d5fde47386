"""Runs that are killed, torn, shared by several processes or cut off from the disk: no row is lost, none is
double."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import time
from collections import Counter
from pathlib import Path

import pytest

from harness.engine.claims import STARTED, WIDTH
from harness.engine.ranks import Place
from harness.engine.runner import Way
from harness.store import records
from pruners import UserError
from tests.fake_backbone import write_data
from tests.faults.crew import Record, check, finish, send

IMAGES = 32
PAUSE = 0.1  # seconds per part


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_data(tmp_path_factory.mktemp("data"), images=IMAGES)


@pytest.fixture(scope="module")
def whole(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run that nothing interrupted."""
    folder = tmp_path_factory.mktemp("runs") / "whole"
    finish(root, folder)
    return folder


@pytest.mark.parametrize("number", range(5))
def test_killed_four_times_and_continued(
    root: Path, whole: Path, tmp_path: Path, number: int, record_property: Record
) -> None:
    """Twenty kills in all, each at a moment drawn from the time that the run takes."""
    draw = random.Random(number)
    folder = tmp_path / "run"
    hit = 0
    for _ in range(4):
        process = send(root, folder, 5 * PAUSE)  # eight parts: four seconds, more than four waits
        time.sleep(draw.uniform(0.05, 0.6))
        os.kill(process.pid, signal.SIGKILL)  # type: ignore[arg-type]
        process.join()
        hit += process.exitcode == -signal.SIGKILL
    assert hit == 4, "the run was too short to be killed"
    record_property("faults", Counter({"processes killed": hit}))
    finish(root, folder)
    check(folder, whole, record_property)


def test_a_writer_that_was_torn_at_any_byte_is_continued(
    root: Path, whole: Path, tmp_path: Path, record_property: Record
) -> None:
    draw = random.Random(0)
    for number in range(6):
        folder = tmp_path / str(number)
        shutil.copytree(whole, folder)
        (folder / records.DONE).unlink()
        for table in (folder / records.FOLDER).glob("*/*.parquet"):
            table.unlink()
        for place in (folder / records.FOLDER).iterdir():
            (file,) = place.glob("*.jsonl")
            file.write_bytes(file.read_bytes()[: draw.randrange(file.stat().st_size)])
        (file,) = folder.glob("claims-*")
        claims = file.read_bytes()
        if number % 2:  # what the disk kept of them is chance, too
            states = draw.choices((STARTED, b"0000", b"+00+", b"\x00" * WIDTH), k=len(claims) // WIDTH)
            claims = b"".join(states)
        file.write_bytes(claims)
        record_property("faults", Counter({"runs torn": 1}))
        finish(root, folder)
        check(folder, whole, record_property)


def test_a_damaged_middle_stops_the_run_and_names_the_line(
    root: Path, whole: Path, tmp_path: Path, record_property: Record
) -> None:
    folder = tmp_path / "run"
    shutil.copytree(whole, folder)
    (folder / records.DONE).unlink()
    for table in (folder / records.FOLDER).glob("*/*.parquet"):
        table.unlink()
    file = sorted((folder / records.FOLDER).glob("*/*.jsonl"))[0]
    lines = file.read_bytes().split(b"\n")
    lines[9] = lines[9][:20] + b"\x00\x00" + lines[9][22:]
    file.write_bytes(b"\n".join(lines))
    with pytest.raises(UserError, match=rf"{file.name}:10 is damaged"):
        finish(root, folder)
    record_property("faults", Counter({"lines damaged": 1}))
    del lines[9]
    file.write_bytes(b"\n".join(lines))
    finish(root, folder)
    check(folder, whole, record_property)


def test_two_processes_share_a_run(root: Path, whole: Path, tmp_path: Path, record_property: Record) -> None:
    folder = tmp_path / "run"
    crew = [send(root, folder, PAUSE) for _ in range(2)]
    for process in crew:
        process.join()
        assert process.exitcode == 0
    for place in (folder / records.FOLDER).iterdir():
        assert len(list(place.glob("*.jsonl"))) == 2, "one of them had nothing to do"
    check(folder, whole, record_property)


@pytest.mark.parametrize("world", [1, 2, 3])
def test_any_number_of_workers_gives_the_same_rows(
    root: Path, whole: Path, tmp_path: Path, world: int, record_property: Record
) -> None:
    folder = tmp_path / "run"
    crew = [send(root, folder, way=Way(place=Place(rank, world))) for rank in range(world)]
    for process in crew:
        process.join()
        assert process.exitcode == 0
    check(folder, whole, record_property)


def test_a_worker_of_three_is_killed_and_the_others_do_its_work(
    root: Path, whole: Path, tmp_path: Path, record_property: Record
) -> None:
    folder = tmp_path / "run"
    crew = [send(root, folder, PAUSE, Way(place=Place(rank, 3))) for rank in range(3)]
    time.sleep(0.25)
    os.kill(crew[1].pid, signal.SIGKILL)  # type: ignore[arg-type]
    for process in crew:
        process.join()
    assert [process.exitcode for process in crew] == [0, -signal.SIGKILL, 0]
    record_property("faults", Counter({"processes killed": 1}))
    assert (folder / records.DONE).exists()
    check(folder, whole, record_property)


@pytest.mark.parametrize("most", [10, 3_000, 20_000, 90_000])
def test_a_full_disk_is_one_sentence_and_the_run_goes_on_when_there_is_room(
    root: Path, whole: Path, tmp_path: Path, most: int, record_property: Record
) -> None:
    folder = tmp_path / "run"
    process = send(root, folder, most_bytes=most)
    process.join()
    assert process.exitcode == 2
    assert "too large" in (tmp_path / "run.said").read_text()
    record_property("faults", Counter({"disks filled": 1}))
    finish(root, folder)
    check(folder, whole, record_property)


def test_a_full_file_system(root: Path, whole: Path, tmp_path: Path, record_property: Record) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=200k", "tmpfs", disk], capture_output=True)
    if mounted.returncode:
        pytest.skip(f"no file system can be mounted here: {mounted.stderr.decode().strip()}")
    try:
        process = send(root, disk / "run")
        process.join()
        assert process.exitcode == 2
        shutil.copytree(disk / "run", tmp_path / "run")
    finally:
        subprocess.run(["umount", disk], check=True)
    record_property("faults", Counter({"disks filled": 1}))
    finish(root, tmp_path / "run")
    check(tmp_path / "run", whole, record_property)


def test_a_folder_that_cannot_be_made(root: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for folder in (tmp_path / "file" / "run", Path("/proc/run")):
        with pytest.raises(UserError, match="Cannot write to"):
            finish(root, folder)


def test_a_split_is_compacted_when_it_is_complete(root: Path, whole: Path) -> None:
    for place in (whole / records.FOLDER).iterdir():
        assert (place / "ok.parquet").is_file()
        (file,) = place.glob("*.jsonl")
        file.write_text("")  # the tables are read from here on
    assert len(records.load_records(whole)) > 0
    assert json.loads((whole / records.DONE).read_text())["peak_memory_bytes"] > 0
