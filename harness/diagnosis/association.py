"""Means over expressions, and how much of one number another one explains, with intervals from draws of
images."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from harness.metrics.bootstrap import DRAWS, Estimate, Resampled, draws_of, estimate, per_image, resample

Floats = NDArray[np.float64]
# of the variance of a standardised factor, so that draws in which one is constant have an answer
RIDGE = 1e-10
SPREAD = 1e-7  # share of a variance below which nothing is left that could be explained


@dataclass(frozen=True)
class Share:
    """A squared correlation: the share of a variance that one number explains.

    Attributes:
        value, low, high: R^2 and the ends of its 95 % interval, NaN where images are too few or nothing
        varies. r: the correlation, whose sign says which way it goes. p: two-sided, of the hypothesis that
        the correlation is 0.
    """

    value: float
    low: float
    high: float
    r: float
    p: float
    images: int


def drawn_again(values: Floats, columns: NDArray[np.int64], images: NDArray[Any], count: int) -> Resampled:
    """Means over expressions, drawn again by image, the same draws for all columns.

    Args:
        values: (n,) of which some may be of one expression.
        columns: (n,) which of `count` means a value belongs to.
        images: (n,) labels.
    """
    labels, rows = np.unique(images, return_inverse=True)
    flat = rows * count + columns
    shape, size = (len(labels), count), len(labels) * count
    above: Floats = np.bincount(flat, weights=values, minlength=size).reshape(shape).astype(np.float64)
    below: Floats = np.bincount(flat, minlength=size).reshape(shape).astype(np.float64)
    return resample(above, below)


def one_of(part: Resampled, weights: dict[int, float]) -> Estimate:
    """A weighted sum of columns."""
    vector = np.zeros(len(part.values))
    for column, weight in weights.items():
        vector[column] = weight
    return estimate([part], [vector])


def of_sums(sums: Floats, statistic: Callable[[Floats], Floats], seed: int = 0) -> Estimate:
    """A smooth function of sums over images, with its interval; images are drawn as `resample` draws them,
    and what each does to the value is found by leaving it out (jackknife).

    Args:
        sums: (n, C) per image.
        statistic: (..., C) sums to (...) values; NaN where it has none.
    """
    count, total = len(sums), sums.sum(0)
    value = float(statistic(total))
    if not np.isfinite(value):
        return Estimate(value, np.nan, np.nan, np.nan, count)
    replicates = np.concatenate([statistic(weights @ sums) for _, weights in draws_of(count, seed, DRAWS)])
    without = statistic(total - sums)
    influence = np.nan_to_num((count - 1) * (value - without))
    part = Resampled(np.array([value]), replicates[:, None], influence[:, None], np.array([count]))
    return estimate([part], [[1.0]])


def explained(x: ArrayLike, y: ArrayLike, images: ArrayLike, others: ArrayLike | None = None) -> Share:
    """R^2 of a straight line from `x` to `y` over expressions; with `others`, the partial R^2: the share of
    what they leave unexplained that `x` explains.

    R^2 is never below 0, so an interval of its own could not say that nothing is explained: it is that of the
    correlation, squared, and begins at 0 where that one holds 0.

    Args:
        x, y: (E,); expressions with NaN anywhere are left out.
        images: (E,) image of each expression.
        others: (E, Z) factors that are held fixed.

    Example:
        >>> images = list("abcdefgh")
        >>> found = explained([0, 1, 2, 3, 4, 5, 6, 7], [1, 3, 5, 7, 9, 11, 13, 15], images)
        >>> round(found.value, 6), round(found.low, 6)
        (1.0, 1.0)
    """
    columns = [np.asarray(x, dtype=np.float64), np.asarray(y, dtype=np.float64)]
    given = np.column_stack(columns if others is None else [*columns, np.asarray(others, dtype=np.float64)])
    known = ~np.isnan(given).any(1)
    given, labels = given[known], np.asarray(images)[known]
    count = len(np.unique(labels))
    nothing = Share(np.nan, np.nan, np.nan, np.nan, np.nan, count)
    if len(given) < 3:
        return nothing
    spread = given.std(0)
    if (spread[:2] <= SPREAD).any():
        return nothing
    given = (given - given.mean(0))[:, spread > SPREAD] / spread[spread > SPREAD]
    width = given.shape[1] + 1
    if len(given) <= width:  # as many numbers as unknowns: everything would be explained
        return nothing
    rows = np.column_stack([np.ones(len(given)), given])
    # in the order 1, others, x, y, so that one elimination leaves the last two
    rows = rows[:, [0, *range(3, width), 1, 2]]
    upper = np.triu_indices(width)
    sums = per_image(rows[:, upper[0]] * rows[:, upper[1]], labels)

    def correlation(moments: Floats) -> Floats:
        whole = np.zeros((*moments.shape[:-1], width, width))
        whole[..., upper[0], upper[1]] = moments
        whole[..., upper[1], upper[0]] = moments
        return _left(whole)

    found = of_sums(sums, correlation)
    ends = sorted((found.low**2, found.high**2))
    if found.low <= 0 <= found.high:
        ends[0] = 0.0
    return Share(found.value**2, ends[0], ends[1], found.value, found.p, count)


def _left(moments: Floats) -> Floats:
    """(...) correlation of the last two of (..., W, W) sums of products, the others being regressed out."""
    first = moments.shape[-1] - 2
    inner, cross, last = (
        moments[..., :first, :first],
        moments[..., :first, first:],
        moments[..., first:, first:],
    )
    # a draw without an expression has no counts at all
    heavy = np.maximum(moments[..., :1, :1], 1.0) * RIDGE * np.eye(first)
    left = last - np.swapaxes(cross, -1, -2) @ np.linalg.solve(inner + heavy, cross)
    least = SPREAD * np.maximum(moments[..., 0, 0], 1.0)
    some = (left[..., 0, 0] > least) & (left[..., 1, 1] > least)
    product = np.where(some, left[..., 0, 0] * left[..., 1, 1], 1.0)
    return np.where(some, (left[..., 0, 1] / np.sqrt(product)).clip(-1, 1), np.nan)
