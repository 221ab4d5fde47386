"""How far the filling of a part is, for whoever shows it; nothing that is recorded depends on it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import TypeVar

from backbones.base import DRAWN, READ, Backbone

CHOSEN = "choosing tokens"
# part of the time that a step takes on glamm-mini; another model's bar is less even, and as right at the end
SHARES = {CHOSEN: 0.15, READ: 0.6, DRAWN: 0.25}
Item = TypeVar("Item")


def _nobody(share: float, step: str) -> None:
    """Shows nothing."""


class Steps:
    """The steps of some images under some cells: tokens are chosen, the language model reads every row, its
    masks are drawn.

    Args:
        show: is called with the share that is done, in 0..1, and the step that it is at.
    """

    def __init__(self, show: Callable[[float, str], None] = _nobody) -> None:
        self.show = show
        self._done = dict.fromkeys(SHARES, 0.0)
        self._total = dict.fromkeys(SHARES, 0.0)

    def expect(self, step: str, rows: float) -> None:
        """So many more rows take a step."""
        self._total[step] += rows

    def add(self, step: str, rows: float = 1) -> None:
        """A step is done for so many more rows."""
        if step in SHARES:
            self._done[step] = min(self._done[step] + rows, self._total[step])
            self.show(self.share, step)

    @property
    def share(self) -> float:
        """What is done of all that is expected so far, in 0..1."""
        return sum(
            part * self._done[step] / self._total[step] for step, part in SHARES.items() if self._total[step]
        )

    @contextmanager
    def following(self, backbone: Backbone) -> Iterator[None]:
        """While a backbone grounds rows, it tells these steps."""
        backbone.tell = self.add
        try:
            yield
        finally:
            del backbone.tell  # the class's is there again

    def counted(self, rows: Iterable[Item]) -> Iterator[Item]:
        """The rows, of each of which a mask is drawn when it comes."""
        for row in rows:
            yield row
            self.add(DRAWN)
