"""Runs a sweep: every image is encoded once, and all cells are filled from that one encoding."""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from tqdm import tqdm

from backbones.base import Backbone, Encoding, Grounded, Row
from harness import data, metrics
from harness.protocol import Conversation, check_protocol, conversations
from harness.provenance import collect, differences
from harness.records import DONE, NO_EXPRESSION, RECORDS, RUN, Writer, run_info, write_atomically
from harness.sweep import Job, Setting, expand, jobs
from pruners.base import REFERENT, TEXT_EMBEDS, LayerPruner, Pruner, Selection, UserError, VisualTokens

IMAGES_AT_ONCE = 8  # encoded, grounded and written together; a run that goes on repeats such a part or skips it
PIXELS_AT_ONCE = 2**26  # of mask logits held in memory, 256 MiB


@dataclass(frozen=True)
class Plan:
    """What to run.

    Attributes:
        datasets: (data set, split) pairs.
        limit: images per split, 0 for all.
        root: folder with the REFER layout, None for RefShapes alone.
    """

    pruners: tuple[Pruner, ...]
    budgets: tuple[int, ...]
    datasets: tuple[tuple[str, str], ...]
    protocol: str = "each"
    limit: int = 0
    seed: int = 0
    root: str | None = None

    def __post_init__(self) -> None:
        check_protocol(self.protocol)
        if self.limit < 0:
            raise UserError(f"--limit {self.limit} is negative; give a number of images, or 0 for all.")


@dataclass(frozen=True)
class Split:
    """Samples of a split and the cells that they fill."""

    samples: list[data.Sample]
    jobs: list[Job]


def prepare(plan: Plan, backbone: Backbone) -> list[Split]:
    """Load all splits and expand all cells; whatever the user got wrong shows here, before anything runs."""
    lines = expand(plan.pruners, plan.budgets, plan.seed, backbone.grid, backbone.num_layers)
    setting = Setting(backbone.name, backbone.fingerprint, plan.protocol, backbone.dtype, backbone.attn, backbone.device)
    splits = []
    for dataset, split in plan.datasets:
        samples = data.load(dataset, split, plan.root)
        samples = samples[: plan.limit] if plan.limit else samples
        splits.append(Split(samples, jobs(setting, dataset, split, data.fingerprint(samples), lines)))
    return splits


def identity(splits: Sequence[Split]) -> str:
    """Hash of all cells: two runs with the same identity have the same records."""
    return hashlib.sha256(json.dumps([job.cell.id for split in splits for job in split.jobs]).encode()).hexdigest()[:16]


def run(plan: Plan, backbone: Backbone, splits: Sequence[Split], folder: Path) -> Path:
    """Fill all cells into `folder`, continuing what is there.

    Raises:
        UserError: the folder holds another run or cannot be written.
    """
    name = identity(splits)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        known = run_info(folder)
        if known and known.get("run") != name:
            raise UserError(
                f"{str(folder)!r} holds another run ({known.get('run')}, this one is {name}); give a new --out folder."
            )
        if not known and (folder / RECORDS).exists():
            raise UserError(f"{str(folder)!r} holds records without run.json; give a new --out folder.")
        if (folder / DONE).exists():
            return folder
        facts = collect(backbone.device)
        if not known:
            asked = asdict(plan) | {"pruners": [pruner.spec() for pruner in plan.pruners]}
            cells = {job.cell.id: asdict(job.cell) for split in splits for job in split.jobs}
            write_atomically(folder / RUN, {"run": name, "asked": asked, "provenance": facts, "cells": cells})
        elif changed := differences(known.get("provenance", {}), facts):
            known.setdefault("continued", []).append({"changed": changed, "provenance": facts})
            write_atomically(folder / RUN, known)
        writer = Writer(folder)
    except OSError as error:
        raise UserError(f"Cannot write to {str(folder)!r} ({error.strerror}); give --out a folder that you may write.") from error
    try:
        total = sum(len(split.samples) for split in splits)
        with tqdm(total=total, unit="image", disable=not sys.stderr.isatty()) as bar:
            for split in splits:
                for start in range(0, len(split.samples), IMAGES_AT_ONCE):
                    part = split.samples[start : start + IMAGES_AT_ONCE]
                    bar.set_description(f"{part[0].dataset} {part[0].split}")
                    if not writer.has([job.cell.id for job in split.jobs], [sample.id for sample in part]):
                        writer.append(_run_part(part, split.jobs, backbone, plan))
                    bar.update(len(part))
        write_atomically(folder / DONE, {"run": name})
    except torch.OutOfMemoryError as error:
        raise UserError(
            f"{backbone.device} is out of memory; give the same command with --out {folder} and a smaller --batch-size to go on."
        ) from error
    except OSError as error:
        raise UserError(
            f"Writing to {str(folder)!r} failed ({error.strerror}); nothing recorded is lost, "
            "make room and give the same command with this --out again."
        ) from error
    finally:
        writer.close()
    return folder


@dataclass(frozen=True)
class _Asked:
    """A row for the backbone and where its answer belongs; `of` counts the expressions of its (cell, sample)."""

    row: Row
    sample: data.Sample
    job: Job
    talk: Conversation
    truth: NDArray[np.uint8]
    of: int

    @property
    def pixels(self) -> int:
        return len(self.talk.turns) * self.truth[0].size


