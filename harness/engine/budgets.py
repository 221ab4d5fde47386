"""Budgets as texts: a count of visual tokens (`64`), or a share of all that the backbone has (`33%`,
`0.33`)."""

from __future__ import annotations

import math
import re
from fractions import Fraction

from pruners.base import UserError

COUNT = re.compile(r"-?[0-9]{1,18}")  # int() also takes 6_4 and digits of other scripts
MOST = 10**6  # visual tokens: far more than any model has
PERCENT, FRACTION = re.compile(r"[0-9]{1,3}(\.[0-9]{1,6})?%"), re.compile(r"[01]?\.[0-9]{1,8}")
EXAMPLES = "write e.g. --budgets 64,128,192 or --budgets 33%,22%,11%"


def check_budget(text: str) -> str:
    """The text, if it is a budget.

    Raises:
        UserError: it is neither a count of 1 or more nor a share above 0 and up to 100 %.
    """
    if COUNT.fullmatch(text):
        if not 1 <= int(text) <= MOST:
            raise UserError(
                f"--budgets {text} is no count of visual tokens; give 1 or more, and no more than the "
                f"backbone has, e.g. --budgets 64,128,192."
            )
        return text
    if not PERCENT.fullmatch(text) and not FRACTION.fullmatch(text):
        raise UserError(f"--budgets takes whole numbers and shares, not {text[:100]!r}; {EXAMPLES}.")
    if not 0 < _share(text) <= 1:
        raise UserError(
            f"--budgets {text} is no share of the visual tokens; give more than 0 % and up to 100 %."
        )
    return text


def tokens_of(budget: int | str, patches: int) -> int:
    """Visual tokens that a budget stands for; a share is rounded half up.

    Args:
        budget: a count, or a text that `check_budget` takes.
        patches: visual tokens that the backbone has.

    Raises:
        UserError: it is no budget, or a share of less than one token.

    >>> tokens_of("33%", 576), tokens_of("0.33", 576), tokens_of("64", 576)
    (190, 190, 64)
    """
    if isinstance(budget, int):
        return budget
    if COUNT.fullmatch(check_budget(budget)):
        return int(budget)
    count = math.floor(_share(budget) * patches + Fraction(1, 2))
    if count < 1:
        raise UserError(
            f"--budgets {budget} of this backbone's {patches} visual tokens is less than one; give more."
        )
    return count


def _share(text: str) -> Fraction:
    return Fraction(text[:-1]) / 100 if text.endswith("%") else Fraction(text)
