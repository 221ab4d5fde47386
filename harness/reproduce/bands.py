"""Whether our number is the printed one.

A run that repeats a printed table asks the same images of the same weights. What can still differ, and how it
is counted:

- **Images.** A run of n of the N images that the printed number is of knows it as well as sampling allows:
  the interval of our score, images drawn again, shrunk by sqrt(1 - n/N) (sampling without putting back). With
  all N of them nothing is left of it. Where nobody knows whether they are the same images, nothing shrinks.
- **The protocol's draw.** Where expressions and wordings are drawn, two runs differ although images do not.
  Its share f of what an image contributes to the score's variance is measured: the proof asks the same images
  with several seeds, and compares how much an image's contribution moves between seeds with how much it moves
  at all. The other 1 - f is the images' own.
- **Rounding** of the print: half a unit of its last digit. And of choices: where a pruner's choice hangs on
  the last bit, the records say how far the score moves.
- A **tolerance** that the spec states with its reason.

The interval of the difference is that of the images; the band is the rest. A number `holds` if the whole
interval lies in the band, it `differs` if it lies wholly outside, and else one `cannot tell`: two one-sided
tests, as of equivalence.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from scipy import special

from harness.metrics.bootstrap import LEVEL

Verdict = Literal["holds", "differs", "cannot tell"]
VERDICTS: tuple[Verdict, ...] = ("holds", "differs", "cannot tell")
Z = float(special.ndtri((1 + LEVEL) / 2))


@dataclass(frozen=True)
class Ours:
    """A score of ours, in units of the table.

    Attributes:
        low, high: its 95 % interval, images drawn again; NaN of too few images.
        images: that it rests on.
        rounding: variance by choices that hang on rounding.
        draws: seeds of the protocol that it is the mean of.
    """

    value: float
    low: float
    high: float
    images: int
    rounding: float = 0.0
    draws: int = 1


@dataclass(frozen=True)
class Judged:
    """A printed number and ours.

    Attributes:
        difference: ours minus printed.
        low, high: its interval; NaN where there is none.
        band: half its width; NaN where it cannot be known.
        parts: what the band is made of, in words: rounding of the print, draw, choices, tolerance.
        verdict: what follows.
        why: of one that cannot be told, the reason; else empty.
    """

    difference: float
    low: float
    high: float
    band: float
    parts: dict[str, float]
    verdict: Verdict
    why: str = ""


def judge(
    ours: Ours,
    printed: float,
    half_unit: float,
    whole: int | None,
    draw: float = 0.0,
    tolerance: float = 0.0,
    more: Mapping[str, float] | None = None,
) -> Judged:
    """Hold our score against a printed one.

    Args:
        half_unit: half a unit of the print's last digit.
        whole: N, the images that the printed number is of; None where ours may be others.
        draw: f, the draw's share of an image's variance; 0 where nothing is drawn, or both drew the same.
        tolerance: of the spec.
        more: further parts of the band, in words.

    >>> judge(Ours(74.3, 73.1, 75.5, 1500), 74.1, 0.05, 1500, draw=0.3).verdict
    'holds'
    >>> judge(Ours(67.2, 66.0, 68.4, 1500), 74.1, 0.05, 1500).verdict
    'differs'
    >>> judge(Ours(74.3, 70.1, 78.5, 100), 74.1, 0.05, 1500).verdict
    'cannot tell'
    """
    difference = ours.value - printed
    part = min(ours.images / whole, 1.0) if whole else 0.0
    below, above = ours.value - ours.low, ours.high - ours.value
    half = (below + above) / 2
    # what is 0 stays 0, though the interval of too few images is not known
    own = math.sqrt((1 - draw) * (1 - part))
    low, high = (difference - own * below, difference + own * above) if own else (difference, difference)
    share = draw * (1 / ours.draws + (part if whole else 1.0))
    parts = {
        "rounding of the print": half_unit,
        "draw": half * math.sqrt(share) if share else 0.0,
        "choices on rounding": Z * math.sqrt(2 * ours.rounding),
        "tolerance": tolerance,
        **(more or {}),
    }
    band = sum(parts.values())
    if math.isnan(low) or math.isnan(band):
        return Judged(difference, low, high, band, parts, "cannot tell", f"{ours.images} images are too few")
    slack = 1e-9  # of a decimal number that no binary one is
    if -band - slack <= low and high <= band + slack:
        return Judged(difference, low, high, band, parts, "holds")
    if high < -band - slack or band + slack < low:
        return Judged(difference, low, high, band, parts, "differs")
    return Judged(
        difference, low, high, band, parts, "cannot tell", "the interval reaches over the band's end"
    )


def counted(verdicts: list[Verdict]) -> str:
    """One sentence over a table: whether it holds, and of how many numbers."""
    many = {one: verdicts.count(one) for one in VERDICTS}
    told = f"{many['holds']} of {len(verdicts)} numbers hold, {many['differs']} differ" + (
        f", {many['cannot tell']} cannot be told" if many["cannot tell"] else ""
    )
    if many["differs"]:
        return f"The table does not hold here: {told}."
    if not many["holds"]:
        return f"Nothing can be told of the table here: {told}."
    if many["cannot tell"]:
        return f"Nothing contradicts the table here: {told}."
    return f"The table holds here: {told}."
