"""Answers to numbers: what metrics count of the masks of one sample under one cell."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from backbones.base import Grounded
from backbones.parts.clips import BETWEEN, decoded, run_lengths
from harness import data, metrics
from harness.engine.truth import Truth
from harness.metrics import Medium

Mask = NDArray[np.bool_] | str  # (H, W) of an image, the run lengths of all frames of a clip


def measured(sample: data.Sample, truth: Truth, answers: Mapping[int, Mask]) -> dict[int, dict[str, Any]]:
    """What a record says of every answer's mask, by the expression's place.

    The answers to one group are measured together, and those about a clip that are of none each alone.
    """
    found: dict[int, dict[str, Any]] = {}
    video = any(isinstance(mask, str) for mask in answers.values())
    groups: dict[str, list[int]] = {}
    for position in sorted(answers):
        group = sample.expressions[position].group
        groups.setdefault(f"{group} {position}" if video and not group else group, []).append(position)
    for places in groups.values():
        if not sample.scored:  # the truth is not known here
            counts: list[dict[str, Any]] = [{"intersection": 0, "union": 0} for _ in places]
        else:
            predictions = np.stack([_dense(answers[place], sample) for place in places])
            truths = truth.of(places)
            medium: Medium = "video" if video else "image"
            if sample.expressions[places[0]].group:
                truths = np.concatenate([truths, truth.unspoken()])
            counts = metrics.measure(predictions, truths, medium, sample.dataset)
            if video:
                counts = [
                    one | _overlap(*pair) for one, *pair in zip(counts, predictions, truths, strict=False)
                ]
        for place, counted in zip(places, counts, strict=True):
            mask, inner, outer = answers[place], counted.pop("intersection"), counted.pop("union")
            curves = {name: value for name, value in counted.items() if isinstance(value, list)}
            found[place] = {
                "mask": mask if isinstance(mask, str) else run_lengths(mask),
                "intersection": inner,
                "union": outer,
                "iou": float(metrics.iou([inner], [outer])[0]),
                "measures": {name: value for name, value in counted.items() if name not in curves},
                "curves": curves,
            }
    return found


def masks_of(result: Grounded) -> Sequence[Mask]:
    """The M masks of a row: (H, W) of an image, the run lengths of all frames of a clip."""
    if result.runs is not None:
        return [BETWEEN.join(frames) for frames in result.runs]
    return list((result.logits > 0).numpy(force=True))


def _dense(mask: Mask, sample: data.Sample) -> NDArray[np.bool_]:
    """(T, H, W) bool."""
    return decoded(mask, sample.height, sample.width) if isinstance(mask, str) else mask[None]


def _overlap(prediction: NDArray[np.bool_], truth: NDArray[np.uint8]) -> dict[str, int]:
    """Pixels in the intersection and in the union of all frames."""
    width = prediction.shape[-1]
    inner, outer = metrics.counts(prediction.reshape(-1, width), truth.reshape(-1, width))
    return {"intersection": inner, "union": outer}
