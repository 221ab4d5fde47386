"""Fills cells: the rows of a few media under all pruners and budgets, from one encoding of each."""

from __future__ import annotations

from collections.abc import Container, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import numpy as np
import torch

from backbones.base import Backbone, ClipEncoding, ClipPixels, Conversation, Encoding, Grounded, Pixels, Row
from harness import data
from harness.engine.cells import Job
from harness.engine.chosen import Chosen, Seen, shares_of
from harness.engine.prefetch import Loaded, LoadedMedium
from harness.engine.rounding import of_type, perturbed, same_choice
from harness.engine.scores import masks_of, measured
from harness.engine.steps import CHOSEN, DRAWN, READ, Steps
from harness.store.rows import NO_EXPRESSION, description, pack_tokens
from pruners import checks
from pruners.base import Selection, UserError


@dataclass(frozen=True)
class _Asked:
    """A row for the backbone and where its answer belongs.

    Attributes:
        of: expressions of its (cell, sample).
        stable: whether rounding leaves the choice as it is; None where nobody looked.
        twin: whether this is the row before once more, from features that are rounded otherwise.
    """

    row: Row
    seen: Seen
    job: Job
    talk: Conversation
    of: int
    stable: bool | None = None
    twin: bool = False


Asks = Mapping[str, Sequence[Job]]  # cells of every sample, by its id


def fill(
    media: Sequence[LoadedMedium],
    asks: Asks,
    backbone: Backbone,
    protocol: str,
    seed: int,
    *,
    share: bool = True,
    probed: Container[str] = (),
    steps: Steps | None = None,
) -> Iterator[dict[str, Any]]:
    """Records of a few media under all cells of the splits that they are of.

    Args:
        share: encode every medium once and let rows share the layers and tokens that they have in common;
            without, every cell does everything anew.
        probed: samples of which is looked at what rounding changes.
        steps: told how far it is.
    """
    steps = steps or Steps()
    for part in [asks] if share else _one_by_one(asks):
        asking = [
            one._replace(samples=samples)
            for one in media
            if (samples := [asked for asked in one.samples if part.get(asked.sample.id)])
        ]
        yield from _fill(asking, part, backbone, protocol, seed, share, probed, steps)


def _one_by_one(asks: Asks) -> list[Asks]:
    """Each cell by itself."""
    found: dict[str, dict[str, list[Job]]] = {}
    for sample, jobs in asks.items():
        for job in jobs:
            found.setdefault(job.cell.id, {})[sample] = [job]
    return list(found.values())


def _fill(
    media: Sequence[LoadedMedium],
    asks: Asks,
    backbone: Backbone,
    protocol: str,
    seed: int,
    share: bool,
    probed: Container[str],
    steps: Steps,
) -> Iterator[dict[str, Any]]:
    for jobs in asks.values():
        for job in jobs:
            checks.watch(job.pruner)
    for one in media:
        for loaded in one.samples:
            if loaded.truth is None:
                yield from failed(loaded.sample, asks[loaded.sample.id], loaded.error)
    readable = [
        (one.pixels, [(loaded.sample, loaded.truth) for loaded in one.samples if loaded.truth is not None])
        for one in media
        if one.pixels is not None and any(loaded.truth is not None for loaded in one.samples)
    ]
    asked: list[_Asked] = []
    steps.expect(CHOSEN, sum(len(asks[sample.id]) for _, samples in readable for sample, _ in samples))
    encodings = _encode(backbone, [pixels for pixels, _ in readable])
    for (_, samples), encoding in zip(readable, encodings, strict=True):
        if isinstance(encoding, Exception):
            why = str(encoding) if isinstance(encoding, UserError) else repr(encoding)
            for sample, _ in samples:
                yield from failed(sample, asks[sample.id], why)
            continue
        shown, chosen = shown_by(backbone, encoding), Chosen(backbone, encoding)
        for sample, truth in samples:
            talks = conversations(backbone, sample, protocol, seed)
            of = sum(len(talk.expressions) for talk in talks)
            seen = Seen(sample, truth, shares_of(backbone, encoding, talks, truth, shown), shown)
            other = None
            if sample.id in probed:
                other = Chosen(backbone, perturbed(encoding, seed, sample.id, rounding_of(encoding)))
            for job in asks[sample.id]:
                asked += _asked(backbone, seen, chosen, other, talks, job, of)
                steps.add(CHOSEN)
    for step in (READ, DRAWN):
        steps.expect(step, len(asked))
    with steps.following(backbone):
        grounded = steps.counted(backbone.ground_rows([one.row for one in asked], share=share))
        results = zip(asked, grounded, strict=True)
        for _, together in groupby(results, key=lambda pair: (pair[0].seen.sample.id, pair[0].job.cell.id)):
            yield from _scored(list(together))


