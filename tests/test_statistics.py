"""Intervals: they hold the truth as often as they say, agree with scipy's bootstrap, and respect images and
pairs."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from harness.metrics.bootstrap import (
    adjusted,
    correlation,
    difference,
    estimate,
    interval,
    mean,
    per_image,
    resample,
)
from tests.simulated import coverage, images

REPETITIONS = (
    1000  # Monte-Carlo error of a coverage near 95 %: 0.69 points; 93 to 97 % is 2.9 of them on either side
)


@pytest.mark.parametrize(("count", "splits", "shared"), [(200, 1, False), (50, 4, False), (100, 3, True)])
def test_95_percent_intervals_hold_the_truth_in_93_to_97_percent_of_studies(
    count: int, splits: int, shared: bool
) -> None:
    found = coverage(count, REPETITIONS, splits, draws=400, shared=shared)
    assert 0.93 <= found["score"] <= 0.97
    assert 0.93 <= found["difference"] <= 0.97
    assert 0.03 <= found["false alarm"] <= 0.07


def test_expressions_drawn_one_by_one_would_promise_too_much() -> None:
    """The simulation is one in which the cluster matters; else it would prove nothing."""
    generator = np.random.default_rng(1)
    labels = np.repeat(np.arange(100), 8)
    ease = np.repeat(generator.random(100), 8)
    inner, outer = np.round(1000 * ease), np.full(800, 1000.0)
    honest, wrong = interval(inner, outer, labels), interval(inner, outer, np.arange(800))
    assert honest.high - honest.low > 2.5 * (wrong.high - wrong.low)
    assert honest.value == pytest.approx(wrong.value) == pytest.approx(inner.sum() / outer.sum())


def test_pairs_cancel_what_images_share() -> None:
    generator = np.random.default_rng(2)
    outer = np.full(300, 1000.0)
    inner = np.round(1000 * generator.random(300) * 0.9)
    apart = difference((inner + 20, outer), (inner, outer), np.arange(300))
    assert apart.value == pytest.approx(0.02)
    assert (apart.low, apart.high) == pytest.approx((0.02, 0.02))
    assert apart.p < 0.01
    alone = interval(inner, outer, np.arange(300))
    assert alone.high - alone.low > 0.04


def test_the_same_as_scipys_bootstrap() -> None:
    inner, outer = images(400, np.random.default_rng(3))
    theirs = stats.bootstrap(
        (inner[:, 0], outer[:, 0]),
        lambda a, b, axis: a.sum(axis) / b.sum(axis),
        paired=True,
        method="percentile",
        n_resamples=4000,
        rng=np.random.default_rng(4),
    )
    ours = interval(inner[:, 0], outer[:, 0], np.arange(400))
    width = theirs.confidence_interval.high - theirs.confidence_interval.low
    assert ours.low == pytest.approx(theirs.confidence_interval.low, abs=0.06 * width)
    assert ours.high == pytest.approx(theirs.confidence_interval.high, abs=0.06 * width)
    part = resample(inner[:, :1], outer[:, :1])
    assert part.replicates.std() == pytest.approx(theirs.standard_error, rel=0.05)
    assert part.influence.std(ddof=1) / 20 == pytest.approx(theirs.standard_error, rel=0.05)


def test_seeded_and_independent_of_the_order_of_rows() -> None:
    generator = np.random.default_rng(5)
    labels, outer = generator.integers(0, 40, 200), generator.integers(50, 90, 200)
    inner = generator.integers(0, 50, 200)
    order = generator.permutation(200)
    assert interval(inner, outer, labels, seed=3) == interval(
        inner[order], outer[order], labels[order], seed=3
    )
    assert interval(inner, outer, labels, seed=3) != interval(inner, outer, labels, seed=4)


def test_an_average_over_splits_is_as_wide_as_independent_splits_make_it() -> None:
    generator = np.random.default_rng(6)
    parts = [resample(*images(300, generator), seed=(0, split)) for split in range(4)]
    alone = [estimate([part], [[1, 0]]) for part in parts]
    average = estimate(parts, [[0.25, 0]] * 4)
    assert average.value == pytest.approx(np.mean([one.value for one in alone]))
    expected = np.sqrt(sum((one.high - one.low) ** 2 for one in alone)) / 4
    assert average.high - average.low == pytest.approx(expected, rel=0.1)


def test_too_few_images_have_no_interval_and_equal_images_no_width() -> None:
    one = interval([5], [10], ["a"])
    assert one.value == pytest.approx(0.5)
    assert np.isnan([one.low, one.high, one.p]).all()
    four, five = (interval(np.arange(1, count + 1), [10] * count, np.arange(count)) for count in (4, 5))
    assert np.isnan(four.low)
    assert five.low < five.value < five.high
    equal = interval([5] * 5, [10] * 5, np.arange(5))
    assert (equal.low, equal.high) == (equal.value, equal.value)
    assert difference(([5] * 5, [10] * 5), ([5] * 5, [10] * 5), np.arange(5)).p == 1


def test_few_images_give_wider_intervals_than_bare_percentiles() -> None:
    inner, outer = images(6, np.random.default_rng(7))
    part = resample(inner[:, :1], outer[:, :1])
    ours = estimate([part], [[1.0]])
    low, high = np.quantile(part.replicates, [0.025, 0.975])
    assert ours.low < low < high < ours.high


def test_sums_per_image() -> None:
    assert per_image([1, 2, 4], ["b", "a", "b"]).tolist() == [2, 5]
    assert per_image([[1, 1], [2, 0], [4, 1]], ["b", "a", "b"]).tolist() == [[2, 0], [5, 2]]


def test_in_a_mean_an_image_counts_once_however_many_expressions_it_has() -> None:
    found = mean([0.0] * 9 + [1.0] + [float("nan")], ["a"] * 9 + ["b"] + ["c"])
    assert found.value == pytest.approx(0.5)
    assert found.images == 2


def test_the_interval_of_a_mean_widens_with_clusters_and_holds_the_truth() -> None:
    inside = 0
    for seed in range(60):
        rng = np.random.default_rng(seed)
        images = np.repeat(np.arange(40), 5)
        values = rng.normal(size=40)[images] + 0.1 * rng.normal(size=200)
        found = mean(values, images.astype(str), seed)
        inside += found.low <= 0 <= found.high
        naive = mean(values, np.arange(200).astype(str), seed)
        assert found.high - found.low > 1.5 * (naive.high - naive.low)
    assert inside >= 52  # 57 expected; below 52 by chance once in some hundred


def test_a_mean_of_one_image_has_no_interval() -> None:
    found = mean([0.2, 0.4], ["a", "a"])
    assert found.value == pytest.approx(0.3)
    assert np.isnan(found.low)


def test_correlation_is_pearsons_and_its_interval_knows_the_images() -> None:
    generator = np.random.default_rng(9)
    x = generator.normal(size=300)
    y = 0.6 * x + 0.8 * generator.normal(size=300)
    images = np.arange(300)
    found = correlation(x, y, images)
    assert found.value == pytest.approx(np.corrcoef(x, y)[0, 1])
    assert found.low < found.value < found.high
    assert found.high - found.low == pytest.approx(2 * 1.96 * (1 - found.value**2) / np.sqrt(300), rel=0.25)
    assert np.isnan(correlation(x * 0 + 1, y, images).value)


def test_false_discoveries_over_a_table() -> None:
    assert adjusted([0.01, float("nan"), 0.04, 0.03]).tolist() == pytest.approx(
        [0.03, float("nan"), 0.04, 0.04], nan_ok=True
    )
    assert np.isnan(adjusted([float("nan")])).all()
    generator = np.random.default_rng(8)
    wrong = [(adjusted(generator.random(30)) < 0.05).any() for _ in range(600)]
    # thirty table rows without any difference: at most one table in twenty has a mark
    assert np.mean(wrong) < 0.08
