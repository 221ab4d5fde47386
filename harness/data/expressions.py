"""Reader of a list of expressions, as CSV or as JSON lines: every line becomes a row, or a sentence that says
why it is none."""

from __future__ import annotations

import csv
import io
import json
import re
import reprlib
from collections.abc import Iterator
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from harness.data.coco import below, whole
from harness.data.sample import DataError

REQUIRED = ("split", "image", "expression", "annotations")
KNOWN = (*REQUIRED, "group")
IMAGES = "images"
MOST_BYTES = 2**28
SPLIT = re.compile(r"[\w+-][\w.+-]*")
NUMBER = re.compile(r"([0-9]{1,18})(?:\.0+)?")  # pandas writes 12.0 where a column has gaps
IDS = "write annotation ids separated by spaces, or nothing where nothing is meant"


@dataclass(frozen=True)
class ExpressionLine:
    """One expression.

    Attributes:
        line: where it begins in the file, from 1.
        image: path below the image folder.
        expression: as it stands there.
        annotations: ids whose union is meant; empty for nothing.
        group: who said it, or empty.
    """

    line: int
    split: str
    image: str
    expression: str
    annotations: tuple[int, ...]
    group: str = ""


@dataclass(frozen=True)
class LineFault:
    """A line that cannot be used, and why, as the end of a sentence."""

    line: int
    what: str


def read_expressions(path: Path) -> tuple[list[ExpressionLine], list[LineFault]]:
    """All rows of a file and all lines that are none, in order; empty lines are neither.

    Raises:
        DataError: no line of it can be understood: it is no text in UTF-8, or lacks a column.
    """
    text = _text(path)
    rows: list[ExpressionLine] = []
    faults: list[LineFault] = []
    for line, record in _json_lines(text) if path.suffix == ".jsonl" else _csv_lines(path, text):
        try:
            if isinstance(record, str):
                raise ValueError(record)
            rows.append(_row(line, record))
        except ValueError as error:
            faults.append(LineFault(line, str(error)))
    return rows, faults


def _text(path: Path) -> str:
    try:
        if (size := path.stat().st_size) > MOST_BYTES:
            raise DataError(
                f"'{path}' has {size >> 20} MiB, more than {MOST_BYTES >> 20}; split the data set."
            )
        content = path.read_bytes()
    except OSError as error:
        raise DataError(f"'{path}' cannot be read ({error.strerror}).") from None
    if content[:2] in (b"\xff\xfe", b"\xfe\xff"):
        raise DataError(f"{path}:1 is written in UTF-16; save it in UTF-8.")
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content[: error.start].count(b"\n") + 1
        raise DataError(
            f"{path}:{line} is no UTF-8 (byte 0x{content[error.start]:02x}); save it in UTF-8, "
            "which spreadsheets call 'CSV UTF-8'."
        ) from None


def _json_lines(text: str) -> Iterator[tuple[int, dict[str, Any] | str]]:
    """(line, object), or (line, what is wrong with it)."""
    for number, line in enumerate(re.split(r"\r\n|\n|\r", text), start=1):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
        except (ValueError, RecursionError) as error:
            why = "nested too deeply" if isinstance(error, RecursionError) else str(error)
            yield number, f"is no JSON ({why}); write one object with its keys per line"
            continue
        if not isinstance(record, dict):
            yield number, f"holds a {type(record).__name__} where an object is expected"
        elif lost := [name for name in REQUIRED if name not in record]:
            yield number, f"lacks {_lost(lost, [str(name) for name in record])}"
        elif odd := _misspelt([str(name) for name in record]):
            yield number, odd
        else:
            yield number, record


def _csv_lines(path: Path, text: str) -> Iterator[tuple[int, dict[str, Any] | str]]:
    """(line on which a row begins, its cells by column), or (line, what is wrong with it).

    Raises:
        DataError: the first line does not name the columns.
    """
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    header: list[str] | None = None
    while True:
        line = reader.line_num + 1
        try:
            cells = next(reader)
        except StopIteration:
            break
        except csv.Error as error:
            told = (
                f"cannot be read as CSV ({error}); put text with commas or quotes into double quotes, "
                "quotes in it doubled"
            )
            if header is None:
                raise DataError(f"{path}:{line} {told}.") from None
            yield line, told
            continue
        if not any(cell.strip() for cell in cells):
            continue
        if header is None:
            header = _header(path, line, cells)
        elif len(cells) != len(header):  # also a blank one too many: what stands before it has moved
            yield (
                line,
                f"has {len(cells)} columns where the first line has {len(header)}; "
                "put an expression with commas into double quotes",
            )
        else:
            yield line, {name: cell for name, cell in zip(header, cells, strict=True) if name in KNOWN}
    if header is None:
        raise DataError(f"'{path}' is empty; its first line names the columns {', '.join(REQUIRED)}.")


