"""J and F against the official evaluation of DAVIS and MeViS, bit for bit: radius, boundary maps, frames,
matching, statistics and means.

`pytest tests/golden/test_video.py --golden-video DIR` checks another set in the same layout.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pycocotools import mask as coco_mask

from harness import metrics
from harness.metrics import boundary, video
from harness.metrics.sequences import Statistics, over_objects, statistics
from tests.golden.arrays import Arrays

Stored = Any  # numpy.lib.npyio.NpzFile


@pytest.fixture
def arrays(request: pytest.FixtureRequest) -> Arrays:
    return Arrays(request.node.user_properties)


def opened(folder: Path, name: str) -> Stored:
    """A file of the set."""
    path = folder / f"{name}.npz"
    if not path.is_file():
        pytest.skip(f"{folder} has no {path.name}")
    return np.load(path)


def masks(stored: Stored, key: str, shape: np.ndarray) -> np.ndarray:
    """Packed masks, (T, H, W) bool."""
    return np.unpackbits(stored[key], count=int(np.prod(shape))).reshape(shape).astype(bool)


# --- frames


@pytest.mark.parametrize("name", ["jf_small", "jf_large"])
def test_frames(golden_video_dir: Path, arrays: Arrays, name: str) -> None:
    stored = opened(golden_video_dir, name)
    cases = sorted(key.removesuffix("_shape") for key in stored.files if key.endswith("_shape"))
    assert cases
    for case in cases:
        shape = stored[f"{case}_shape"]
        predictions, targets = (masks(stored, f"{case}_{side}", shape) for side in ("pred", "gt"))
        void = masks(stored, f"{case}_void", shape) if f"{case}_void" in stored else None
        arrays.equal(boundary.radius(*shape[1:].tolist()), stored[f"{case}_bound"], case)
        counts = video.clip_counts(predictions[None], targets[None], void)[0, 0]
        j, f = video.over_frames(counts)
        arrays.equal(j, stored[f"{case}_J"], case)
        arrays.equal(f, stored[f"{case}_F"], case)
        for side, one, size in (("pred", predictions, counts[:, 3]), ("gt", targets, counts[:, 5])):
            official = masks(stored, f"{case}_{side}_boundary", shape)
            seen = one if void is None else one & ~void
            arrays.equal(np.stack(list(map(boundary.boundary_map, seen))), official, case)
            assert size.tolist() == official.sum(axis=(1, 2)).tolist()


def test_frames_as_metrics_measure_them(golden_video_dir: Path, arrays: Arrays) -> None:
    stored = opened(golden_video_dir, "jf_small")
    for key in [key for key in stored.files if key.endswith("_shape")]:
        case, shape = key.removesuffix("_shape"), stored[key]
        truths = masks(stored, f"{case}_gt", shape).astype(np.uint8)
        if f"{case}_void" in stored:
            truths[masks(stored, f"{case}_void", shape)] = metrics.IGNORED
        (row,) = metrics.measure(masks(stored, f"{case}_pred", shape)[None], truths[None], "video")
        j, f = metrics.frames_of(row)
        arrays.equal(j, stored[f"{case}_J"], case)
        arrays.equal(f, stored[f"{case}_F"], case)
        means = (stored[f"{case}_J"].mean(), stored[f"{case}_F"].mean())
        assert metrics.means_of(row) == means == (row["j"], row["f"]) == (row["j_fixed"], row["f_fixed"])


# --- sequences


def sequences(stored: Stored) -> Iterator[tuple[str, np.ndarray, np.ndarray, np.ndarray]]:
    """Name, predictions (P, T, H, W) padded with empty ones, targets (G, T, H, W) and void (T, H, W)."""
    for name in stored["sequences"].tolist():
        truth, given = stored[f"{name}_gt"], stored[f"{name}_pred"]
        targets = int(stored[f"{name}_num_objects"])
        count = max(targets, int(given.max()))
        yield (
            name,
            np.stack([given == number for number in range(1, count + 1)]),
            np.stack([truth == number for number in range(1, targets + 1)]),
            truth == metrics.IGNORED,
        )


def compare(
    stored: Stored, task: str, found: dict[str, tuple[np.ndarray, np.ndarray]], arrays: Arrays
) -> None:
    """Hold objects' curves (J, F), in the official order, to what an evaluator printed of them."""
    arrays.equal(np.array(list(found)), stored[f"{task}_objects"], task)
    both: list[Statistics] = []
    for place, name in enumerate(("J", "F")):
        told = [statistics(curves[place]) for curves in found.values()]
        for letter, fact in (("M", "mean"), ("R", "recall"), ("D", "decay")):
            arrays.equal([getattr(one, fact) for one in told], stored[f"{task}_{name}_{letter}"], task)
        both.append(over_objects(told))
    j, f = both
    every = [(j.mean + f.mean) / 2, j.mean, j.recall, j.decay, f.mean, f.recall, f.decay]
    arrays.equal(every, stored[f"{task}_global"], task)


