"""The record store: one JSON line per (cell, expression), append-only; tables are derived from it, never stored instead.

A run folder holds `run.json` (what was asked and where it ran), `records.jsonl`, and `done.json` once all is there. A run
that was killed at any byte goes on where it stopped: a torn last line is cut off and its sample done again.
"""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import IO, Any

import pandas as pd

from pruners.base import UserError

SCHEMA = 1
RECORDS, RUN, DONE = "records.jsonl", "run.json", "done.json"
COLUMNS = (
    "backbone",
    "dataset",
    "split",
    "protocol",
    "pruner",
    "budget",
    "tokens_final",
    "tokens_mean",
    "sample",
    "expression",
    "intersection",
    "union",
    "iou",
    "seed",
    "cell",
)


def write_atomically(path: Path, content: dict[str, Any]) -> None:
    """Write a json file that is either whole or not there."""
    partial = path.with_suffix(".tmp")
    partial.write_text(json.dumps(content, indent=2, sort_keys=True) + "\n")
    partial.replace(path)


def read_lines(path: Path) -> tuple[list[dict[str, Any]], int]:
    """Rows of a record file and the number of good bytes; a torn last line is left out.

    Raises:
        UserError: another schema, or a damaged line before the last.
    """
    raw = path.read_bytes()
    rows: list[dict[str, Any]] = []
    good = 0
    lines = raw.split(b"\n")
    for number, line in enumerate(lines):
        last = number == len(lines) - 1
        if last:  # no newline behind it: empty, or torn
            break
        try:
            row = json.loads(line)
            if not isinstance(row, dict):
                raise ValueError("not an object")
        except ValueError as error:
            if number == len(lines) - 2 and not lines[-1]:
                break
            raise UserError(
                f"{path}:{number + 1} is damaged ({error}); delete that line, and the same command does its sample again."
            ) from error
        if number == 0 and row.get("schema") != SCHEMA:
            raise UserError(
                f"{path} has record schema {row.get('schema')!r}, this version reads {SCHEMA}; use a new --out folder."
            )
        if number:
            rows.append(row)
        good += len(line) + 1
    return rows, good


class Writer:
    """Appends rows to a run's record file; the only writer of it."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / RECORDS
        rows: list[dict[str, Any]] = []
        good = 0
        if self.path.exists():
            rows, good = read_lines(self.path)
        self.finished = finished(rows)
        self._file: IO[bytes] = self.path.open("r+b" if self.path.exists() else "w+b")
        self._file.truncate(good)
        self._file.seek(good)
        if good == 0:
            self.append([{"schema": SCHEMA}])

    def append(self, rows: Iterable[dict[str, Any]]) -> None:
        """Write rows and wait until the disk has them."""
        self._file.write(b"".join(json.dumps(row, sort_keys=True).encode() + b"\n" for row in rows))
        self._file.flush()
        os.fsync(self._file.fileno())

    def close(self) -> None:
        """Close the file."""
        self._file.close()


def finished(rows: Iterable[dict[str, Any]]) -> set[tuple[str, str]]:
    """(cell, sample) pairs of which every row is there; each row says how many its pair has."""
    seen: dict[tuple[str, str], set[Any]] = {}
    wanted: Counter[tuple[str, str]] = Counter()
    for row in rows:
        pair = (row["cell"], row["sample"])
        seen.setdefault(pair, set()).add(row["expression"])
        wanted[pair] = row["of"]
    return {pair for pair, expressions in seen.items() if len(expressions) == wanted[pair]}


def _rows(path: str | Path) -> list[dict[str, Any]]:
    folder = Path(path)
    file = folder / RECORDS if folder.is_dir() else folder
    if not file.is_file():
        raise UserError(f"There are no records in {str(folder)!r}; give the folder of a run, e.g. results/runs/<time>-<id>.")
    rows, _ = read_lines(file)
    unique: dict[tuple[Any, ...], dict[str, Any]] = {}
    for row in rows:
        unique.setdefault((row["cell"], row["sample"], row["expression"]), row)
    return list(unique.values())


def load(path: str | Path) -> pd.DataFrame:
    """Records of a run, one row per (cell, expression), sorted; failed samples are left out.

    Args:
        path: run folder or record file.

    Returns:
        A frame with at least COLUMNS; counts are int64 pixels, `iou` is their ratio (1 for an empty union).
    """
    rows = [row for row in _rows(path) if row["status"] == "ok"]
    frame = pd.DataFrame(rows, columns=list(COLUMNS))
    keys = ["dataset", "split", "pruner", "budget", "seed", "sample", "expression"]
    return frame.sort_values(keys, kind="stable", ignore_index=True)


def failures(path: str | Path) -> dict[str, str]:
    """Samples that could not be evaluated, and why."""
    return {row["sample"]: row["reason"] for row in _rows(path) if row["status"] == "failed"}


def run_info(path: str | Path) -> dict[str, Any]:
    """What `run.json` says of a run; empty if it is not there."""
    file = Path(path) / RUN
    return json.loads(file.read_text()) if file.is_file() else {}  # type: ignore[no-any-return]
