"""Mistakes, each told in one sentence."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable

LONGEST_REASON = 300  # letters of a foreign error that a sentence quotes


class UserError(ValueError):
    """A mistake of the user's, told in one sentence; the command line prints it and exits with 2.

    The sentence is finished here: on one line and with one full stop, whatever the inner message that it
    quotes last ends with.

    >>> print(UserError("There is no file 'a' (it was moved.)"), UserError("Give --seed 0.."))
    There is no file 'a' (it was moved.). Give --seed 0.
    """

    def __init__(self, sentence: object = "") -> None:
        super().__init__(finished(str(sentence)))


class ImpossibleBudget(UserError):
    """A budget that the method cannot end at."""


class Fault(RuntimeError):
    """A mistake in a pruner, as the end of a sentence that begins with its name; `pruners.checks` completes
    it."""


class UndeclaredNeed(Fault):
    """A pruner read a signal that its `needs` do not declare."""


def finished(sentence: str) -> str:
    """A sentence on one line that ends with one full stop or question mark."""
    text = re.sub(r"\s*[\r\n]\s*", " ", sentence.strip())
    return re.sub(r"(?<=[^.])\.\.$", ".", text) if text.endswith((".", "?", "!")) or not text else f"{text}."


def reason(error: BaseException) -> str:
    """Why something failed, as words that fit into a sentence: on one line, without a full stop at the end,
    and without addresses of objects.

    >>> reason(ValueError("no such layer.")), reason(SyntaxError("invalid syntax", ("a.py", 3, 1, "", 3, 2)))
    ('ValueError: no such layer', 'invalid syntax in line 3')
    """
    if isinstance(error, UserError):
        text = str(error)
    elif isinstance(error, SyntaxError):
        text = error.msg + (f" in line {error.lineno}" if error.lineno else "")
    elif isinstance(error, SystemExit):
        text = "it ends the program" + (f" with {error.code!r}" if error.code is not None else "")
    elif isinstance(error, OSError) and error.strerror:
        text = error.strerror
    else:
        said = str(error)
        text = f"{type(error).__name__}: {said}" if said else type(error).__name__
    text = re.sub(r" object at 0x[0-9a-f]+", "", " ".join(text.split())).rstrip(".")
    return text if len(text) <= LONGEST_REASON else f"{text[:LONGEST_REASON]}..."


def nearest(word: str, valid: Iterable[str]) -> str:
    """` Did you mean 'x'?` for the valid word nearest to `word`, or an empty string."""
    # the dot that all suffixes have says nothing: .xls is not nearly .tex
    dot = "." if word.startswith(".") else ""
    known = {one.removeprefix(dot): one for one in valid}
    close = difflib.get_close_matches(word.removeprefix(dot), known, n=1, cutoff=0.6 if dot else 0.5)
    return f" Did you mean {known[close[0]]!r}?" if close else ""
