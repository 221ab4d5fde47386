"""gRefCOCO: its own file names, ids, splits and masks, and its own metrics, which no other data set has."""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

from harness import doctor, metrics
from harness.data import DataError, load_refer, parse_datasets
from harness.engine.runner import Plan, prepare, run
from harness.metrics.generalised import NoTargetAccuracy
from harness.store import records
from pruners import UserError
from reports import render
from reports.gather import gather
from reports.tables import tables
from tests.a_run import a_row, store
from tests.fake_backbone import FakeBackbone
from tests.refer_tree import HEIGHT, SHIFTED, SQUARE, WIDTH, ref, write_tree

OWN = ["n_acc", "t_acc", "pr@0.7", "pr@0.8", "pr@0.9"]
REFS = [
    ref(1, 1, [11, 12], "val", "both of them", "the two"),
    ref(2, 1, [-1], "val", "the purple cow"),
    ref(3, 2, [-1], "testA", "nobody"),
    ref(4, 2, [13], "train", "it"),
]


def release(root: Path, refs: Any = REFS, name: str = "grefs(unc).json") -> Path:
    """A tree with the names and fields of the release; returns the data set's folder."""
    write_tree(root, [], {11: [SQUARE], 12: [SHIFTED], 13: [SQUARE]}, dataset="grefcoco")
    folder = root / "Refer_Segm" / "grefcoco"
    (folder / "refs(unc).p").unlink()
    for one in refs:
        one["no_target"] = one["ann_id"] == [-1]
        one["file_name"] = (
            f"COCO_train2014_{one['image_id']:012}_{one['ref_id']}.jpg"  # as the release has it
        )
    payload = json.dumps(refs).encode() if name.endswith("json") else pickle.dumps(refs, protocol=2)
    (folder / name).write_bytes(payload)
    return folder


def edited(folder: Path, number: int, **fields: Any) -> None:
    path = folder / "instances.json"
    held = json.loads(path.read_text())
    (one,) = (one for one in held["annotations"] if one["id"] == number)
    one.update(fields)
    path.write_text(json.dumps(held))


# --- the data


@pytest.mark.parametrize("name", ["grefs(unc).json", "grefs(unc).p", "refs(unc).p"])
def test_the_release(tmp_path: Path, name: str) -> None:
    release(tmp_path, name=name)
    assert parse_datasets("grefcoco", tmp_path) == [("grefcoco", "val"), ("grefcoco", "testA")]
    (sample,) = load_refer(tmp_path, "grefcoco", "val")
    assert [(one.id, one.text, one.ref_id) for one in sample.expressions] == [
        (10, "both of them", 1),
        (11, "the two", 1),
        (20, "the purple cow", 2),
    ]
    one, two, none = sample.masks()
    assert (one == two).all() and set(one.ravel()) == {0, 1} and one.sum() == 400 + 400 - 100
    assert none.sum() == 0 and sample.frames[0].name == "1.png"


def test_splits_are_taken_literally(tmp_path: Path) -> None:
    release(tmp_path, [ref(1, 1, [11], "testA", "a"), ref(2, 1, [11], "testAB", "ab")])
    (sample,) = load_refer(tmp_path, "grefcoco", "testA")
    assert [one.text for one in sample.expressions] == ["a"]
    with pytest.raises(DataError, match="grefcoco has no split 'test', it has testA"):
        parse_datasets("grefcoco:test", tmp_path)


@pytest.mark.parametrize("name", ["grefs(unc).p", "refs(unc).p"])
def test_a_pickle_comes_before_the_json(tmp_path: Path, name: str) -> None:
    folder = release(tmp_path)
    (folder / name).write_bytes(pickle.dumps([ref(1, 1, [11], "val", "pickled")], protocol=2))
    assert load_refer(tmp_path, "grefcoco", "val")[0].expressions[0].text == "pickled"


