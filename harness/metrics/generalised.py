"""The metrics of generalised referring segmentation (GRES), where an expression may mean nothing or several
objects: whether a model says rightly that there is nothing, and its precision where there is something.

gIoU and cIoU of such data are those of all others: an expression that means nothing counts 1 in gIoU if
nothing is painted, else 0, and what is painted enters cIoU's union. ReLA's own gIoU has no epsilon, which is
a difference of less than 0.002 points.

ReLA has an output of its own for "there is nothing"; a model without one says it with an empty mask.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from harness.metrics.base import Columns, Masks, Metric, Truths
from harness.metrics.masks import FOREGROUND, IGNORED, iou, pixel_counts

PRECISION_AT = (0.7, 0.8, 0.9)


class Generalised(Metric):
    """Made of the pixels of the target, of the mask, and of both; those of a clip are summed over its frames.

    Attributes:
        fewest: pixels from which a mask says that there is something. The paper of gRefCOCO speaks of 50
            for models without an output for "nothing"; a subclass of another name can have it so.
    """

    reference = "ReLA, https://github.com/henghuiding/ReLA"
    weighs = "every expression weighs the same"
    columns = ("gres_target", "gres_mask", "gres_both")
    datasets = ("grefcoco",)
    needs_generated = True
    fewest: ClassVar[int] = 1

    def measure(self, predictions: Masks, truths: Truths) -> list[dict[str, Any]]:
        found = []
        for prediction, truth in zip(predictions, truths, strict=True):
            target, mask = truth == FOREGROUND, prediction & (truth != IGNORED)
            parts = (target, mask, target & mask)
            found.append(
                {name: int(np.count_nonzero(part)) for name, part in zip(self.columns, parts, strict=True)}
            )
        return found

    def _counts(self, table: Columns) -> tuple[NDArray[np.bool_], NDArray[np.bool_], NDArray[np.float64]]:
        """Of every record: whether there is a target, whether the mask says so, and the IoU."""
        both, target = pixel_counts(table["gres_both"], table["gres_target"])
        _, mask = pixel_counts(table["gres_both"], table["gres_mask"])
        return target > 0, mask >= self.fewest, iou(both, target + mask - both)


class NoTargetAccuracy(Generalised):
    """N-acc: share of the expressions that mean nothing whose mask is empty, in 0..1; NaN without any (where
    ReLA's code says 0)."""

    name = "n_acc"
    title = "N-acc"
    meaning = "share of the expressions that mean nothing whose mask is empty"

    def terms(self, table: Columns) -> tuple[NDArray[Any], NDArray[Any]]:
        meant, said, _ = self._counts(table)
        return (~meant & ~said).astype(np.int64), (~meant).astype(np.int64)


class TargetAccuracy(Generalised):
    """T-acc: share of the expressions that mean something whose mask is not empty, in 0..1."""

    name = "t_acc"
    title = "T-acc"
    meaning = "share of the expressions that mean something whose mask is not empty"

    def terms(self, table: Columns) -> tuple[NDArray[Any], NDArray[Any]]:
        meant, said, _ = self._counts(table)
        return (meant & said).astype(np.int64), meant.astype(np.int64)


@dataclass(frozen=True)
class TargetPrecision(Generalised):
    """Pr@X: share of the expressions that mean something whose IoU is at least X, in 0..1; those that mean
    nothing do not count, which `Precision` counts."""

    threshold: float

    @property
    def name(self) -> str:  # type: ignore[override]
        return f"pr@{self.threshold}"

    @property
    def title(self) -> str:  # type: ignore[override]
        return f"Pr@{self.threshold}"

    @property
    def meaning(self) -> str:  # type: ignore[override]
        return f"share of the expressions that mean something whose IoU is at least {self.threshold}"

    def terms(self, table: Columns) -> tuple[NDArray[Any], NDArray[Any]]:
        meant, said, reached = self._counts(table)
        return (meant & said & (reached >= self.threshold)).astype(np.int64), meant.astype(np.int64)