def _run_part(
    samples: Sequence[data.Sample], jobs_of_split: Sequence[Job], backbone: Backbone, plan: Plan
) -> Iterator[dict[str, Any]]:
    """Records of a few images under all cells."""
    readable: list[tuple[data.Sample, NDArray[np.uint8], NDArray[np.uint8]]] = []
    for sample in samples:
        try:
            readable.append((sample, sample.image(), sample.masks()))
        except UserError as error:
            yield from _failed(sample, jobs_of_split, error)
    asked: list[_Asked] = []
    encodings = _encode(backbone, [image for _, image, _ in readable])
    for (sample, _, truth), encoding in zip(readable, encodings, strict=True):
        if isinstance(encoding, Exception):
            yield from _failed(sample, jobs_of_split, encoding)
            continue
        talks = conversations(sample, plan.protocol, plan.seed)
        of = sum(len(talk.expressions) for talk in talks)
        for job in jobs_of_split:
            for talk, selection in _select(backbone, sample, encoding, talks, truth, job):
                row = Row(encoding, talk.turns, job.pruner, job.cell.budget, selection)
                asked.append(_Asked(row, sample, job, talk, truth, of))
    for portion in _portions(asked):
        for one, result in zip(portion, backbone.ground([one.row for one in portion]), strict=True):
            yield from _score(one, result)


def _encode(backbone: Backbone, images: list[NDArray[np.uint8]]) -> list[Encoding | Exception]:
    """All images together; where that fails one by one, so that a bad image costs only itself."""
    if not images:
        return []
    try:
        return list(backbone.encode(images))
    except torch.OutOfMemoryError:
        raise
    except Exception as error:
        if len(images) == 1:
            return [error]
        return [encoding for image in images for encoding in _encode(backbone, [image])]


def _portions(asked: Sequence[_Asked]) -> Iterator[list[_Asked]]:
    """Cut the rows so that the masks of a portion stay within PIXELS_AT_ONCE."""
    portion: list[_Asked] = []
    pixels = 0
    for one in asked:
        if portion and pixels + one.pixels > PIXELS_AT_ONCE:
            yield portion
            portion, pixels = [], 0
        portion.append(one)
        pixels += one.pixels
    if portion:
        yield portion


def _select(
    backbone: Backbone,
    sample: data.Sample,
    encoding: Encoding,
    talks: Sequence[Conversation],
    truth: NDArray[np.uint8],
    job: Job,
) -> Iterator[tuple[Conversation, Selection | None]]:
    """What the pruner keeps for every conversation; once per image if it reads neither text nor truth."""
    chosen: Selection | None = None
    for talk in talks:
        if not isinstance(job.pruner, LayerPruner) and (chosen is None or job.pruner.needs & {TEXT_EMBEDS, REFERENT}):
            referent = truth[list(talk.expressions)] == metrics.FOREGROUND
            chosen = _chosen(job, backbone.tokens(encoding, talk.turns, sample.id, referent))
        yield talk, chosen


def _chosen(job: Job, tokens: VisualTokens) -> Selection:
    """The pruner's choice, checked.

    Raises:
        UserError: the pruner failed, or missed its budget: no fault of the image, so the run stops.
    """
    try:
        chosen = job.pruner.select(tokens.only(job.pruner.needs), job.cell.budget)
        count = chosen.tokens
    except (UserError, torch.OutOfMemoryError):
        raise
    except Exception as error:
        raise UserError(
            f"The pruner {job.cell.pruner} failed on {tokens.sample} at {job.cell.budget} tokens ({error!r}); "
            "see where with --debug."
        ) from error
    if count != job.cell.budget:
        raise UserError(
            f"The pruner {job.cell.pruner} kept {count} tokens where {job.cell.budget} were asked; "
            "a pruner has to end at exactly the budget."
        )
    return chosen


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
        "cell": cell.id,
        "sample": sample.id,
    }


def _failed(sample: data.Sample, jobs_of_split: Sequence[Job], error: Exception) -> Iterator[dict[str, Any]]:
    reason = str(error) if isinstance(error, UserError) else repr(error)
    for job in jobs_of_split:
        yield _common(job, sample) | {
            "status": "failed",
            "reason": reason,
            "expression": NO_EXPRESSION,
            "place": NO_EXPRESSION,
            "of": 1,
        }


def _score(one: _Asked, result: Grounded) -> Iterator[dict[str, Any]]:
    predictions = (result.logits > 0).numpy(force=True)
    for position, prediction in zip(one.talk.expressions, predictions, strict=True):
        inner, outer = metrics.counts(prediction, one.truth[position])
        yield _common(one.job, one.sample) | {
            "status": "ok",
            "expression": one.sample.expressions[position].id,
            "place": position,
            "of": one.of,
            "tokens_final": result.tokens_final,
            "tokens_mean": result.tokens_mean,
            "intersection": inner,
            "union": outer,
            "iou": float(metrics.iou([inner], [outer])[0]),
        }
