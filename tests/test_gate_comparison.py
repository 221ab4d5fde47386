"""What the gate compares: falls in any split, kept tokens, token counts and costs, beyond what rounding
explains."""

from __future__ import annotations

import base64
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

import pruners
from harness.gate import baseline as files
from harness.gate import check as gate
from harness.gate import comparison
from pruners import UserError


def frame(**pixels: list[int]) -> pd.DataFrame:
    """One expression with a union of 100 per number; keyword = split."""
    rows: list[dict[str, Any]] = []
    for split, inner in pixels.items():
        for k, value in enumerate(inner):
            place = {"sample": f"refcoco:{split}:{k}", "expression": k}
            rows.append(
                {"pruner": "trim", "budget": 64, "seed": 0, **place, "intersection": value, "union": 100}
            )
    return pd.DataFrame(rows)


LIMITS = {"tolerances": {"points": 2.0, "split_points": 6.0, "unharmed": 100.0}}


def noisy(**rounding: Any) -> dict[str, Any]:
    """LIMITS, and a cell in which rounding does that much."""
    cell = {"pruner": "trim", "budget": 64, "seed": 0, "macs": 1000, "rounding": comparison.STEADY | rounding}
    return LIMITS | {"cells": [cell], "patches": 8}


def test_unchanged_masks_are_no_change() -> None:
    found = gate.compare(frame(val=[50, 60]), frame(val=[50, 60]), LIMITS)
    assert (found.cells, found.changes, found.worse) == (1, (), ())


def test_falls_within_the_tolerance_pass() -> None:
    fell = gate.compare(frame(val=[50, 60]), frame(val=[48, 58]), LIMITS)
    assert fell.worse == ()
    assert (fell.changes[0].fell, fell.changes[0].rose, fell.changes[0].of) == (2, 0, 2)
    assert gate.compare(frame(val=[50, 60]), frame(val=[60, 70]), LIMITS).worse == ()


def test_a_fall_beyond_the_tolerance_names_the_expressions_that_lost_most() -> None:
    (change,) = gate.compare(frame(val=[50, 60, 70]), frame(val=[52, 40, 61]), LIMITS).worse
    assert (change.pruner, change.budget) == ("trim", 64)
    assert (
        change.reasons[0]
        == "all splits: cIoU 60.00 -> 51.00 over 3 expressions of 3 images, rounding explains 0.00"
    )
    assert (change.before, change.after) == pytest.approx((60, 51))
    assert (change.fell, change.rose, change.of) == (2, 1, 3)
    assert [str(moved) for moved in change.moved[:2]] == [
        "refcoco:val:1 expression 1: IoU 60.0 -> 40.0",
        "refcoco:val:2 expression 2: IoU 70.0 -> 61.0",
    ]


def test_a_fall_in_one_split_does_not_hide_behind_the_others() -> None:
    (change,) = gate.compare(frame(val=[50] * 9, testA=[50]), frame(val=[50] * 9, testA=[40]), LIMITS).worse
    assert [reason.split(" over ")[0] for reason in change.reasons] == [
        "refcoco:testA: cIoU 50.00 -> 40.00",
        "refcoco:testA: mean IoU 50.00 -> 40.00",
    ]


def test_small_objects_count_as_much_as_large_ones() -> None:
    before = pd.concat([frame(val=[90] * 9), frame(testA=[90]).assign(intersection=90_000, union=100_000)])
    after = before.assign(intersection=before["intersection"].replace(90, 80))
    (change,) = gate.compare(before, after, LIMITS).worse
    assert change.before - change.after < 0.1
    assert change.mean_before - change.mean_after == pytest.approx(9)


def test_a_small_fall_that_many_expressions_share_is_found_and_flips_are_not() -> None:
    before, limits = [40 + k for k in range(40)], {"tolerances": LIMITS["tolerances"] | {"unharmed": 10.0}}
    together = gate.compare(
        frame(val=before), frame(val=[value - (k % 2) for k, value in enumerate(before)]), limits
    )
    assert [reason.split(" over ")[0] for reason in together.worse[0].reasons] == [
        "all splits: unharmed 100.00 -> 50.00",
        "refcoco:val: unharmed 100.00 -> 50.00",
    ]
    # one expression lost all it had
    flips = [value - (58 if k == 20 else 0) for k, value in enumerate(before)]
    assert gate.compare(frame(val=before), frame(val=flips), limits).worse == ()


