"""Metrics as objects: each against a computation of its own, and one of somebody else's from measuring to the
report."""

from __future__ import annotations

from collections.abc import Iterator
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
from harness.engine.runner import Plan, prepare, run
from harness.metrics.registry import metrics as registry
from harness.store import code, records, rows
from pruners import UserError
from reports import render
from reports.gather import gather
from reports.tables import tables
from tests.a_run import some_rows, store
from tests.fake_backbone import FakeBackbone, write_data

pytestmark = pytest.mark.usefixtures("text_only")


@pytest.fixture(autouse=True)
def _forget(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(code, "STARTED", float("inf"))
    before = dict(registry.known)
    yield
    registry.known.clear()
    registry.known.update(before)


class Missed(metrics.Metric):
    """Share of the target's pixels that the mask misses: lower is better."""

    name, title, reference = "missed", "missed", "a test"
    meaning = "target pixels that are not painted over all target pixels"
    weighs = "large objects weigh more"
    columns = ("missed_pixels", "target_pixels")
    higher_is_better = False

    def measure(self, predictions: Any, truths: Any) -> list[dict[str, Any]]:
        target = truths == metrics.FOREGROUND
        return [
            {"missed_pixels": (one & ~mask).sum(), "target_pixels": int(one.sum())}
            for mask, one in zip(predictions, target, strict=True)
        ]

    def terms(self, table: Any) -> tuple[Any, Any]:
        return np.asarray(table["missed_pixels"]), np.asarray(table["target_pixels"])


# --- every metric, computed again

MASKS = npst.array_shapes(min_dims=4, max_dims=4, max_side=5).flatmap(
    lambda shape: st.tuples(
        npst.arrays(np.bool_, shape),
        npst.arrays(np.uint8, shape, elements=st.sampled_from([0, 1, 2, 255]), fill=st.nothing()),
    )
)


def again(prediction: np.ndarray, truth: np.ndarray) -> tuple[int, int]:
    """Intersection and union over all frames, pixel by pixel."""
    pairs = [(bool(p), int(t)) for p, t in zip(prediction.ravel(), truth.ravel(), strict=True) if t != 255]
    return sum(p and t == 1 for p, t in pairs), sum(p or t == 1 for p, t in pairs)


@given(MASKS)
@settings(deadline=None)
def test_every_metric_is_what_its_definition_says(masks: tuple[np.ndarray, np.ndarray]) -> None:
    counted = metrics.measure(*masks)
    pairs = [again(*pair) for pair in zip(*masks, strict=True)]
    assert [(row["intersection"], row["union"]) for row in counted] == pairs
    table = pd.DataFrame(counted)
    ious = [Fraction(inner, outer) if outer else Fraction(1) for inner, outer in pairs]
    inner, outer = (sum(pair[k] for pair in pairs) for k in (0, 1))
    wanted = {
        "ciou": inner / (outer + 1e-10),
        "giou": sum(1.0 if not u else i / (u + 1e-5) for i, u in pairs) / (len(pairs) + 1e-5),
    } | {
        f"p@0.{k}": float(Fraction(sum(one >= Fraction(k, 10) for one in ious), len(ious)))
        for k in range(5, 10)
    }
    names = [one.name for one in metrics.made_of(table.columns)]
    assert {name: metrics.get(name).value(table) for name in names} == pytest.approx(wanted, rel=1e-12)
    for name in names:
        above, below = metrics.get(name).terms(table)
        value = above.sum() / (below.sum() + metrics.get(name).epsilon)
        assert metrics.get(name).value(table) == value  # a ratio of sums
        assert metrics.get(name).each(table) == pytest.approx([float(one) for one in ious])


def test_a_metric_of_any_rows_is_a_ratio_of_their_sums() -> None:
    missed = Missed()
    table = {"missed_pixels": [1, 0, 6], "target_pixels": [2, 0, 6]}
    assert missed.value(table) == 7 / 8
    assert np.allclose(missed.each(table), [0.5, np.nan, 1.0], equal_nan=True)
    assert np.isnan(missed.value({"missed_pixels": [0], "target_pixels": [0]}))
    assert (missed.scale, missed.unit_word, missed.points) == (100.0, "percent", "points")


# --- what is registered


def made(**facts: Any) -> type[metrics.Metric]:
    return type("Other", (Missed,), {"__module__": __name__} | facts)


@pytest.mark.parametrize(
    ("facts", "said"),
    [
        ({"name": ""}, "has no name"),
        ({"reference": None}, "has no reference; add reference = '...'"),
        ({"meaning": ""}, "has no meaning"),
        ({"name": "a b"}, "a name holds no space"),
        ({"medium": "audio"}, "has the medium 'audio'; a medium is image or video"),
        ({"datasets": "grefcoco"}, r"has the data sets 'grefcoco'; write datasets = \('grefcoco',\)"),
        ({"columns": ()}, "names no columns"),
        ({"columns": ("a", "a")}, "names no columns"),
        ({"columns": ("Hits",)}, "has the column 'Hits'"),
        ({"columns": ("iou",)}, "fills the column 'iou', which records have already"),
        (
            {"columns": ("union",), "measure": lambda self, p, t: []},
            "fills the column 'union' as ciou at .*overlap.py",
        ),
        ({"curves": ["hits"]}, r"has the curves \['hits'\]; write curves = \('hits_per_frame',\)"),
        ({"curves": ("missed_pixels",)}, "has the curves .*, of other names than columns"),
        ({"curves": ("hits", "hits")}, "has the curves"),
        ({"curves": ("Hits",)}, "has the column 'Hits'"),
        ({"curves": ("mask",)}, "fills the column 'mask', which records have already"),
        ({"curves": ("j_inner",)}, "fills the column 'j_inner' as j at .*video.py"),
        ({"name": "ciou"}, r"Two metrics are named 'ciou': .*overlap\.py:\d+ and .*"),
        ({"__init__": lambda self, x: None}, "cannot be made without arguments"),
    ],
)
def test_what_is_no_metric_is_told_where_it_stands(facts: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError, match=said):
        metrics.register(made(**facts))
    every = ["ciou", "giou", *(f"p@0.{k}" for k in range(5, 10))]
    generalised = ["n_acc", "t_acc", *(f"pr@0.{k}" for k in range(7, 10))]
    assert metrics.names() == [*every, *generalised, "j", "f", "j&f", "j&f_fixed"]


def test_names() -> None:
    metrics.register(Missed)
    metrics.register(Missed)  # the same again is no other
    assert metrics.names()[-1] == "missed"
    with pytest.raises(UserError, match=r"There is no metric 'mised'; .* Did you mean 'missed'"):
        metrics.get("mised")
    with pytest.raises(UserError, match=r"takes a subclass of harness.metrics.Metric"):
        metrics.register(int)


@pytest.mark.parametrize(
    ("measure", "said"),
    [
        (lambda self, p, t: [], "returned 0 of them, not a list of one dict for each of 2"),
        (lambda self, p, t: None, "returned a NoneType"),
        (
            lambda self, p, t: [{"missed_pixels": 1}] * 2,
            "returned missed_pixels of an expression, not missed_pixels, target",
        ),
        (
            lambda self, p, t: [{"missed_pixels": 1, "target_pixels": np.nan}] * 2,
            "returned nan as target_pixels",
        ),
        (
            lambda self, p, t: [{"missed_pixels": True, "target_pixels": 1}] * 2,
            "returned True as missed_pixels",
        ),
        (lambda self, p, t: [{"missed_pixels": "1", "target_pixels": 1}] * 2, "no finite int or float"),
        (lambda self, p, t: 1 / 0, "cannot measure an answer .ZeroDivisionError"),
    ],
)
def test_what_a_metric_may_not_count(measure: Any, said: str) -> None:
    metrics.register(made(measure=measure))
    masks = np.zeros((2, 1, 3, 3), dtype=bool)
    with pytest.raises(UserError, match=rf"The metric 'missed' at .*test_metric_objects.py.* {said}"):
        metrics.measure(masks, masks.astype(np.uint8))


CURVED = {"missed_pixels": 1, "target_pixels": 2}


@pytest.mark.parametrize(
    ("curve", "said"),
    [
        ([1], "returned 1 numbers as missed_then, which is no list of 2 whole numbers, one of each frame"),
        ([1, 2.0], "returned a list with 2.0 as missed_then"),
        ([1, True], "returned a list with True as missed_then"),
        (np.array([1.0, np.nan]), "returned a list with .*1.0.* as missed_then"),
        (np.zeros((2, 1), dtype=int), "returned a ndarray as missed_then"),
        (3, "returned a int as missed_then"),
        (None, "returned a NoneType as missed_then"),
    ],
)
def test_what_is_no_curve(curve: Any, said: str) -> None:
    facts = {"curves": ("missed_then",), "measure": lambda self, p, t: [CURVED | {"missed_then": curve}]}
    metrics.register(made(**facts))
    masks = np.zeros((1, 2, 3, 3), dtype=bool)
    with pytest.raises(UserError, match=said):
        metrics.measure(masks, masks.astype(np.uint8))


@pytest.mark.parametrize("curve", [[1, 2], (1, 2), np.array([1, 2], dtype=np.uint8)])
def test_a_curve_comes_back_as_a_list(curve: Any) -> None:
    facts = {"curves": ("missed_then",), "measure": lambda self, p, t: [CURVED | {"missed_then": curve}]}
    metrics.register(made(**facts))
    masks = np.zeros((1, 2, 3, 3), dtype=bool)
    (row,) = metrics.measure(masks, masks.astype(np.uint8))
    assert row["missed_then"] == [1, 2] and all(type(one) is int for one in row["missed_then"])
    metrics.register(made(measure=lambda self, p, t: [CURVED], curves=("missed_then",)))
    with pytest.raises(
        UserError, match=r"returned missed_pixels, target_pixels of an expression, not .*missed_then"
    ):
        metrics.measure(masks, masks.astype(np.uint8))


# --- from measuring to the report


def go(root: Path, folder: Path) -> pd.DataFrame:
    plan = Plan("none,uniform,random", (8,), "refcoco:val", data=str(root))
    backbone = FakeBackbone()
    assert run(plan, backbone, prepare(plan, backbone), folder)
    return records.load_records(folder)


def test_somebody_elses_metric_is_measured_recorded_and_shown(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = write_data(tmp_path / "data", images=12)
    plain = go(root, tmp_path / "plain")
    metrics.register(Missed)
    frame = go(root, tmp_path / "run")
    assert (frame["missed_pixels"] == frame["target_pixels"] - frame["intersection"]).all()
    assert set(frame["cell"]).isdisjoint(plain["cell"])  # other code of what evaluates
    assert frame[["intersection", "union", "mask"]].equals(plain[["intersection", "union", "mask"]])
    for table in (tmp_path / "run" / "records").glob("*/*.parquet"):
        table.unlink()
    (tmp_path / "run" / "done.json").unlink()
    assert records.load_records(tmp_path / "run").equals(frame)  # of the journals alone
    text = render(tmp_path / "run")[0].read_text()
    assert "| missed |" in " ".join(text.split())
    assert (
        "- missed: target pixels that are not painted over all target pixels in percent, mean of the columns"
        in text
    )
    csv = pd.read_csv(tmp_path / "run" / "leaderboard.csv")
    one = frame[frame["pruner"] == "uniform"]
    value = csv[csv["pruner"] == "uniform"]["missed"].item()
    assert value == one["missed_pixels"].sum() / one["target_pixels"].sum()
    both = render([tmp_path / "plain", tmp_path / "run"], tmp_path / "both")[0].read_text()
    assert f"missed was not measured in {len(plain)} of {2 * len(plain)} results" in both


def test_a_report_ranks_by_any_metric(tmp_path: Path) -> None:
    folder = store(tmp_path / "run", some_rows())
    frame = records.load_records(folder)
    (table,) = tables(gather([folder]), metric="giou")
    part = frame[(frame["pruner"] == "litelvlm") & (frame["dataset"] == "refcocog")]
    line = next(line for line in table.lines if line.pruner == "litelvlm")
    score = line.scores["refcocog", "val"]
    assert score.value == pytest.approx(metrics.get("giou").value(part), abs=1e-12)
    assert line.others["ciou"]["refcocog", "val"] == metrics.get("ciou").value(part)
    text = render(folder, metric="giou")[0].read_text()
    assert (
        "- data set and split: gIoU in percent: mean IoU over expressions, so every expression weighs the "
        "same." in text
    )
    assert "Published" not in text
    with pytest.raises(UserError, match=r"There is no metric 'gio'; .* Did you mean 'giou'"):
        render(folder, metric="gio")
    metrics.register(Missed)
    with pytest.raises(
        UserError, match="--metric missed is made of missed_pixels, target_pixels, which no run here"
    ):
        render(folder, metric="missed")


def test_where_lower_is_better_the_lowest_comes_first(tmp_path: Path) -> None:
    metrics.register(Missed)
    rows = [
        row | {"measures": {"missed_pixels": 100 - row["intersection"], "target_pixels": 100}}
        for row in some_rows()
    ]
    folder = store(tmp_path / "run", rows)
    by_iou, by_missed = (tables(gather([folder]), metric=name)[0] for name in ("ciou", "missed"))
    assert [line.pruner for line in by_missed.lines] == [line.pruner for line in by_iou.lines]
    first = {line.budget: line.against["best"].other for line in by_missed.lines if "best" in line.against}
    assert first == {
        line.budget: line.against["best"].other for line in by_iou.lines if "best" in line.against
    }
    values = [line.average.value for line in by_missed.lines if line.budget == 64 and line.average]
    assert values != sorted(values, reverse=True)
    text = render(folder, metric="missed")[0].read_text()
    assert "each by rising Avg." in text


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"measures": {"hits": float("nan")}}, "its measures is"),
        ({"measures": {"hits": "1"}}, "its measures is"),
        ({"measures": [1]}, "its measures is"),
        ({"cluster": 3}, "its cluster is '3'"),
        ({"frames": 0}, "its mask has 1 frames and its clip 0"),
        ({"frames": 0, "mask": ""}, "its medium is"),
        ({"views": 0}, "its medium is"),
        ({"tokens_llm": 3}, "its language model saw 3 tokens, 576"),
        ({"tokens_llm": 700.5}, "its tokens_llm is '700.5'"),
    ],
)
def test_new_fields_of_a_record_are_checked(change: dict[str, Any], said: str) -> None:
    row = next(row for row in some_rows() if row["pruner"] == "none")
    cell = {row["cell"]: {"setting": {}}}
    sound = row | {"iou": row["intersection"] / row["union"]}
    assert rows.validate(sound, cell)["cluster"] == "0"
    with pytest.raises(ValueError, match=said):
        rows.validate(sound | change, cell)
