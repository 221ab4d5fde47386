"""Printed numbers, digit for digit, from the CSV beside a spec."""

from __future__ import annotations

import csv
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from pruners.errors import UserError

AVERAGE = "Avg."
NUMBER = re.compile(r"-?[0-9]{1,18}(?:\.[0-9]{1,18})?")
COUNT = re.compile(r"[0-9]{1,9}")  # int() also takes digits of other scripts
WORDS = ("method", "pruner", "budget", "source", "seen")  # columns that are no numbers
NEEDED = ("pruner", "source")


@dataclass(frozen=True)
class Number:
    """A number as it is printed.

    Attributes:
        text: with the printed digits.
    """

    text: str

    @property
    def value(self) -> float:
        return float(self.text)

    @property
    def half_unit(self) -> float:
        """Half a unit of its last digit: what rounding may hide.

        >>> Number("74.1").half_unit, Number("67").half_unit
        (0.05, 0.5)
        """
        return float(f"5e-{len(self.text.partition('.')[2]) + 1}")


@dataclass(frozen=True)
class Row:
    """A printed row.

    Attributes:
        method: its name in the publication.
        pruner: the pruner here, with default parameters.
        budget: visual tokens; None where the publication names none.
        source: paper, year, identifier, and which table.
        seen: "yes", "no" or "" where the spec's source says.
        numbers: by column.
    """

    method: str
    pruner: str
    budget: int | None
    source: str
    seen: str
    numbers: Mapping[str, Number]


def read_rows(path: Path, spec: str) -> tuple[Row, ...]:
    """The rows of a CSV.

    Args:
        spec: its file, for messages.

    Raises:
        UserError: it cannot be read, lacks a column, or a cell is no number; names the line.
    """
    try:
        with path.open(encoding="utf-8", newline="") as file:
            reader = csv.DictReader(file)
            names, lines = list(reader.fieldnames or ()), list(reader)
    except (OSError, ValueError, csv.Error) as error:
        told = getattr(error, "strerror", None) or error
        raise UserError(f"The numbers {str(path)!r} of the spec {spec!r} cannot be read ({told}).") from error
    if lacking := [name for name in NEEDED if name not in names]:
        raise UserError(f"{str(path)!r} lacks the column {', '.join(lacking)}; it has {', '.join(names)}.")
    if not lines:
        raise UserError(f"{str(path)!r} has no row; print one per method and budget.")
    return tuple(_row(line, f"{str(path)!r}, line {number}") for number, line in enumerate(lines, 2))


def _row(line: Mapping[str, str | None], where: str) -> Row:
    if None in line or None in line.values():
        raise UserError(f"{where} has not as many cells as the first line has columns.")
    texts = {name: str(value).strip() for name, value in line.items()}
    numbers = {name: text for name, text in texts.items() if name not in WORDS and text}
    for name, text in numbers.items():
        if not NUMBER.fullmatch(text):
            raise UserError(
                f"{where} has {text!r} for {name}, which is no number as one prints it, e.g. 74.1."
            )
    budget = texts.get("budget", "")
    if budget and not COUNT.fullmatch(budget):
        raise UserError(f"{where} has the budget {budget!r}; give visual tokens, e.g. 64, or nothing.")
    if not texts["pruner"]:
        raise UserError(f"{where} names no pruner; give none for the unpruned row.")
    return Row(
        texts.get("method", texts["pruner"]),
        texts["pruner"],
        int(budget) if budget else None,
        texts["source"],
        texts.get("seen", ""),
        {name: Number(text) for name, text in numbers.items()},
    )