def test_what_rounding_does_to_a_pruner_is_no_fall() -> None:
    before, after = frame(val=[50] * 16), frame(val=[50] * 12 + [10] * 4)  # 10 points of both scores
    usual = {"mean IoU": 6.0, "cIoU": 6.0}
    both = {"all splits": usual, "one split": usual}
    # 2 + 1.5 * 6, and 6 + 1.5 * 6 in the split
    assert gate.compare(before, after, noisy(falls=both)).worse == ()
    (change,) = gate.compare(
        before, after, noisy(falls=both | {"all splits": {"mean IoU": 5, "cIoU": 6}})
    ).worse
    assert change.reasons == (
        "all splits: mean IoU 50.00 -> 40.00 over 16 expressions of 16 images, rounding explains 7.50",
    )


def test_the_worst_that_rounding_did_is_kept() -> None:
    before = frame(val=[90, 50], testA=[80]).assign(kept="wA==")
    first = frame(val=[90, 40], testA=[20]).assign(kept=["wA==", "oA==", "wA=="])
    other = frame(val=[90, 48], testA=[90]).assign(kept=["wA==", "oA==", "oA=="])
    steady = before.assign(pruner="uniform")
    draws = [pd.concat([first, steady]), other]  # the second of one cell alone
    worst = comparison.rounding(pd.concat([before, steady]), draws, 8)
    assert worst["trim", 64, 0] == {
        "tokens": 2,
        "lost": 1,
        "falls": {
            "all splits": {"cIoU": 23.3333, "mean IoU": 23.3333, "unharmed": 66.6667},
            "one split": {"cIoU": 60.0, "mean IoU": 60.0, "unharmed": 100.0},
        },
    }
    assert worst["uniform", 64, 0] == comparison.STEADY


def test_lost_expressions_are_counted_however_many_are_won() -> None:
    before, after = frame(val=[90, 90, 5, 5] + [50] * 12), frame(val=[5, 5, 90, 90] + [50] * 12)
    (change,) = gate.compare(before, after, LIMITS).worse
    assert change.reasons == ("2 of 16 expressions lost more than 50 points, by rounding at most 0 did",)
    assert gate.compare(before, after, noisy(lost=1)).worse == ()


def tokens(kept: list[int], **columns: Any) -> pd.DataFrame:
    """An expression per bitmap of eight patches."""
    bitmaps = [base64.b64encode(bytes([bits])).decode() for bits in kept]
    return frame(val=[50] * len(kept)).assign(kept=bitmaps, tokens_final=2, tokens_mean=3.5).assign(**columns)


def test_other_kept_tokens_are_found_at_the_same_iou() -> None:
    before, after = tokens([0b11, 0b11]), tokens([0b11, 0b101])
    (change,) = gate.compare(before, after, noisy()).worse
    assert change.reasons == (
        "kept tokens changed for 1 of 2 expressions, 1 in all; first on refcoco:val:1 expression 1",
    )
    assert gate.compare(before, after, noisy(tokens=1)).worse == ()  # the choice hangs on rounding
    assert gate.compare(before, tokens([0b1100, 0b11000]), noisy(tokens=1)).worse != ()


@pytest.mark.parametrize(("column", "now"), [("tokens_final", 3), ("tokens_mean", 3.4999)])
def test_token_counts_are_compared_exactly(column: str, now: float) -> None:
    before = tokens([0b11, 0b11])
    (change,) = gate.compare(before, before.assign(**{column: [before[column][0], now]}), noisy()).worse
    assert change.reasons[0].startswith(f"{column} changed for 1 of 2 expressions, first on refcoco:val:1")


def test_a_pruner_that_costs_more_fails_and_one_that_costs_less_is_named() -> None:
    rows = frame(val=[50])
    cost = ("trim", 64)
    assert gate.compare(rows, rows, noisy(), {cost: 1050}).changes == ()
    (change,) = gate.compare(rows, rows, noisy(), {cost: 1051}).worse
    assert change.reasons == ("the pruner's own multiply-adds 1,000 -> 1,051",)
    cheaper = gate.compare(rows, rows, noisy(), {cost: 500})
    assert cheaper.worse == ()
    assert cheaper.changes[0].notes == ("the pruner's own multiply-adds 1,000 -> 500",)


