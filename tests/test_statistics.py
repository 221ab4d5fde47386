"""Intervals: they hold the truth as often as they say, agree with scipy's bootstrap, and respect images and
pairs."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from harness.metrics import bootstrap
from harness.metrics.bootstrap import (
    DRAWS,
    Resampled,
    adjusted,
    correlation,
    difference,
    draws_of,
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


# --- digits, from definitions written another way


def percentiles(values: np.ndarray, value: float, freedom: float) -> tuple[float, float, float]:
    """Ends and p of an interval: the percentiles of Student's t among the replicates, and how many lie beyond
    0."""
    tail = stats.norm.cdf(stats.t.ppf(0.025, freedom))
    low, high = np.quantile(values, tail), np.quantile(values, 1 - tail)
    beyond = (1 + min(np.count_nonzero(values <= 0), np.count_nonzero(values >= 0))) / (1 + len(values))
    p = 2 * stats.t.cdf(stats.norm.ppf(min(beyond, 0.5)), freedom)
    return min(low, value), max(high, value), p


def all_draws(images: int, seed: int = 0) -> np.ndarray:
    return np.concatenate([weights for _, weights in draws_of(images, seed, DRAWS)])


@pytest.mark.parametrize("slope", [0.6, 0.05])
def test_the_interval_of_a_correlation_is_that_of_its_replicates(slope: float) -> None:
    """Every one is Pearson's of the rows that were drawn, centred anew."""
    generator = np.random.default_rng(11)
    labels = np.repeat(np.arange(12), 2)
    x = generator.normal(size=24) + 0.7 * labels
    y = slope * x + generator.normal(size=24)
    weights = all_draws(12)[:, labels]
    dx, dy = (values - (weights @ values / weights.sum(1))[:, None] for values in (x, y))
    both, first, second = ((weights * product).sum(1) for product in (dx * dy, dx**2, dy**2))
    found = correlation(x, y, labels)
    low, high, p = percentiles(both / np.sqrt(first * second), found.value, 11)
    assert (found.low, found.high, found.p) == pytest.approx((low, high, p), rel=1e-6)
    assert found.images == 12


def test_a_draw_in_which_nothing_varies_has_no_correlation() -> None:
    """Five images of which one alone differs: draws without it are left out, and none is a warning."""
    x = np.array([1.0, 1.0, 1.0, 1.0, 2.0])
    found = correlation(x, 3 * x, np.arange(5))
    assert (found.value, found.low, found.high) == pytest.approx((1, 1, 1))
    assert found.images == 5
    varied = ((drawn := all_draws(5)[:, 4]) > 0) & (drawn < 4)
    assert found.p == pytest.approx(1 / (1 + np.count_nonzero(varied)))  # every image says the same
    both = correlation([1.0, np.nan, 3.0], [np.nan, 2.0, np.nan], np.arange(3))
    assert np.isnan([both.value, both.low, both.high, both.p]).all() and both.images == 0
    flat = correlation(np.ones(6), np.arange(6), np.arange(6))
    assert np.isnan([flat.value, flat.low, flat.high, flat.p]).all() and flat.images == 6


def test_a_correlation_counts_images_and_leaves_out_what_is_not_known() -> None:
    generator = np.random.default_rng(12)
    x, y = generator.normal(size=(2, 20))
    labels = np.repeat(np.arange(10), 2)
    gap = np.append(x, np.nan), np.append(y, 5.0), np.append(labels, 99)
    assert correlation(*gap) == correlation(x, y, labels)
    assert correlation(x + 1000, y, labels).low == pytest.approx(correlation(x, y, labels).low, rel=1e-9)


