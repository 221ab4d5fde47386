"""Simulated images whose expressions share their fate, with scores that are known."""

from __future__ import annotations

from functools import cache

import numpy as np
from numpy.typing import NDArray

from harness.metrics.bootstrap import estimate, resample

MOST = 8  # expressions of an image
PIXELS = 640 * 480


def images(
    count: int, generator: np.random.Generator, ease: NDArray[np.float64] | None = None
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Sums per image of intersections and unions of two pruners, (count, 2) each.

    An image has 1 to 8 expressions; a hard image is hard for all of them and for both pruners, and hard
    images have smaller objects, so that drawing expressions instead of images, or unpaired ones, would be
    wrong.

    Args:
        ease: (count, 1, 1) standard normal, of images that were in another split before.
    """
    ease = generator.normal(size=(count, 1, 1)) if ease is None else ease
    there = np.arange(MOST)[None, :, None] < generator.integers(1, MOST + 1, (count, 1, 1))
    area = PIXELS * generator.beta(1.2, 8, (count, MOST, 1)) * np.exp(0.2 * ease)
    quality = 1 / (1 + np.exp(-(np.array([0.4, 0.2]) + 0.8 * ease + generator.normal(size=(count, MOST, 2)))))
    inner = there * area * quality
    outer = there * area * (1.3 - 0.3 * quality)
    return inner.sum(1), outer.sum(1)


@cache
def truth() -> NDArray[np.float64]:
    """(2,) cIoU over infinitely many images, known to about 4e-4, a fiftieth of the intervals that are tested
    against it."""
    generator = np.random.default_rng(99)
    inner, outer = np.sum([[part.sum(0) for part in images(50_000, generator)] for _ in range(10)], axis=0)
    return np.asarray(inner / outer)


def coverage(
    count: int, repetitions: int, splits: int = 1, draws: int = 800, seed: int = 0, shared: bool = False
) -> dict[str, float]:
    """Share of simulated studies whose 95 % interval holds the truth.

    Args:
        count: images per split.
        splits: that are averaged.
        shared: whether the splits ask about the same images, instead of independent ones.

    Returns:
        Of a score, of the difference of two pruners, and the share of p-values below 5 % where there is no
        difference.
    """
    generator = np.random.default_rng(seed)
    known = truth()
    hits = {"score": 0, "difference": 0, "false alarm": 0}
    for number in range(repetitions):
        ease = generator.normal(size=(count, 1, 1)) if shared else None
        asked = [images(count, generator, ease) for _ in range(splits)]
        equal = []
        for inner, outer in asked:
            # pruners that are equal on average: each image deals them out anew
            swap = generator.random(count)[:, None] < 0.5
            equal.append((np.where(swap, inner[:, ::-1], inner), np.where(swap, outer[:, ::-1], outer)))
        if shared:
            asked, equal = (
                [(np.hstack(i), np.hstack(o))]
                for i, o in (zip(*asked, strict=True), zip(*equal, strict=True))
            )
        parts, same = (
            [resample(*one, (number, place), draws) for place, one in enumerate(each)]
            for each in (asked, equal)
        )
        first, apart = (np.tile(w, splits if shared else 1) / splits for w in ([1.0, 0.0], [1.0, -1.0]))
        score, difference = (estimate(parts, [weight] * len(parts)) for weight in (first, apart))
        hits["score"] += score.low <= known[0] <= score.high
        hits["difference"] += difference.low <= known[0] - known[1] <= difference.high
        hits["false alarm"] += estimate(same, [apart] * len(same)).p < 0.05
    return {name: hit / repetitions for name, hit in hits.items()}