def _header(path: Path, line: int, cells: list[str]) -> list[str]:
    """Names of the columns.

    Raises:
        DataError: one is missing, is there twice, or looks like a misspelt one.
    """
    names = [cell.strip() for cell in cells]
    for sign, word in ((";", "';'"), ("\t", "tabs")):
        if len(names) == 1 and sign in names[0]:
            raise DataError(f"{path}:{line} separates its columns with {word}; save it with commas.")
    if lost := [name for name in REQUIRED if name not in names]:
        raise DataError(f"{path}:{line} lacks {_lost(lost, names)}.")
    if twice := [name for name in KNOWN if names.count(name) > 1]:
        raise DataError(f"{path}:{line} names the column '{twice[0]}' twice; take one of them out.")
    if odd := _misspelt(names):
        raise DataError(f"{path}:{line} {odd}.")
    return names


def _lost(lost: list[str], names: list[str]) -> str:
    """The columns that are missing, in words."""
    others = [name for name in names if name not in KNOWN]
    told = [
        f"'{name}'" + (f" (perhaps written {near[0]!r})" if (near := get_close_matches(name, others)) else "")
        for name in lost
    ]
    return f"{' and '.join(told)}; it names {', '.join(map(reprlib.repr, filter(None, names))) or 'nothing'}"


def _misspelt(names: list[str]) -> str | None:
    """What to say of a name that is nearly that of a column which is not there."""
    absent = [name for name in KNOWN if name not in names]
    for name in names:
        if name not in KNOWN and (near := get_close_matches(name.casefold(), absent)):
            return (
                f"names {reprlib.repr(name)}, which is not read; perhaps '{near[0]}' is meant, or give "
                f"it another name"
            )
    return None


def _row(line: int, record: dict[str, Any]) -> ExpressionLine:
    """A row of what a line says.

    Raises:
        ValueError: something in it cannot be used.
    """
    split, image, text = (_words(record, name) for name in REQUIRED[:3])
    if not SPLIT.fullmatch(split.strip()):
        raise ValueError(
            f"has the split {reprlib.repr(split)}; a split is named with letters, digits and + . _ -, e.g. "
            f"val"
        )
    group = record.get("group", "")
    if type(group) is int:
        group = str(group)
    group = "" if group is None else _words({"group": group}, "group", empty=True)
    return ExpressionLine(
        line, split.strip(), below(image.strip(), (IMAGES,)), text, _ids(record["annotations"]), group.strip()
    )


def _words(record: dict[str, Any], name: str, empty: bool = False) -> str:
    value = record[name]
    if not isinstance(value, str):
        raise ValueError(f"has {reprlib.repr(value)} as its {name}, which is no text")
    if not value.strip() and not empty:
        raise ValueError(f"has no {name}")
    try:
        value.encode()
    except UnicodeEncodeError:
        raise ValueError(f"has half a character in its {name} (a lone surrogate)") from None
    return value


def _ids(value: Any) -> tuple[int, ...]:
    if isinstance(value, str):
        parts = [part for part in re.split(r"[\s,;]+", value.strip()) if part]
        found = [NUMBER.fullmatch(part) for part in parts]
        if not all(found):
            raise ValueError(f"has the annotations {reprlib.repr(value)}; {IDS}")
        numbers = [int(match[1]) for match in found if match]
    else:
        try:
            given = value if isinstance(value, list) else [value]
            numbers = [whole({"annotations": one}, "annotations") for one in given]
        except ValueError as error:
            raise ValueError(
                f"cannot be used: {error}; write a list of annotation ids, [] for nothing"
            ) from None
    if len(set(numbers)) < len(numbers):
        raise ValueError(f"names an annotation twice ({' '.join(map(str, numbers))})")
    return tuple(numbers)
