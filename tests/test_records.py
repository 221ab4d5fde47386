"""Records check themselves: what was changed, doubled, lost or copied is named, and never becomes another
number."""

from __future__ import annotations

import base64
import json
import os
import random
import re
import shutil
import zlib
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from harness import data
from harness.commands.rebuild import rebuild
from harness.engine.claims import Claims
from harness.engine.crew import Crew
from harness.engine.splits import IMAGES_AT_ONCE
from harness.store import journal, records
from pruners import UserError
from reports import render
from tests.fake_backbone import write_data
from tests.faults.crew import FORK, Record, finish, send

pytestmark = pytest.mark.usefixtures("no_figures")

FLIPS = 150


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_data(tmp_path_factory.mktemp("data"), images=16)


@pytest.fixture(scope="module")
def whole(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "whole"
    finish(root, folder)
    return folder


@pytest.fixture
def folder(whole: Path, tmp_path: Path) -> Path:
    """A finished run."""
    return Path(shutil.copytree(whole, tmp_path / "run"))


@pytest.fixture
def unfinished(folder: Path) -> Path:
    """The same before it was closed."""
    (folder / records.DONE).unlink()
    for table in (folder / records.FOLDER).glob("*/*.parquet"):
        table.unlink()
    return folder


def journals(folder: Path) -> list[Path]:
    return sorted((folder / records.FOLDER).glob("*/*.jsonl"))


def states(folder: Path) -> list[Path]:
    return sorted(folder.glob("claims-*"))


# --- single bits
# --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("which", ["jsonl", "parquet", "run.json", "done.json", "claims"])
def test_no_flipped_bit_changes_a_number_silently(
    which: str, folder: Path, root: Path, whole: Path, record_property: Record
) -> None:
    if which in ("jsonl", "claims"):
        (folder / records.DONE).unlink()
        for table in (folder / records.FOLDER).glob("*/*.parquet"):
            table.unlink()
    files = {
        "claims": states(folder),
        "jsonl": journals(folder),
        "parquet": sorted((folder / records.FOLDER).glob("*/*.parquet")),
    }
    wanted = records.load_records(whole)
    draw = random.Random(which)
    said: Counter[str] = Counter()
    for _ in range(FLIPS if which != "claims" else 4):
        file = draw.choice(files.get(which, [folder / which]))
        raw = file.read_bytes()
        hurt, at = bytearray(raw), draw.randrange(len(raw))
        hurt[at] ^= 1 << draw.randrange(8)
        file.write_bytes(bytes(hurt))
        try:
            if which == "claims":  # no number stands there, but what runs follows it
                finish(root, folder)
            frame = records.load_records(folder)
            assert frame.equals(wanted), f"bit flipped in byte {at} of {file.name}"
            said["unchanged"] += 1
        except UserError as error:
            assert file.name in str(error) or str(folder) in str(error)
            said["named"] += 1
        file.write_bytes(raw)
    record_property("faults", Counter({"bits flipped": said.total()}))
    # what is not named lies between the values, or where no number hangs on it
    assert (
        said["named"]
        > {"jsonl": 0.9, "parquet": 0.5, "run.json": 0.5, "done.json": 0.5, "claims": -1}[which]
        * said.total()
    )


# --- rows that are sound JSON with a sound checksum, and no sound rows
# ---------------------------------------------


def resummed(row: dict[str, Any]) -> bytes:
    row.pop("crc", None)
    return journal.line(row)


@pytest.mark.parametrize(
    "change",
    [
        {"intersection": 10**6},
        {"union": -3},
        {"intersection": 1.5},
        {"intersection": "12"},
        {"intersection": None},
        {"union": True},
        {"union": 10**30},
        {"iou": 0.123},
        {"iou": float("nan")},
        {"budget": "8"},
        {"budget": 9},
        {"cell": "f" * 16},
        {"cell": ["a"]},
        {"sample": "refcoco:testB:1"},
        {"split": "testB"},
        {"split": "val", "sample": "refcoco:val:1"},
        {"status": "fine"},
        {"status": ["ok"]},
        {"of": 0},
        {"place": -1},
        {"kept": "@@@"},
        {"kept": ""},
        {"mask": "\x00"},
        {"tokens_final": 10**6},
        {"tokens_final": 7},
        {"tokens_mean": -1.0},
        {"tokens_mean": 50.0},
        {"tokens_mean": 10**400},
        {"rounding_tokens": 1e9},
        {"place": 7},
        {"views": 0},
        {"views": 2},  # a budget is one of each view
        {"frames": 0},
        {"coverage": 2.0},
        {"pruner": "other"},
        {"seed": 5},
    ],
    ids=str,
)
def test_a_row_that_cannot_be_is_named_by_file_and_line(unfinished: Path, change: dict[str, Any]) -> None:
    file = journals(unfinished)[0]
    lines = file.read_bytes().splitlines(keepends=True)
    at = next(k for k, line in enumerate(lines) if b'"status": "ok"' in line)
    lines[at] = resummed(json.loads(lines[at]) | change)
    file.write_bytes(b"".join(lines))
    for act in (records.load_records, render):
        with pytest.raises(UserError, match=rf"{file.name}:{at + 1} is damaged"):
            act(unfinished)


@pytest.mark.parametrize(
    "content",
    [
        b"[" * 200_000,
        b'{"x": "' + b"a" * 3_000_000 + b'"}',
        b"\xff\xfe",
        b"",
        b"7",
        b'{"a": 1}{"b": 2}',
        b"\x00" * 40,
    ],
    ids=["deep", "giant", "no text", "empty", "number", "two", "zeros"],
)
def test_lines_that_are_no_rows(unfinished: Path, content: bytes) -> None:
    file = journals(unfinished)[0]
    lines = file.read_bytes().splitlines()
    lines[5] = content
    file.write_bytes(b"\n".join([*lines, b""]))
    with pytest.raises(UserError, match=rf"{file.name}:6 is damaged"):
        records.load_records(unfinished)


def test_a_sample_row_may_only_name_a_picture_of_the_run(unfinished: Path) -> None:
    file = journals(unfinished)[0]
    lines = file.read_bytes().splitlines(keepends=True)
    at = next(k for k, line in enumerate(lines) if b'"status": "sample"' in line)
    for name in ("../../secret.txt", "/etc/passwd", "images/../run.json", "images/a/b.jpg", "records/x.jpg"):
        lines[at] = resummed(json.loads(lines[at]) | {"image": name})
        file.write_bytes(b"".join(lines))
        with pytest.raises(UserError, match="is not one of the run's images"):
            records.samples(unfinished)


def test_a_report_embeds_pictures_alone(folder: Path) -> None:
    secret = folder / "secret"
    secret.write_text("TOP-SECRET")
    pictures = sorted((folder / "images").iterdir())
    pictures[0].unlink()
    pictures[0].symlink_to(secret)
    pictures[1].write_text("TOP-SECRET")
    page = next(path for path in render(folder) if path.name == "report.html").read_text()
    assert base64.b64encode(b"TOP-SECRET").decode() not in page
    named = [name for name in re.findall(r'"data:image/jpeg;base64,([^"]*)"', page)]
    content = {base64.b64encode(path.read_bytes()).decode() for path in pictures[2:]}
    assert named and set(named) <= content


# --- twice
# --------------------------------------------------------------------------------------------------------


def test_a_row_that_stands_twice_counts_once(unfinished: Path, whole: Path) -> None:
    for file in journals(unfinished):
        shutil.copy(file, file.with_name("copied.jsonl"))
    assert records.load_records(unfinished).equals(records.load_records(whole))


def test_two_rows_that_should_be_one_and_differ_are_both_named(unfinished: Path, root: Path) -> None:
    file = journals(unfinished)[0]
    lines = file.read_bytes().splitlines(keepends=True)
    at = next(
        k for k, line in enumerate(lines) if b'"status": "ok"' in line and json.loads(line)["union"] > 1
    )
    row = json.loads(lines[at])
    other = (
        row | {"intersection": 0, "iou": 0.0}
        if row["intersection"]
        else row | {"intersection": 1, "iou": 1 / row["union"]}
    )
    file.with_name("zzz.jsonl").write_bytes(lines[0] + resummed(other))
    for act in (records.load_records, lambda folder: finish(root, folder)):
        with pytest.raises(
            UserError, match=rf"{file.name}:{at + 1} and .*zzz.jsonl:2 are the same result .*intersection"
        ):
            act(unfinished)


@pytest.mark.parametrize("what", ["gone", "shorter", "earlier", "nonsense", "longer"])
def test_claims_that_were_lost_or_are_old_double_nothing(
    unfinished: Path, root: Path, whole: Path, what: str
) -> None:
    before = Counter(
        records.row_key(row) for file in journals(unfinished) for row in records.read_lines(file)
    )
    for claims in (unfinished / records.FOLDER).glob("*/claims"):
        content = claims.read_bytes()
        changed = {
            "gone": None,
            "shorter": content[:-1],
            "earlier": b"." * len(content),
            "nonsense": bytes([0xB2]) * len(content),
            "longer": content + b"....",
        }[what]
        claims.unlink() if changed is None else claims.write_bytes(changed)
    finish(root, unfinished)
    after = Counter(records.row_key(row) for file in journals(unfinished) for row in records.read_lines(file))
    assert before == after
    assert records.load_records(unfinished).equals(records.load_records(whole))


def test_locks_that_do_nothing_double_nothing(
    root: Path, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Some network file systems grant every lock: all processes then do the same work, and the rows count
    once."""
    monkeypatch.setattr("harness.engine.claims.fcntl.lockf", lambda *_: None)
    crew = [send(root, tmp_path / "run", 0.05) for _ in range(2)]
    for process in crew:
        process.join()
    assert [process.exitcode for process in crew] == [0, 0]
    assert records.load_records(tmp_path / "run").equals(records.load_records(whole))


def test_a_journal_that_was_lost_is_done_again(unfinished: Path, root: Path, whole: Path) -> None:
    journals(unfinished)[0].unlink()
    finish(root, unfinished)
    assert records.load_records(unfinished).equals(records.load_records(whole))


# --- a finished run that was damaged
# ------------------------------------------------------------------------------


def edited(change: Callable[[pd.DataFrame], pd.DataFrame]) -> Callable[[Path], None]:
    def act(folder: Path) -> None:
        table = folder / records.FOLDER / "refcoco-val" / "ok.parquet"
        change(pd.read_parquet(table)).to_parquet(table)

    return act


DAMAGE: dict[str, Callable[[Path], Any]] = {
    "empty": lambda folder: (folder / records.FOLDER / "refcoco-val" / "ok.parquet").write_bytes(b""),
    "swapped": lambda folder: shutil.copy(
        folder / records.FOLDER / "refcoco-testA" / "ok.parquet",
        folder / records.FOLDER / "refcoco-val" / "ok.parquet",
    ),
    "fewer": edited(lambda frame: frame.iloc[: len(frame) // 2]),
    "doubled": edited(lambda frame: pd.concat([frame, frame])),
    "other counts": edited(lambda frame: frame.assign(intersection=frame["intersection"] // 2)),
    "no column": edited(lambda frame: frame.drop(columns="union")),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_table_is_refused_and_rebuilt_from_its_journal(
    folder: Path, root: Path, whole: Path, damage: str, capsys: pytest.CaptureFixture[str]
) -> None:
    DAMAGE[damage](folder)
    for act in (records.load_records, render, lambda folder: finish(root, folder)):
        with pytest.raises(UserError, match=r"ok.parquet' is damaged .*python -m harness rebuild"):
            act(folder)
    rebuild(folder)
    assert "rebuilt" in capsys.readouterr().out
    finish(root, folder)
    assert records.load_records(folder).equals(records.load_records(whole))


def test_tables_and_journals_that_are_lost_together_are_not_hidden(
    folder: Path, root: Path, whole: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.rmtree(folder / records.FOLDER / "refcoco-val")
    for act in (records.load_records, render):
        with pytest.raises(UserError, match=r"refcoco:val .* are not all there"):
            act(folder)
    with pytest.raises(UserError, match="is missing"):
        finish(root, folder)
    rebuild(folder)
    assert "give its command again" in capsys.readouterr().out
    finish(root, folder)
    assert records.load_records(folder).equals(records.load_records(whole))


def test_rebuild_touches_no_table_that_is_as_it_was_written(folder: Path, whole: Path) -> None:
    for file in journals(folder):
        file.unlink()
    rebuild(folder)
    assert records.load_records(folder).equals(records.load_records(whole))


@pytest.mark.parametrize("what", ["journal", "claims", "split", "pipe"])
def test_links_and_pipes_in_a_run_folder_are_refused(
    unfinished: Path, root: Path, tmp_path: Path, what: str
) -> None:
    place = records.split_folder(unfinished, "refcoco", "val")
    foreign = tmp_path / "foreign"
    if what == "journal":
        next(place.glob("*.jsonl")).rename(foreign)
        (place / "linked.jsonl").symlink_to(foreign)
    elif what == "claims":
        (file,) = states(unfinished)
        file.rename(foreign)
        file.symlink_to(foreign)
    elif what == "split":
        place.rename(foreign)
        place.symlink_to(foreign)
    else:
        os.mkfifo(place / "pipe.jsonl")
    before = foreign.read_bytes() if foreign.is_file() else sorted(path.name for path in foreign.glob("*"))
    with pytest.raises(UserError, match=r"link|Too many levels"):
        finish(root, unfinished)
    assert before == (
        foreign.read_bytes() if foreign.is_file() else sorted(path.name for path in foreign.glob("*"))
    )


def test_a_claim_that_counts_failures_which_nobody_recorded(
    unfinished: Path, root: Path, whole: Path
) -> None:
    (claims,) = states(unfinished)
    claims.write_bytes(b"8" * len(claims.read_bytes()))
    finish(root, unfinished)
    assert records.load_records(unfinished).equals(records.load_records(whole))


def test_folders_that_lie_beside_the_splits_are_no_splits(folder: Path, whole: Path) -> None:
    shutil.copytree(folder / records.FOLDER / "refcoco-val", folder / records.FOLDER / "refcoco-val copy")
    assert records.load_records(folder).equals(records.load_records(whole))


@pytest.mark.parametrize("name", [records.RUN, records.DONE])
@pytest.mark.parametrize(
    "content", ["", "[]", "{", '{"schema": 99}', "[" * 100_000, '{"schema": 4, "cells": 7}'], ids=repr
)
def test_what_a_folder_says_of_itself_is_checked(folder: Path, name: str, content: str) -> None:
    (folder / name).write_text(content)
    with pytest.raises(UserError, match=name):
        records.load_records(folder)


def test_a_later_schema_is_refused_everywhere(unfinished: Path, root: Path) -> None:
    file = journals(unfinished)[0]
    lines = file.read_bytes().splitlines(keepends=True)
    file.write_bytes(journal.line({"schema": 99}) + b"".join(lines[1:]))
    for act in (records.load_records, render, lambda folder: finish(root, folder)):
        with pytest.raises(UserError, match="schema 99"):
            act(unfinished)


def test_a_run_of_schema_2_is_still_shown(unfinished: Path, whole: Path, root: Path) -> None:
    """Journals without checksums, run.json without digest, editions, kinds and grids."""
    for file in journals(unfinished):
        rows = [{key: row[key] for key in row if key != "code"} for row in records.read_lines(file)]
        file.write_text("".join(json.dumps(row) + "\n" for row in [{"schema": 2}, *rows]))
    info = json.loads((unfinished / records.RUN).read_text())
    new = ("asked", "kind", "needs", "stochastic", "grid", "source")
    cells = {
        cell: {key: value for key, value in entry.items() if key not in new}
        for cell, entry in info["cells"].items()
    }
    old = {"run": info["run"], "asked": {"seed": 0}, "provenance": info["provenance"], "cells": cells}
    (unfinished / records.RUN).write_text(json.dumps(old))
    (unfinished / records.DONE).write_text(json.dumps({"run": info["run"], "peak_memory_bytes": 1}))
    columns = ["cell", "sample", "expression", "intersection", "union", "iou", "kept", "kind"]
    assert records.load_records(unfinished)[columns].equals(records.load_records(whole)[columns])
    assert "unfinished" not in render(unfinished)[0].read_text()
    with pytest.raises(UserError, match="made by an earlier version"):
        finish(root, unfinished)


# --- while it runs
# ------------------------------------------------------------------------------------------------


def test_a_reader_meets_a_writer_in_the_middle_of_a_line(tmp_path: Path) -> None:
    rows = [{"cell": "c", "sample": "s", "place": k, "of": 1, "status": "ok"} for k in range(3)]
    content = b"".join(journal.line(row) for row in [{"schema": records.SCHEMA}, *rows])
    file = tmp_path / "live.jsonl"
    reader = journal.Reader(file, records.SCHEMAS, "mend")
    file.write_bytes(content[:-20])
    assert [row for _, row in reader] == rows[:2]
    file.write_bytes(content)
    assert [row for _, row in reader] == rows[2:]


def test_a_run_that_waits_says_for_what(
    root: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    finish(root, tmp_path / "run")
    folder = tmp_path / "run"
    (folder / records.DONE).unlink()
    place = records.split_folder(folder, "refcoco", "val")
    for file in place.glob("*.jsonl"):
        file.unlink()
    (claims,) = states(folder)
    claims.unlink()
    samples = data.load_samples("refcoco", "val", root)

    held, seen = FORK.Event(), FORK.Event()

    def hold() -> None:
        assert Claims(
            folder / "claims-1", [[data.identify(sample).medium for sample in samples[:IMAGES_AT_ONCE]]]
        ).take(0)
        held.set()
        seen.wait(60)

    def look(crew: Crew) -> str:
        found = named(crew)
        seen.set()
        return found

    named = Crew._held

    holder = FORK.Process(target=hold)
    holder.start()
    assert held.wait(60)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("harness.engine.crew.PATIENCE", 0.1)
        patch.setattr("harness.engine.crew.FIRST_WORD", 0.1)
        patch.setattr(Crew, "_held", look)
        finish(root, folder)
    holder.join()
    told = f"waiting for images 1 to {IMAGES_AT_ONCE} of 16 (process {holder.pid})"  # of both splits
    assert told in capfd.readouterr().err


def test_a_folder_that_is_moved_while_a_process_works_in_it(tmp_path: Path) -> None:
    root = write_data(tmp_path / "data", images=64)
    folder = tmp_path / "run"
    process = send(root, folder, 0.2)
    while not journals(folder):
        assert process.is_alive()
    folder.rename(tmp_path / "moved")
    process.join(30)
    assert process.exitcode == 2
    finish(root, tmp_path / "moved")
    rows = Counter(
        records.row_key(row) for file in journals(tmp_path / "moved") for row in records.read_lines(file)
    )
    assert set(rows.values()) == {1}


def test_a_checksum_is_that_of_the_line() -> None:
    line = journal.line({"b": 1, "a": "ä"})
    body, _, rest = line.partition(b', "crc": "')
    assert int(rest[:8], 16) == zlib.crc32(body + b"}")
