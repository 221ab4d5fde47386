"""The record store: one JSON line per (cell, expression), append-only; tables are derived from it, never stored instead.

A run folder holds `run.json` (what was asked and where it ran), `records.jsonl`, and `done.json` once all is there. A run
that was killed at any byte goes on where it stopped: a torn last line is cut off and its sample done again.
"""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Collection, Iterable
from contextlib import suppress
from pathlib import Path
from typing import IO, Any

import pandas as pd

from pruners.base import UserError

SCHEMA = 1
NO_EXPRESSION = -1  # id and place in the row of a failed sample
KEYS = {"cell", "sample", "place", "of", "status"}
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
    with partial.open("w") as file:
        file.write(json.dumps(content, indent=2, sort_keys=True) + "\n")
        file.flush()
        os.fsync(file.fileno())
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
            if not isinstance(row, dict) or (number and not row.keys() >= KEYS):
                raise ValueError("not a record")
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
    """Appends rows to a run's record file; the only writer of it. Rows that are there already are not written again."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / RECORDS
        rows: list[dict[str, Any]] = []
        good = 0
        if self.path.exists():
            rows, good = read_lines(self.path)
        self._there = {_key(row) for row in rows}
        self._finished = finished(rows)
        self._file: IO[bytes] = self.path.open("r+b" if self.path.exists() else "w+b")
        self._file.truncate(good)
        self._file.seek(good)
        if good == 0:
            self._write([{"schema": SCHEMA}])

    def has(self, cells: Iterable[str], samples: Collection[str]) -> bool:
        """Whether all samples were finished under all cells when the file was opened."""
        return all((cell, sample) in self._finished for cell in cells for sample in samples)

    def append(self, rows: Iterable[dict[str, Any]]) -> None:
        """Write rows and wait until the disk has them."""
        self._write(row for row in rows if _key(row) not in self._there)

    def _write(self, rows: Iterable[dict[str, Any]]) -> None:
        self._file.write(b"".join(json.dumps(row, sort_keys=True).encode() + b"\n" for row in rows))
        self._file.flush()
        os.fsync(self._file.fileno())

    def close(self) -> None:
        """Close the file; what `append` wrote is on the disk already."""
        with suppress(OSError):
            self._file.close()


def _key(row: dict[str, Any]) -> tuple[Any, ...]:
    return row["cell"], row["sample"], row["place"]


def finished(rows: Iterable[dict[str, Any]]) -> set[tuple[str, str]]:
    """(cell, sample) pairs of which every row is there; each row says how many its pair has."""
    seen: Counter[tuple[str, str]] = Counter()
    wanted: dict[tuple[str, str], int] = {}
    for row in {_key(row): row for row in rows}.values():
        pair = (row["cell"], row["sample"])
        seen[pair] += 1
        wanted[pair] = row["of"]
    return {pair for pair, count in seen.items() if count == wanted[pair]}


def _rows(path: str | Path) -> list[dict[str, Any]]:
    folder = Path(path)
    file = folder / RECORDS if folder.is_dir() else folder
    if not file.is_file():
        raise UserError(f"There are no records in {str(folder)!r}; give the folder of a run, e.g. results/runs/<time>-<id>.")
    return read_lines(file)[0]


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
    """What `run.json` says of a run; empty if it is not there.

    Raises:
        UserError: it is damaged.
    """
    file = Path(path) / RUN
    if not file.is_file():
        return {}
    try:
        content = json.loads(file.read_text())
    except ValueError as error:
        raise UserError(f"'{file}' is damaged ({error}); start anew with another --out folder.") from error
    return content if isinstance(content, dict) else {}
