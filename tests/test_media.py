"""Samples are media, and data sets are registered: clips of several frames, clusters that data sets share,
and a data set of somebody else's."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from harness import data
from harness.data import Annotation, DataError, DataSet, Expression, Sample, Splits, Track
from harness.data.registry import sets
from harness.engine.runner import Plan, prepare, run
from harness.metrics.overlap import GeneralIoU
from harness.metrics.registry import metrics as registry
from harness.store import code, records
from pruners import UserError, parse
from tests.fake_backbone import FakeBackbone
from tests.own_tree import write_own
from tests.refer_tree import HEIGHT, SHIFTED, SQUARE, WIDTH, ref, write_tree


@pytest.fixture(autouse=True)
def _forget(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(code, "STARTED", float("inf"))
    before = dict(sets.known), dict(registry.known)
    yield
    for one, kept in zip((sets, registry), before, strict=True):
        one.known.clear()
        one.known.update(kept)


def frames(folder: Path, count: int) -> tuple[Path, ...]:
    folder.mkdir(parents=True, exist_ok=True)
    paths = tuple(folder / f"{k:05d}.png" for k in range(count))
    for k, path in enumerate(paths):
        Image.fromarray(np.full((HEIGHT, WIDTH, 3), 10 * k, dtype=np.uint8)).save(path)
    return paths


def a_sample(folder: Path, count: int = 1, split: str = "val", number: int = 1) -> Sample:
    """A sample of the data set `squares` with two expressions by two people."""
    parts = Track(1, [[SQUARE], None, [SHIFTED]][:count]) if count > 1 else Annotation(1, [SQUARE])
    said = (Expression(0, "the square", 1, "anna"), Expression(1, "nothing", 2, "ben"))
    return Sample(
        f"squares:{split}:{number}",
        "squares",
        split,
        number,
        frames(folder, count),
        said,
        HEIGHT,
        WIDTH,
        ((parts,), ()),
    )


class Squares(DataSet):
    """What is under test; class attributes say where and what it loads."""

    name, reference = "squares", "a test"
    samples: tuple[Sample, ...] = ()

    def splits(self, dataset: str, root: Path | None) -> Splits:
        return Splits(["val"], [])

    def load(self, dataset: str, split: str, root: Path | None) -> list[Sample]:
        return list(self.samples)


# --- media


def test_a_clip_gives_its_frames_and_masks_when_they_are_asked_for(tmp_path: Path) -> None:
    clip = a_sample(tmp_path, 3)
    assert [int(clip.image(k).max()) for k in range(3)] == [0, 10, 20]
    sums = [[int(mask.sum()) for mask in clip.masks(k)] for k in range(3)]
    assert sums == [[400, 0], [0, 0], [400, 0]]
    assert clip.masks(0)[0, 5:25, 10:30].all() and clip.masks(2)[0, 15:35, 20:40].all()
    assert clip.cluster == clip.id
    clip.frames[1].unlink()
    assert (clip.image(2) == 20).all()
    with pytest.raises(DataError, match=r"00001\.png' of squares:val:1 is gone"):
        clip.image(1)


def test_the_content_of_a_clip_is_of_all_its_frames_and_masks(tmp_path: Path) -> None:
    clip = a_sample(tmp_path, 3)
    known = data.content(clip)
    assert known == data.content(a_sample(tmp_path / "copy", 3))
    others = [
        replace(clip, targets=((Track(1, [[SQUARE], [SQUARE], [SHIFTED]]),), ())),
        replace(clip, expressions=(replace(clip.expressions[0], group=""), clip.expressions[1])),
        replace(clip, frames=clip.frames[:2]),
    ]
    Image.fromarray(np.full((HEIGHT, WIDTH, 3), 99, dtype=np.uint8)).save(clip.frames[2])
    assert len({known, data.content(clip), *map(data.content, others)}) == 5


def test_a_class_of_ones_own_is_part_of_the_content(tmp_path: Path) -> None:
    """What its `mask` does cannot be seen from its fields."""

    class Inverted(Annotation):
        def mask(self, height: int, width: int, frame: int = 0) -> np.ndarray:
            return 1 - super().mask(height, width, frame)

    plain = a_sample(tmp_path)
    other = replace(plain, targets=((Inverted(1, [SQUARE]),), ()))
    assert other.masks()[0].sum() == HEIGHT * WIDTH - 400
    assert data.content(other) != data.content(plain)


def test_splits_that_share_images_share_clusters_and_equal_numbers_do_not(tmp_path: Path) -> None:
    write_tree(tmp_path, [ref(1, 1, 11, "val", "it"), ref(2, 1, 11, "testA", "it")])
    write_tree(tmp_path, [ref(1, 1, 11, "val", "it")], dataset="refcoco+")
    write_own(tmp_path)
    found = {
        f"{name}:{split}": [(s.image_id, s.cluster) for s in data.load_samples(name, split, tmp_path)]
        for name, split in (("refcoco", "val"), ("refcoco", "testA"), ("refcoco+", "val"), ("mine", "test"))
    }
    one = [(1, "coco_2014/train2014/1.png")]
    assert found == {
        "refcoco:val": one,
        "refcoco:testA": one,
        "refcoco+:val": one,
        "mine:test": [(8, "mine/images/b.png")],
    }
    inside = data.load_samples("refcoco", "val", tmp_path / "Refer_Segm")
    assert inside[0].cluster == one[0][1]  # wherever the root is said to be


# --- data sets of others


def test_a_registered_data_set_is_loaded_run_and_recorded(tmp_path: Path) -> None:
    Squares.samples = tuple(
        replace(a_sample(tmp_path / str(k), number=k), cluster="squares/one") for k in range(3)
    )
    data.register(Squares)
    clips = ["ref-davis17", "ref-youtube-vos", "mevis", "refclips"]
    assert data.names() == ["refshapes", "refer", "reasonseg", "own", *clips, "squares"]
    assert data.parse_datasets("squares,refshapes:val") == [("squares", "val"), ("refshapes", "val")]
    plan = Plan(tuple(parse("none,uniform")), (8,), (("squares", "val"),))
    backbone = FakeBackbone()
    assert run(plan, backbone, prepare(plan, backbone), tmp_path / "run")
    frame = records.load_records(tmp_path / "run")
    assert set(frame["cluster"]) == {"squares/one"} and set(frame["frames"]) == {1} == set(frame["views"])
    assert frame.groupby("text")["group"].unique().map(list).to_dict() == {
        "nothing": ["ben"],
        "the square": ["anna"],
    }
    assert frame["tokens_llm"].isna().all()  # this backbone does not say


@pytest.mark.parametrize(("kind", "made"), [(sets, Squares), (registry, GeneralIoU)])
def test_an_installed_package_is_found_by_its_entry_point(
    monkeypatch: pytest.MonkeyPatch, kind: Any, made: type
) -> None:
    point = importlib.metadata.EntryPoint("x", f"{made.__module__}:{made.__qualname__}", kind.group)
    asked = []
    monkeypatch.setattr(kind, "_entry_points_loaded", False)
    monkeypatch.setattr("pruners.plugins.entry_points", lambda group: asked.append(group) or [point])
    kind.known.pop(made.name, None)
    assert made.name in kind.names() and type(kind.get(made.name)) is made
    assert asked == [{"data set": "groundprune.datasets", "metric": "groundprune.metrics"}[kind.what]]
    broken = importlib.metadata.EntryPoint("broken", "no.such:Thing", kind.group)
    monkeypatch.setattr(kind, "_entry_points_loaded", False)
    monkeypatch.setattr("pruners.plugins.entry_points", lambda group: [broken])
    with pytest.raises(UserError, match=r"installed plugin 'broken' \(no\.such:Thing\) cannot be imported"):
        kind.names()
    monkeypatch.setattr(kind, "_entry_points_loaded", True)


def test_clips_are_not_taken_for_images(tmp_path: Path) -> None:
    class Clips(Squares):
        medium = "video"
        samples = (a_sample(tmp_path, 3),)

    data.register(Clips)
    with pytest.raises(
        DataError, match="squares holds samples of video, and image is what is looked at here"
    ):
        data.load_samples("squares", "val")
    assert len(data.load_samples("squares", "val", medium="video")[0].frames) == 3


@pytest.mark.parametrize(
    ("facts", "said"),
    [
        ({"name": "a:b"}, "cannot be named so: a name is letters"),
        ({"medium": "sound"}, "has the medium 'sound'"),
        ({"reference": ""}, "has no reference"),
        ({"name": "own"}, r"Two data sets are named 'own': .*own\.py:\d+ and .*test_media\.py"),
        ({"__abstractmethods__": frozenset({"load"})}, "cannot be made without arguments"),
    ],
)
def test_what_is_no_data_set_is_told_where_it_stands(facts: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError, match=said):
        made = type("Other", (Squares,), {"__module__": __name__})
        for name, value in facts.items():
            setattr(made, name, value)
        data.register(made)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda sample: [], "has no samples"),
        (lambda sample: [sample, sample], "has the sample id 'squares:val:1' 2 times"),
        (lambda sample: ["x"], "holds what is no harness.data.Sample"),
        (lambda sample: [replace(sample, id="squares:1")], "which does not begin with 'squares:val:'"),
        (lambda sample: [replace(sample, frames=())], "with 0 frames; an image has one"),
        (lambda sample: [replace(sample, frames=sample.frames * 2)], "with 2 frames"),
        (lambda sample: [replace(sample, height=0)], "of 64x0 px"),
        (lambda sample: [replace(sample, targets=())], "with 2 expressions and 0 targets"),
        (lambda sample: [replace(sample, expressions=(), targets=())], "with 0 expressions"),
        (
            lambda sample: [replace(sample, expressions=(sample.expressions[0],) * 2)],
            "with two expressions of one id",
        ),
    ],
)
def test_samples_are_checked_in_one_place(tmp_path: Path, change: Any, said: str) -> None:
    Squares.samples = tuple(change(a_sample(tmp_path)))
    data.register(Squares)
    with pytest.raises(DataError, match=said) as caught:
        data.load_samples("squares", "val")
    assert "squares:val as" in str(caught.value) and "test_media.py" in str(caught.value)