def test_the_interval_of_a_score_is_that_of_its_replicates() -> None:
    inner, outer = np.array([3, 9, 1, 7, 5, 8, 2]), np.array([10, 10, 9, 12, 6, 11, 30])
    weights = all_draws(7, seed=3)
    found = interval(inner, outer, np.arange(7), seed=3)
    low, high, p = percentiles((weights @ inner) / (weights @ outer), found.value, 6)
    assert (found.value, found.low, found.high, found.p) == pytest.approx(
        (inner.sum() / outer.sum(), low, high, p), rel=1e-9
    )
    other = inner[::-1] % 6
    found = difference((inner, outer), (other, outer), np.arange(7), seed=3)
    low, high, p = percentiles((weights @ (inner - other)) / (weights @ outer), found.value, 6)
    assert (found.low, found.high, found.p) == pytest.approx((low, high, p), rel=1e-9)
    assert 0.001 < found.p < 0.999


def test_draws_are_one_image_fewer_and_come_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bootstrap, "NUMBERS_AT_ONCE", 25)
    parts = list(draws_of(7, 0, 10))
    assert [(part.start, part.stop) for part, _ in parts] == [(0, 3), (3, 6), (6, 9), (9, 10)]
    assert all(weights.shape == (part.stop - part.start, 7) for part, weights in parts)
    drawn = np.concatenate([weights for _, weights in parts])
    assert (drawn.sum(1) == 6).all() and (drawn.sum(0) > 0).all()
    assert [weights.tolist() for _, weights in draws_of(1, 0, 2)] == [[[1.0], [1.0]]]
    monkeypatch.setattr(bootstrap, "NUMBERS_AT_ONCE", 3)  # fewer than images
    assert len(list(draws_of(7, 0, 10))) == 10


def made(values: list[float], replicates: np.ndarray, influence: np.ndarray, **more: object) -> Resampled:
    count = np.full(len(values), len(influence))
    return Resampled(np.array(values), replicates, influence, **{"images": count, **more})  # type: ignore[arg-type]


def two_parts(noise: float = 0.0) -> list[Resampled]:
    """Scores of two splits of 6 and 9 images, each with a second one that has no weight."""
    generator = np.random.default_rng(13)
    parts = []
    for count, value in ((6, 0.3), (9, -0.1)):
        replicates = value + 0.2 * generator.normal(size=(500, 2))
        replicates[:, 1] = np.nan  # of no business of the first
        more = {"noise": np.array([noise, 99.0])} if noise else {}
        parts.append(made([value, 7.0], replicates, generator.normal(size=(count, 2)), **more))
    return parts


def expected(parts: list[Resampled], weights: list[float]) -> tuple[float, float, float, float]:
    """Value, ends and p of a weighted sum with Satterthwaite's degrees of freedom; and its variance."""
    value = sum(weight * part.values[0] for part, weight in zip(parts, weights, strict=True))
    sums = sum(weight * part.replicates[:, 0] for part, weight in zip(parts, weights, strict=True))
    own = [
        weight**2 * stats.sem(part.influence[:, 0]) ** 2 for part, weight in zip(parts, weights, strict=True)
    ]
    below = sum(one**2 / (len(part.influence) - 1) for one, part in zip(own, parts, strict=True))
    return value, *percentiles(np.asarray(sums), value, sum(own) ** 2 / below)


def test_a_sum_over_splits_has_satterthwaites_degrees_of_freedom() -> None:
    parts = two_parts()
    found = estimate(parts, [[0.5, 0], [0.25, 0]])
    assert (found.value, found.low, found.high, found.p) == pytest.approx(expected(parts, [0.5, 0.25]))
    assert found.images == 6
    alone = estimate(parts, [[0, 0], [2, 0]])  # a part of no weight is none
    assert (alone.value, alone.low, alone.high, alone.p) == pytest.approx(expected(parts[1:], [2.0]))
    assert alone.images == 9


def test_noise_adds_its_variance_to_that_of_the_images() -> None:
    bare, noisy = two_parts(), two_parts(noise=0.03)
    one, other = (estimate(parts, [[0.5, 0], [0.25, 0]]) for parts in (bare, noisy))
    own = [
        weight**2 * stats.sem(part.influence[:, 0]) ** 2
        for part, weight in zip(bare, (0.5, 0.25), strict=True)
    ]
    wider = np.sqrt((sum(own) + 0.03 * (0.5**2 + 0.25**2)) / sum(own))
    assert wider > 1.01
    assert other.high - other.value == pytest.approx(wider * (one.high - one.value))
    assert other.value - other.low == pytest.approx(wider * (one.value - one.low))
    freedom = sum(own) ** 2 / (own[0] ** 2 / 5 + own[1] ** 2 / 8)
    assert other.p == pytest.approx(2 * stats.t.sf(stats.t.isf(one.p / 2, freedom) / wider, freedom))


