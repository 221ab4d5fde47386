"""Tables as text: CSV for programs, pipe tables of markdown for reading; and names made of titles."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

ACTS = ("=", "+", "-", "@", "\t", "\r", "\n")  # a spreadsheet takes a text that begins so for a formula


def csv(frame: pd.DataFrame) -> str:
    """Text of a CSV: numbers with all their digits, nothing where nothing is known. A text that a spreadsheet
    would take for a formula begins with an apostrophe."""
    safe = frame.copy()
    for name in safe.columns[[not pd.api.types.is_numeric_dtype(kind) for kind in safe.dtypes]]:
        safe[name] = safe[name].map(_inert)
    safe.columns = pd.Index([_inert(str(name)) for name in safe.columns])
    return str(safe.to_csv(index=False, lineterminator="\n"))


def _inert(value: Any) -> Any:
    return f"'{value}" if isinstance(value, str) and value.startswith(ACTS) else value


def pipe_table(rows: Sequence[Mapping[str, Any]]) -> str:
    """A pipe table of rows by column: the first column to the left, the others to the right, `-` where a row
    has nothing.

    >>> print(pipe_table([{"method": "none", "loss": "0.0"}, {"method": "fastv"}]))
    | method   |   loss |
    |:---------|-------:|
    | none     |    0.0 |
    | fastv    |      - |
    """
    frame = pd.DataFrame(rows).fillna("-")
    align = ["left", *["right"] * (frame.shape[1] - 1)]
    return str(frame.to_markdown(index=False, disable_numparse=True, colalign=align))


def slug(text: str) -> str:
    """A text as the name of a file, or as a label.

    >>> slug("glamm-mini, protocol each")
    'glamm-mini-protocol-each'
    """
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")
