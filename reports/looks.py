"""How a method looks in figures and on the page: a colour, a mark and a dash that no other method has, the
same in every report."""

from __future__ import annotations

import math
import zlib
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from reports.comparable import BOUND

# Okabe and Ito's and Tol's colours, told apart by colour-blind readers; the lightest are darkened until they
# stand out from white three to one
COLOURS = ("#0072B2", "#D55E00", "#00946B", "#BE5F93", "#A87400", "#2E8FCB", "#332288", "#882255")
GREY = "#767676"
DASHES: tuple[tuple[float, ...], ...] = ((), (5, 2), (1.5, 1.5), (6, 1.5, 1.5, 1.5))  # in widths of the line
# methods and controls of this package in the order of their looks; a test holds that none is missing
METHODS = (
    "litelvlm",
    "visionzip",
    "prumerge",
    "vispruner",
    "trim",
    "divprune",
    "cdpruner",
    "hiprune",
    "holov",
    "fastervlm",
    "scope",
    "fastv",
    "dart",
    "pyramiddrop",
    "sparsevlm",
    "feather",
    "nuwa",
    "random",
    "uniform",
    "downsample",
    "oracle",
)
Corner = tuple[float, float]


def _polygon(corners: int, turn: float = 0.0, size: float = 1.0, inner: float = 1.0) -> tuple[Corner, ...]:
    """A regular polygon, its first corner on top; with `inner` every second corner lies that far in."""
    angles = [math.pi * (2 * k / corners + turn / 180) for k in range(corners)]
    reach = [size * (inner if k % 2 else 1.0) for k in range(corners)]
    return tuple(
        (round(r * math.sin(a), 3), round(-r * math.cos(a), 3)) for a, r in zip(angles, reach, strict=True)
    )


def _cross(turn: float) -> tuple[Corner, ...]:
    """A plus with thick arms."""
    arm, cos, sin = 0.4, math.cos(math.radians(turn)), math.sin(math.radians(turn))
    plain = [(arm, -1.2), (arm, -arm), (1.2, -arm), (1.2, arm), (arm, arm), (arm, 1.2)]
    plain += [(-x, -y) for x, y in plain]
    return tuple((round(x * cos - y * sin, 3), round(x * sin + y * cos, 3)) for x, y in plain)


# corners, y downwards; about as large as a disc of radius 1 each
MARKS: tuple[tuple[Corner, ...], ...] = (
    _polygon(32),  # a disc
    _polygon(4, 45, 1.25),
    _polygon(3, 0, 1.35),
    _polygon(4, 0, 1.3),
    _polygon(3, 180, 1.35),
    _cross(0),
    _polygon(10, 0, 1.45, 0.42),
    _polygon(3, 90, 1.35),
    _cross(45),
    _polygon(5, 0, 1.15),
    _polygon(3, -90, 1.35),
)


@dataclass(frozen=True)
class Look:
    """How one method is drawn.

    Attributes:
        colour: `#rrggbb`.
        mark: number in MARKS.
        dash: number in DASHES.
        hollow: whether the mark is an outline, as of controls.
    """

    colour: str
    mark: int
    dash: int
    hollow: bool = False

    @property
    def outline(self) -> str:
        """The mark as an SVG path."""
        return "M" + "L".join(f"{x:g} {y:g}" for x, y in MARKS[self.mark]) + "Z"

    @property
    def shown(self) -> dict[str, Any]:
        """What the page's scripts read."""
        return {
            "outline": self.outline,
            "dash": " ".join(f"{2 * one:g}" for one in DASHES[self.dash]),
            "hollow": self.hollow,
        }


COUNT = math.lcm(len(COLOURS), len(MARKS))


def _look(place: int, hollow: bool) -> Look:
    """Any COUNT places have another pair of colour and mark each, and the first of a colour another dash."""
    dash = place // len(COLOURS) % len(DASHES)
    return Look(COLOURS[place % len(COLOURS)], place % len(MARKS), dash, hollow)


def looks(names: Iterable[str], controls: Iterable[str] = ()) -> dict[str, Look]:
    """A look for every method, no two alike among the first COUNT.

    This package's methods look the same in every report. What else there is, other parameters and plug-ins,
    takes the first free place from one that follows from its name.

    Args:
        controls: those of the names that are no methods.
    """
    hollow, taken = set(controls), set(range(len(METHODS)))
    found = {BOUND: Look(GREY, 0, 2, True)}
    for name in sorted(set(names) - {BOUND}):
        if name in METHODS:
            place = METHODS.index(name)
        else:
            place = zlib.crc32(name.encode()) % COUNT
            while place in taken and len(taken) < COUNT:
                place = (place + 1) % COUNT
            taken.add(place)
        found[name] = _look(place, name in hollow)
    return found
