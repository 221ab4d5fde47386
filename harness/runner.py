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
from numpy.typing import NDArray
from tqdm import tqdm

from backbones.base import Backbone, Encoding, Grounded, Row
from harness import data, metrics
from harness.protocol import Conversation, check_protocol, conversations
from harness.provenance import collect
from harness.records import DONE, RECORDS, RUN, Writer, run_info, write_atomically
from harness.sweep import Job, Setting, expand, jobs
from pruners.base import REFERENT, TEXT_EMBEDS, LayerPruner, Pruner, Selection, UserError

IMAGES_AT_ONCE = 4  # encoded, and grounded, together


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
        if not known:
            asked = asdict(plan) | {"pruners": [pruner.spec() for pruner in plan.pruners]}
            cells = {job.cell.id: asdict(job.cell) for split in splits for job in split.jobs}
            facts = collect(backbone.device)
            write_atomically(folder / RUN, {"run": name, "asked": asked, "provenance": facts, "cells": cells})
        if (folder / DONE).exists():
            return folder
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
                    writer.append(_run_part(part, split.jobs, backbone, plan, writer.finished))
                    bar.update(len(part))
    except OSError as error:
        raise UserError(
            f"Writing to {str(folder)!r} failed ({error.strerror}); nothing recorded is lost, "
            "make room and give the same command with this --out again."
        ) from error
    finally:
        writer.close()
    write_atomically(folder / DONE, {"run": name})
    return folder


def _run_part(
    samples: Sequence[data.Sample],
    all_jobs: Sequence[Job],
    backbone: Backbone,
    plan: Plan,
    finished: set[tuple[str, str]],
) -> list[dict[str, Any]]:
    """Records of a few images under all cells that still miss them."""
    records: list[dict[str, Any]] = []
    ready: list[tuple[data.Sample, list[Job], NDArray[np.uint8], NDArray[np.uint8]]] = []
    for sample in samples:
        todo = [job for job in all_jobs if (job.cell.id, sample.id) not in finished]
        if not todo:
            continue
        try:
            ready.append((sample, todo, sample.image(), sample.masks()))
        except UserError as error:
            records += [
                _common(job, sample) | {"status": "failed", "reason": str(error), "expression": -1, "of": 1} for job in todo
            ]
    if not ready:
        return records
    encodings = backbone.encode([image for _, _, image, _ in ready])
    rows: list[Row] = []
    homes: list[tuple[data.Sample, Job, Conversation, NDArray[np.uint8]]] = []
    for (sample, todo, _, masks), encoding in zip(ready, encodings, strict=True):
        talks = conversations(sample, plan.protocol, plan.seed)
        for job in todo:
            for talk, selection in _select(backbone, sample, encoding, talks, masks, job):
                rows.append(Row(encoding, talk.turns, job.pruner, job.cell.budget, selection))
                homes.append((sample, job, talk, masks))
    for (sample, job, talk, masks), result in zip(homes, backbone.ground(rows), strict=True):
        of = len(conversations(sample, plan.protocol, plan.seed)) if len(talk.turns) == 1 else len(talk.turns)
        records += _score(sample, job, talk, masks, result, of)
    return records


def _select(
    backbone: Backbone,
    sample: data.Sample,
    encoding: Encoding,
    talks: Sequence[Conversation],
    masks: NDArray[np.uint8],
    job: Job,
) -> Iterator[tuple[Conversation, Selection | None]]:
    """What the pruner keeps for every conversation; once per image if it reads neither text nor truth."""
    shared: Selection | None = None
    for talk in talks:
        if isinstance(job.pruner, LayerPruner):
            yield talk, None
            continue
        if shared is None:
            asked = masks[list(talk.expressions)] == metrics.FOREGROUND
            tokens = backbone.tokens(encoding, talk.turns, sample.id, asked).only(job.pruner.needs)
            chosen = job.pruner.select(tokens, job.cell.budget)
            if chosen.tokens != job.cell.budget:
                raise UserError(
                    f"The pruner {job.cell.pruner} kept {chosen.tokens} tokens where {job.cell.budget} were asked; "
                    "a pruner has to end at exactly the budget."
                )
            if not job.pruner.needs & {TEXT_EMBEDS, REFERENT}:
                shared = chosen
            yield talk, chosen
        else:
            yield talk, shared


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


def _score(
    sample: data.Sample, job: Job, talk: Conversation, masks: NDArray[np.uint8], result: Grounded, of: int
) -> Iterator[dict[str, Any]]:
    predictions = (result.logits > 0).numpy(force=True)
    for position, prediction in zip(talk.expressions, predictions, strict=True):
        inner, outer = metrics.counts(prediction, masks[position])
        yield _common(job, sample) | {
            "status": "ok",
            "expression": sample.expressions[position].id,
            "of": of,
            "tokens_final": result.tokens_final,
            "tokens_mean": result.tokens_mean,
            "intersection": inner,
            "union": outer,
            "iou": float(metrics.iou([inner], [outer])[0]),
        }
