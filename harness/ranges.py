"""The numbers that a command takes: the least and the most of each, whoever asks for it.

Importing this module imports nothing.
"""

from __future__ import annotations

import math
import os
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Range:
    """Whole numbers from `least` to `most`; with `whole` False all numbers between.

    Attributes:
        what: what to give, where that is more than a range.
    """

    least: int
    most: int
    what: str = ""
    whole: bool = True

    def __str__(self) -> str:
        return self.what or f"{self.least} to {self.most}"


# every process imports torch and holds images
MOST_WORKERS = max(16, 4 * (os.cpu_count() or 1))
# by the option's name in Python
RANGES = {
    "limit": Range(0, 10**9, "a number of images, or 0 for all"),
    "seed": Range(0, 2**32 - 1),  # as NumPy's and torch's generators both take it
    "seeds": Range(1, 1000),
    "batch_size": Range(1, 2**16),
    "tensor_parallel": Range(1, 1024),
    "max_failures": Range(0, 1, "a share from 0 to 1", whole=False),
    "text_tokens": Range(1, 10**6),
    "frames": Range(1, 10**4),
    "workers": Range(0, MOST_WORKERS, f"0 to {MOST_WORKERS} on this machine"),
}


def check_numbers(**given: Any) -> None:
    """See that every number that was given is one that the option of its name takes; None was not given.

    Raises:
        UserError: one is not.
    """
    for name, value in given.items():
        if value is not None:
            _check(name, value)


def _check(name: str, value: Any) -> None:
    if wrong := _wrong(f"--{name.replace('_', '-')}", value, RANGES[name]):
        from pruners.errors import UserError  # its package imports torch

        raise UserError(wrong)


def _wrong(option: str, value: Any, allowed: Range) -> str | None:
    """What is wrong with a value; None if nothing is."""
    if type(value) is not int and (allowed.whole or type(value) is not float):
        kind = "whole number" if allowed.whole else "number"
        return f"{option} takes a {kind}, not {_short(value)}; give {allowed}."
    if not math.isfinite(value):
        return f"{option} {value} is no finite number; give {allowed}."
    if not allowed.least <= value <= allowed.most:
        wrong = "negative" if value < 0 else "too small" if value < allowed.least else "too large"
        return f"{option} {_short(value)} is {wrong}; give {allowed}."
    return None


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 40 else f"{text[:40]}..."
