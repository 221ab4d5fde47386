"""Simulated images whose expressions share their fate, with scores that are known."""

from __future__ import annotations

from functools import cache

import numpy as np
from numpy.typing import NDArray

from reports.statistics import estimate, resample

MOST = 8  # expressions of an image
PIXELS = 640 * 480


def images(count: int, generator: np.random.Generator) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Sums per image of intersections and unions of two pruners, (count, 2) each.

    An image has 1 to 8 expressions; a hard image is hard for all of them and for both pruners, and hard images have smaller
    objects, so that drawing expressions instead of images, or unpaired ones, would be wrong.
    """
    ease = generator.normal(size=(count, 1, 1))
    there = np.arange(MOST)[None, :, None] < generator.integers(1, MOST + 1, (count, 1, 1))
    area = PIXELS * generator.beta(1.2, 8, (count, MOST, 1)) * np.exp(0.2 * ease)
    quality = 1 / (1 + np.exp(-(np.array([0.4, 0.2]) + 0.8 * ease + generator.normal(size=(count, MOST, 2)))))
    inner = there * area * quality
    outer = there * area * (1.3 - 0.3 * quality)
    return inner.sum(1), outer.sum(1)


@cache
def truth() -> NDArray[np.float64]:
    """(2,) cIoU over infinitely many images, known to about 4e-4, a fiftieth of the intervals that are tested against it."""
    generator = np.random.default_rng(99)
    inner, outer = np.sum([[part.sum(0) for part in images(50_000, generator)] for _ in range(10)], axis=0)
    return np.asarray(inner / outer)


def coverage(count: int, repetitions: int, splits: int = 1, draws: int = 800, seed: int = 0) -> dict[str, float]:
    """Share of simulated studies whose 95 % interval holds the truth.

    Args:
        count: images per split.
        splits: independent splits that are averaged.

    Returns:
        Of a score, of the difference of two pruners, and the share of p-values below 5 % where there is no difference.
    """
    generator = np.random.default_rng(seed)
    known = truth()
    hits = {"score": 0, "difference": 0, "false alarm": 0}
    for number in range(repetitions):
        parts, same = [], []
        for split in range(splits):
            inner, outer = images(count, generator)
            parts.append(resample(inner, outer, (number, split), draws))
            swap = generator.random(count) < 0.5  # pruners that are equal on average: each image deals them out anew
            inner[swap], outer[swap] = inner[swap, ::-1], outer[swap, ::-1]
            same.append(resample(inner, outer, (number, split), draws))
        score = estimate(parts, [np.array([1.0, 0]) / splits] * splits)
        apart = np.array([1.0, -1.0]) / splits
        difference = estimate(parts, [apart] * splits)
        hits["score"] += score.low <= known[0] <= score.high
        hits["difference"] += difference.low <= known[0] - known[1] <= difference.high
        hits["false alarm"] += estimate(same, [apart] * splits).p < 0.05
    return {name: hit / repetitions for name, hit in hits.items()}
