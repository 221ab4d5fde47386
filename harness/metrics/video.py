"""The metrics of referring video segmentation: J (region), F (boundary) and their mean.

J and F of a frame are ratios of whole numbers (`harness.metrics.boundary`); those of an expression are means
over its frames, and those of records means over expressions. That is the rule of MeViS and Refer-YouTube-VOS.

Ref-DAVIS-17 is scored by the official evaluation of unsupervised DAVIS, which knows objects and no
expressions. What one annotator's expressions gave (a group of M answers) is merged into one map of numbers
per frame, in which the lower number wins where masks overlap; then predictions are matched one to one with
targets so that the mean of J and F is largest. Which expression belongs to which object is thus not tested:
two answers exchanged score the same. So `j_fixed` and `f_fixed` are recorded too, those of every merged
answer against its own target. Objects of the first annotation that nobody speaks of count, too, with
whatever prediction is left for them: they are recorded with the group's first expression. The data set's
score is the mean of four annotators; since all of them describe the same objects, it is the mean over all
records and what these say of other objects.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment

from harness.metrics.base import Columns, Masks, Medium, Metric, Truths
from harness.metrics.boundary import Counts, clip_counts, contour, region
from harness.metrics.masks import FOREGROUND, IGNORED

CURVES = ("j_inner", "j_outer", "f_hits", "f_drawn", "f_found", "f_edge")  # as `clip_counts` has them


class VideoMetric(Metric):
    """Made of J and F of an expression, means over its frames.

    Attributes:
        columns: J and F of the prediction that was matched to the expression's target; of its own prediction;
            and of a group's first expression the sums over objects that nobody speaks of, and their number.
        curves: pixels of each frame's intersection and union; predicted boundary pixels that are matched, and
            all of them; the target's that are matched, and all of them. Of a group they are those of the
            prediction that was matched to the expression's target, as `j` and `f` are.
    """

    reference = "DAVIS, https://github.com/davischallenge/davis2017-evaluation"
    weighs = "every expression weighs the same, and so does every frame of it"
    columns = ("j", "f", "j_fixed", "f_fixed", "j_rest", "f_rest", "n_rest")
    curves: ClassVar[tuple[str, ...]] = CURVES
    medium: ClassVar[Medium] = "video"

    def measure(self, predictions: Masks, truths: Truths) -> list[dict[str, Any]]:
        void = (truths == IGNORED).any(axis=0)
        spoken, every = len(predictions), merged(predictions)
        if spoken < len(truths):  # what is missing is empty
            none = np.zeros((len(truths) - spoken, *predictions.shape[1:]), dtype=np.bool_)
            every = np.concatenate([every, none])
        counts = clip_counts(every, truths == FOREGROUND, void)
        rows, targets = matching(counts)
        row_of = dict(zip(targets.tolist(), rows.tolist(), strict=True))
        rest = [_means(counts[row_of[target], target]) for target in range(spoken, len(truths))]
        others = (sum(j for j, _ in rest), sum(f for _, f in rest), len(rest))
        found = []
        for target in range(spoken):
            own, fixed = counts[row_of[target], target], counts[target, target]
            curves = dict(zip(self.curves, own.T.tolist(), strict=True))
            means = *_means(own), *_means(fixed), *(others if target == 0 else (0.0, 0.0, 0))
            found.append(dict(zip(self.columns, means, strict=True)) | curves)
        return found

    def each(self, table: Columns) -> NDArray[np.float64]:
        """(n,) the score of every expression, without what is recorded with it of objects that nobody speaks
        of."""
        alone = {name: np.zeros(len(table["n_rest"])) for name in ("j_rest", "f_rest", "n_rest")}
        return super().each({name: table[name] for name in ("j", "f", "j_fixed", "f_fixed")} | alone)


class RegionSimilarity(VideoMetric):
    """J: mean over expressions of the mean over frames of intersection over union, in 0..1; 1 in a frame
    where neither mask has a pixel."""

    name = "j"
    title = "J"
    meaning = "intersection over union of a frame, mean over an expression's frames, mean over expressions"

    def terms(self, table: Columns) -> tuple[NDArray[Any], NDArray[Any]]:
        return _scores(table, "j") + _sums(table, "j_rest"), 1 + _number(table)


class BoundaryAccuracy(VideoMetric):
    """F: mean over expressions of the mean over frames of the boundaries' F measure, in 0..1."""

    name = "f"
    title = "F"
    meaning = (
        "harmonic mean of the shares of both boundaries that lie within 0.008 of the diagonal of the other, "
        "of a frame, mean over an expression's frames, mean over expressions"
    )

    def terms(self, table: Columns) -> tuple[NDArray[Any], NDArray[Any]]:
        return _scores(table, "f") + _sums(table, "f_rest"), 1 + _number(table)


class RegionAndBoundary(VideoMetric):
    """J&F: the mean of J and F, in 0..1."""

    name = "j&f"
    title = "J&F"
    meaning = "the mean of J and F"

    def terms(self, table: Columns) -> tuple[NDArray[Any], NDArray[Any]]:
        both = [_scores(table, name) + _sums(table, f"{name}_rest") for name in ("j", "f")]
        return (both[0] + both[1]) / 2, 1 + _number(table)


