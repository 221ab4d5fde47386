"""Metrics against the official loop's numbers and against counting pixel by pixel."""

from __future__ import annotations

import math
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

from harness import metrics
from harness.metrics.base import Columns, Masks, Truths

OVERLAP = [one.name for one in metrics.made_of(("intersection", "union"))]
LABELS = st.sampled_from([0, 1, 2, 3, 255])
PAIRS = npst.array_shapes(min_dims=2, max_dims=2, max_side=9).flatmap(
    lambda shape: st.tuples(
        npst.arrays(np.bool_, shape), npst.arrays(np.uint8, shape, elements=LABELS, fill=st.nothing())
    )
)
PIXELS = st.lists(
    st.integers(0, 10**7).flatmap(lambda union: st.tuples(st.integers(0, union), st.just(union))), min_size=1
)


def value(name: str, inner: object, outer: object) -> float:
    """A metric's value of pixel counts."""
    return metrics.get(name).value({"intersection": inner, "union": outer})  # type: ignore[dict-item]


def reference_counts(prediction: np.ndarray, truth: np.ndarray) -> tuple[int, int]:
    """Official semantics told pixel by pixel: class-1 areas of both sides, labels other than 1 in no class 1
    area."""
    pixels = [
        (bool(p), int(t)) for p, t in zip(prediction.ravel(), truth.ravel(), strict=True) if int(t) != 255
    ]
    predicted = {k for k, (p, _) in enumerate(pixels) if p}
    target = {k for k, (_, t) in enumerate(pixels) if t == 1}
    return len(predicted & target), len(predicted | target)


@given(PAIRS)
def test_counts_agree_with_counting_pixels(pair: tuple[np.ndarray, np.ndarray]) -> None:
    before = pair[1].copy()
    assert metrics.counts(*pair) == reference_counts(*pair)
    assert (pair[1] == before).all()


def test_counts_treat_label_two_as_no_class() -> None:
    truth = np.array([[1, 2, 0, 255]], dtype=np.uint8)
    assert metrics.counts(np.array([[True, True, False, True]]), truth) == (1, 2)  # on 2: false positive
    assert metrics.counts(np.array([[True, False, False, False]]), truth) == (1, 1)  # not on 2: no cost


@pytest.mark.parametrize(
    ("prediction", "truth"),
    [
        (np.zeros((2, 3), dtype=bool), np.zeros((3, 2), dtype=np.uint8)),
        (np.zeros((1, 2, 3), dtype=bool), np.zeros((1, 2, 3), dtype=np.uint8)),
        (np.zeros((2, 3), dtype=np.float32), np.zeros((2, 3), dtype=np.uint8)),
    ],
)
def test_counts_refuse_what_is_no_pair_of_masks(prediction: np.ndarray, truth: np.ndarray) -> None:
    with pytest.raises(ValueError, match="expected"):
        metrics.counts(prediction, truth)


def test_official_loop(golden_glamm_dir: Path) -> None:
    stored = np.load(golden_glamm_dir / "metric.npz")
    images = sum(name.startswith("gt_") for name in stored)
    pairs: list[list[tuple[int, int]]] = [
        [
            metrics.counts(logits > 0, truth)
            for logits, truth in zip(stored[f"logits_{k}"], stored[f"gt_{k}"], strict=True)
        ]
        for k in range(images)
    ]
    for rows, (giou, ciou) in zip(pairs, stored["per_image_giou_ciou"], strict=True):
        inner, outer = zip(*rows, strict=True)
        # the official loop sums in float32
        assert value("giou", inner, outer) == pytest.approx(giou, rel=1e-6)
        assert value("ciou", inner, outer) == pytest.approx(ciou, rel=1e-6)
    inner, outer = zip(*(row for rows in pairs for row in rows), strict=True)
    assert value("giou", inner, outer) == pytest.approx(float(stored["giou"]), rel=1e-6)
    assert value("ciou", inner, outer) == pytest.approx(float(stored["ciou"]), rel=1e-6)