def test_parts_that_overlap_are_one_and_crowds_are_none(tmp_path: Path) -> None:
    folder = release(tmp_path)
    edited(folder, 11, segmentation=[SQUARE, SHIFTED], iscrowd=0)
    edited(folder, 12, iscrowd=1)
    (sample,) = load_refer(tmp_path, "grefcoco", "val")
    assert set(sample.masks()[0].ravel()) == {0, 1} and sample.masks()[0].sum() == 700
    edited(folder, 11, segmentation=[SQUARE])
    assert load_refer(tmp_path, "grefcoco", "val")[0].masks()[0].sum() == 400


@pytest.mark.parametrize(
    ("refs", "said"),
    [
        (
            [ref(1, 1, [11, -1], "val", "it")],
            r"Ref 0 .*'ann_id' \[11, -1\] names an object and, with -1, none",
        ),
        ([ref(1, 1, [99], "val", "it")], "name annotation 99 .ref 1., which instances.json does not hold"),
        ([ref(1, 1, [11], "val")], "No ref of grefcoco:val has a sentence"),
        ([ref(1, 1, [11], "val", "it"), ref(1, 1, [-1], "val", "it")], "the sentence id 10 twice"),
    ],
)
def test_refs_that_contradict_themselves(tmp_path: Path, refs: Any, said: str) -> None:
    release(tmp_path, refs)
    with pytest.raises(DataError, match=said):
        load_refer(tmp_path, "grefcoco", "val")


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"[{", "is not a refs file .*line 1 column"),
        (b"\xff", "no UTF-8"),
        (b"{}", "holds a dict, not the list of refs"),
        (b"[3]", "Ref 0 .* is no ref .a int"),
        (b'[{"split": "val", "sentences": []}]', "has no usable 'ann_id'"),
        (b"[" * 10**6, "nested too deeply"),
        (b"[" + b"[]," * 10**6 + b"[]]", "made of brackets"),
        (
            None,
            r"grefs\(unc\)\.json' is missing; expected .*grefcoco/\{grefs\(unc\)\.json, instances\.json\}",
        ),
    ],
)
def test_a_damaged_release(tmp_path: Path, content: bytes | None, said: str) -> None:
    path = release(tmp_path) / "grefs(unc).json"
    path.unlink() if content is None else path.write_bytes(content)
    with pytest.raises(DataError, match=said) as caught:
        load_refer(tmp_path, "grefcoco", "val")
    assert "\n" not in str(caught.value) and "grefcoco" in str(caught.value)


def test_the_doctor_knows_what_is_published(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "GREFCOCO", {"val": (1, None, 3), "testA": (1, None, 2)})
    release(tmp_path)
    told = [(finding.level, finding.what) for finding in doctor._dataset(tmp_path, "grefcoco")]
    assert told[0][0] == "note" and "run it with --answers generated" in told[0][1]
    assert told[1][0] == "ok" and "1 images, 2 refs, 3 expressions as published" in told[1][1]
    assert told[2][0] == "wrong" and "the published split 1 images, 2 expressions; take" in told[2][1]


# --- the metrics

MASKS = npst.array_shapes(min_dims=4, max_dims=4, max_side=4).flatmap(
    lambda shape: st.tuples(
        npst.arrays(np.bool_, shape), npst.arrays(np.uint8, shape, elements=st.sampled_from([0, 1]))
    )
)


def official(predictions: np.ndarray, truths: np.ndarray) -> dict[str, float]:
    """ReLA's table of four cases, told expression by expression; an empty mask says that there is nothing."""
    cells = {"TP": 0, "FN": 0, "FP": 0, "TN": 0}
    iou_sum, inner_sum, outer_sum, reached, targets = 0.0, 0, 0, dict.fromkeys((0.7, 0.8, 0.9), 0), 0
    for prediction, truth in zip(predictions, truths == 1, strict=True):
        inner, outer = int((prediction & truth).sum()), int((prediction | truth).sum())
        nothing = not prediction.any()
        if not truth.any():
            cells["TP" if nothing else "FN"] += 1
            iou_sum += nothing
            outer_sum += outer
            continue
        cells["FP" if nothing else "TN"] += 1
        targets += 1
        iou = inner / outer
        iou_sum, inner_sum, outer_sum = iou_sum + iou, inner_sum + inner, outer_sum + outer
        for threshold in reached:
            reached[threshold] += iou >= threshold
    nan = float("nan")
    return {
        "giou": iou_sum / len(truths),
        "ciou": inner_sum / outer_sum if outer_sum else 0.0,
        "n_acc": cells["TP"] / (cells["TP"] + cells["FN"]) if targets < len(truths) else nan,
        "t_acc": cells["TN"] / targets if targets else nan,
    } | {f"pr@{threshold}": count / targets if targets else nan for threshold, count in reached.items()}