def test_sequences_of_the_unsupervised_task(golden_video_dir: Path, arrays: Arrays) -> None:
    stored = opened(golden_video_dir, "davis_sequences")
    found = {}
    for name, predictions, targets, void in sequences(stored):
        counts = video.clip_counts(predictions, targets, void)
        j, f = video.over_frames(counts)
        arrays.equal(j, stored[f"{name}_Jmat"], name)
        arrays.equal(f, stored[f"{name}_Fmat"], name)
        for number, pair in enumerate(zip(*video.matching(counts), strict=True), start=1):
            found[f"{name}_{number}"] = video.over_frames(counts[pair])
    compare(stored, "unsupervised", found, arrays)


def test_sequences_of_the_semisupervised_task(golden_video_dir: Path, arrays: Arrays) -> None:
    stored = opened(golden_video_dir, "davis_sequences")
    found = {}
    for name, predictions, targets, _ in sequences(stored):
        if len(predictions) == len(targets):  # the official code ends at a surplus one
            for number, pair in enumerate(zip(predictions, targets, strict=True), start=1):
                counts = video.clip_counts(*(one[None, 1:-1] for one in pair))[0, 0]
                found[f"{name}_{number}"] = video.over_frames(counts)
    compare(stored, "semi", found, arrays)


def test_sequences_as_metrics_measure_them(golden_video_dir: Path, arrays: Arrays) -> None:
    stored = opened(golden_video_dir, "davis_sequences")
    names = stored["unsupervised_objects"].tolist()
    official = {fact: dict(zip(names, stored[f"unsupervised_{fact}_M"], strict=True)) for fact in "JF"}
    for name, predictions, targets, void in sequences(stored):
        if len(predictions) > len(targets):  # answers are as many as expressions
            continue
        truths = np.where(void, metrics.IGNORED, targets).astype(np.uint8)
        rows = metrics.measure(predictions, truths, "video")
        for fact, column in (("J", "j"), ("F", "f")):
            told = sorted(official[fact][f"{name}_{number}"] for number in range(1, len(rows) + 1))
            arrays.equal(sorted(row[column] for row in rows), np.array(told), name)
            own = [stored[f"{name}_{fact}mat"][k, k] for k in range(len(rows))]
            arrays.equal([row[f"{column}_fixed"] for row in rows], np.array([k.mean() for k in own]), name)
        assert [metrics.means_of(row) for row in rows] == [(row["j"], row["f"]) for row in rows]


# --- expressions


def test_expressions(golden_video_dir: Path, arrays: Arrays) -> None:
    stored = opened(golden_video_dir, "mevis_expressions")
    meta, known = (json.loads(str(stored[f"{name}_json"])) for name in ("meta_expressions", "mask_dict"))
    rows = []
    for name in stored["expressions"].tolist():
        clip, _, expression = name.rpartition("_")
        shape = stored[f"{name}_shape"]
        target = np.zeros(shape, dtype=np.uint8)
        for number in meta["videos"][clip]["expressions"][expression]["anno_id"]:
            for frame, coded in enumerate(known[str(number)]):
                if coded is not None:
                    target[frame] |= coco_mask.decode(coded)
        (row,) = metrics.measure(masks(stored, f"{name}_pred", shape)[None], target[None], "video")
        j, f = metrics.frames_of(row)
        arrays.equal(j, stored[f"{name}_Jt"], name)
        arrays.equal(f, stored[f"{name}_Ft"], name)
        rows.append(row)
    table = {column: [row[column] for row in rows] for column in video.VideoMetric.columns}
    arrays.equal(table["j"], stored["J"], "J")
    arrays.equal(table["f"], stored["F"], "F")
    j, f = (metrics.get(name).value(table) for name in ("j", "f"))
    arrays.equal([j, f, (j + f) / 2], stored["summary"], "summary")
    # a mean of means is one more sum, so another last bit
    assert metrics.get("j&f").value(table) == pytest.approx((j + f) / 2, rel=1e-15)