@given(PIXELS)
def test_scores_agree_with_exact_fractions(rows: list[tuple[int, int]]) -> None:
    inner, outer = zip(*rows, strict=True)
    got = {name: value(name, inner, outer) for name in OVERLAP}
    total = sum(outer)
    assert got["ciou"] == pytest.approx(float(Fraction(sum(inner), total)) if total else 0.0, rel=1e-9)
    exact = [Fraction(i, u) if u else Fraction(1) for i, u in rows]
    # the official epsilons move a mask by at most 1e-5 / union and the mean by 1e-5 / n
    room = sum(1e-5 / u for u in outer if u) / len(rows) + 1e-5
    assert got["giou"] == pytest.approx(float(sum(exact) / len(exact)), abs=room)
    for threshold in (5, 6, 7, 8, 9):
        share = sum(e >= Fraction(threshold, 10) for e in exact) / len(exact)
        assert got[f"p@0.{threshold}"] == pytest.approx(share)


@given(PIXELS, st.randoms(use_true_random=False))
@settings(max_examples=30)
def test_order_does_not_matter(rows: list[tuple[int, int]], random: object) -> None:
    shuffled = list(rows)
    random.shuffle(shuffled)  # type: ignore[attr-defined]
    assert value("ciou", *zip(*rows, strict=True)) == value("ciou", *zip(*shuffled, strict=True))
    assert value("giou", *zip(*rows, strict=True)) == pytest.approx(
        value("giou", *zip(*shuffled, strict=True))
    )


def test_empty_targets() -> None:
    assert metrics.iou([0], [0]).tolist() == [1.0]  # nothing meant, nothing predicted
    assert value("giou", [0], [0]) == pytest.approx(1 / (1 + 1e-5))
    assert value("ciou", [0], [0]) == 0.0  # as the official sum has it
    # a wrong prediction of nothing enters the union
    assert value("ciou", [50, 0], [100, 100]) == pytest.approx(0.25)
    assert value("giou", [50, 0], [100, 100]) == pytest.approx(0.25, abs=1e-5)


def test_sums_are_exact_where_floats_are_not() -> None:
    inner, outer = [2**53, 1, 1], [2**53, 1, 1]
    assert sum(map(float, inner)) != sum(inner)
    assert value("ciou", inner, outer) == 1.0


def test_threshold_is_inclusive() -> None:
    assert value("p@0.7", [7], [10]) == 1.0
    assert value("p@0.7", [6], [10]) == 0.0


def test_no_rows_is_no_score() -> None:
    assert all(math.isnan(value(name, [], [])) for name in OVERLAP)


def test_works_on_record_frames() -> None:
    frame = pd.DataFrame(
        {"pruner": ["a", "a", "b"], "intersection": [1, 3, 2], "union": [2, 4, 8]}, index=pd.Index([7, 8, 9])
    )
    table = frame.groupby("pruner")[["intersection", "union"]].apply(
        lambda rows: pd.Series({name: metrics.get(name).value(rows) for name in OVERLAP})
    )
    assert table.loc["a", "ciou"] == pytest.approx(4 / 6)
    assert table.loc["b", "giou"] == pytest.approx(0.25, abs=1e-5)
    assert list(table.columns) == ["ciou", "giou", "p@0.5", "p@0.6", "p@0.7", "p@0.8", "p@0.9"]


@pytest.mark.parametrize(
    ("inner", "outer"),
    [
        ([1.5], [2]),
        ([float("nan")], [2]),
        ([3], [2]),
        ([-1], [2]),
        ([1, 2], [3]),
        ([[1]], [[2]]),
        (["one"], ["two"]),
    ],
)
def test_refuses_what_are_no_counts(inner: list[object], outer: list[object]) -> None:
    with pytest.raises(ValueError):
        value("ciou", inner, outer)  # type: ignore[arg-type]


# --- what every metric brings along


