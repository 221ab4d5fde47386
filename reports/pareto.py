"""Which rows no other beats in accuracy and cost, beyond what the noise of either explains.

The rule, also in docs/costs.md: two costs are equal where the 95 % intervals of their medians over the timed
rounds overlap (a count, as of multiply-adds, has none). A row is beaten by another that is more accurate at
an equal or lower cost, or as accurate at a lower one. It is beaten for sure if the other's 95 % interval of
accuracy lies wholly above its own; without intervals nothing is sure.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum


class Standing(StrEnum):
    """How a row stands among the others."""

    FRONT = "front"  # no other beats it
    CLOSE = "close"  # beaten, but not for sure
    BEATEN = "beaten"


@dataclass(frozen=True)
class Point:
    """A row's cost and accuracy, each with the ends of its interval; NaN where accuracy has none.

    Attributes:
        cost, cheap, dear: middle and ends of the cost, lower is better.
        score, low, high: accuracy, higher is better.
    """

    cost: float
    cheap: float
    dear: float
    score: float
    low: float = math.nan
    high: float = math.nan

    def beats(self, other: Point) -> bool:
        """Whether this row is better in one thing and not worse in the other."""
        cheaper = self.dear < other.cheap
        not_dearer = self.cheap <= other.dear
        return (self.score > other.score and not_dearer) or (self.score == other.score and cheaper)

    def beats_for_sure(self, other: Point) -> bool:
        """Whether it does so beyond the accuracy's noise; False where that is not known."""
        return self.beats(other) and self.low > other.high


def standings(points: Sequence[Point]) -> list[Standing]:
    """How every point stands among all.

    Example:
        >>> fast, slow = Point(9, 8, 10, 70, 68, 72), Point(9.5, 8, 11, 71, 69, 73)
        >>> poor = Point(9, 8, 10, 50, 48, 52)
        >>> [one.value for one in standings([fast, slow, poor])]
        ['close', 'front', 'beaten']
    """
    found = []
    for one in points:
        if any(other.beats_for_sure(one) for other in points):
            found.append(Standing.BEATEN)
        else:
            found.append(Standing.CLOSE if any(other.beats(one) for other in points) else Standing.FRONT)
    return found


def front(points: Sequence[Point]) -> list[Point]:
    """The points that none beats, by rising cost."""
    at = zip(points, standings(points), strict=True)
    return sorted((one for one, how in at if how is Standing.FRONT), key=lambda one: (one.cost, -one.score))
