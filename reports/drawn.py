"""Records drawn again: intervals of all rows of a table, and of their differences, on the same draws."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from harness.metrics import SUM_EPSILON, Metric
from harness.metrics.bootstrap import Estimate, Resampled, estimate, resample
from harness.store import records
from reports.comparable import COLUMN, LINE

Column = tuple[str, str]
Weights = NDArray[np.float64]


class Drawn:
    """Every (column, pruner, budget, seed) of a table, drawn again: together with all that rest on the same
    images."""

    def __init__(self, frame: pd.DataFrame, columns: Sequence[Column], metric: Metric) -> None:
        self.columns, self.metric = columns, metric
        self._places: list[list[tuple[Any, ...]]] = []
        self._parts: list[Resampled] = []
        above, below = metric.terms(frame)
        frame = frame.assign(numerator=above, denominator=below, image=records.media(frame))
        keys = [*COLUMN, *LINE, "seed"]
        for together in _sharing(frame, columns):
            rows = frame[pd.MultiIndex.from_frame(frame[COLUMN]).isin(together)]
            sums = (
                rows.groupby(["image", *keys], observed=True)[["numerator", "denominator"]]
                .sum()
                .unstack(keys, fill_value=0)
            )
            inner, outer = sums["numerator"], sums["denominator"][sums["numerator"].columns]
            seed = zlib.crc32(" ".join(map(" ".join, together)).encode())
            self._places.append(list(inner.columns))
            terms = inner.to_numpy(dtype=np.float64), outer.to_numpy(dtype=np.float64)
            drawn = resample(*terms, seed, epsilon=metric.epsilon or SUM_EPSILON)
            if metric.of_iou:
                noise = rounding_variance(rows, keys).reindex(inner.columns).fillna(0.0)
                drawn = replace(drawn, noise=np.asarray(noise, dtype=np.float64))
            self._parts.append(drawn)

    def weights(self, pruner: str, budget: int, columns: Sequence[Column]) -> list[Weights] | None:
        """Of the mean over columns of the mean over seeds, per part; None if the row lacks a column."""
        found = [np.zeros(len(places)) for places in self._places]
        for column in columns:
            here = [
                np.array([place[:4] == (*column, pruner, budget) for place in places])
                for places in self._places
            ]
            seeds = sum(int(mine.sum()) for mine in here)
            if not seeds:
                return None
            found = [weight + mine / (seeds * len(columns)) for weight, mine in zip(found, here, strict=True)]
        return found

    def budget(self, pruner: str) -> int:
        """The first at which it has a row."""
        return next((int(place[3]) for places in self._places for place in places if place[2] == pruner), -1)

    def estimate(self, weights: list[Weights]) -> Estimate:
        return estimate(self._parts, weights)


def rounding_variance(rows: pd.DataFrame, keys: list[str]) -> pd.Series[float]:
    """Variance of a score by choices that hang on rounding, from the images that were looked at.

    An image whose choice goes the other way moves the mean over n images by D/n, and goes either way by
    chance: D is its mean change of IoU, and the variance of the score the mean of D^2 over n.
    """
    probed = rows[rows["rounding_iou"].notna()]
    change = probed.groupby([*keys, "cluster"], observed=True)["rounding_iou"].mean()
    images = rows.groupby(keys, observed=True)["cluster"].nunique()
    return (change**2).groupby(level=keys, observed=True).mean() / images


def _sharing(frame: pd.DataFrame, columns: Sequence[Column]) -> list[list[Column]]:
    """Columns in sets that have no image in common."""
    found: list[tuple[list[Column], set[str]]] = []
    for column in columns:
        mine = (frame["dataset"] == column[0]) & (frame["split"] == column[1])
        here = set(frame["cluster"][mine].unique())
        joined = [one for one in found if one[1] & here]
        found = [one for one in found if not one[1] & here]
        found.append(
            (
                sorted([*(name for names, _ in joined for name in names), column]),
                here.union(*(pool for _, pool in joined)),
            )
        )
    return [names for names, _ in found]