class Missed(metrics.Metric):
    """Pixels missed per object."""

    name, title, reference, meaning, weighs = "missed", "missed", "here", "pixels missed", "objects"
    columns = ("missed", "objects")
    unit, higher_is_better, epsilon, datasets = "px", False, 0.5, ("mine",)

    def measure(self, predictions: Masks, truths: Truths) -> list[dict[str, Any]]:
        return []

    def terms(self, table: Columns) -> tuple[np.ndarray, np.ndarray]:
        return np.asarray(table["missed"]), np.asarray(table["objects"])


def test_a_score_is_a_ratio_of_sums_and_each_rows_own() -> None:
    """The epsilon is the sum's alone, and a row without a denominator has no score."""
    one, table = Missed(), {"missed": [6.0, 2.0, 5.0], "objects": [2.0, 1.0, 0.0]}
    assert one.value(table) == pytest.approx(13 / 3.5)
    assert one.each(table).tolist() == pytest.approx([3, 2, float("nan")], nan_ok=True)
    assert one.value({"missed": [3.0], "objects": [0.0]}) == 6.0
    assert math.isnan(one.value({"missed": [], "objects": []}))
    plain = metrics.get("t_acc")  # without an epsilon
    nothing = {"gres_target": [0], "gres_mask": [0], "gres_both": [0]}
    assert math.isnan(plain.value(nothing)) and np.isnan(plain.each(nothing)).all()


def test_units_and_order() -> None:
    one, share = Missed(), metrics.get("p@0.5")
    assert (one.scale, one.unit_word, one.points) == (1.0, "px", "px")
    assert (share.scale, share.unit_word, share.points) == (100.0, "percent of expressions", "points")
    assert sorted([3.0, 1.0, 2.0], key=one.rank) == [1, 2, 3]
    assert sorted([3.0, 1.0, 2.0], key=share.rank) == [3, 2, 1]
    assert one.fits("mine") and one.fits("mine(author)") and not one.fits("mineral") and share.fits("any")


def test_a_mask_counts_where_it_is_not_ignored() -> None:
    """Of clips over all frames: pixels of the target, of the mask and of both."""
    truth = np.array([[[[1, 1, 0, 255]], [[1, 2, 0, 0]]]], dtype=np.uint8)
    mask = np.array([[[[True, False, True, True]], [[True, True, False, False]]]])
    (found,) = metrics.get("n_acc").measure(mask, truth)
    assert found == {"gres_target": 3, "gres_mask": 4, "gres_both": 2}
    (found,) = metrics.get("ciou").measure(mask, truth)
    assert found == {"intersection": 2, "union": 5}


def test_precision_where_something_is_meant() -> None:
    """At the threshold it is reached; nothing painted, and nothing meant, never count."""
    table = {"gres_target": [10, 10, 10, 0], "gres_mask": [7, 6, 0, 0], "gres_both": [7, 6, 0, 0]}
    assert [metrics.get(f"pr@{at}").value(table) for at in (0.7, 0.8)] == pytest.approx([1 / 3, 0])
    assert metrics.get("t_acc").value(table) == pytest.approx(2 / 3)
    assert metrics.get("n_acc").value(table) == 1
    painted = {"gres_target": [0, 0, 0], "gres_mask": [0, 1, 5], "gres_both": [0, 0, 0]}
    assert metrics.get("n_acc").value(painted) == pytest.approx(1 / 3)


def test_official_epsilons() -> None:
    """1e-10 on the sum of unions, 1e-5 on every union and on the number of masks."""
    assert 1 - value("ciou", [1], [1]) == pytest.approx(1e-10, rel=1e-3)
    assert value("giou", [1, 1], [2, 4]) == pytest.approx(
        (1 / (2 + 1e-5) + 1 / (4 + 1e-5)) / (2 + 1e-5), rel=1e-12
    )


def test_which_metrics_want_generated_answers() -> None:
    asked = {one.name for one in metrics.of_medium("image") if one.needs_generated}
    assert asked == {"n_acc", "t_acc", "pr@0.7", "pr@0.8", "pr@0.9"}
