"""J and F against their definition told pixel by pixel, and the rule by which a group is scored."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

from harness import metrics
from harness.metrics import boundary, video
from harness.metrics.sequences import Statistics, over_objects, statistics

# --- one frame, by the definition


def edge_of(mask: np.ndarray) -> list[tuple[int, int]]:
    """Boundary pixels: right, lower and lower right neighbour, as far as there are any."""
    height, width = mask.shape
    found = []
    for y, x in itertools.product(range(height), range(width)):
        if y == height - 1:
            near = [(y, x + 1)]
        elif x == width - 1:
            near = [(y + 1, x)]
        else:
            near = [(y, x + 1), (y + 1, x), (y + 1, x + 1)]
        if any(v < height and u < width and mask[v, u] != mask[y, x] for v, u in near):
            found.append((y, x))
    return found


def near(pixels: Sequence[tuple[int, int]], others: Sequence[tuple[int, int]], reach: int) -> int:
    """How many pixels have one of the others within `reach`."""
    if not pixels or not others:
        return 0
    apart = np.array(pixels)[:, None] - np.array(others)
    return int(((apart**2).sum(axis=2).min(axis=1) <= reach**2).sum())


def counted(prediction: np.ndarray, target: np.ndarray, void: np.ndarray) -> list[int]:
    """The six counts of a frame, with distances."""
    one, other = prediction & ~void, target & ~void
    drawn, edges = edge_of(one), edge_of(other)
    height, width = one.shape
    # the smallest whole number that is not below 0.008 of the diagonal
    reach = next(r for r in itertools.count() if (125 * r) ** 2 >= height**2 + width**2)
    inner, outer = int((one & other).sum()), int((one | other).sum())
    return [inner, outer, near(drawn, edges, reach), len(drawn), near(edges, drawn, reach), len(edges)]


def pair(prediction: np.ndarray, target: np.ndarray, void: np.ndarray | None = None) -> np.ndarray:
    """What is counted of one frame, (6,)."""
    hidden = None if void is None else void[None]
    return boundary.clip_counts(prediction[None, None], target[None, None], hidden)[0, 0, 0]


def f_of(hits: int, drawn: int, found: int, edge: int) -> Fraction:
    """F by the official cases."""
    if drawn == 0 and edge == 0:
        return Fraction(1)
    if drawn == 0 or edge == 0:
        return Fraction(0)
    precision, recall = Fraction(hits, drawn), Fraction(found, edge)
    return 2 * precision * recall / (precision + recall) if precision + recall else Fraction(0)


def blobs(draw: Any, shape: tuple[int, int]) -> np.ndarray:
    """A few rectangles, painted or cleared, on nothing or on everything."""
    mask = np.full(shape, draw(st.booleans()))
    for _ in range(draw(st.integers(0, 4))):
        top, bottom = sorted(draw(st.tuples(*[st.integers(0, shape[0])] * 2)))
        left, right = sorted(draw(st.tuples(*[st.integers(0, shape[1])] * 2)))
        mask[top:bottom, left:right] = draw(st.booleans())
    return mask


@st.composite
def frames(draw: Any, most: tuple[int, int] = (20, 270)) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Prediction, target and void of one size; wide ones have a radius of more than 1 px and several words a
    row."""
    shape = draw(st.integers(1, most[0])), draw(st.integers(1, most[1]))
    return blobs(draw, shape), blobs(draw, shape), blobs(draw, shape)


@given(frames())
@settings(max_examples=80, deadline=None)
def test_a_frame_is_counted_as_its_definition_says(one: tuple[np.ndarray, np.ndarray, np.ndarray]) -> None:
    prediction, target, void = one
    before = [part.copy() for part in one]
    for hidden in (void, np.zeros_like(void)):
        given_void = hidden if hidden.any() else None
        counts = pair(prediction, target, given_void).tolist()
        assert counts == counted(prediction, target, hidden)
        assert float(boundary.region(*counts[:2])) == (counts[0] / counts[1] if counts[1] else 1.0)
        assert float(boundary.contour(*counts[2:])) == pytest.approx(float(f_of(*counts[2:])), rel=1e-15)
    assert all((part == copy).all() for part, copy in zip(one, before, strict=True))
    assert [tuple(pixel) for pixel in np.argwhere(boundary.boundary_map(prediction))] == edge_of(prediction)


