"""Members of a JSON object too large to hold whole, one at a time."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TextIO

CHUNK = 2**20  # characters that are read at once
MOST_OF_ONE = 2**26  # characters of one member: the masks of a minute of video have 0.3 million
LARGE = 2**20  # characters; from there on it is looked at what a member is made of
SPACE = " \t\n\r"


def members(path: Path) -> Iterator[tuple[str, Any]]:
    """Name and value of every member of the object that a JSON file holds, in its order; memory is that of
    the largest member.

    Raises:
        OSError: it cannot be opened.
        ValueError: it is no JSON object: torn, nested too deeply, a member too large to be held, a name
            twice.
    """
    seen: set[str] = set()
    with path.open(encoding="utf-8-sig") as file:
        text = _Text(file)
        text.take("{")
        if text.peek() == "}":
            text.take("}")
        else:
            while True:
                name = text.value()
                if not isinstance(name, str) or name in seen:
                    what = "has twice" if isinstance(name, str) else "has as a name"
                    raise ValueError(f"it {what} {str(name)[:40]!r}")
                seen.add(name)
                text.take(":")
                yield name, text.value()
                if text.take(",}") == "}":
                    break
        if text.peek():
            raise ValueError(f"it goes on behind its end, at character {text.place}")


class _Text:
    """A file's text, of which no more than a member is held."""

    def __init__(self, file: TextIO) -> None:
        self.file, self.held, self.at, self.before = file, "", 0, 0
        self.decoder = json.JSONDecoder()

    @property
    def place(self) -> int:
        return self.before + self.at

    def more(self) -> bool:
        """Read on, as much again as is held; whether there was anything."""
        rest = self.held[self.at :]
        if len(rest) > MOST_OF_ONE:
            raise ValueError(f"what begins at character {self.place} is longer than {MOST_OF_ONE >> 20} Mi")
        if not (found := self.file.read(max(CHUNK, len(rest)))):
            return False
        self.before += self.at
        self.held, self.at = rest + found, 0
        return True

    def peek(self) -> str:
        """The next character that is no space; empty at the end."""
        while True:
            while self.at < len(self.held):
                if self.held[self.at] not in SPACE:
                    return self.held[self.at]
                self.at += 1
            if not self.more():
                return ""

    def take(self, wanted: str) -> str:
        """The next character, which must be one of these."""
        found = self.peek()
        if not found or found not in wanted:
            raise ValueError(f"at character {self.place} is {found!r} where one of {wanted!r} is due")
        self.at += 1
        return found

    def value(self) -> Any:
        """The next value."""
        self.peek()
        while True:
            try:
                found, end = self.decoder.raw_decode(self.held, self.at)
            except RecursionError:
                raise ValueError("it is nested too deeply") from None
            except json.JSONDecodeError as error:
                if self.more():
                    continue
                raise ValueError(f"{error.msg} at character {self.before + error.pos}") from None
            if end == len(self.held) and self.more():  # a number may go on
                continue
            self._not_of_brackets(end)
            self.at = end
            return found

    def _not_of_brackets(self, end: int) -> None:
        """A list takes some twenty times its two bytes; refused before the next one comes on top."""
        length = end - self.at
        if length > LARGE and sum(self.held.count(one, self.at, end) for one in "[{") > length // 8:
            raise ValueError("it is made of brackets")
