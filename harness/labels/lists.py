"""A list of one's own: expressions that count, by the ids that records keep.

CSV with the columns `sample` and `expression`, or one of them; `sample` alone stands for all expressions of
that sample, `expression` alone for the only one of the run that has this id. JSON is a list of sample ids
(texts), expression ids (whole numbers) and objects {"sample": ..., "expression": ..., "truth": ...}, where
`truth` is a mask of its own as COCO has it: polygons or run lengths.
"""

from __future__ import annotations

import csv
import re
from pathlib import Path
from typing import Any

from harness.labels.base import BadLabels, Label, Labels, number

FIELDS = ("sample", "expression", "truth")
MOST_BYTES = 2**26  # a million lines have a third of it
COUNT = re.compile(r"-?[0-9]{1,18}")  # int() also takes digits of other scripts
RULE = "expressions that it does not name are dropped"
Key = tuple[str | None, int | None]


def read_csv(path: Path) -> Labels:
    """The list in a CSV file.

    Raises:
        BadLabels: it cannot be read, has neither column, or a row is damaged or given twice.
    """
    try:
        if (size := path.stat().st_size) > MOST_BYTES:
            raise BadLabels(
                f"{str(path)!r} has {size >> 20} MiB, more than the {MOST_BYTES >> 20} of a list; split it."
            )
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.DictReader(file)
            names = [str(name).strip() for name in reader.fieldnames or ()]
            reader.fieldnames = names
            if not {"sample", "expression"} & set(names):
                raise BadLabels(
                    f"{str(path)!r} has neither a column sample nor a column expression; it has "
                    f"{', '.join(names) or 'none'}."
                )
            rows = [(f"line {reader.line_num}", _of_row(row)) for row in reader]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise BadLabels(f"{str(path)!r} cannot be read as CSV ({error}); write it anew in UTF-8.") from None
    return _labels(path, rows)


def _of_row(row: dict[str, Any]) -> dict[str, Any]:
    """A line as JSON would have it: numbers as numbers, and no empty fields."""
    given = {name: (row.get(name) or "").strip() for name in FIELDS[:2]}
    found: dict[str, Any] = {name: text for name, text in given.items() if text}
    if COUNT.fullmatch(text := found.get("expression", "")):
        found["expression"] = int(text)
    return found


def read_list(path: Path, content: list[Any]) -> Labels:
    """The list in a JSON file.

    Args:
        content: of the file.

    Raises:
        BadLabels: an entry is damaged or given twice.
    """
    kinds = {str: "sample", int: "expression"}
    rows = [
        (f"entry {place}", {kinds[type(one)]: one} if type(one) in kinds else one)
        for place, one in enumerate(content)
    ]
    return _labels(path, rows)


def _labels(path: Path, rows: list[tuple[str, Any]]) -> Labels:
    found: dict[Key, Label] = {}
    for where, one in rows:
        try:
            key = _key(one)
            if key in found:
                raise ValueError(f"{_told(key)} is named before, at {found[key].where}")
        except ValueError as error:
            raise BadLabels(f"{where} of {str(path)!r} is wrong ({error}); mend it there.") from None
        found[key] = Label(where, truth=one.get("truth"))
    if not found:
        raise BadLabels(f"{str(path)!r} names no expression; write samples or expressions into it.")
    return Labels("list", path, RULE, by_id=found)


def _key(one: Any) -> Key:
    """What an entry names.

    Raises:
        ValueError: nothing.
    """
    if not isinstance(one, dict):
        raise ValueError(f"a {type(one).__name__} names no expression")
    if odd := sorted(map(str, one.keys() - set(FIELDS))):
        raise ValueError(f"it has {odd[0]!r}, known are {', '.join(FIELDS)}")
    sample, expression = one.get("sample"), one.get("expression")
    if sample is not None and (not isinstance(sample, str) or sample.count(":") < 2):
        raise ValueError(f"its sample is {str(sample)[:40]!r}, not like refcoco:val:17")
    if sample is None and expression is None:
        raise ValueError("it names neither a sample nor an expression")
    if one.get("truth") is not None and (sample is None or expression is None):
        raise ValueError("a truth needs the sample and the expression that it is of")
    return sample, None if expression is None else number(expression, "expression")


def _told(key: Key) -> str:
    named = [f"sample {key[0]!r}"] * (key[0] is not None) + [f"expression {key[1]}"] * (key[1] is not None)
    return ", ".join(named)
