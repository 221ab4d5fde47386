"""Fills cells: the rows of a few images under all pruners and budgets, from one encoding of each."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from pycocotools import mask as coco_mask

from backbones.base import Backbone, Encoding, Grounded, Pixels, Row
from harness import data, metrics
from harness.loading import Loaded
from harness.protocol import Conversation, conversations
from harness.rows import NO_CELL, NO_EXPRESSION, pack_tokens
from harness.sweep import Job
from pruners import checks
from pruners.base import REFERENT, TEXT_EMBEDS, LayerPruner, Selection, UserError


@dataclass(frozen=True)
class _Asked:
    """A row for the backbone and where its answer belongs; `of` counts the expressions of its (cell, sample)."""

    row: Row
    seen: _Seen
    job: Job
    talk: Conversation
    of: int


@dataclass(frozen=True, eq=False)
class _Seen:
    """An image with its truth; `shares` (E, N) is the part of every patch that an expression's referent covers."""

    sample: data.Sample
    truth: NDArray[np.uint8]
    shares: NDArray[np.float64]


def fill(
    loaded: Sequence[Loaded], jobs: Sequence[Job], backbone: Backbone, protocol: str, seed: int, *, share: bool = True
) -> Iterator[dict[str, Any]]:
    """Records of a few images under all cells of their split.

    Args:
        share: encode every image once and let rows share the layers and tokens that they have in common; without, every
            cell does everything anew.
    """
    for part in [jobs] if share else [[job] for job in jobs]:
        yield from _fill(loaded, part, backbone, protocol, seed, share)


def _fill(
    loaded: Sequence[Loaded], jobs: Sequence[Job], backbone: Backbone, protocol: str, seed: int, share: bool
) -> Iterator[dict[str, Any]]:
    for job in jobs:
        checks.watch(job.pruner)
    readable = []
    for image in loaded:
        if image.pixels is None or image.truth is None:
            yield from failed(image.sample, jobs, image.error)
        else:
            readable.append((image.sample, image.pixels, image.truth))
    asked: list[_Asked] = []
    encodings = _encode(backbone, [pixels for _, pixels, _ in readable])
    for (sample, _, truth), encoding in zip(readable, encodings, strict=True):
        if isinstance(encoding, Exception):
            yield from failed(sample, jobs, str(encoding) if isinstance(encoding, UserError) else repr(encoding))
            continue
        talks = conversations(sample, protocol, seed)
        of = sum(len(talk.expressions) for talk in talks)
        seen = _Seen(sample, truth, _shares(backbone, sample, encoding, talks, truth))
        for job in jobs:
            for talk, selection in _select(backbone, seen, encoding, talks, job):
                asked.append(_Asked(Row(encoding, talk.turns, job.pruner, job.cell.budget, selection), seen, job, talk, of))
    results = zip(asked, backbone.ground_rows([one.row for one in asked], share=share), strict=True)
    for (seen, job), together in groupby(results, key=lambda pair: (pair[0].seen, pair[0].job)):
        yield from _scored(seen.sample, job, together)


def _scored(sample: data.Sample, job: Job, results: Iterable[tuple[_Asked, Grounded]]) -> Iterator[dict[str, Any]]:
    """The rows of one image under one cell; one that says why, if any of them has no answer."""
    rows: list[dict[str, Any]] = []
    error = ""
    for one, result in results:
        error = error or result.error
        if not error:
            rows += _score(one, result)
    yield from failed(sample, [job], error) if error else rows


def _encode(backbone: Backbone, pixels: list[Pixels]) -> list[Encoding | Exception]:
    """All images together; where that fails one by one, so that a bad image costs only itself."""
    if not pixels:
        return []
    try:
        return list(backbone.encode_pixels(pixels))
    except torch.OutOfMemoryError:
        raise
    except Exception as error:
        if len(pixels) == 1:
            return [error]
        return [encoding for one in pixels for encoding in _encode(backbone, [one])]


