"""Intervals and differences for scores that are ratios of sums, resampled by image.

All expressions of an image share its pixels and its encoding, so they rise and fall together: the image is
what is drawn again, never the expression. (Of video it is the clip: what is called an image here is a
record's `cluster`.) All scores that rest on the same images are drawn together (paired): those of all
pruners, and those of splits that share images, as RefCOCO and RefCOCO+ do; other splits independently. A
score is a ratio of two sums over images (`harness.metrics.Metric.terms`), so one matrix product of draw
counts with the sums per image gives every replicate of every score at once. A control that draws does so anew
for every image; drawing images again thus covers its draws too.

Intervals are percentile intervals with two corrections for few images, without which they are too narrow: n -
1 of n images are drawn (Rao and Wu 1988: the variance is then unbiased), and the percentiles are those of
Student's t (Hesterberg 2015), with Satterthwaite's degrees of freedom where splits are averaged. With
hundreds of images both vanish.

`scipy.stats.bootstrap` gives the same replicates (a test compares them), but one statistic per call, gathers
every resample instead of counting it, and its BCa needs n resamples of n - 1: for 10,000 images that alone is
10^8 numbers per score.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import special, stats

from harness.metrics.masks import SUM_EPSILON

DRAWS = 4000
LEVEL = 0.95
# images below which an interval would hold the truth in less than nine of ten cases, of two images in half of
# them
FEWEST = 5
ROUNDING = 1e-24  # a variance below it is that of equal numbers
NUMBERS_AT_ONCE = 2**22  # draw counts held in memory, 32 MiB

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Estimate:
    """A score, a difference of scores, a mean or a correlation.

    Attributes:
        low, high: ends of the 95 % interval; NaN where a score rests on fewer than FEWEST images.
        p: two-sided, of the hypothesis that the value is 0 (which a score never tests, a difference does).
        images: number of images that it rests on, of the score that has fewest.
    """

    value: float
    low: float
    high: float
    p: float
    images: int


@dataclass(frozen=True)
class Resampled:
    """C scores on one set of images, and what they would have been with others.

    Attributes:
        values: (C,) ratios of sums.
        replicates: (draws, C); NaN where no image of a score was drawn.
        influence: (n, C), what each image does to each score; their mean square over n is its variance.
        images: (C,) how many of the n images each score rests on.
        noise: (C,) variance of each score that drawing images does not show: choices that hang on rounding.
            None for none.
    """

    values: Floats
    replicates: Floats
    influence: Floats
    images: NDArray[np.int64]
    noise: Floats | None = None


def per_image(values: ArrayLike, images: ArrayLike) -> Floats:
    """(E, ...) values per expression to (n, ...) sums per image, images in sorted order."""
    labels, places = np.unique(np.asarray(images), return_inverse=True)
    given = np.asarray(values, dtype=np.float64)
    sums = np.zeros((len(labels), *given.shape[1:]))
    np.add.at(sums, places, given)
    return sums


def draws_of(images: int, seed: int | Sequence[int], draws: int) -> Iterator[tuple[slice, Floats]]:
    """How often each image is drawn, (some, images) at a time, and the places of these draws among all."""
    generator = np.random.default_rng(seed)
    drawn = max(images - 1, 1)
    at_once = max(1, NUMBERS_AT_ONCE // images)
    for start in range(0, draws, at_once):
        count = min(at_once, draws - start)
        chosen = generator.integers(images, size=(count, drawn)) + images * np.arange(count)[:, None]
        weights = np.bincount(chosen.ravel(), minlength=count * images).reshape(count, images)
        yield slice(start, start + count), weights.astype(np.float64)


def resample(
    numerators: Floats,
    denominators: Floats,
    seed: int | Sequence[int] = 0,
    draws: int = DRAWS,
    epsilon: float = SUM_EPSILON,
) -> Resampled:
    """Draw images again, the same ones for all scores.

    Args:
        numerators, denominators: (n, C) sums per image: intersections and unions for cIoU, IoUs and counts
            for gIoU; 0 where a score does not rest on an image.
        seed: whoever shares it shares the draws; sets of other images need another one.
        epsilon: added to the sums of denominators, as the metric has it; not 0.
    """
    images = len(numerators)
    totals = denominators.sum(0)
    values = numerators.sum(0) / (totals + epsilon)
    influence = images * (numerators - values * denominators) / (totals + epsilon)
    replicates = np.empty((draws, numerators.shape[1]))
    for some, weights in draws_of(images, seed, draws):
        below = weights @ denominators
        replicates[some] = np.where(below > 0, (weights @ numerators) / (below + epsilon), np.nan)
    return Resampled(values, replicates, influence, (denominators > 0).sum(0))


def estimate(parts: Sequence[Resampled], weights: Sequence[ArrayLike]) -> Estimate:
    """A weighted sum of scores: of one row, of a difference of rows, of an average over splits.

    Args:
        parts: scores on sets of images that have none in common.
        weights: (C,) of each part; parts of no weight are left out.
    """
    pairs = [
        (part, np.asarray(weight, dtype=np.float64))
        for part, weight in zip(parts, weights, strict=True)
        if np.any(weight)
    ]
    value = float(sum(part.values @ weight for part, weight in pairs))
    sizes = np.array([part.images[weight != 0].min() for part, weight in pairs])
    if sizes.min() < FEWEST:
        return Estimate(value, np.nan, np.nan, np.nan, int(sizes.min()))
    # only what has weight: a replicate that is missing elsewhere is none of its business
    replicates: Floats = np.sum(
        [part.replicates[:, weight != 0] @ weight[weight != 0] for part, weight in pairs], axis=0
    )
    replicates = replicates[~np.isnan(replicates)]
    variances = np.array([_variance(part.influence @ weight) for part, weight in pairs])
    noise = float(sum(part.noise @ weight**2 for part, weight in pairs if part.noise is not None))
    if variances.sum() < ROUNDING and noise:
        half = special.ndtri((1 + LEVEL) / 2) * np.sqrt(noise)
        p = 2 * special.ndtr(-abs(value) / np.sqrt(noise))
        return Estimate(value, value - half, value + half, float(p), int(sizes.min()))
    if variances.sum() < ROUNDING:  # every image says the same
        return Estimate(
            value, value, value, 1.0 if value == 0 else 1 / (len(replicates) + 1), int(sizes.min())
        )
    freedom = variances.sum() ** 2 / (variances**2 / (sizes - 1)).sum()
    tail = special.ndtr(special.stdtrit(freedom, (1 - LEVEL) / 2))
    low, high = np.quantile(replicates, [tail, 1 - tail])
    low, high = min(low, value), max(high, value)  # of a handful of images all replicates may lie on one side
    beyond = min((replicates <= 0).sum(), (replicates >= 0).sum()) + 1
    p = 2 * special.stdtr(freedom, special.ndtri(min(beyond / (len(replicates) + 1), 0.5)))
    if noise:  # independent of which images were drawn, so variances add
        wider = np.sqrt(1 + noise / variances.sum())
        low, high = value - wider * (value - low), value + wider * (high - value)
        p = 2 * special.stdtr(freedom, special.stdtrit(freedom, p / 2) / wider)
    return Estimate(value, float(low), float(high), float(p), int(sizes.min()))


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
        per_image(np.stack([np.asarray(a), np.asarray(b)], axis=1), images)
        for a, b in zip(first, second, strict=True)
    )
    return estimate([resample(inner, outer, seed)], [[1.0, -1.0]])


def mean(values: ArrayLike, images: ArrayLike, seed: int = 0) -> Estimate:
    """Mean over images of the mean over an image's expressions; NaN are left out."""
    given, labels = np.asarray(values, dtype=np.float64), np.asarray(images)
    known = ~np.isnan(given)
    if not known.any():
        return Estimate(np.nan, np.nan, np.nan, np.nan, 0)
    counts = per_image(np.ones(known.sum()), labels[known])
    means = per_image(given[known], labels[known]) / counts
    return estimate([resample(means[:, None], np.ones((len(means), 1)), seed)], [[1.0]])