@given(MASKS)
@settings(deadline=None)
def test_scores_are_those_of_its_own_code(masks: tuple[np.ndarray, np.ndarray]) -> None:
    table = pd.DataFrame(metrics.measure(*masks, dataset="grefcoco"))
    got = {name: metrics.get(name).value(table) for name in ("giou", "ciou", *OWN)}
    # ours has the epsilons of the general ones
    assert got == pytest.approx(official(*masks), abs=3e-5, nan_ok=True)
    for name in OWN:
        above, below = metrics.get(name).terms(table)
        assert np.array_equal(metrics.get(name).value(table) * below.sum(), above.sum()) or not below.sum()


def test_one_missed_target_and_one_rightly_empty() -> None:
    truths = np.zeros((2, 1, 6, 10), dtype=np.uint8)
    truths[0, 0, 0] = 1
    predictions = truths == 1
    predictions[0] = True  # a sixth of it
    table = pd.DataFrame(metrics.measure(predictions, truths, dataset="grefcoco"))
    values = {name: 100 * metrics.get(name).value(table) for name in ("giou", "ciou", *OWN)}
    assert values["giou"] == pytest.approx(58.33, abs=0.01) and values["ciou"] == pytest.approx(
        16.67, abs=0.01
    )
    assert values["pr@0.7"] == 0 and values["n_acc"] == values["t_acc"] == 100


def test_what_is_ignored_is_neither_target_nor_mask() -> None:
    truth = np.full((1, 1, 2, 2), 255, dtype=np.uint8)
    (row,) = metrics.measure(truth == 255, truth, dataset="grefcoco")
    assert (row["gres_target"], row["gres_mask"], row["gres_both"]) == (0, 0, 0)


def test_a_mask_of_few_pixels_can_say_that_there_is_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    class Fifty(NoTargetAccuracy):
        name, title, fewest = "n_acc50", "N-acc (50 px)", 50

    monkeypatch.setattr(metrics.registry.metrics, "known", dict(metrics.registry.metrics.known))
    metrics.register(Fifty)
    table = {"gres_target": [0, 0, 9], "gres_mask": [49, 50, 0], "gres_both": [0, 0, 0]}
    assert Fifty().value(table) == 0.5 and metrics.get("n_acc").value(table) == 0.0


def test_other_data_sets_do_not_have_them() -> None:
    masks = np.zeros((1, 1, 2, 2), dtype=bool)
    for dataset in ("", "refcoco", "reasonseg", "mygrefcoco"):
        assert set(metrics.measure(masks, masks.astype(np.uint8), dataset=dataset)[0]) == {
            "intersection",
            "union",
        }
    assert all(metrics.get(name).fits("grefcoco(unc)") for name in OWN)
    assert {one.name for one in metrics.made_of(("intersection", "union"))}.isdisjoint(OWN)


# --- from the data to the report


