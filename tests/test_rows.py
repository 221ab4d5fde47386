"""What a record may say, row by row: the last value that is taken and the first that is not."""

from __future__ import annotations

import base64
from typing import Any

import numpy as np
import pytest

from harness.metrics.video import means_of
from harness.store.rows import image_of, is_description, kept_tokens, pack_tokens, row_key, validate

CELL: dict[str, Any] = {
    "dataset": "refcoco",
    "split": "val",
    "pruner": "trim",
    "budget": 4,
    "seed": 0,
    "stage": "tower",
    "budget_kind": "final",
    "grid": [3, 4],
    "setting": {"backbone": "mini", "protocol": "each", "answers": "forced"},
}
KEYS = {"cell": "c1", "sample": "refcoco:val:7", "place": 1, "of": 2, "dataset": "refcoco", "split": "val"}
OF_CELL = {"backbone": "mini", "protocol": "each", "pruner": "trim", "budget": 4, "seed": 0, "code": ""}
OK: dict[str, Any] = {
    **KEYS,
    **OF_CELL,
    "status": "ok",
    "expression": 5,
    "tokens_final": 4,
    "tokens_mean": 4.0,
    "intersection": 3,
    "union": 12,
    "iou": 0.25,
    "coverage": 0.5,
    "kept": pack_tokens(np.array([0, 3, 5, 11]), 12),
    "mask": "",
    "cluster": "7",
    "frames": 1,
    "views": 1,
    "shown": "",
    "tokens_llm": 9,
    "seg_said": None,
    "seg_logprob": None,
    "wrote": "",
    "measures": {"mine": 0.5},
    "curves": {},
    "rounding_tokens": 0.0,
    "rounding_iou": -0.5,
}
SAMPLE: dict[str, Any] = {
    **KEYS,
    "cell": "@e1",
    "status": "sample",
    "expression": 5,
    "text": "the red one",
    "group": "",
    "height": 1,
    "width": 1,
    "truth": "0o",
    "image": "images/7.jpg",
    "content": "0123456789abcdef",
}
FAILED: dict[str, Any] = {
    **KEYS,
    **OF_CELL,
    "status": "failed",
    "expression": -1,
    "place": -1,
    "of": 1,
    "reason": "broken file",
}
GENERATED = CELL | {"setting": CELL["setting"] | {"answers": "generated"}}
CLIP = {"frames": 3, "views": 2, "shown": "0 2", "mask": "0o 0o 0o", "tokens_final": 8, "tokens_mean": 8.0}
CLIP |= {"intersection": 0, "union": 0, "iou": 1.0, "kept": pack_tokens(np.arange(8), 24)}


def checked(row: dict[str, Any], cell: dict[str, Any] | None = None) -> dict[str, Any]:
    return validate(dict(row), {"c1": CELL if cell is None else cell})


def bits(count: int, size: int = 12) -> str:
    return pack_tokens(np.arange(count), size)


def test_the_first_patch_and_the_last_are_recorded_and_marks_are_not() -> None:
    text = pack_tokens(np.array([9, -1, 0, -2]), 10)
    assert np.flatnonzero(kept_tokens(text, 10)).tolist() == [0, 9]
    assert base64.b64decode(text) == b"\x80\x40"  # raster order, the first patch in the highest bit
    assert kept_tokens(text, 10).shape == (10,) and not kept_tokens(pack_tokens(np.array([-1]), 10), 10).any()


@pytest.mark.parametrize("row", [OK, SAMPLE, FAILED], ids=lambda row: row["status"])
def test_sound_rows_are_taken_as_they_are(row: dict[str, Any]) -> None:
    assert checked(row) == row
    assert row_key(row) == (row["cell"], row["sample"], row["place"])


def test_what_older_rows_lack_is_filled_in() -> None:
    new = (
        "cluster",
        "frames",
        "views",
        "tokens_llm",
        "measures",
        "seg_said",
        "seg_logprob",
        "wrote",
        "curves",
    )
    new += ("shown", "code", "rounding_tokens", "rounding_iou")
    found = checked({name: value for name, value in OK.items() if name not in new})
    assert found["cluster"] == "7" == image_of("a:b:7")
    assert (found["frames"], found["views"], found["measures"], found["curves"]) == (1, 1, {}, {})
    assert found["tokens_llm"] is found["seg_said"] is found["rounding_tokens"] is None
    found = checked({name: value for name, value in SAMPLE.items() if name not in ("group", "content")})
    assert (found["group"], found["content"]) == ("", None)