def conversations(backbone: Backbone, sample: data.Sample, protocol: str, seed: int) -> list[Conversation]:
    """A backbone's conversations of all that is asked of a sample; see `Backbone.conversations`."""
    texts = [one.text for one in sample.expressions]
    # phrase or sentence, of data sets that tell them apart
    forms = [one.form for one in sample.expressions]
    return backbone.conversations(sample.id, texts, protocol, seed, *([forms] if any(forms) else []))


def shown_by(backbone: Backbone, encoding: Encoding) -> tuple[int, ...]:
    """Number of the frame that every view of an encoding shows."""
    if isinstance(encoding, ClipEncoding):
        return encoding.shown
    return (0,) * len(backbone.regions_of(encoding))


def rounding_of(encoding: Encoding) -> float:
    """Relative noise that stands for another kernel's rounding of an encoding."""
    return of_type(encoding.hidden_states[-1].dtype)


def _asked(
    backbone: Backbone,
    seen: Seen,
    tokens: Chosen,
    other: Chosen | None,
    talks: Sequence[Conversation],
    job: Job,
    of: int,
) -> Iterator[_Asked]:
    """The rows of one sample under one cell; behind each whose choice hangs on rounding, its twin from
    `other`."""
    # of what the language model gets of a view, where the model pools in front of it
    inside = backbone.sent(backbone.grid[0] * backbone.grid[1])
    cuts = job.pruner.cuts(job.cell.budget, inside, backbone.num_layers)
    encoding = tokens.encoding
    chosen = list(tokens.of(seen, talks, job))
    again: list[tuple[Conversation, tuple[Selection, ...]]] = []
    if other is not None:
        with suppress(UserError):  # what noise breaks says nothing of the sample
            again = list(other.of(seen, talks, job))

    def row(of: Encoding, talk: Conversation, selections: tuple[Selection, ...]) -> Row:
        cell = job.cell
        answers = cell.setting.answers
        where = seen.sample.id
        return Row(of, talk.turns, job.pruner, cell.budget, selections, where, cell.positions, answers)

    for k, (talk, selections) in enumerate(chosen):
        if other is None or not again:
            yield _Asked(row(encoding, talk, selections), seen, job, talk, of)
            continue
        twins = again[k][1]
        # what is chosen while the model runs is seen there
        stable = not cuts and all(
            same_choice(one, twin, rounding_of(encoding)) for one, twin in zip(selections, twins, strict=True)
        )
        yield _Asked(row(encoding, talk, selections), seen, job, talk, of, stable)
        if not stable:
            yield _Asked(row(other.encoding, talk, twins), seen, job, talk, of, twin=True)