def test_the_largest_fall_comes_first() -> None:
    before, after = frame(val=[50, 60]), frame(val=[45, 55])
    other = (
        pd.concat([before, before.assign(pruner="fastv")]),
        pd.concat([after, before.assign(pruner="fastv", intersection=20)]),
    )
    found = gate.compare(*other, LIMITS)
    assert [change.pruner for change in found.worse] == ["fastv", "trim"]


@pytest.mark.parametrize(
    ("after", "said"),
    [
        (frame(val=[50]), "The baseline has 1 results that this run lacks, first trim on refcoco:val:1; "),
        (frame(val=[50, 60]).assign(pruner="fastv"), "nothing of trim at 64"),
        (
            frame(val=[50, 60, 70]),
            "The run has 1 results that the baseline lacks, first trim on refcoco:val:2",
        ),
        (pd.concat([frame(val=[50, 60])] * 2), "the run has trim on refcoco:val:0 expression 0 twice"),
        (frame(val=[50, 101]), "has 101 as intersection and 100 as union for trim"),
        (frame(val=[50, -1]), "has -1 as intersection"),
        (frame(val=[50, 60]).assign(intersection=[50, None]), "has nan as intersection"),
    ],
)
def test_a_run_of_other_rows_is_not_compared(after: pd.DataFrame, said: str) -> None:
    with pytest.raises(UserError, match=said):
        gate.compare(frame(val=[50, 60]), after, LIMITS)


# --- the committed baseline
# ---------------------------------------------------------------------------------------


@cache
def committed() -> tuple[dict[str, Any], pd.DataFrame]:
    content = gate.read_baseline(Path(__file__).parent.parent / "results" / "baseline.json")
    return content, files.frame(content)


def test_the_committed_baseline_is_small_and_complete() -> None:
    content, rows = committed()
    assert (Path(__file__).parent.parent / "results" / "baseline.json").stat().st_size < 1_000_000
    assert content["history"][-1]["reason"]
    counts = rows.groupby(files.KEY).size()
    assert counts.nunique() == 1  # every pruner on the same expressions
    assert set(rows["pruner"]) == set(pruners.names())
    costs = {cell["pruner"]: cell["macs"] for cell in content["cells"]}
    assert costs["random"] == 0
    assert costs["litelvlm"] > 0
    unsteady = {cell["pruner"] for cell in content["cells"] if cell["rounding"]["tokens"]}
    assert "vispruner" in unsteady  # its choice hangs on the last bit
    assert len(unsteady) < len(costs) / 2


def fallen(rows: pd.DataFrame, which: pd.Series[bool], points: float) -> pd.DataFrame:
    """The IoU of those rows falls by so many points, to no less than 0."""
    ratio = (rows["intersection"] / rows["union"].clip(lower=1) - points / 100).clip(lower=0)
    return rows.assign(
        intersection=rows["intersection"].where(~which, (ratio * rows["union"]).round().astype(int))
    )


def swapped(rows: pd.DataFrame, which: pd.Series[bool], first: str, second: str) -> pd.DataFrame:
    """Two splits' results change places, as far as both have an expression at a place."""
    a, b = (rows.index[which & rows["sample"].str.startswith(f"{split}:")] for split in (first, second))
    count = min(len(a), len(b))
    other = rows.copy()
    for one, two in ((a, b), (b, a)):
        other.loc[one[:count], files.PIXELS] = rows.loc[two[:count], files.PIXELS].to_numpy()
    return other


def crafted(kind: str, rows: pd.DataFrame) -> pd.DataFrame:
    """The baseline's rows with VisionZip at 64 tokens (or one seed of random) made worse."""
    one = (rows["pruner"] == "visionzip") & (rows["budget"] == 64)
    split, size = rows["sample"].str.rsplit(":", n=1).str[0], rows["union"]
    small, val = size < size[one].quantile(0.5), split == "refshapes:val"
    some = pd.Series(np.random.default_rng(0).random(len(rows)), rows.index)
    if kind == "small objects -15, large ones +5":
        better = fallen(rows, one & ~small, -5)
        return fallen(better.assign(intersection=better[files.PIXELS].min(axis=1)), one & small, 15)
    if kind == "swapped splits":
        return swapped(rows, one, "refshapes:val", "refshapes:testA")
    which, points = {
        "all -0.9": (one, 0.9),
        "all -1.5": (one, 1.5),
        "one split -2": (one & val, 2.0),
        "one split -6": (one & val, 6.0),
        "one split -14": (one & val, 14.0),
        "half the splits -5": (one & split.isin(["refshapes:val", "refshapes:testA", "refshapes+:val"]), 5.0),
        "random half -5": (one & (some < 0.5), 5.0),
        "a tenth lost": (one & (some < 0.1), 100.0),
        "smallest tenth lost": (one & (size < size[one].quantile(0.1)), 100.0),
        "largest tenth -20": (one & (size > size[one].quantile(0.9)), 20.0),
        "an expression per image lost": (
            one & ~rows.duplicated(["pruner", "budget", "seed", "sample"]),
            100.0,
        ),
        "one seed of random -2": (
            (rows["pruner"] == "random") & (rows["seed"] == 1) & (rows["budget"] == 64),
            2.0,
        ),
    }[kind]
    return fallen(rows, which, points)


