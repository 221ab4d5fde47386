"""Scores of masks: counts of pixels per expression, and the numbers of tables that follow from them."""

from harness.metrics.masks import (
    FOREGROUND,
    IGNORED,
    SUM_EPSILON,
    ciou,
    counts,
    giou,
    iou,
    precision_at,
    scores,
)

__all__ = ["FOREGROUND", "IGNORED", "SUM_EPSILON", "ciou", "counts", "giou", "iou", "precision_at", "scores"]