def test_a_run_with_another_data_set(tmp_path: Path) -> None:
    data = tmp_path / "data"
    release(data)
    folder = data / "Refer_Segm" / "refcoco"
    folder.mkdir()
    instances = json.loads((data / "Refer_Segm" / "grefcoco" / "instances.json").read_text())
    (folder / "instances.json").write_text(json.dumps(instances))
    (folder / "refs(unc).p").write_bytes(pickle.dumps([ref(1, 1, 11, "val", "it")], protocol=2))
    plan = Plan("none,uniform", (8,), "grefcoco:val,grefcoco:testA,refcoco:val", data=str(data))
    backbone = FakeBackbone()
    assert run(plan, backbone, prepare(plan, backbone), tmp_path / "run")
    frame = records.load_records(tmp_path / "run")
    general = frame["dataset"] == "grefcoco"
    assert (frame["gres_mask"].isna() == ~general).all() and general.sum() == 8
    assert (frame["gres_both"][general] == frame["intersection"][general]).all()
    assert (general & (frame["gres_target"] == 0)).sum() == 4
    (table,) = tables(gather([tmp_path / "run"]))
    assert [one.name for one in table.beside] == ["giou", *OWN]
    for line in table.lines:
        assert set(line.scores) == {("grefcoco", "val"), ("grefcoco", "testA"), ("refcoco", "val")}
        assert set(line.others["n_acc"]) == {("grefcoco", "val"), ("grefcoco", "testA")}
        assert set(line.others["giou"]) == set(line.scores)
        assert "n_acc" not in line.counts["refcoco", "val"]
    page = render([tmp_path / "run"], tmp_path / "out")[0].read_text()
    head = next(text for text in page.splitlines() if text.startswith("| method"))
    assert all(title in head for title in ("N-acc", "T-acc", "Pr@0.7", "Pr@0.9"))
    assert "N-acc, T-acc, Pr@0.7, Pr@0.8, Pr@0.9 tell little here" in page
    assert "run with --answers generated" in page
    assert "was not measured in" not in page
    (alone,) = tables(gather([tmp_path / "run"]), metric="t_acc")
    assert {dataset for dataset, _ in alone.columns} == {"grefcoco"}
    csv = pd.read_csv(tmp_path / "out" / "leaderboard.csv")
    assert (csv["n_acc"].isna() | csv["t_acc"].isna())[csv["dataset"] == "refcoco"].all()
    assert csv["n_acc"][csv["dataset"] == "grefcoco"].notna().all()
    assert csv["gres_target"][csv["dataset"] == "refcoco"].isna().all()


def test_a_run_without_it_cannot_be_ranked_by_them(tmp_path: Path) -> None:
    folder = store(tmp_path / "run", [a_row(("refcoco", "val"), "none", 576, 0, 0)])
    with pytest.raises(UserError, match="--metric n_acc is measured on grefcoco alone, which no run here"):
        tables(gather([folder]), metric="n_acc")


def some_rows(answered: int) -> list[dict[str, Any]]:
    """Three images; `answered` of two expressions that mean nothing have an empty mask."""
    found = []
    for place in range(6):
        row = a_row(("grefcoco", "val"), "none", 576, 0, place)
        target, mask = (0, 0 if place < answered else 9) if place < 2 else (row["union"], row["intersection"])
        inner = min(target, mask)
        found.append(
            row
            | {"intersection": inner, "union": max(target + mask - inner, 1)}
            | {"measures": {"gres_target": target, "gres_mask": mask, "gres_both": inner}}
        )
    return found


@pytest.mark.parametrize("answers", ["forced", "generated"])
def test_the_report_says_what_forced_answers_cannot_tell(tmp_path: Path, answers: str) -> None:
    rows = some_rows(1)
    if answers == "generated":
        rows = [row | {"seg_said": 1, "seg_logprob": -0.5, "wrote": "[SEG]"} for row in rows]
    folder = store(tmp_path / "run", rows, setting={"answers": answers})
    page = render(folder)[0].read_text()
    assert ("run with --answers generated" in page) is (answers == "forced")
    (table,) = tables(gather([folder]), metric="n_acc")
    assert table.lines[0].scores["grefcoco", "val"].value == pytest.approx(0.5)
    assert "ciou" in {one.name for one in table.beside}


def test_a_release_without_images_of_its_own_size(tmp_path: Path) -> None:
    release(tmp_path)
    (sample,) = load_refer(tmp_path, "grefcoco", "val")
    assert (sample.height, sample.width) == (HEIGHT, WIDTH)
    assert sample.image().shape == (HEIGHT, WIDTH, 3)
