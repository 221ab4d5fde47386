"""From answers to rows: what is counted of masks, and what a row says of the tokens that stayed."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from backbones.base import Grounded
from backbones.parts.clips import BETWEEN, run_lengths
from harness.data.sample import Annotation, Expression, Sample, Track
from harness.engine.runner import Plan, prepare, run
from harness.engine.scores import masks_of, measured
from harness.engine.truth import ClipTruth, ImageTruth
from harness.store import records
from tests.fake_backbone import SIDE, FakeBackbone
from tests.refer_tree import HEIGHT, WIDTH, ref, write_tree

pytestmark = pytest.mark.usefixtures("no_figures")


def test_the_first_patch_is_kept_and_covers(tmp_path: Path) -> None:
    """An object that fills the upper left patch, and one that fills the last and half of that beside it."""
    high, wide = HEIGHT // SIDE, WIDTH // SIDE
    corner = [0, 0, wide, 0, wide, high, 0, high]
    left, right, top, bottom = WIDTH - 1.5 * wide, WIDTH, HEIGHT - high, HEIGHT
    last = [left, top, right, top, right, bottom, left, bottom]
    refs = [ref(1, 1, 11, "val", "the corner"), ref(2, 1, 12, "val", "the end")]
    root = write_tree(tmp_path / "data", refs, {11: [corner], 12: [last]}, images=(1,))
    plan = Plan(("none", "oracle", "downsample"), ("1",), "refcoco:val", data=str(root))
    backbone = FakeBackbone()
    run(plan, backbone, prepare(plan, backbone), tmp_path / "run")
    frame = records.load_records(tmp_path / "run").set_index(["pruner", "expression"]).sort_index()
    kept = {
        name: np.flatnonzero(records.kept_tokens(text, SIDE * SIDE)).tolist()
        for name, text in frame["kept"].items()
    }
    everything = list(range(SIDE * SIDE))
    assert kept["none", 10] == kept["none", 20] == everything
    assert (kept["oracle", 10], kept["oracle", 20]) == ([0], [63])
    assert kept["downsample", 10] == []  # a mean over all is no patch
    assert frame["coverage"]["oracle"].tolist() == pytest.approx([1, 2 / 3])
    assert frame["coverage"]["none"].tolist() == pytest.approx([1, 1])
    assert frame["coverage"]["downsample"].isna().all()


# --- what is counted of masks


HIGH, LONG = 4, 6


def box(left: int, right: int) -> Annotation:
    """An object of full height."""
    return Annotation(left * 10 + right, [[left, 0, right, 0, right, HIGH, left, HIGH]])


def columns(left: int, right: int) -> NDArray[np.bool_]:
    mask = np.zeros((HIGH, LONG), dtype=bool)
    mask[:, left:right] = True
    return mask


def asked(*groups: str) -> tuple[Expression, ...]:
    return tuple(Expression(10 + k, f"thing {k}", k, group) for k, group in enumerate(groups))


def image_of(dataset: str = "refcoco", **facts: Any) -> Sample:
    """Two objects: columns 0 to 2, and none."""
    targets = ((box(0, 3),), ())
    more: dict[str, Any] = {"height": HIGH, "width": LONG, "targets": targets} | facts
    return Sample(f"{dataset}:val:1", dataset, "val", 1, (Path("1.png"),), asked("", ""), **more)


def clip_of(*groups: str, dataset: str = "mevis", unspoken: tuple[Annotation, ...] = ()) -> Sample:
    """Two frames; the first object moves to the right, the second is to be seen in the second frame alone."""
    one, two = [box(0, 2).segmentation, box(1, 3).segmentation], [[], box(4, 6).segmentation]
    targets = ((Track(1, one),), (Track(2, two),))
    return Sample(
        f"{dataset}:val:c",
        dataset,
        "val",
        1,
        (Path("0.png"), Path("1.png")),
        asked(*groups),
        height=HIGH,
        width=LONG,
        targets=targets,
        unspoken=unspoken,
    )


def runs(*frames: NDArray[np.bool_]) -> str:
    return BETWEEN.join(map(run_lengths, frames))


def test_what_is_counted_of_an_images_answers() -> None:
    """Each by its place, whatever the order and whichever others there are."""
    sample = image_of()
    found = measured(sample, ImageTruth(sample), {1: columns(0, 1), 0: columns(2, 4)})
    assert list(found) == [0, 1]
    first, second = found[0], found[1]
    assert (first["intersection"], first["union"], first["iou"]) == (4, 16, 0.25)
    assert (second["intersection"], second["union"], second["iou"]) == (0, 4, 0.0)
    assert first["mask"] == run_lengths(columns(2, 4)) and first["curves"] == {} == first["measures"]
    alone = measured(sample, ImageTruth(sample), {1: columns(0, 0)})
    assert list(alone) == [1] and (alone[1]["union"], alone[1]["iou"]) == (0, 1.0)


def test_metrics_of_a_data_set_are_measured_on_it() -> None:
    sample = image_of("grefcoco")
    found = measured(sample, ImageTruth(sample), {0: columns(2, 4), 1: columns(0, 0)})
    assert found[0]["measures"] == {"gres_target": 12, "gres_mask": 8, "gres_both": 4}
    assert found[1]["measures"] == {"gres_target": 0, "gres_mask": 0, "gres_both": 0}


def test_where_the_truth_is_not_known_nothing_is_counted() -> None:
    sample = image_of(scored=False)
    (found,) = measured(sample, ImageTruth(sample), {0: columns(2, 4)}).values()
    assert (found["intersection"], found["union"], found["iou"], found["measures"]) == (0, 0, 1.0, {})
    assert found["mask"] == run_lengths(columns(2, 4))


def test_what_is_counted_of_a_clips_answers() -> None:
    """Those of nobody in particular each alone, so that both may be the same object."""
    sample = clip_of("", "")
    answer = runs(columns(0, 2), columns(0, 3))
    found = measured(sample, ClipTruth(sample), {0: answer, 1: answer})
    assert (found[0]["intersection"], found[0]["union"]) == (16, 20)
    assert (found[1]["intersection"], found[1]["union"]) == (0, 28)
    assert found[0]["curves"]["j_inner"] == [8, 8] and found[0]["curves"]["j_outer"] == [8, 12]
    assert found[0]["measures"]["j"] == pytest.approx((1 + 2 / 3) / 2)
    assert found[1]["curves"]["j_outer"] == [8, 20] and found[1]["measures"]["j"] == 0
    assert found[0]["mask"] == answer and found[0]["iou"] == 0.8
    assert found[0]["measures"]["n_rest"] == 0


def test_answers_of_one_group_are_matched_and_others_are_not() -> None:
    """Exchanged answers fit best the other way round; objects nobody speaks of count with the first."""
    sample = clip_of("a", "a", dataset="ref-davis17", unspoken=(Track(3, [box(5, 6).segmentation] * 2),))
    first, second = runs(columns(0, 2), columns(1, 3)), runs(columns(0, 0), columns(4, 6))
    found = measured(sample, ClipTruth(sample), {0: second, 1: first})
    assert [found[k]["measures"]["j"] for k in (0, 1)] == [1, 1]
    assert [found[k]["measures"]["j_fixed"] for k in (0, 1)] == [0, 0]
    assert [found[k]["measures"]["n_rest"] for k in (0, 1)] == [1, 0]
    assert found[0]["intersection"] == 0 and found[1]["intersection"] == 0  # each with its own target
    apart = clip_of("a", "b", dataset="ref-davis17")
    found = measured(apart, ClipTruth(apart), {0: second, 1: first})
    assert [found[k]["measures"]["j"] for k in (0, 1)] == [0, 0]


def test_a_logit_of_zero_is_background() -> None:
    logits = torch.tensor([[[-1.0, 0.0, 0.5]]])
    (mask,) = masks_of(Grounded(logits, (1,), torch.tensor([0])))
    assert np.asarray(mask).tolist() == [[False, False, True]]
    frames = Grounded(logits, (1,), torch.tensor([0]), runs=(("0o", "1o"), ("2o", "3o")))
    assert masks_of(frames) == ["0o 1o", "2o 3o"]


def test_truths() -> None:
    """What overlaps in one object is no class; of a clip the first frames come first."""
    twice = Annotation(1, [*box(0, 3).segmentation, *box(2, 4).segmentation])
    sample = image_of(targets=((twice,), (box(4, 6),)))
    truth = ImageTruth(sample)
    assert len(truth) == 2 and truth.of([1, 0]).shape == (2, 1, HIGH, LONG)
    assert truth.of([0])[0, 0, 0].tolist() == [1, 1, 2, 1, 0, 0]
    assert truth.seen([1, 0], (0,))[:, 0].astype(int).tolist() == [[0, 0, 0, 0, 1, 1], [1, 1, 0, 1, 0, 0]]
    assert truth.runs(1) == run_lengths(columns(4, 6)) and truth.unspoken().shape == (0, 1, HIGH, LONG)
    clip = clip_of("", "", unspoken=(Track(3, [box(5, 6).segmentation, box(0, 1).segmentation]),))
    moving = ClipTruth(clip)
    assert len(moving) == 2 and moving.of([0, 1]).shape == (2, 2, HIGH, LONG)
    assert moving.of([0])[0, :, 0].tolist() == [[1, 1, 0, 0, 0, 0], [0, 1, 1, 0, 0, 0]]
    assert moving.unspoken()[:, :, 0].tolist() == [[[0, 0, 0, 0, 0, 1], [1, 0, 0, 0, 0, 0]]]
    assert moving.seen([1, 0], (1, 0))[:, :, 0].astype(int).tolist() == [
        [[0, 0, 0, 0, 1, 1], [0, 1, 1, 0, 0, 0]],
        [[0, 0, 0, 0, 0, 0], [1, 1, 0, 0, 0, 0]],
    ]
    assert moving.runs(0) == runs(columns(0, 2), columns(1, 3))


class Painted(Track):
    """An object in whose second frame the last column is ignored."""

    def mask(self, height: int, width: int, frame: int = 0) -> NDArray[np.uint8]:
        found = super().mask(height, width, frame)
        if frame == 1:
            found[:, -1] = 255
        return found


def test_what_is_ignored_in_a_frame_is_ignored_there_alone() -> None:
    sample = clip_of("", "")
    targets = ((Painted(1, sample.targets[0][0].segmentation),), sample.targets[1])
    truth = ClipTruth(replace(sample, targets=targets))
    assert truth.of([1, 0])[:, :, 0].tolist() == [
        [[0, 0, 0, 0, 0, 0], [0, 0, 0, 0, 1, 1]],
        [[1, 1, 0, 0, 0, 0], [0, 1, 1, 0, 0, 255]],
    ]
    assert truth.runs(0) == runs(columns(0, 2), columns(1, 3))
    assert not truth.seen([0], (1,))[0, 0, :, -1].any()


def test_a_clips_truth_is_decoded_once_as_far_as_memory_allows(monkeypatch: pytest.MonkeyPatch) -> None:
    sample = clip_of("", "")
    size = 2 * HIGH * LONG  # bytes of an object's two frames
    monkeypatch.setattr("harness.engine.truth.MOST_HELD", size)
    truth = ClipTruth(sample)
    first = truth.of([0])
    assert truth.of([0]) is first and truth.of([1]) is not truth.of([1])
    assert truth.of([1]).tolist() == ClipTruth(sample).of([1]).tolist()