def _shares(
    backbone: Backbone, sample: data.Sample, encoding: Encoding, talks: Sequence[Conversation], truth: NDArray[np.uint8]
) -> NDArray[np.float64]:
    """(E, N) part of every patch that the referent of an expression covers."""
    shares = np.zeros((len(truth), backbone.grid[0] * backbone.grid[1]))
    for talk in talks:
        for position in talk.expressions:
            tokens = backbone.tokens(encoding, talk.turns, sample.id, truth[[position]] == metrics.FOREGROUND)
            shares[position] = tokens.referent.double().numpy(force=True)
    return shares


def _select(
    backbone: Backbone, seen: _Seen, encoding: Encoding, talks: Sequence[Conversation], job: Job
) -> Iterator[tuple[Conversation, Selection | None]]:
    """What the pruner keeps for every conversation; once per image if it reads neither text nor truth."""
    chosen: Selection | None = None
    for talk in talks:
        if not isinstance(job.pruner, LayerPruner) and (chosen is None or job.pruner.needs & {TEXT_EMBEDS, REFERENT}):
            referent = seen.truth[list(talk.expressions)] == metrics.FOREGROUND
            chosen = checks.select(job.pruner, backbone.tokens(encoding, talk.turns, seen.sample.id, referent), job.cell.budget)
        yield talk, chosen


def _common(job: Job, sample: data.Sample) -> dict[str, Any]:
    cell = job.cell
    return {
        "backbone": cell.setting.backbone,
        "dataset": cell.dataset,
        "split": cell.split,
        "protocol": cell.setting.protocol,
        "pruner": cell.pruner,
        "budget": cell.budget,
        "seed": cell.seed,
        "code": job.code,
        "cell": cell.id,
        "sample": sample.id,
    }


def failed(sample: data.Sample, jobs: Sequence[Job], reason: str) -> Iterator[dict[str, Any]]:
    """The rows of an image that cannot be evaluated: one per cell."""
    for job in jobs:
        yield _common(job, sample) | {
            "status": "failed",
            "reason": reason,
            "expression": NO_EXPRESSION,
            "place": NO_EXPRESSION,
            "of": 1,
        }


def described(one: Loaded, image: str) -> Iterator[dict[str, Any]]:
    """What was asked of an image: one row per expression, of no cell.

    Args:
        image: path of a picture of it below the run folder, or empty.
    """
    if one.truth is None:
        return
    for place, (expression, truth) in enumerate(zip(one.sample.expressions, one.truth, strict=True)):
        yield {
            "status": "sample",
            "cell": NO_CELL,
            "sample": one.sample.id,
            "place": place,
            "of": len(one.truth),
            "dataset": one.sample.dataset,
            "split": one.sample.split,
            "expression": expression.id,
            "text": expression.text,
            "height": one.sample.height,
            "width": one.sample.width,
            "truth": _run_lengths(truth == metrics.FOREGROUND),
            "image": image,
        }


def _run_lengths(mask: NDArray[np.bool_]) -> str:
    counts: bytes = coco_mask.encode(np.asfortranarray(mask, dtype=np.uint8))["counts"]
    return counts.decode()


def _score(one: _Asked, result: Grounded) -> Iterator[dict[str, Any]]:
    predictions = (result.logits > 0).numpy(force=True)
    retained = result.retained.numpy(force=True)
    kept = pack_tokens(retained, one.seen.shares.shape[1])
    patches = np.unique(retained[retained >= 0])
    for position, prediction in zip(one.talk.expressions, predictions, strict=True):
        inner, outer = metrics.counts(prediction, one.seen.truth[position])
        share = one.seen.shares[position]
        yield _common(one.job, one.seen.sample) | {
            "status": "ok",
            "expression": one.seen.sample.expressions[position].id,
            "place": position,
            "of": one.of,
            "tokens_final": result.tokens_final,
            "tokens_mean": result.tokens_mean,
            "intersection": inner,
            "union": outer,
            "iou": float(metrics.iou([inner], [outer])[0]),
            "coverage": float(share[patches].sum() / share.sum()) if share.any() and len(patches) else None,
            "kept": kept,
            "mask": _run_lengths(prediction),
        }
