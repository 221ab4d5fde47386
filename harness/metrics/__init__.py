"""Scores of masks: what is counted of every answer, and the numbers of tables that follow from the counts."""

from harness.metrics.base import Medium, Metric
from harness.metrics.masks import FOREGROUND, IGNORED, SUM_EPSILON, counts, iou
from harness.metrics.registry import get, made_of, measure, names, of_medium, register
from harness.metrics.video import frames_of, means_of

__all__ = [
    "FOREGROUND",
    "IGNORED",
    "SUM_EPSILON",
    "Medium",
    "Metric",
    "counts",
    "frames_of",
    "get",
    "iou",
    "made_of",
    "means_of",
    "measure",
    "names",
    "of_medium",
    "register",
]
