"""The metrics of referring segmentation: cIoU, gIoU and the precision at five thresholds, from two pixel
counts per expression.

Definitions and epsilons are those of the official evaluation loop (mbzuai-oryx/groundingLMM).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from harness.metrics.base import Columns, Masks, Metric, Truths
from harness.metrics.masks import IOU_EPSILON, SUM_EPSILON, counts, iou, pixel_counts

THRESHOLDS = (0.5, 0.6, 0.7, 0.8, 0.9)
OFFICIAL = "GLaMM, https://github.com/mbzuai-oryx/groundingLMM"


class Overlap(Metric):
    """What is made of the pixels in the intersection and in the union of a mask and its target; those of a
    clip are summed over its frames."""

    reference = OFFICIAL
    columns = ("intersection", "union")
    of_iou = True

    def measure(self, predictions: Masks, truths: Truths) -> list[dict[str, Any]]:
        found = []
        for prediction, truth in zip(predictions, truths, strict=True):
            both = [counts(*frame) for frame in zip(prediction, truth, strict=True)]
            found.append(
                {"intersection": sum(inner for inner, _ in both), "union": sum(outer for _, outer in both)}
            )
        return found

    def each(self, table: Columns) -> NDArray[np.float64]:
        """(n,) exact IoU of every record; 1 where its union is empty."""
        return iou(table["intersection"], table["union"])


class CumulativeIoU(Overlap):
    """cIoU: sum of intersections over sum of unions (+ 1e-10), in 0..1.

    An empty target with predicted pixels enters with its union; with none predicted it adds nothing.
    """

    name = "ciou"
    title = "cIoU"
    meaning = "the sum of intersections over the sum of unions of all expressions of the split"
    weighs = "large objects weigh more"
    epsilon = SUM_EPSILON

    def terms(self, table: Columns) -> tuple[NDArray[Any], NDArray[Any]]:
        return pixel_counts(table["intersection"], table["union"])


class GeneralIoU(Overlap):
    """gIoU: mean IoU over masks, in 0..1.

    Official epsilons: each mask counts intersection / (union + 1e-5), or 1 if its union is empty, and the sum
    is divided by (number of masks + 1e-5). A perfect result so stays below 1 by about 1e-5; `each` has no
    epsilon.
    """

    name = "giou"
    title = "gIoU"
    meaning = "mean IoU over expressions"
    weighs = "every expression weighs the same"
    epsilon = IOU_EPSILON

    def terms(self, table: Columns) -> tuple[NDArray[Any], NDArray[Any]]:
        inner, outer = pixel_counts(table["intersection"], table["union"])
        return np.where(outer == 0, 1.0, inner / (outer + IOU_EPSILON)), np.ones(len(inner))


@dataclass(frozen=True)
class Precision(Overlap):
    """Share of masks whose exact IoU is at least the threshold, in 0..1."""

    threshold: float

    unit = "% of expressions"
    weighs = "every expression weighs the same"
    shown = False

    @property
    def name(self) -> str:  # type: ignore[override]
        return f"p@{self.threshold}"

    @property
    def title(self) -> str:  # type: ignore[override]
        return f"IoU of at least {self.threshold}"

    @property
    def meaning(self) -> str:  # type: ignore[override]
        return f"the share of expressions whose IoU is at least {self.threshold}"

    def terms(self, table: Columns) -> tuple[NDArray[Any], NDArray[Any]]:
        reached = iou(table["intersection"], table["union"]) >= self.threshold
        return reached.astype(np.int64), np.ones(len(reached), dtype=np.int64)
