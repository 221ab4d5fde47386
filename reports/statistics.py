"""Intervals and differences for scores that are ratios of sums, resampled by image.

All expressions of an image share its pixels and its encoding, so they rise and fall together: the image is what is drawn again,
never the expression. All pruners of a split are drawn with the same images (paired), different splits independently. A
score is a ratio of two sums over images, so one matrix product of draw counts with the sums per image gives every replicate
of every score at once. A control that draws does so anew for every image; drawing images again thus covers its draws too.

Intervals are percentile intervals with two corrections for few images, without which they are too narrow: n - 1 of n images
are drawn (Rao and Wu 1988: the variance is then unbiased), and the percentiles are those of Student's t (Hesterberg 2015), with
Satterthwaite's degrees of freedom where splits are averaged. With hundreds of images both vanish.

`scipy.stats.bootstrap` gives the same replicates (a test compares them), but one statistic per call, gathers every resample
instead of counting it, and its BCa needs n resamples of n - 1: for 10,000 images that alone is 10^8 numbers per score.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import special, stats

from harness.metrics import SUM_EPSILON

DRAWS = 4000
LEVEL = 0.95
ROUNDING = 1e-24  # a variance below it is that of equal numbers
NUMBERS_AT_ONCE = 2**22  # draw counts held in memory, 32 MiB

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Estimate:
    """A score or a difference of scores.

    Attributes:
        low, high: ends of the 95 % interval; NaN where a split has fewer than two images.
        p: two-sided, of the hypothesis that the value is 0 (which a score never tests, a difference does).
    """

    value: float
    low: float
    high: float
    p: float


@dataclass(frozen=True)
class Resampled:
    """Scores of C rows on one split, and what they would have been with other images.

    Attributes:
        values: (C,) ratios of sums.
        replicates: (draws, C).
        influence: (n, C), what each image does to each score; their mean square over n is its variance.
    """

    values: Floats
    replicates: Floats
    influence: Floats


def per_image(values: ArrayLike, images: ArrayLike) -> Floats:
    """(E, ...) values per expression to (n, ...) sums per image, images in sorted order."""
    labels, places = np.unique(np.asarray(images), return_inverse=True)
    given = np.asarray(values, dtype=np.float64)
    sums = np.zeros((len(labels), *given.shape[1:]))
    np.add.at(sums, places, given)
    return sums


def resample(numerators: Floats, denominators: Floats, seed: int | Sequence[int] = 0, draws: int = DRAWS) -> Resampled:
    """Draw images again, the same ones for all rows.

    Args:
        numerators, denominators: (n, C) sums per image: intersections and unions for cIoU, IoUs and counts for gIoU.
        seed: whoever shares it shares the draws; different splits need different ones.
    """
    images = len(numerators)
    totals = denominators.sum(0)
    values = numerators.sum(0) / (totals + SUM_EPSILON)
    influence = images * (numerators - values * denominators) / (totals + SUM_EPSILON)
    replicates = np.empty((draws, numerators.shape[1]))
    generator = np.random.default_rng(seed)
    drawn = max(images - 1, 1)
    at_once = max(1, NUMBERS_AT_ONCE // images)
    for start in range(0, draws, at_once):
        count = min(at_once, draws - start)
        chosen = generator.integers(images, size=(count, drawn)) + images * np.arange(count)[:, None]
        weights = np.bincount(chosen.ravel(), minlength=count * images).reshape(count, images).astype(np.float64)
        replicates[start : start + count] = (weights @ numerators) / (weights @ denominators + SUM_EPSILON)
    return Resampled(values, replicates, influence)


def estimate(splits: Sequence[Resampled], weights: Sequence[ArrayLike]) -> Estimate:
    """A weighted sum of scores: of one row, of a difference of rows, of an average over splits.

    Args:
        weights: per split (C,).
    """
    pairs = [(split, np.asarray(weight, dtype=np.float64)) for split, weight in zip(splits, weights, strict=True)]
    value = float(sum(split.values @ weight for split, weight in pairs))
    if min(len(split.influence) for split, _ in pairs) < 2:
        return Estimate(value, np.nan, np.nan, np.nan)
    replicates: Floats = np.sum([split.replicates @ weight for split, weight in pairs], axis=0)
    variances = np.array([_variance(split.influence @ weight) for split, weight in pairs])
    sizes = np.array([len(split.influence) for split, _ in pairs])
    if variances.sum() < ROUNDING:  # every image says the same
        return Estimate(value, value, value, 1.0 if value == 0 else 1 / (len(replicates) + 1))
    freedom = variances.sum() ** 2 / (variances**2 / (sizes - 1)).sum()
    tail = special.ndtr(special.stdtrit(freedom, (1 - LEVEL) / 2))
    low, high = np.quantile(replicates, [tail, 1 - tail])
    beyond = min((replicates <= 0).sum(), (replicates >= 0).sum()) + 1
    p = 2 * special.stdtr(freedom, special.ndtri(min(beyond / (len(replicates) + 1), 0.5)))
    return Estimate(value, float(low), float(high), float(p))


def _variance(influence: Floats) -> float:
    return float(influence.var(ddof=1) / len(influence))


def interval(intersections: ArrayLike, unions: ArrayLike, images: ArrayLike, seed: int = 0) -> Estimate:
    """cIoU of one row on one split with its interval.

    Args:
        intersections, unions: (E,) pixels per expression.
        images: (E,) image of each expression.
    """
    inner, outer = (per_image(values, images)[:, None] for values in (intersections, unions))
    return estimate([resample(inner, outer, seed)], [[1.0]])


def difference(
    first: tuple[ArrayLike, ArrayLike], second: tuple[ArrayLike, ArrayLike], images: ArrayLike, seed: int = 0
) -> Estimate:
    """cIoU of the first minus cIoU of the second on the same expressions, with its interval and p-value.

    Args:
        first, second: (E,) intersections and (E,) unions.
        images: (E,) image of each expression.
    """
    inner, outer = (
        per_image(np.stack([np.asarray(a), np.asarray(b)], axis=1), images) for a, b in zip(first, second, strict=True)
    )
    return estimate([resample(inner, outer, seed)], [[1.0, -1.0]])


def adjusted(ps: ArrayLike) -> Floats:
    """p-values after control of the false-discovery rate over a table (Benjamini and Hochberg); NaN stays NaN.

    Rows of a table share images, which makes their differences positively dependent; the method holds under that.
    """
    given = np.asarray(ps, dtype=np.float64)
    known = ~np.isnan(given)
    out = np.full(given.shape, np.nan)
    if known.any():
        out[known] = stats.false_discovery_control(given[known])
    return out