@pytest.mark.parametrize(
    "change",
    [
        {"coverage": None},
        {"coverage": 0},
        {"coverage": 1 + 1e-10},
        {"coverage": 1},
        {"intersection": 0, "iou": 0.0},
        {"intersection": 12, "iou": 1.0},
        {"intersection": 0, "union": 0, "iou": 1.0},
        {"place": 0},
        {"tokens_llm": None},
        {"tokens_llm": 4},
        {"rounding_tokens": 4.0},
        {"rounding_iou": 1.0},
        {"rounding_tokens": None, "rounding_iou": None},
        {"kept": bits(0)},
        {"kept": bits(4)},
        {"mask": "0o"},
        {"wrote": "é"},
        {"measures": {"mine": 1}},
        {"expression": -(2**63)},
        {"expression": 2**63 - 1},
    ],
    ids=str,
)
def test_values_at_the_edge_are_taken(change: dict[str, Any]) -> None:
    assert checked(OK | change) == OK | change


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"status": "done"}, "its status is 'done'"),
        ({"status": ["ok"]}, r"its status is \['ok'\]"),
        ({"tokens_final": 4.0}, "its tokens_final is '4.0'"),
        ({"tokens_final": True}, "its tokens_final is 'True'"),
        ({"tokens_final": None}, "its tokens_final is 'None'"),
        ({"iou": "0.25"}, "its iou is '0.25'"),
        ({"iou": float("nan")}, "its iou is 'nan'"),
        ({"expression": 2**63}, "its expression is"),
        ({"expression": -(2**63) - 1}, "its expression is"),
        ({"text": 5, "wrote": 5}, "its wrote is '5'"),
        ({"wrote": "\ud800"}, "its wrote is"),
        ({"wrote": "é\udfff"}, "its wrote is"),
        ({"measures": {"mine": "1"}}, "its measures is"),
        ({"measures": {5: 1.0}}, "its measures is"),
        ({"measures": [1.0]}, "its measures is"),
        ({"curves": {"mine": [0.5]}}, "its curves is"),
        ({"curves": {"mine": 3}}, "its curves is"),
        ({"curves": {5: [3]}}, "its curves is"),
        ({"sample": "refcoco:testA:7"}, "is not of refcoco:val"),
        ({"sample": "refcoco:val"}, "is not of refcoco:val"),
        ({"of": 0}, "it is number 1 of 0"),
        ({"place": -2}, "it is number -2 of 2"),
        ({"place": -1}, "no place among the expressions"),
        ({"place": 2}, "it is number 2 of 2"),
        ({"cell": "c2"}, "run.json knows no cell 'c2'"),
        ({"budget": 5}, "its budget is 5 and its cell's 4"),
        ({"backbone": "glamm"}, "its backbone is 'glamm' and its cell's 'mini'"),
        ({"intersection": -1}, "its intersection is -1 and its union 12"),
        ({"intersection": 13}, "its intersection is 13 and its union 12"),
        ({"iou": 0.26}, "its iou 0.26 is not 3 / 12"),
        ({"intersection": 0, "union": 0, "iou": 0.0}, "its iou 0.0 is not 0 / 0"),
        ({"coverage": -1e-12}, "its coverage is"),
        ({"coverage": 1 + 1e-8}, "its coverage is"),
        ({"mask": "p"}, "its mask is no run-length code"),
        ({"mask": "0o 0o"}, "its mask has 2 frames and its clip 1"),
        ({"cluster": " ", "frames": 0}, "its medium is ' ' of 0 frames and 1 views"),
        ({"views": 0}, "its medium is '7' of 1 frames and 0 views"),
        ({"seg_said": 1}, r"its answer is forced and its \[SEG\] said 1 times"),
        ({"rounding_tokens": 4.5}, "its rounding is 4.5 tokens"),
        ({"rounding_tokens": -1.0}, "its rounding is -1.0 tokens"),
        ({"rounding_iou": 1.01}, "and 1.01 of IoU"),
        ({"rounding_iou": -1.01}, "and -1.01 of IoU"),
        ({"kept": "A"}, "its kept tokens are no bitmap"),
        ({"kept": bits(5)}, "it kept 5 patches as 4 tokens, 4.0 on average"),
        ({"kept": bits(4, 100)}, "its tokens do not fit a grid of 12 patches"),
        ({"tokens_llm": 3}, "its language model saw 3 tokens, 4.0 visual ones among them"),
        ({"tokens_mean": 5.0}, "it kept 4 patches as 4 tokens, 5.0 on average"),
        ({"tokens_mean": 3.0}, "it kept 4 patches as 4 tokens, 3.0 on average"),
        ({"tokens_final": 5, "tokens_mean": 5.0}, "it ended at 5 tokens where the budget is 4"),
        ({"shown": "0 1"}, "its 1 views show 2 frames up to 1 of 1"),
    ],
    ids=lambda value: str(value)[:50],
)
def test_what_cannot_be_is_told(change: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        checked(OK | change)


@pytest.mark.parametrize("name", ["tokens_final", "cell", "mask", "pruner"])
def test_no_field_may_be_missing(name: str) -> None:
    with pytest.raises(ValueError, match=f"it has no {name}"):
        checked({key: value for key, value in OK.items() if key != name})


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"cell": "c1"}, "describes a sample, and names a cell"),
        ({"place": -1}, "names a cell or no place"),
        ({"place": 2}, "names a cell or no place"),
        ({"height": 0}, "its image is 1x0 px"),
        ({"width": 0}, "its image is 0x1 px"),
        ({"image": "images/../7.jpg"}, "is not one of the run's images"),
        ({"image": "images/.jpg/x"}, "is not one of the run's images"),
        ({"truth": "~"}, "its truth is no run-length code"),
        ({"content": "0123456789ABCDEF"}, "is no digest"),
    ],
    ids=str,
)
def test_descriptions_that_cannot_be(change: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        checked(SAMPLE | change)


def test_descriptions_name_no_cell() -> None:
    assert is_description("") and is_description("@e1") and not is_description("c1")
    for change in ({"cell": ""}, {"place": 0}, {"image": ""}, {"content": None}):
        assert checked(SAMPLE | change) == SAMPLE | change


def test_answers_that_the_model_wrote() -> None:
    for good in ({"seg_said": 1}, {"seg_said": 1, "seg_logprob": 1e-3}, {"seg_said": 1, "seg_logprob": -3.0}):
        checked(OK | good, GENERATED)
    checked(OK | {"seg_said": 0, "intersection": 0, "iou": 0.0}, GENERATED)
    for wrong, says in (
        ({}, "its answer is generated"),
        ({"seg_said": 2}, "its answer is generated"),
        ({"seg_said": 0}, r"it has a mask, and the model said no \[SEG\]"),
        ({"seg_said": 0, "intersection": 0, "iou": 0.0, "seg_logprob": -1.0}, "it has a mask"),
        ({"seg_said": 1, "seg_logprob": 0.002}, "a log-probability of 0.002"),
    ):
        with pytest.raises(ValueError, match=says):
            checked(OK | wrong, GENERATED)


def test_a_mean_is_met_to_one_token_a_view() -> None:
    mean = CELL | {"budget_kind": "mean", "stage": "layer"}
    row = OK | {"tokens_final": 2, "kept": bits(2)}
    for tokens in (3.0, 4.0, 5.0):
        checked(row | {"tokens_mean": tokens}, mean)
    for tokens in (2.9, 5.1):
        with pytest.raises(ValueError, match=f"it saw {tokens} tokens on average where the budget is 4"):
            checked(row | {"tokens_mean": tokens}, mean)
    label = mean | {"budget_kind": "label"}
    assert checked(row | {"tokens_mean": 9.0}, label)["tokens_mean"] == 9.0
    for more in (
        {"tokens_mean": 12.0, "tokens_llm": 12},
        {"tokens_final": 12, "tokens_mean": 12.0, "tokens_llm": 12},
    ):
        checked(row | more, label)
    with pytest.raises(ValueError, match="do not fit a grid of 12 patches"):
        checked(row | {"tokens_mean": 13.0, "tokens_llm": 13}, label)


def test_a_model_that_pools_sends_something_else() -> None:
    """Of 12 patches, four to a token, three are sent."""
    pools = CELL | {"sent": 3, "pooled": 4}
    row = OK | {"tokens_final": 3, "tokens_mean": 3.0}
    checked(row | {"kept": bits(12)}, pools)
    with pytest.raises(ValueError, match="it ended at 4 tokens where the budget is 3"):
        checked(row | {"tokens_final": 4, "tokens_mean": 4.0}, pools)
    with pytest.raises(ValueError, match="it kept 5 patches as 1 tokens"):
        checked(row | {"tokens_final": 1, "tokens_mean": 1.0, "kept": bits(5)}, pools | {"sent": 1})


def test_clips() -> None:
    """The budget is one of each view, and the frames' numbers are theirs."""
    row = OK | CLIP
    assert checked(row) == row
    assert checked(row | {"mask": "0o 0o 0o", "shown": ""})["shown"] == ""
    for wrong, says in (
        ({"shown": "0 3"}, "its 2 views show 2 frames up to 3 of 3"),
        ({"shown": "0 1 2"}, "its 2 views show 3 frames"),
        ({"shown": "0,1"}, "no numbers of frames"),
        ({"mask": "0o 0o"}, "its mask has 2 frames and its clip 3"),
        ({"mask": ""}, "its mask has 0 frames and its clip 3"),
        ({"mask": "", "frames": 2, "shown": "0 1"}, "its mask has 0 frames and its clip 2"),
        (
            {"tokens_final": 4, "tokens_mean": 4.0, "kept": bits(4, 24)},
            "it ended at 4 tokens where the budget is 8",
        ),
        ({"curves": {"mine": [1, 2]}}, "its mine has 2 frames and its clip 3"),
        ({"union": 1, "iou": 0.0}, "it has a union of 1 pixels, and neither J and F"),
    ):
        with pytest.raises(ValueError, match=says):
            checked(row | wrong)
    mean = CELL | {"budget_kind": "mean", "stage": "layer"}
    row |= {"tokens_final": 2, "kept": bits(2, 24), "tokens_llm": 24}
    for tokens in (6.0, 10.0):  # to one token of each view
        checked(row | {"tokens_mean": tokens}, mean)
    for tokens in (5.9, 10.1):
        with pytest.raises(ValueError, match=f"it saw {tokens} tokens on average where the budget is 8"):
            checked(row | {"tokens_mean": tokens}, mean)


def test_j_and_f_are_those_of_the_frames() -> None:
    curves = {"j_inner": [2, 0, 3], "j_outer": [4, 0, 3]} | {
        name: [1, 0, 2] for name in ("f_hits", "f_drawn", "f_found", "f_edge")
    }
    j, f = means_of(curves)
    assert j == pytest.approx(2.5 / 3)
    said = {"j": j, "f": f, "j_fixed": 1.0, "f_fixed": 0.0, "j_rest": 0.5, "f_rest": 0.0, "n_rest": 1}
    row = OK | CLIP | {"intersection": 5, "union": 7, "iou": 5 / 7, "curves": curves, "measures": said}
    assert checked(row) == row
    for wrong, what in (
        ({"measures": said | {"j": 0.5}}, "its J and F are"),
        ({"measures": {"f": f}}, "its J and F are"),
        ({"measures": {"mine": 1.0}, "curves": curves}, "its J and F are"),
        ({"curves": {"j_inner": [2, 0, 3]}}, "it has no j_outer"),
        ({"curves": {}}, "it has no j_inner"),
        ({"measures": said | {"j_fixed": 1.1}}, "expected j_fixed to be numbers from 0 to 1"),
        ({"curves": curves | {"j_inner": [5, 0, 3]}}, "is not a part of its j_outer"),
    ):
        with pytest.raises(ValueError, match=what):
            checked(row | wrong)
    # of an image a measure may have any name, but for those that clips alone have
    assert checked(OK | {"measures": {"j": 0.5}})["measures"] == {"j": 0.5}
    with pytest.raises(ValueError, match="it has no j_inner"):
        checked(OK | {"measures": said})
    one = {name: values[:1] for name, values in curves.items()}
    still = OK | {"curves": one, "measures": said | {"j": 0.5, "f": 1.0}}
    assert checked(still) == still
