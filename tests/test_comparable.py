"""Which rows stand in one table, of frames that are written by hand: every fact that parts, alone."""

from __future__ import annotations

from typing import Any

import pandas as pd
import pytest

from harness import metrics
from reports.comparable import Group, fitting, groups, medium_of, title, why

ROW = {
    "backbone": "mini",
    "protocol": "each",
    "draws": "",
    "answers": "forced",
    "device": "cpu",
    "dtype": "float32",
    "attn": "sdpa",
    "model": "m1",
    "fingerprint": "w1",
    "evaluation": "e1",
    "run": 0,
    "dataset": "refcoco",
    "split": "val",
    "data": "d1",
    "pruner": "trim",
    "budget": 64,
    "budget_kind": "final",
    "tokens_final": 64,
    "tokens_mean": 64.0,
    "frames": 1,
}
FACTS = (
    "backbone",
    "protocol",
    "draws",
    "answers",
    "device",
    "dtype",
    "attn",
    "model",
    "fingerprint",
    "evaluation",
)


def frame_of(*rows: dict[str, Any]) -> pd.DataFrame:
    return pd.DataFrame([ROW | row for row in rows])


def members(found: list[Group]) -> list[list[str]]:
    """The pruners of every group."""
    return [list(group.frame["pruner"]) for group in found]


@pytest.mark.parametrize("fact", FACTS)
def test_every_fact_of_the_setting_parts(fact: str) -> None:
    """In the order in which its values come, which is that of the runs, and none is a value as well."""
    found = groups(frame_of({fact: "z"}, {fact: "a", "pruner": "fastv"}))
    assert members(found) == [["trim"], ["fastv"]]
    assert [group.facts[fact] for group in found] == ["z", "a"]
    assert members(groups(frame_of({fact: None}, {fact: None, "pruner": "fastv"}))) == [["trim", "fastv"]]


def test_runs_of_equal_data_are_together_and_of_other_data_apart() -> None:
    """A split that one run has alone is no difference, and what joins brings its splits along."""
    there = {"run": 1, "pruner": "fastv"}
    found = groups(frame_of({}, there, there | {"split": "testA", "data": "d2"}))
    assert members(found) == [["trim", "fastv", "fastv"]]
    assert found[0].facts["data"] == "d1 d2"
    found = groups(frame_of({}, there | {"data": "d9"}))
    assert members(found) == [["trim"], ["fastv"]]
    assert [group.facts["data"] for group in found] == ["d1", "d9"]
    # the third fits the first's split and not the one that the second brought
    found = groups(
        frame_of(
            {},
            {"run": 1, "split": "testA", "data": "d2", "pruner": "fastv"},
            {"run": 2, "pruner": "dart"},
            {"run": 2, "split": "testA", "data": "d3", "pruner": "dart"},
        )
    )
    assert members(found) == [["trim", "fastv"], ["dart", "dart"]]
    # one split of two differs
    two = [{"split": split, "data": "d1"} for split in ("val", "testA")]
    other = [row | there | {"data": data} for row, data in zip(two, ("d1", "d9"), strict=True)]
    assert members(groups(frame_of(*two, *other))) == [["trim", "trim"], ["fastv", "fastv"]]


def test_even_rows_stand_in_the_tables_of_both_kinds() -> None:
    """A line of which one record is uneven is not even."""
    mean = {"pruner": "fastv", "budget_kind": "mean", "tokens_final": 12}
    found = groups(
        frame_of(
            {},
            mean,
            {"pruner": "dart", "tokens_mean": 300.0},
            {"pruner": "half"},
            {"pruner": "half", "tokens_mean": 65.0},
        )
    )
    assert [group.facts["budget_kind"] for group in found] == ["final", "mean"]
    assert members(found) == [["trim", "dart", "half", "half"], ["trim", "fastv"]]
    # another budget of the same method is another line
    found = groups(
        frame_of({"tokens_mean": 70.0}, {"budget": 32, "tokens_final": 32, "tokens_mean": 32.0}, mean)
    )
    assert list(found[1].frame["budget"]) == [32, 64]


def test_beside_labels_stands_the_upper_bound_alone() -> None:
    label = {"pruner": "sparsevlm", "budget_kind": "label", "tokens_final": 30, "tokens_mean": 64.0}
    found = groups(frame_of({}, {"pruner": "none", "budget": 576, "tokens_mean": 64.0}, label))
    assert members(found) == [["trim", "none"], ["none", "sparsevlm"]]


def test_a_title_says_what_tells_a_table_from_its_twins_alone() -> None:
    """Of other backbones and protocols it says nothing."""
    found = groups(
        frame_of(
            {},
            {"dtype": "bfloat16", "pruner": "fastv"},
            {"backbone": "glamm", "device": "cuda"},
            {"protocol": "glamm", "attn": "eager"},
        )
    )
    assert [title(group, found) for group in found] == [
        "mini, protocol each, precision float32",
        "mini, protocol each, precision bfloat16",
        "glamm, protocol each",
        "mini, protocol glamm",
    ]


