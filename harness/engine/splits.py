"""The splits of a plan, ready to be run: their samples, and the cells that these fill."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from backbones.base import Backbone
from harness import data
from harness.engine.cells import Job, Setting, expand, jobs
from harness.engine.served import served
from harness.plan import Plan
from harness.progress import stage
from harness.store import code
from harness.store.rows import description

IMAGES_AT_ONCE = (
    8  # encoded, grounded and written together; at most nine, so that a digit counts a part's failures
)


@dataclass(frozen=True)
class Split:
    """Samples of a split and the cells that they fill.

    Attributes:
        contents: per sample the digest of its content.
        at_once: samples that are encoded, grounded, claimed and written together.
    """

    samples: list[data.Sample]
    jobs: list[Job]
    contents: list[str]
    at_once: int = IMAGES_AT_ONCE

    @property
    def name(self) -> tuple[str, str]:
        """Data set and split."""
        return self.jobs[0].cell.dataset, self.jobs[0].cell.split

    @property
    def described(self) -> set[str]:
        """What stands for the cell in the rows that describe its samples."""
        return {description(job.cell.setting.code) for job in self.jobs}

    @property
    def parts(self) -> list[list[data.Sample]]:
        """What is encoded, grounded, claimed and written together; the same however many processes work, and
        however many images more are asked for."""
        starts = range(0, len(self.samples), self.at_once)
        return [self.samples[start : start + self.at_once] for start in starts]

    @cached_property
    def pairs(self) -> list[tuple[str, str]]:
        """(sample, digest of its content), in order."""
        return [(sample.id, content) for sample, content in zip(self.samples, self.contents, strict=True)]

    @cached_property
    def content(self) -> dict[str, str]:
        """Digest of every sample's content."""
        return dict(self.pairs)


def prepare(plan: Plan, backbone: Backbone) -> list[Split]:
    """Load all splits and expand all cells; whatever the user got wrong shows here, before anything runs.

    Raises:
        UserError: a pruner, budget, data set or split is not there, or cannot be.
    """
    plan = plan.on(backbone)
    protocol, (answers,) = backbone.check_protocol(plan.protocol or backbone.protocol), plan.answers
    backbone.check_can("positions", plan.positions)
    backbone.check_can("answers", plan.answers)
    pruners, _ = served(plan.chosen(), backbone)
    shape, numbers = (backbone.grid, backbone.num_layers), (plan.seeds, plan.positions)
    lines = expand(pruners, plan.budgets, plan.seed, *shape, *numbers, stated=backbone.stated)
    setting = Setting(
        backbone=backbone.name,
        fingerprint=backbone.fingerprint,
        protocol=protocol,
        dtype=backbone.dtype,
        attn=backbone.attn,
        device=backbone.device.split(":")[0],
        code=code.of_backbone(type(backbone)),
        draws=plan.seed if protocol in backbone.drawn else 0,
        answers=answers,
        model=", ".join(f"{name} {value}" for name, value in backbone.facts.items()),
    )
    limit = plan.limit or None
    splits = []
    at_once = 1 if backbone.medium == "video" else IMAGES_AT_ONCE
    with stage("reading the data sets", 0, "clips" if backbone.medium == "video" else "images") as progress:
        for dataset, split in plan.pairs_of(backbone):
            progress.at(progress.done, f"{dataset}:{split}")
            samples = data.load_samples(dataset, split, plan.data, backbone.medium)[:limit]
            progress.more(len(samples))
            contents = []
            for sample in samples:
                contents.append(data.content(sample))
                progress.advance()
            splits.append(Split(samples, jobs(setting, dataset, split, lines), contents, at_once))
    return splits


def identity(splits: Sequence[Split]) -> str:
    """Hash of what was asked and of its data, code left out: the same command finds the same run after an
    edit."""
    asked = [[split.pairs, [job.cell.asked for job in split.jobs]] for split in splits]
    return hashlib.sha256(json.dumps(asked).encode()).hexdigest()[:16]
