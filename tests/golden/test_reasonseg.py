"""ReasonSeg against the official reader and loop: images, texts, masks, counts and scores.

`pytest tests/golden/test_reasonseg.py --golden-reasonseg DIR` checks another set in the same layout.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from harness import metrics
from harness.data import load_samples
from harness.data.reasonseg import Shapes, shapes_of

pytest.importorskip("cv2")


def table(pairs: list[tuple[int, int]]) -> dict[str, Any]:
    inner, outer = zip(*pairs, strict=True)
    return {"intersection": inner, "union": outer}


def scores(pairs: list[tuple[int, int]]) -> tuple[float, float]:
    return metrics.get("giou").value(table(pairs)), metrics.get("ciou").value(table(pairs))


def test_images_texts_masks_and_scores(
    golden_reasonseg_dir: Path, record_property: pytest.RecordProperty
) -> None:
    root = golden_reasonseg_dir / "dataset"
    samples = load_samples("reasonseg", "val", root)
    stored = {path.stem[7:]: np.load(path) for path in golden_reasonseg_dir.glob("reason_*.npz")}
    assert [sample.id for sample in samples] == [f"reasonseg:val:{name}" for name in sorted(stored)]
    pairs = []
    for sample in samples:
        arrays = stored[sample.id.rpartition(":")[2]]
        (asked,) = sample.expressions
        assert asked.text == arrays["texts"][0]
        assert asked.form == ("sentence" if arrays["is_sentence"] else "phrase")
        assert np.array_equal(sample.image(), arrays["image_rgb"])
        masks = sample.masks()
        assert masks.dtype == np.uint8 and np.array_equal(masks, arrays["gt_masks"])
        pairs.append(metrics.counts(arrays["pred_masks"][0] > 0, masks[0]))
        assert pairs[-1] == (arrays["intersection"][0, 1], arrays["union"][0, 1])
        assert scores(pairs[-1:]) == pytest.approx(tuple(arrays["giou_ciou"]), rel=1e-6, abs=1e-6)
    told = json.loads((golden_reasonseg_dir / "expected.json").read_text())["validate"]["ReasonSeg|val"]
    assert scores(pairs) == pytest.approx((told["giou"], told["ciou"]), rel=1e-6)
    record_property("arrays", 6 * len(samples))


def test_polygons(golden_reasonseg_dir: Path, record_property: pytest.RecordProperty) -> None:
    cases = json.loads((golden_reasonseg_dir / "polygons.json").read_text())
    stored = np.load(golden_reasonseg_dir / "polygons.npz")
    for number, case in enumerate(cases):
        mask = Shapes(1, shapes_of(case["shapes"])).mask(case["height"], case["width"])
        assert np.array_equal(mask, stored[f"mask_{number}"]), number
    record_property("arrays", len(cases))


def test_scores_with_what_is_ignored(
    golden_reasonseg_dir: Path, record_property: pytest.RecordProperty
) -> None:
    stored = np.load(golden_reasonseg_dir / "metric.npz")
    every = []
    for number, official in enumerate(stored["per_image_giou_ciou"]):
        logits, truths = stored[f"logits_{number}"], stored[f"gt_{number}"]
        counted = metrics.measure(logits[:, None] > 0, truths[:, None])
        pairs = [(row["intersection"], row["union"]) for row in counted]
        assert pairs == [
            (i, u)
            for i, u in zip(
                stored[f"intersection_{number}"][:, 1], stored[f"union_{number}"][:, 1], strict=True
            )
        ]
        assert scores(pairs) == pytest.approx(tuple(official), rel=1e-6, abs=1e-9)
        every += pairs
    assert scores(every) == pytest.approx((float(stored["giou"]), float(stored["ciou"])), rel=1e-6)
    record_property("arrays", len(stored.files))