KINDS = [
    "all -0.9",
    "all -1.5",
    "one split -2",
    "one split -6",
    "one split -14",
    "half the splits -5",
    "random half -5",
    "a tenth lost",
    "smallest tenth lost",
    "largest tenth -20",
    "small objects -15, large ones +5",
    "an expression per image lost",
    "one seed of random -2",
    "swapped splits",
]


@pytest.mark.parametrize("kind", KINDS)
def test_a_crafted_regression_is_caught_in_its_cell_alone(kind: str) -> None:
    content, rows = committed()
    (change,) = gate.compare(rows, crafted(kind, rows), content).changes
    assert change.reasons
    assert (change.pruner, change.budget) == ("random" if "random -2" in kind else "visionzip", 64)


def test_vispruner_is_guarded_although_its_choice_hangs_on_rounding() -> None:
    content, rows = committed()
    one = rows["pruner"] == "vispruner"
    for worse in (
        fallen(rows, one, 1),
        fallen(rows, one, 20),
        fallen(rows, one & (rows["expression"] % 5 == 0), 100),
    ):
        assert gate.compare(rows, worse, content).worse


def test_the_committed_rows_are_their_own_equal() -> None:
    content, rows = committed()
    assert (
        gate.compare(
            rows, rows, content, {(c["pruner"], c["budget"]): c["macs"] for c in content["cells"]}
        ).changes
        == ()
    )


# --- at the limits: the last that passes and the first that does not


@pytest.mark.parametrize(
    ("now", "reasons", "notes"),
    [(1050, 0, 0), (1051, 1, 0), (950, 0, 0), (949, 0, 1), (1000, 0, 0), (None, 0, 0)],
)
def test_costs_within_the_share_are_none(now: int | None, reasons: int, notes: int) -> None:
    rows = frame(val=[50, 60])
    (change,) = gate.compare(rows, rows, noisy(), {("trim", 64): now} if now else {}).all_cells
    assert (len(change.reasons), len(change.notes)) == (reasons, notes)
    assert (
        len(gate.compare(rows, rows, noisy(), {("trim", 64): now} if now else {}).changes) == reasons + notes
    )


@pytest.mark.parametrize(("usual", "lost", "bad"), [(0, 1, False), (0, 2, True), (2, 4, False), (2, 5, True)])
def test_one_expression_more_than_rounding_explains_may_be_lost(usual: int, lost: int, bad: bool) -> None:
    """What falls by fifty points exactly is not lost."""
    before, gained = frame(val=[100] * 20), [100] * (19 - lost)
    after = frame(val=[50, *[49] * lost, *gained])
    loose = noisy(lost=usual) | {"tolerances": {"points": 100.0, "split_points": 100.0, "unharmed": 100.0}}
    assert bool(gate.compare(before, after, loose).worse) == bad


@pytest.mark.parametrize(
    ("usual", "moved", "bad"), [(0, 0, False), (0, 1, True), (2, 3, False), (2, 4, True)]
)
def test_kept_tokens_move_as_far_as_rounding_moves_them(usual: int, moved: int, bad: bool) -> None:
    now = [0b11111111 & ~(1 << k) if k < moved else 0b11111111 for k in range(4)]
    found = gate.compare(tokens([0b11111111] * 4), tokens(now), noisy(tokens=usual))
    assert bool(found.worse) == bad and len(found.changes) == (1 if bad else 0)
    if bad:
        (reason,) = found.worse[0].reasons
        told = f", by rounding {usual} move" if usual else ""
        assert reason.startswith(f"kept tokens changed for {moved} of 4 expressions, {moved} in all{told};")


