"""A table as a file: a frame of numbers in; CSV, strict JSON, markdown or LaTeX out, by the suffix."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from harness.store.journal import write_text
from pruners.base import UserError, nearest
from reports import latex
from reports.table_text import csv

DIGITS = "{:.6g}"  # of numbers in markdown and LaTeX, where a table does not say its own


class Column(NamedTuple):
    """What a column is.

    Attributes:
        unit: of its numbers; empty of texts, counts and ratios.
    """

    meaning: str
    unit: str = ""


@dataclass(frozen=True)
class Sheet:
    """A table for a file.

    Attributes:
        frame: numbers as numbers, in the units of `columns`; what is not known is None or NaN.
        columns: what the frame's columns are.
        notes: what a reader has to know, sentence by sentence.
        markdown: the same for reading, if not the frame itself.
        tex: the same for a paper, if not the frame itself.
    """

    title: str
    frame: pd.DataFrame
    columns: Mapping[str, Column]
    notes: Sequence[str] = ()
    markdown: Callable[[], str] | None = None
    tex: Callable[[], str] | None = None


def joined(sheets: Sequence[Sheet]) -> Sheet:
    """Several sheets of one command as one: their rows, and texts, below each other."""
    if len(sheets) == 1:
        return sheets[0]
    columns = {name: column for sheet in sheets for name, column in sheet.columns.items()}
    return Sheet(
        "; ".join(dict.fromkeys(sheet.title for sheet in sheets)),
        pd.concat([sheet.frame for sheet in sheets], ignore_index=True),
        columns,
        list(dict.fromkeys(note for sheet in sheets for note in sheet.notes)),
        lambda: "\n".join(map(markdown, sheets)),
        lambda: "\n".join(map(tex, sheets)),
    )


def json_text(sheet: Sheet) -> str:
    """Strict JSON: `title`, `columns` with unit and meaning, `rows`, `notes`; null where nothing is known."""
    content = {
        "title": sheet.title,
        "columns": {name: sheet.columns[name]._asdict() for name in map(str, sheet.frame)},
        "rows": [
            {str(name): _plain(value) for name, value in row.items()}
            for row in sheet.frame.to_dict("records")
        ],
        "notes": list(sheet.notes),
    }
    return json.dumps(content, indent=1, allow_nan=False) + "\n"


def _plain(value: Any) -> Any:
    """A value as JSON has it."""
    if isinstance(value, np.generic):
        value = value.item()
    if (
        value is None
        or value is pd.NA
        or value is pd.NaT
        or (isinstance(value, float) and not math.isfinite(value))
    ):
        return None
    return value if isinstance(value, bool | int | float | str) else str(value)


def markdown(sheet: Sheet) -> str:
    """The table for reading."""
    if sheet.markdown is not None:
        return sheet.markdown()
    shown = _texts(sheet.frame).map(lambda text: text.replace("|", "\\|"))
    notes = "".join(f"- {note}\n" for note in sheet.notes)
    return f"# {sheet.title}\n\n{shown.to_markdown(index=False, disable_numparse=True)}\n\n{notes}"


def tex(sheet: Sheet) -> str:
    """The table for a paper."""
    if sheet.tex is not None:
        return sheet.tex()
    names = [str(name) for name in sheet.frame]
    rows = _texts(sheet.frame).to_numpy().tolist()
    numeric = [pd.api.types.is_numeric_dtype(kind) for kind in sheet.frame.dtypes]
    return latex.table(
        sheet.title, " ".join(sheet.notes), [latex.Head(name) for name in names], [("", rows)], numeric
    )


def _texts(frame: pd.DataFrame) -> pd.DataFrame:
    return frame.map(
        lambda value: (
            "-"
            if (plain := _plain(value)) is None
            else DIGITS.format(plain)
            if isinstance(plain, float)
            else " ".join(str(plain).split())
        )
    )


WRITERS: dict[str, Callable[[Sheet], str]] = {
    ".csv": lambda sheet: csv(sheet.frame),
    ".json": json_text,
    ".md": markdown,
    ".tex": tex,
}


def check(path: Path | None) -> Path | None:
    """The file of `--export`, seen to before anything runs.

    Raises:
        UserError: its suffix names no format, or it cannot be written.
    """
    if path is None:
        return None
    suffix = path.suffix.lower()
    if suffix not in WRITERS:
        raise UserError(
            f"--export {str(path)!r} ends in {suffix or 'nothing'}, which is no format of a table; give a "
            f"file that ends in {', '.join(WRITERS)}.{nearest(suffix, list(WRITERS))}"
        )
    there = next((one for one in (path, *path.parents) if one.exists()), Path())
    if path.is_dir() or (there != path and not there.is_dir()) or not os.access(there, os.W_OK):
        raise UserError(
            f"--export {str(path)!r} cannot be written; give a file in a folder that you may write."
        )
    return path


def write(sheets: Sequence[Sheet], path: Path) -> None:
    """Write the sheets of one command into one file, whole or not at all.

    Raises:
        UserError: it cannot be written.
    """
    text = WRITERS[path.suffix.lower()](joined(sheets))
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_text(path, text)
    except OSError as error:
        raise UserError(
            f"Cannot write {str(path)!r} ({error.strerror}); give --export a file that you may write."
        ) from error