class OwnIdentity(VideoMetric):
    """J&F of every merged answer against the object that its expression is about, in 0..1."""

    name = "j&f_fixed"
    title = "J&F, own object"
    meaning = (
        "the mean of J and F of each answer against its own expression's object, where J and F match answers "
        "and objects so that they fit best, as officially"
    )
    datasets: ClassVar[tuple[str, ...]] = ("ref-davis17",)

    def terms(self, table: Columns) -> tuple[NDArray[Any], NDArray[Any]]:
        scores = (_scores(table, "j_fixed") + _scores(table, "f_fixed")) / 2
        return scores, np.ones(len(scores))


def merged(answers: Masks) -> Masks:
    """Answers of one group as the official script stores them, one number per pixel: a pixel of several
    answers is the first one's alone.

    Args:
        answers: (M, T, H, W) bool.

    Returns:
        (M, T, H, W) bool, disjoint; the very array where M is 1.
    """
    if len(answers) == 1:
        return answers
    kept, taken = np.empty_like(answers), np.zeros_like(answers[0])
    for place, answer in enumerate(answers):
        np.logical_and(answer, ~taken, out=kept[place])
        taken |= answer
    return kept


def matching(counts: Counts) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """One prediction for each target so that the sum of (mean J + mean F) / 2 is largest.

    Args:
        counts: (P, G, T, 6) of `clip_counts`, P >= G: what is missing is an empty mask.

    Returns:
        Rows, rising, and the target of each; (G,) both.

    Raises:
        ValueError: there are fewer predictions than targets.
    """
    if len(counts) < counts.shape[1]:
        raise ValueError(f"expected a prediction for each of {counts.shape[1]} targets, got {len(counts)}")
    j, f = over_frames(counts)
    rows, targets = linear_sum_assignment(-((j.mean(axis=2) + f.mean(axis=2)) / 2))
    return rows, targets


def over_frames(counts: Counts) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """J and F of frames, (...) each in 0..1, from counts (..., 6) in the order of CURVES."""
    parts = np.moveaxis(counts, -1, 0)
    return region(*parts[:2]), contour(*parts[2:])


def frames_of(curves: Mapping[str, Sequence[int]]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """J and F of every frame of an expression, (T,) each in 0..1, from its curves.

    Raises:
        ValueError: a curve is missing, or holds what cannot have been counted.
    """
    return over_frames(_counts_of(curves))


def means_of(curves: Mapping[str, Sequence[int]]) -> tuple[float, float]:
    """J and F of an expression from its curves, digit for digit what `VideoMetric.measure` returned.

    Raises:
        ValueError: as `frames_of`.
    """
    return _means(_counts_of(curves))


def check_measures(measures: Mapping[str, float]) -> None:
    """See that an expression's measures can have been measured.

    Raises:
        ValueError: one is missing or out of its range.
    """
    if missing := [name for name in VideoMetric.columns if name not in measures]:
        raise ValueError(f"it has no {missing[0]}")
    one = {name: np.array([measures[name]], dtype=np.float64) for name in VideoMetric.columns}
    for name in ("j", "f", "j_fixed", "f_fixed"):
        _scores(one, name)
    for name in ("j_rest", "f_rest"):
        _sums(one, name)


def _counts_of(curves: Mapping[str, Sequence[int]]) -> Counts:
    """Curves as counts (T, 6)."""
    if missing := [name for name in CURVES if name not in curves]:
        raise ValueError(f"it has no {missing[0]}")
    if len({len(curves[name]) for name in CURVES}) > 1 or not len(curves[CURVES[0]]):
        raise ValueError(f"its {', '.join(CURVES)} are not of as many frames")
    counts: Counts = np.array([curves[name] for name in CURVES])
    if counts.dtype.kind not in "iu":
        raise ValueError(f"its {', '.join(CURVES)} are not all whole numbers")
    for part, whole in ((0, 1), (2, 3), (4, 5)):
        if (counts[part] < 0).any() or (counts[part] > counts[whole]).any():
            raise ValueError(f"its {CURVES[part]} is not a part of its {CURVES[whole]} in every frame")
    return counts.T


def _means(counts: Counts) -> tuple[float, float]:
    """J and F of one prediction against one target, from its counts (T, 6)."""
    j, f = over_frames(counts)
    return float(j.mean()), float(f.mean())


def _number(table: Columns) -> NDArray[np.float64]:
    """How many objects that nobody speaks of are recorded with each expression."""
    found = np.asarray(table["n_rest"], dtype=np.float64)
    if found.ndim != 1 or not ((found >= 0) & (found == np.floor(found))).all():
        raise ValueError("expected n_rest to be whole numbers, one of each record")
    return found


def _sums(table: Columns, name: str) -> NDArray[np.float64]:
    found = np.asarray(table[name], dtype=np.float64)
    if not ((found >= 0) & (found <= _number(table))).all():
        raise ValueError(f"expected {name} to be from 0 to n_rest, one of each record")
    return found


def _scores(table: Columns, name: str) -> NDArray[np.float64]:
    scores = np.asarray(table[name], dtype=np.float64)
    if scores.ndim != 1 or not ((scores >= 0) & (scores <= 1)).all():
        raise ValueError(f"expected {name} to be numbers from 0 to 1, one of each record")
    return scores