@pytest.mark.parametrize(("points", "bad"), [(2, False), (3, True)])
def test_a_fall_by_the_tolerance_passes(points: int, bad: bool) -> None:
    """Over all splits; in one the tolerance is another."""
    after = frame(val=[50 - points, 60 - points], testA=[50 - points])
    assert bool(gate.compare(frame(val=[50, 60], testA=[50]), after, LIMITS).worse) == bad
    one = gate.compare(frame(val=[50] * 5, testA=[50]), frame(val=[50] * 5, testA=[44]), LIMITS)
    assert one.worse == ()


def test_those_that_gained_most_are_named_of_a_pruner_that_rose() -> None:
    """Five at most, and none that is as it was; of one that fell beyond reason always the losers."""
    before = frame(val=[10, 20, 30, 40, 50, 60, 70, 80])
    (rose,) = gate.compare(before, frame(val=[11, 22, 33, 44, 55, 66, 70, 79]), LIMITS).changes
    assert [(moved.expression, moved.after - moved.before) for moved in rose.moved] == [
        (5, pytest.approx(6)),
        (4, pytest.approx(5)),
        (3, pytest.approx(4)),
        (2, pytest.approx(3)),
        (1, pytest.approx(2)),
    ]
    assert (rose.fell, rose.rose, rose.of, rose.reasons) == (1, 6, 8, ())
    (same,) = gate.compare(before, frame(val=[10, 20, 30, 40, 50, 60, 70, 78]), LIMITS).changes
    assert [moved.expression for moved in same.moved] == [7]
    assert str(same) == (
        "trim at 64 tokens (seed 0): cIoU 45.00 -> 44.75, mean IoU 45.00 -> 44.75; "
        "1 of 8 expressions fell, 0 rose"
    )


def test_what_the_baseline_does_not_know_is_named_once() -> None:
    rows = frame(val=[50, 60])
    more = [rows.assign(pruner="scope", seed=seed) for seed in (0, 1)] + [rows.assign(budget=32)]
    found = gate.compare(rows, pd.concat([rows, *more]), LIMITS)
    assert found.unguarded == ("scope at 64", "trim at 32") and found.cells == 1
    assert [change.pruner for change in found.all_cells] == ["trim"]


def test_rounding_is_measured_where_a_score_fell() -> None:
    """In every split that has one, the most of all draws; what rose is none."""
    before = frame(val=[50, 50], testA=[50]).assign(kept="wA==")
    draws = [
        frame(val=[50, 40], testA=[60]).assign(kept="wA=="),
        frame(val=[50, 48], testA=[50]).assign(kept="oA=="),
    ]
    (found,) = comparison.rounding(before, draws, 8).values()
    assert found == {
        "tokens": 3,
        "lost": 0,
        "falls": {
            "all splits": {"unharmed": 33.3333, "cIoU": 0.6667, "mean IoU": 0.6667},
            "one split": {"cIoU": 5.0, "mean IoU": 5.0, "unharmed": 50.0},
        },
    }


def test_what_may_fall_without_a_word_of_the_baseline() -> None:
    """Half a point over all splits, one in a split, a tenth of the expressions."""
    before = [500] * 40
    for fall, bad in ((4, False), (6, True)):
        after = frame(val=[500 - fall] * 40).assign(union=1000)
        reasons = gate.compare(frame(val=before).assign(union=1000), after, {}).worse[0].reasons
        assert any(reason.startswith("all splits: mean IoU") for reason in reasons) == bad
    for fall, bad in ((9, False), (11, True)):
        after = frame(val=before, testA=[500 - fall, *[500] * 3]).assign(union=1000)
        whole = frame(val=before, testA=[500] * 4).assign(union=1000)
        found = gate.compare(whole, after, {"tolerances": {"unharmed": 100.0}})
        assert found.worse == ()
        after = frame(val=before, testA=[500 - fall] * 4).assign(union=1000)
        assert bool(gate.compare(whole, after, {"tolerances": {"unharmed": 100.0}}).worse) == bad
    for harmed, bad in ((4, False), (5, True)):
        after = frame(val=[497] * harmed + [500] * (40 - harmed)).assign(union=1000)
        assert bool(gate.compare(frame(val=before).assign(union=1000), after, {}).worse) == bad


def test_a_mean_that_was_added_up_otherwise_is_no_change() -> None:
    before, after = tokens([1], tokens_mean=[1 / 3]), tokens([1], tokens_mean=[(1 + 1e-12) / 3])
    assert gate.compare(before, after, noisy()).changes == ()