NOISE = npst.array_shapes(min_dims=2, max_dims=2, max_side=12).flatmap(
    lambda shape: st.tuples(*[npst.arrays(np.bool_, shape, fill=st.nothing())] * 3)
)


@given(NOISE)
@settings(deadline=None)
def test_noise_is_counted_as_its_definition_says(one: tuple[np.ndarray, np.ndarray, np.ndarray]) -> None:
    counts = pair(*one).tolist()
    assert counts == counted(*one)


@pytest.mark.parametrize(("height", "width", "far"), [(63, 70, 1), (96, 448, 4), (30, 900, 8), (17, 128, 2)])
def test_a_pixel_counts_within_the_radius_and_no_further(height: int, width: int, far: int) -> None:
    """Single pixels at every offset around the radius, across the words of a row and at the frame's edges."""
    assert boundary.radius(height, width) == far
    steps = range(-far - 1, far + 2)
    for x, y in itertools.product((1, 62, 63, 64, width - 2), (1, height // 2, height - 2)):
        one = np.zeros((1, height, width), dtype=bool)
        one[0, y, x] = True
        offsets = [
            (y + dy, x + dx)
            for dy, dx in itertools.product(steps, repeat=2)
            if 0 < y + dy < height - 1 and 0 < x + dx < width - 1
        ]
        others = np.zeros((len(offsets), height, width), dtype=bool)
        for other, (v, u) in zip(others, offsets, strict=True):
            other[v, u] = True
        for counts, (v, u) in zip(
            boundary.clip_counts(one[:, None], others[:, None])[0, :, 0], offsets, strict=True
        ):
            drawn, edges = ([(b, a), (b - 1, a), (b, a - 1), (b - 1, a - 1)] for b, a in ((y, x), (v, u)))
            found = near(drawn, edges, far), 4, near(edges, drawn, far), 4
            assert tuple(counts[2:]) == found, (x, y, u, v)


@given(st.integers(1, 5000), st.integers(1, 5000))
@example(300, 400)
@example(75, 100)
@example(480, 854)
@example(720, 1280)
def test_the_radius_is_exact(height: int, width: int) -> None:
    found = boundary.radius(height, width)
    square = height**2 + width**2
    assert (125 * (found - 1)) ** 2 < square <= (125 * found) ** 2


def test_an_edge_of_the_frame_is_no_boundary() -> None:
    full, empty = np.ones((9, 11), dtype=bool), np.zeros((9, 11), dtype=bool)
    assert not boundary.boundary_map(full).any()
    counts = pair(full, empty)
    assert counts.tolist() == [0, 99, 0, 0, 0, 0]
    assert (boundary.region(*counts[:2]), boundary.contour(*counts[2:])) == (0.0, 1.0)
    corner = empty.copy()
    corner[-1, -1] = True
    assert np.argwhere(boundary.boundary_map(corner)).tolist() == [[7, 9], [7, 10], [8, 9]]


def test_all_pairs_are_counted_alone() -> None:
    generator = np.random.default_rng(0)
    predictions, targets = generator.random((3, 16, 80)) > 0.9, generator.random((4, 16, 80)) > 0.8
    predictions[1], targets[2] = False, True
    void = generator.random((16, 80)) > 0.95
    every = boundary.clip_counts(predictions[:, None], targets[:, None], void[None])[:, :, 0]
    assert every.shape == (3, 4, 6)
    for (i, one), (k, other) in itertools.product(enumerate(predictions), enumerate(targets)):
        assert every[i, k].tolist() == counted(one, other, void)


@pytest.mark.parametrize("words", [1, 300, 2**13])
def test_frames_are_counted_alone(monkeypatch: pytest.MonkeyPatch, words: int) -> None:
    """However many are looked at together: one, a few, all; empty ones among them."""
    monkeypatch.setattr(boundary, "WORDS_AT_ONCE", words)
    generator = np.random.default_rng(0)
    predictions, targets = generator.random((2, 1, 40, 24, 70)) > 0.97
    predictions[:, ::3], targets[:, ::4] = False, False
    void = generator.random((40, 24, 70)) > 0.95
    void[::2] = False
    every = boundary.clip_counts(predictions, targets, void)[0, 0]
    for t in range(40):
        assert every[t].tolist() == pair(predictions[0, t], targets[0, t], void[t]).tolist()


@pytest.mark.parametrize(
    ("predictions", "targets", "void", "said"),
    [
        (np.zeros((1, 2, 4, 5)), np.zeros((1, 2, 4, 5), dtype=bool), None, "expected boolean masks"),
        (np.zeros((2, 4, 5), dtype=bool), np.zeros((1, 2, 4, 5), dtype=bool), None, "expected boolean masks"),
        (np.zeros((1, 2, 4, 5), dtype=bool), np.zeros((1, 2, 5, 4), dtype=bool), None, "clips of one size"),
        (np.zeros((1, 2, 4, 5), dtype=bool), np.zeros((1, 3, 4, 5), dtype=bool), None, "clips of one size"),
        (*np.zeros((2, 1, 2, 4, 5), dtype=bool), np.zeros((2, 4, 4), dtype=bool), "clips of one size"),
    ],
)
def test_what_is_no_pair_of_clips(predictions: Any, targets: Any, void: Any, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        boundary.clip_counts(predictions, targets, void)


# --- expressions and groups


def clip(*places: tuple[int, int], frames: int = 3, size: tuple[int, int] = (40, 60)) -> np.ndarray:
    """(M, T, H, W) a square for each place, which moves to the right."""
    found = np.zeros((len(places), frames, *size), dtype=bool)
    for number, (y, x) in enumerate(places):
        for t in range(frames):
            found[number, t, y : y + 8, x + t : x + t + 8] = True
    return found


def test_an_expression_is_the_mean_over_its_frames() -> None:
    truth = clip((4, 4)).astype(np.uint8)
    answer = truth.astype(bool)
    answer[:, 1] = False
    (row,) = metrics.measure(answer, truth, "video")
    assert (row["j_inner"], row["j_outer"]) == ([64, 0, 64], [64, 64, 64])
    assert row["f_drawn"] == row["f_hits"] == [row["f_edge"][0], 0, row["f_edge"][2]]
    assert row["j"] == row["f"] == row["j_fixed"] == row["f_fixed"] == pytest.approx(2 / 3)
    truth[:, :, :, 4:8] = metrics.IGNORED
    (row,) = metrics.measure(answer, truth, "video")
    assert row["j_outer"] == [64 - 4 * 8, 64 - 3 * 8, 64 - 2 * 8]
    truth[:] = metrics.IGNORED
    (row,) = metrics.measure(answer, truth, "video")
    assert (row["j"], row["f"], row["j_outer"]) == (1.0, 1.0, [0, 0, 0])  # nothing is left to be wrong in
    truth[:] = 2  # no class: what is painted there is wrong
    (row,) = metrics.measure(answer, truth, "video")
    assert row["j"] == pytest.approx(1 / 3)


def test_what_overlaps_belongs_to_the_lower_number() -> None:
    truths = clip((4, 4), (4, 8)).astype(np.uint8)
    kept = video.merged(truths.astype(bool))
    assert (kept[0] == truths[0]).all() and not (kept[0] & kept[1]).any()
    assert (kept.any(axis=0) == truths.any(axis=0)).all()
    rows = metrics.measure(truths.astype(bool), truths, "video")
    assert rows[0]["j"] == 1.0 and rows[1]["j"] == 0.5  # the second lost half of itself
    alone = [metrics.measure(one[None].astype(bool), one[None], "video")[0] for one in truths]
    assert [row["j"] for row in alone] == [1.0, 1.0]  # nothing to be merged with


def test_exchanged_answers_score_the_same_and_their_own_identity_does_not() -> None:
    truths = clip((4, 4), (24, 30), (4, 30)).astype(np.uint8)
    right = metrics.measure(truths.astype(bool), truths, "video")
    other = metrics.measure(truths[[1, 0, 2]].astype(bool), truths, "video")
    for column in ("j", "f", *video.CURVES):
        assert [row[column] for row in other] == [row[column] for row in right]
    assert [row["j_fixed"] for row in other] == [row["f_fixed"] for row in other] == [0.0, 0.0, 1.0]
    empty = metrics.measure(np.zeros_like(truths, dtype=bool), truths, "video")
    assert [(row["j"], row["f"], row["j_fixed"]) for row in empty] == [(0.0, 0.0, 0.0)] * 3


@st.composite
def groups(draw: Any) -> tuple[np.ndarray, np.ndarray]:
    shape = draw(st.integers(2, 14)), draw(st.integers(2, 14))
    count, length = draw(st.integers(1, 4)), draw(st.integers(1, 3))
    answers, truths = (
        np.stack([[blobs(draw, shape) for _ in range(length)] for _ in range(count)]) for _ in range(2)
    )
    marks = truths.astype(np.uint8)
    marks[:, np.stack([blobs(draw, shape) & blobs(draw, shape) for _ in range(length)])] = metrics.IGNORED
    return answers, marks


@given(groups())
@settings(max_examples=60, deadline=None)
def test_a_group_has_the_best_matching(group: tuple[np.ndarray, np.ndarray]) -> None:
    """Against all orders, of masks that are merged by painting from the last number to the first."""
    answers, truths = group
    rows = metrics.measure(answers, truths, "video")
    map_of = np.zeros(answers.shape[1:], dtype=int)
    for number in range(len(answers), 0, -1):
        map_of[answers[number - 1]] = number
    every = np.zeros((len(answers), len(truths), 2))
    for i, k in itertools.product(range(len(answers)), range(len(truths))):
        both = [counted(p == i + 1, t == 1, t == 255) for p, t in zip(map_of, truths[k], strict=True)]
        j = [Fraction(c[0], c[1]) if c[1] else Fraction(1) for c in both]
        f = [f_of(*c[2:]) for c in both]
        every[i, k] = float(sum(j) / len(j)), float(sum(f) / len(f))
    best = max(
        sum(every[i, k].sum() for k, i in enumerate(order))
        for order in itertools.permutations(range(len(truths)))
    )
    assert sum(row["j"] + row["f"] for row in rows) == pytest.approx(best, abs=1e-12)
    for k, row in enumerate(rows):
        assert [row["j_fixed"], row["f_fixed"]] == pytest.approx(every[k, k], abs=1e-12)
        assert any([row["j"], row["f"]] == pytest.approx(pair, abs=1e-12) for pair in every[:, k])
        assert metrics.means_of(row) == (row["j"], row["f"])
    table = {column: [row[column] for row in rows] for column in video.VideoMetric.columns}
    assert metrics.get("j&f").value(table) == pytest.approx(best / (2 * len(rows)), abs=1e-12)


def test_the_mean_of_annotators_is_the_mean_of_all_records() -> None:
    """Ref-DAVIS-17: every annotator describes the same objects, so groups are of one size."""
    generator = np.random.default_rng(1)
    clips = [clip((4, 4), (24, 30)), clip((4, 30)), clip((4, 4), (24, 4), (24, 40))]
    annotators = []
    for _ in range(4):
        records = []
        for truths in clips:
            answers = truths & (generator.random(truths.shape) > generator.random())
            records += metrics.measure(answers, truths.astype(np.uint8), "video")
        annotators.append(records)
    every = [row for records in annotators for row in records]
    for name in ("j", "f", "j&f", "j&f_fixed"):
        one = metrics.get(name)

        def value(records: list[dict[str, Any]], one: metrics.Metric = one) -> float:
            return one.value({column: [row[column] for row in records] for column in one.columns})

        told = [value(records) for records in annotators]
        assert len(set(told)) == 4
        assert value(every) == pytest.approx(sum(told) / 4, rel=1e-14)
        part = value(annotators[0] + annotators[1][:-1])  # of other sizes it is not
        assert part != pytest.approx((told[0] + value(annotators[1][:-1])) / 2, rel=1e-14)


def test_video_metrics_are_of_video_alone() -> None:
    assert [one.name for one in metrics.of_medium("video")] == ["j", "f", "j&f", "j&f_fixed"]
    masks = clip((4, 4))
    assert "j" not in metrics.measure(masks, masks.astype(np.uint8))[0]
    assert set(metrics.measure(masks, masks.astype(np.uint8), "video")[0]) == {
        *video.VideoMetric.columns,
        *video.CURVES,
    }
    none = {name: [0.0, 0.0] for name in ("j_rest", "f_rest", "n_rest")}
    assert metrics.get("j&f").value({"j": [0.5, 1.0], "f": [0.25, 0.0]} | none) == (0.375 + 0.5) / 2
    for odd in ([math.nan], [1.5], [-0.1], [[0.5]]):
        with pytest.raises(ValueError, match="expected j to be numbers from 0 to 1"):
            metrics.get("j").value({"j": odd} | none)
    for odd_rest in ({"n_rest": [0.5, 0]}, {"n_rest": [-1, 0]}, {"j_rest": [0.1, 0]}, {"j_rest": [-0.1, 0]}):
        with pytest.raises(ValueError, match="expected"):
            metrics.get("j").value({"j": [0.5, 1.0]} | none | odd_rest)


def test_objects_that_nobody_speaks_of_count_with_what_is_left_for_them() -> None:
    """As the official evaluation, which pads missing predictions with empty masks and matches all."""
    truths = clip((4, 4), (24, 30), (4, 30)).astype(np.uint8)
    answers = truths[:2].astype(bool)
    whole = metrics.measure(np.concatenate([answers, np.zeros_like(answers[:1])]), truths, "video")
    rows = metrics.measure(answers, truths, "video")
    assert [row["n_rest"] for row in rows] == [1, 0] and rows[0]["j_rest"] == whole[2]["j"] == 0.0
    table, of = (
        {name: [row[name] for row in some] for name in video.VideoMetric.columns} for some in (rows, whole)
    )
    for name in ("j", "f", "j&f"):
        assert metrics.get(name).value(table) == metrics.get(name).value(of) == pytest.approx(2 / 3)
        assert metrics.get(name).each(table).tolist() == [1.0, 1.0], "of each expression alone"
    # an answer that lies on the unspoken object is matched with it
    other = metrics.measure(truths[[0, 2]].astype(bool), truths, "video")
    assert (other[1]["j"], other[0]["j_rest"]) == (0.0, 1.0)


def test_a_record_has_scores_of_its_own() -> None:
    table = {"j": [0.5, 0.75], "f": [0.25, 1.0], "j_fixed": [0.0, 0.5], "f_fixed": [0.25, 0.0]}
    rest = {"j_rest": [1.0, 0.0], "f_rest": [0.5, 0.0], "n_rest": [2, 0]}
    told = {"j": [0.5, 0.75], "f": [0.25, 1.0], "j&f": [0.375, 0.875], "j&f_fixed": [0.125, 0.25]}
    assert told.keys() == {one.name for one in metrics.of_medium("video")}
    for name, values in told.items():
        assert metrics.get(name).each(table | rest).tolist() == values
    assert metrics.get("j").value(table | rest) == 2.25 / 4
    assert metrics.get("j&f_fixed").value(table | rest) == 0.375 / 2


# --- curves


SOUND = {
    "j_inner": [1, 0],
    "j_outer": [2, 0],
    "f_hits": [3, 0],
    "f_drawn": [4, 0],
    "f_found": [1, 0],
    "f_edge": [2, 1],
}


def test_means_follow_from_curves() -> None:
    assert metrics.means_of(SOUND) == (0.75, (2 * 0.75 * 0.5 / 1.25 + 0.0) / 2)
    j, f = metrics.frames_of(SOUND)
    assert j.tolist() == [0.5, 1.0] and f.tolist() == [0.6, 0.0]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"j_inner": [3, 0]}, "its j_inner is not a part of its j_outer"),
        ({"f_hits": [-1, 0]}, "its f_hits is not a part of its f_drawn"),
        ({"f_edge": [0, 0]}, "its f_found is not a part of its f_edge"),
        ({"f_edge": [2]}, "not of as many frames"),
        ({"f_edge": [2.5, 1]}, "not all whole numbers"),
        ({name: [] for name in video.CURVES}, "not of as many frames"),
    ],
)
def test_curves_that_nobody_counted(change: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        metrics.means_of(SOUND | change)
    with pytest.raises(ValueError, match="it has no f_edge"):
        metrics.means_of({name: curve for name, curve in SOUND.items() if name != "f_edge"})


def test_matching_needs_a_prediction_for_every_target() -> None:
    with pytest.raises(ValueError, match="expected a prediction for each of 2 targets, got 1"):
        video.matching(np.zeros((1, 2, 3, 6), dtype=np.int64))


# --- statistics


def test_recall_and_decay() -> None:
    told = statistics([1.0, 0.5, 0.6, 0.2, 0.0])
    assert told == Statistics(pytest.approx(0.46), 2 / 5, pytest.approx(0.75 - 0.1))  # type: ignore[arg-type]
    assert statistics([0.7]) == Statistics(0.7, 1.0, 0.0)
    long = np.concatenate([np.ones(400), np.zeros(400)])  # more frames than 8 bits count
    assert statistics(long).decay == 1.0
    assert over_objects([told, statistics([0.0])]).recall == pytest.approx(0.2)
    for odd in ([], [[0.5]]):
        with pytest.raises(ValueError, match="one frame or more"):
            statistics(odd)
    with pytest.raises(ValueError, match="one object or more"):
        over_objects([])


def test_objects_that_nobody_speaks_of_weigh_as_much_as_those_that_are() -> None:
    """Two expressions, of which the first brings two further objects along."""
    table = {
        "j": [0.5, 1.0],
        "f": [0.25, 0.75],
        "j_fixed": [0.5, 0.0],
        "f_fixed": [0.5, 1.0],
        "j_rest": [0.4, 0.0],
        "f_rest": [1.6, 0.0],
        "n_rest": [2, 0],
    }
    found = {name: metrics.get(name).value(table) for name in ("j", "f", "j&f", "j&f_fixed")}
    assert found == pytest.approx({"j": 1.9 / 4, "f": 2.6 / 4, "j&f": 2.25 / 4, "j&f_fixed": 0.5})
    assert metrics.get("j&f").each(table).tolist() == pytest.approx([0.375, 0.875])
    assert metrics.get("j").each(table).tolist() == [0.5, 1.0]


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"n_rest": [1.5]}, "n_rest to be whole numbers"),
        ({"n_rest": [-1]}, "n_rest to be whole numbers"),
        ({"n_rest": [[1]]}, "n_rest to be whole numbers"),
        ({"j_rest": [1.1]}, "j_rest to be from 0 to n_rest"),
        ({"j_rest": [-0.1]}, "j_rest to be from 0 to n_rest"),
        ({"f_rest": [1.1]}, "f_rest to be from 0 to n_rest"),
        ({"j": [1.1]}, "j to be numbers from 0 to 1"),
        ({"j": [-0.1]}, "j to be numbers from 0 to 1"),
        ({"f_fixed": [float("nan")]}, "f_fixed to be numbers from 0 to 1"),
    ],
    ids=str,
)
def test_what_cannot_have_been_measured(change: dict[str, Any], says: str) -> None:
    edge = {"j": 1, "f": 0, "j_fixed": 0, "f_fixed": 1, "j_rest": 0, "f_rest": 1, "n_rest": 1}
    video.check_measures(edge)
    table = {name: [value] for name, value in edge.items()} | change
    with pytest.raises(ValueError, match=says):
        for name in ("j&f", "j&f_fixed"):
            metrics.get(name).value(table)
    with pytest.raises(ValueError, match="it has no n_rest"):
        video.check_measures({name: value for name, value in edge.items() if name != "n_rest"})


def test_curves_hold_what_can_have_been_counted() -> None:
    curves: dict[str, Any] = {name: [2, 1] for name in video.CURVES}
    j, f = video.frames_of(curves)
    assert j.tolist() == f.tolist() == [1, 1]
    assert video.means_of(curves | {"j_inner": [0, 1]}) == (0.5, 1.0)
    for change, says in (
        ({"f_edge": [2]}, "not of as many frames"),
        ({"j_outer": [2.0, 1.0]}, "not all whole numbers"),
        ({"j_inner": [3, 1]}, "j_inner is not a part of its j_outer"),
        ({"f_hits": [-1, 1]}, "f_hits is not a part of its f_drawn"),
        ({"f_found": [2, 2]}, "f_found is not a part of its f_edge"),
    ):
        with pytest.raises(ValueError, match=says):
            video.means_of(curves | change)
    with pytest.raises(ValueError, match="not of as many frames"):
        video.means_of({name: [] for name in video.CURVES})