def test_where_all_images_say_the_same_noise_alone_makes_the_interval() -> None:
    same = np.full((100, 1), 0.2)
    flat = made([0.2], same, np.zeros((6, 1)), noise=np.array([0.01]))
    found = estimate([flat], [[1.0]])
    assert (found.low, found.high) == pytest.approx((0.2 - 0.196, 0.2 + 0.196), abs=1e-3)
    assert found.p == pytest.approx(2 * stats.norm.sf(2))
    without = estimate([made([0.2], same, np.zeros((6, 1)))], [[1.0]])
    assert (without.low, without.high, without.p) == (0.2, 0.2, 1 / 101)
    assert estimate([made([0.0], same * 0, np.zeros((6, 1)))], [[1.0]]).p == 1


def test_a_sum_rests_on_as_many_images_as_its_smallest_score() -> None:
    first, second = two_parts()
    few = Resampled(second.values, second.replicates, second.influence, np.array([4, 9]))
    found = estimate([first, few], [[1, 0], [1, 0]])
    assert np.isnan([found.low, found.high, found.p]).all() and found.images == 4
    assert found.value == pytest.approx(0.2)
    many = Resampled(second.values, second.replicates, second.influence, np.array([9, 4]))
    assert estimate([first, many], [[1, 0], [1, 0]]).images == 6


def test_a_mean_of_nothing_known_is_nothing() -> None:
    found = mean([np.nan, np.nan], ["a", "b"])
    assert np.isnan([found.value, found.low, found.high, found.p]).all() and found.images == 0


def test_a_draw_without_a_scores_images_is_left_out() -> None:
    inner, outer = np.array([[4.0], [0.0], [0.0]]), np.array([[8.0], [0.0], [0.0]])
    part = resample(inner, outer, draws=200)
    assert part.images.tolist() == [1]
    drawn = np.concatenate([weights for _, weights in draws_of(3, 0, 200)])
    assert np.isnan(part.replicates[:, 0]).tolist() == (drawn[:, 0] == 0).tolist()
    assert part.influence[:, 0] == pytest.approx([0, 0, 0], abs=1e-9)
    part = resample(np.array([[1.0], [0.0]]), np.array([[1.0], [1.0]]), draws=1, epsilon=2.0)
    assert part.values == pytest.approx([0.25])
    assert part.influence[:, 0] == pytest.approx([2 * 0.75 / 4, -2 * 0.25 / 4])
    assert part.replicates[0, 0] in (pytest.approx(1 / 3), 0.0)


def test_who_names_no_seed_has_the_first_draws() -> None:
    generator = np.random.default_rng(14)
    inner, outer, labels = generator.integers(1, 9, 12), generator.integers(9, 19, 12), np.arange(12)
    pair = (inner, outer), (inner[::-1], outer)
    for found in (
        [interval(inner, outer, labels, *seed) for seed in ([], [0], [1])],
        [difference(*pair, labels, *seed) for seed in ([], [0], [1])],
        [mean(inner, labels, *seed) for seed in ([], [0], [1])],
        [correlation(inner, outer, labels, *seed) for seed in ([], [0], [1])],
    ):
        assert found[0] == found[1] != found[2]
    first, second = (values[:, None].astype(np.float64) for values in (inner, outer))
    parts = [resample(first, second, *seed) for seed in ([], [0], [1])]
    assert parts[0].replicates.shape == (DRAWS, 1) and DRAWS == 4000
    assert (parts[0].replicates == parts[1].replicates).all()
    assert not (parts[0].replicates == parts[2].replicates).all()
    assert parts[0].values[0] < inner.sum() / outer.sum()  # by the official epsilon
