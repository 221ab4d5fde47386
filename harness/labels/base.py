"""What a file of labels says, whatever its layout."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pruners.base import UserError

Box = tuple[float, float, float, float]  # x and y of the corner, width, height, in pixels


@dataclass(frozen=True)
class Label:
    """What a file says of one expression.

    Attributes:
        where: its place in the file, for people: `image 17, sample 3`.
        keep: whether the expression counts.
        box: of the object that it means; None where the file has none.
        truth: segmentation of that object as COCO has it; None where the recorded mask stays the truth.
    """

    where: str
    keep: bool = True
    box: Box | None = None
    truth: Any = field(default=None, repr=False)


@dataclass(frozen=True)
class Labels:
    """A file of labels.

    Attributes:
        name: of its layout.
        rule: which expressions it drops, as a sentence.
        licence: as its source states it; empty of a list of one's own.
        datasets: names of the data sets that it speaks of, as runs may call them; None for any.
        splits: of those; None for any.
        by_text: labels by COCO's number of the image and the sentence as `plain` has it.
        by_id: labels by sample and expression; None for the expression stands for all of a sample, None for
            the sample for the only one that has this expression.
    """

    name: str
    path: Path
    rule: str
    licence: str = ""
    datasets: Sequence[str] | None = None
    splits: Sequence[str] | None = None
    by_text: Mapping[tuple[int, str], Sequence[Label]] = field(default_factory=dict, repr=False)
    by_id: Mapping[tuple[str | None, int | None], Label] = field(default_factory=dict, repr=False)

    @property
    def count(self) -> int:
        """How many labels it holds."""
        return len(self.by_id) + sum(map(len, self.by_text.values()))

    @property
    def redraws(self) -> bool:
        """Whether it holds masks of its own."""
        given = [*self.by_id.values(), *(one for some in self.by_text.values() for one in some)]
        return any(one.truth is not None for one in given if one.keep)


class BadLabels(UserError):
    """A file of labels that is missing, damaged or of no known layout; one sentence for the user."""


def plain(text: str) -> str:
    """A sentence as labels are joined by it: letters and digits of one case, one blank between words.

    Releases differ in case, blanks and marks of the same sentence.

    >>> plain(" Man's  LEFT hand. ")
    'man s left hand'
    """
    return " ".join(re.findall(r"\w+", text.casefold())) or " ".join(text.casefold().split())


def number(value: Any, what: str) -> int:
    """A whole number of a file.

    Raises:
        ValueError: it is none.
    """
    whole = isinstance(value, int) or (isinstance(value, float) and value.is_integer())
    if isinstance(value, bool) or not whole:
        raise ValueError(f"its {what} is {str(value)[:40]!r}, no whole number")
    return int(value)


def box(value: Any) -> Box:
    """A box of a file.

    Raises:
        ValueError: it is none.
    """
    try:
        left, top, width, height = map(float, value)
    except (TypeError, ValueError, OverflowError):
        left = top = 0.0
        width = height = float("nan")
    if not (0 <= width < 1e6 and 0 <= height < 1e6 and abs(left) < 1e6 and abs(top) < 1e6):
        raise ValueError(f"its bbox is {str(value)[:60]!r}, not x, y, width, height")
    return left, top, width, height