def test_a_title_names_data_by_the_splits_that_differ() -> None:
    """One by its fingerprint, several by a digest of theirs: of "d3 d1" and "d4 d2", a line each."""
    run: dict[str, Any] = {"run": 1, "pruner": "fastv"}
    same = [{"dataset": "refcocog", "data": "d5"}, run | {"dataset": "refcocog", "data": "d5"}]
    found = groups(frame_of({}, run | {"data": "d2"}, *same))
    assert [title(group, found) for group in found] == [
        "mini, protocol each, data d1",
        "mini, protocol each, data d2",
    ]
    more = [{"split": "testA", "data": "d3"}, run | {"split": "testA", "data": "d4"}]
    found = groups(frame_of({}, run | {"data": "d2"}, *more, *same))
    assert [title(group, found) for group in found] == [
        "mini, protocol each, data 09aafcbd",
        "mini, protocol each, data 96e67f08",
    ]
    (told,) = why(found)
    assert "tables differ in data (09aafcbd / 96e67f08)" in told


def test_why_tables_of_one_backbone_are_not_one() -> None:
    assert why(groups(frame_of({}, {"pruner": "fastv"}))) == []
    found = groups(
        frame_of({}, {"dtype": "bfloat16"}, {"backbone": "glamm"}, {"backbone": "glamm", "attn": "eager"})
    )
    assert [text.partition(":")[0] for text in why(found)] == ["mini", "glamm"]
    assert why(found)[0] == (
        "mini: tables differ in precision (float32 / bfloat16) and are not ranked together: fewer digits "
        "move masks, whatever the pruner (--dtype float32 and bfloat16)."
    )
    assert why(found, brief=True)[1] == (
        "glamm: tables differ in attention implementation (--attn sdpa and eager): not ranked together."
    )
    both = groups(frame_of({}, {"dtype": "bfloat16", "attn": "eager"}))
    assert [len(why(both)), len(why(both, brief=True))] == [2, 2]


def test_what_runs_were_asked_is_named_where_it_differs() -> None:
    runs: list[dict[str, Any]] = [
        {"plan": {"limit": 4, "datasets": ["a", "b"]}},
        {"plan": {"limit": 0, "datasets": ["a", "b"]}},
    ]
    found = groups(frame_of({}, {"run": 1, "data": "d2"}))
    assert "(--limit 4 and 0 (all))." in why(found, runs)[0]
    runs[1]["plan"] = {"limit": 4, "data": "elsewhere", "datasets": ["a"]}
    assert "(--data not given and elsewhere, --datasets a,b and a)." in why(found, runs)[0]
    model = groups(frame_of({}, {"run": 1, "fingerprint": "w2"}))
    runs = [{"plan": {"backbones": "glamm(a)", "limit": 0}}, {"plan": {"backbones": "glamm(b)", "limit": 1}}]
    assert "(--backbones glamm(a) and glamm(b))" in why(model, runs)[0]
    code = groups(frame_of({}, {"run": 1, "evaluation": "e2"}))
    runs = [{"provenance": {"commit": "0123456789ab"}}, {"provenance": {"commit": "ffff"}}]
    assert "(commit 0123456789 and ffff)" in why(code, runs)[0]
    assert why(code, [runs[0], runs[0]])[0].endswith("may count otherwise.")


def test_samples_that_were_edited_are_counted_where_no_option_differs() -> None:
    found = groups(frame_of({}, {"run": 1, "data": "d2"}))
    runs = [
        {"samples": {"val": [["a", "1"], ["b", "1"], ["c", "1"]]}},
        {"samples": {"val": [["c", "2"], ["b", "2"]], "testA": [["a", "1"], ["d", "1"]]}},
    ]
    assert "(2 of 4 samples were edited, first b)" in why(found, runs)[0]
    assert "edited" not in why(found, [runs[0], runs[0]])[0]


def test_a_metric_fits_the_records_of_its_medium_and_its_data_sets() -> None:
    """A clip may have one frame, and a data set of clips may hold some of one."""
    clips = {"dataset": "mevis", "split": "valid_u"}
    frame = frame_of({}, clips | {"frames": 3}, clips, {"dataset": "grefcoco"})
    assert medium_of(frame).tolist() == ["image", "video", "video", "image"]
    measured = frame.assign(j=[float("nan"), float("nan"), float("nan"), 0.5])
    assert medium_of(measured).tolist() == ["image", "video", "video", "video"]
    assert fitting(frame, metrics.get("ciou")).tolist() == [True, False, False, True]
    assert fitting(frame, metrics.get("n_acc")).tolist() == [False, False, False, True]
    assert fitting(frame, metrics.get("j&f")).tolist() == [False, True, True, False]