def _scored(results: Sequence[tuple[_Asked, Grounded]]) -> Iterator[dict[str, Any]]:
    """The rows of one image under one cell; one that says why, if any of them has no answer."""
    first = results[0][0]
    error = next((result.error for one, result in results if result.error and not one.twin), "")
    if error:
        yield from failed(first.seen.sample, [first.job], error)
        return
    measured = _measured(first.seen, [pair for pair in results if not pair[0].twin])
    for k, (one, result) in enumerate(results):
        if one.twin:
            continue
        rows = list(_score(one, result, measured))
        if one.stable is False and not results[k + 1][1].error:
            moved = _exchanged(result, results[k + 1][1])
            twins = _measured(one.seen, [results[k + 1]])
            rows = [
                row | {"rounding_tokens": moved, "rounding_iou": twins[row["place"]]["iou"] - row["iou"]}
                for row in rows
            ]
        elif one.stable:
            rows = [row | {"rounding_tokens": 0.0, "rounding_iou": 0.0} for row in rows]
        yield from rows


def _measured(seen: Seen, results: Sequence[tuple[_Asked, Grounded]]) -> dict[int, dict[str, Any]]:
    """Every answer's mask and what metrics count of it, by the expression's place."""
    answers = {
        position: mask
        for one, result in results
        for position, mask in zip(one.talk.expressions, masks_of(result), strict=True)
    }
    return measured(seen.sample, seen.truth, answers)


def _exchanged(one: Grounded, other: Grounded) -> float:
    """How many patches the one kept that the other did not."""
    kept = [result.retained.numpy(force=True) for result in (one, other)]
    return float(len(np.setdiff1d(kept[0][kept[0] >= 0], kept[1])))


def _encode(backbone: Backbone, pixels: list[Pixels | ClipPixels]) -> list[Encoding | Exception]:
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


def description_rows(one: Loaded, image: str, code: str) -> Iterator[dict[str, Any]]:
    """What was asked of an image: one row per expression, of no cell.

    Args:
        code: digest of the code that evaluates, which makes the masks.
        image: path of a picture of it below the run folder, or empty.
    """
    if one.truth is None:
        return
    for place, expression in enumerate(one.sample.expressions):
        yield {
            "status": "sample",
            "cell": description(code),
            "sample": one.sample.id,
            "place": place,
            "of": len(one.truth),
            "dataset": one.sample.dataset,
            "split": one.sample.split,
            "expression": expression.id,
            "text": expression.text,
            "group": expression.group,
            "height": one.sample.height,
            "width": one.sample.width,
            "truth": one.truth.runs(place) if one.sample.scored else "",
            "image": image,
            "content": one.content,
        }


def _score(one: _Asked, result: Grounded, measured: dict[int, dict[str, Any]]) -> Iterator[dict[str, Any]]:
    retained = result.retained.numpy(force=True)
    kept = pack_tokens(retained, one.seen.shares.shape[1])
    patches = np.unique(retained[retained >= 0])
    sample = one.seen.sample
    for turn, position in enumerate(one.talk.expressions):
        share = one.seen.shares[position]
        yield (
            _common(one.job, sample)
            | {
                "status": "ok",
                "expression": sample.expressions[position].id,
                "place": position,
                "of": one.of,
                "cluster": sample.cluster,
                "frames": len(sample.frames),
                "views": len(one.seen.shown),
                "shown": " ".join(map(str, one.seen.shown)) if len(sample.frames) > 1 else "",
                "tokens_llm": result.tokens_llm,
                "tokens_final": result.tokens_final,
                "tokens_mean": result.tokens_mean,
                "coverage": float(share[patches].sum() / share.sum())
                if share.any() and len(patches)
                else None,
                "kept": kept,
                **_answered(result, turn),
            }
            | measured[position]
        )


def _answered(result: Grounded, turn: int) -> dict[str, Any]:
    """What a row says of one turn's answer."""
    logprob = float("nan") if result.seg_logprob is None else float(result.seg_logprob[turn])
    return {
        "seg_said": None if result.said is None else int(result.said[turn]),
        "seg_logprob": None if np.isnan(logprob) else logprob,
        "wrote": "" if result.words is None else result.words[turn],
    }
