"""Batches: rows that wait for others of their kind, and fill that rounds alike."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Hashable, Mapping, Sequence
from typing import Generic, TypeVar

Member = TypeVar("Member")
Kind = TypeVar("Kind", bound=Hashable)


def filled_up(part: Sequence[Member], multiple: int) -> list[Member]:
    """A batch with its last member repeated up to a multiple that rounds alike."""
    return [*part, *(list(part[-1:]) * (-len(part) % multiple))]


class Waiting(Generic[Kind, Member]):
    """Rows until there are enough of a kind for a full batch, wherever they come from: fill is paid once per
    kind.

    Args:
        size: rows of a full batch.
        expected: how many rows of a kind come in all, if that is known: with the last of them the batch goes
            as it is, so that nothing waits, and keeps memory, for nobody.
    """

    def __init__(self, size: int, expected: Mapping[Kind, int] | None = None) -> None:
        self._size, self._left = size, dict(expected or {})
        self._rows: dict[Kind, list[Member]] = defaultdict(list)

    def add(self, kind: Kind, row: Member) -> list[Member]:
        """The batch that a row completes; nothing while it waits."""
        rows = self._rows[kind]
        rows.append(row)
        left = self._left[kind] = self._left.get(kind, 0) - 1
        return self._rows.pop(kind) if len(rows) == self._size or left == 0 else []

    @property
    def kinds(self) -> list[Kind]:
        """Those of which rows wait."""
        return list(self._rows)

    def take(self, kind: Kind) -> list[Member]:
        """What waits of a kind."""
        return self._rows.pop(kind)