def correlation(x: ArrayLike, y: ArrayLike, images: ArrayLike, seed: int = 0) -> Estimate:
    """Pearson's over expressions; NaN are left out, and it is NaN where nothing varies."""
    pairs, labels = (
        np.stack([np.asarray(x, dtype=np.float64), np.asarray(y, dtype=np.float64)], axis=1),
        np.asarray(images),
    )
    known = ~np.isnan(pairs).any(1)
    if not known.any():
        return Estimate(np.nan, np.nan, np.nan, np.nan, 0)
    pairs, labels = pairs[known], labels[known]
    pairs = pairs - pairs.mean(0)  # for the digits
    sums = per_image(np.column_stack([np.ones(len(pairs)), pairs, pairs**2, pairs.prod(1)]), labels)
    count = len(sums)
    value = float(_pearson(sums.sum(0)))
    if not np.isfinite(value):
        return Estimate(value, np.nan, np.nan, np.nan, count)
    replicates = np.concatenate([_pearson(weights @ sums) for _, weights in draws_of(count, seed, DRAWS)])
    u, v = (pairs / pairs.std(0)).T
    influence = count / len(pairs) * per_image(u * v - value / 2 * (u**2 + v**2), labels)
    return estimate(
        [Resampled(np.array([value]), replicates[:, None], influence[:, None], np.array([count]))], [[1.0]]
    )


def _pearson(sums: Floats) -> Floats:
    """(...) from (..., 6): count, and sums of x, y, xx, yy, xy; NaN where nothing varies."""
    n, a, b, aa, bb, ab = np.moveaxis(sums, -1, 0)
    spread = np.maximum(aa - a**2 / n, 0) * np.maximum(bb - b**2 / n, 0)
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(spread > ROUNDING, (ab - a * b / n) / np.sqrt(spread), np.nan)


def adjusted(ps: ArrayLike) -> Floats:
    """p-values after control of the false-discovery rate over a table (Benjamini and Hochberg); NaN stays
    NaN.

    Rows of a table share images, which makes their differences positively dependent; the method holds under
    that.
    """
    given = np.asarray(ps, dtype=np.float64)
    known = ~np.isnan(given)
    out = np.full(given.shape, np.nan)
    if known.any():
        out[known] = stats.false_discovery_control(given[known])
    return out
