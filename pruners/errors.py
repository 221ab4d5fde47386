"""Mistakes, each told in one sentence."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class UserError(ValueError):
    """A mistake of the user's, told in one sentence; the command line prints it and exits with 2."""


class ImpossibleBudget(UserError):
    """A budget that the method cannot end at."""


class Fault(RuntimeError):
    """A mistake in a pruner, as the end of a sentence that begins with its name; `pruners.checks` completes
    it."""


class UndeclaredNeed(Fault):
    """A pruner read a signal that its `needs` do not declare."""


def nearest(word: str, valid: Iterable[str]) -> str:
    """` Did you mean 'x'?` for the valid word nearest to `word`, or an empty string."""
    close = difflib.get_close_matches(word, list(valid), n=1, cutoff=0.5)
    return f" Did you mean {close[0]!r}?" if close else ""
