"""Pixels of masks: intersections, unions and their ratio, as pure functions.

What is stored and summed are integers; a score is made once, at the end. The definitions and their epsilons
are those of the official evaluation loop (mbzuai-oryx/groundingLMM), whose default matters where papers are
silent.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

FOREGROUND = 1
IGNORED = 255
IOU_EPSILON = 1e-5  # official: added to each mask's union, and to the number of masks
SUM_EPSILON = 1e-10  # official: added to the sum of unions


def counts(prediction: NDArray[np.bool_], truth: NDArray[np.uint8]) -> tuple[int, int]:
    """Pixels in the intersection and in the union of a mask and its target.

    Args:
        prediction: (H, W) bool.
        truth: (H, W) uint8. 1 is the target, 0 is not. Any other value is no class (2: parts of the object
            overlap): predicted there counts as false, not predicted there costs nothing. 255 is ignored
            whatever is predicted.

    Raises:
        ValueError: shapes differ, or the prediction is not boolean.
    """
    prediction, truth = np.asarray(prediction), np.asarray(truth)
    if prediction.shape != truth.shape or prediction.ndim != 2:
        raise ValueError(f"expected two (H, W) arrays of one shape, got {prediction.shape} and {truth.shape}")
    if prediction.dtype != np.bool_:
        raise ValueError(f"expected a boolean prediction (logits > 0), got {prediction.dtype}")
    target = truth == FOREGROUND
    intersection = int(np.count_nonzero(prediction & target))
    predicted = int(np.count_nonzero(prediction & (truth != IGNORED)))
    return intersection, predicted + int(np.count_nonzero(target)) - intersection


def iou(intersection: ArrayLike, union: ArrayLike) -> NDArray[np.float64]:
    """Exact IoU of every mask, (n,) float64; 1 where the union is empty (no target, and none predicted).

    >>> iou([30, 0], [120, 0]).tolist()
    [0.25, 1.0]
    """
    inner, outer = pixel_counts(intersection, union)
    return np.where(outer == 0, 1.0, inner / np.maximum(outer, 1))


def pixel_counts(intersection: ArrayLike, union: ArrayLike) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Both as (n,) int64; whole numbers only, so that sums are exact and a missing count cannot pass as a
    number.

    Raises:
        ValueError: they are no pixel counts, or not one intersection per union.
    """
    arrays = []
    for name, values in (("intersection", intersection), ("union", union)):
        given: NDArray[Any] = np.asarray(values)
        whole = given.astype(np.int64) if given.size == 0 or given.dtype.kind in "iu" else None
        if whole is None and given.dtype.kind in "fO" and all(float(v).is_integer() for v in given.ravel()):
            whole = given.astype(np.int64)
        if whole is None or whole.ndim != 1:
            raise ValueError(
                f"expected {name} to be a sequence of pixel counts, got {given.dtype} {given.shape}"
            )
        arrays.append(whole)
    inner, outer = arrays
    if inner.shape != outer.shape or (inner < 0).any() or (inner > outer).any():
        raise ValueError("expected one intersection per union, with 0 <= intersection <= union")
    return inner, outer
