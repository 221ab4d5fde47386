"""The splits of a plan, ready to be run: their samples, and the cells that these fill."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from backbones.base import Backbone
from harness import data
from harness.data.digests import digests_of
from harness.data.refshapes.writer import cache_folder
from harness.engine.cells import Job, Setting, expand, jobs
from harness.engine.served import served
from harness.plan import Plan
from harness.progress import stage
from harness.store import code

IMAGES_AT_ONCE = 4  # samples that are grounded and written together: more save no time, and few end evenly


@dataclass(frozen=True)
class Split:
    """Samples of a split and the cells that they fill.

    Attributes:
        contents: per sample what it and its medium are known by.
    """

    samples: list[data.Sample]
    jobs: list[Job]
    contents: list[data.Content]

    @property
    def name(self) -> tuple[str, str]:
        """Data set and split."""
        return self.jobs[0].cell.dataset, self.jobs[0].cell.split

    @cached_property
    def pairs(self) -> list[tuple[str, str]]:
        """(sample, digest of its content), in order."""
        return [
            (sample.id, content.sample) for sample, content in zip(self.samples, self.contents, strict=True)
        ]

    @cached_property
    def content(self) -> dict[str, str]:
        """Digest of every sample's content."""
        return dict(self.pairs)


@dataclass(frozen=True)
class Medium:
    """An image or a clip of a run.

    Attributes:
        key: digest of its pixels.
        samples: who asks about it: number of the split and place in it.
    """

    key: str
    samples: tuple[tuple[int, int], ...]


def parts(splits: Sequence[Split], kind: str = "image") -> list[list[Medium]]:
    """What is encoded, grounded, claimed and written together: images that follow each other, in the order of
    the splits, of IMAGES_AT_ONCE samples together unless one of them has more; of clips each by itself. A
    medium is in one part alone, whatever splits it is of.

    Args:
        kind: "image" or "video".
    """
    most = 1 if kind == "video" else IMAGES_AT_ONCE
    askers: dict[str, list[tuple[int, int]]] = {}
    for number, split in enumerate(splits):
        for place, content in enumerate(split.contents):
            askers.setdefault(content.medium, []).append((number, place))
    found: list[list[Medium]] = []
    count = most
    for key, samples in askers.items():
        if count + len(samples) > most:
            found.append([])
            count = 0
        found[-1].append(Medium(key, tuple(samples)))
        count += len(samples)
    return found


def samples_of(splits: Sequence[Split], found: Sequence[Sequence[Medium]]) -> list[list[list[data.Sample]]]:
    """The samples of every medium of every part, as `harness.engine.prefetch.Parts` takes them."""
    return [
        [[splits[number].samples[place] for number, place in medium.samples] for medium in part]
        for part in found
    ]


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
    digests = digests_of(plan.data, cache_folder())
    with stage("reading the data sets", 0, "frames" if backbone.medium == "video" else "images") as progress:
        for dataset, split in plan.pairs_of(backbone):
            progress.at(progress.done, f"{dataset}:{split}")
            samples = data.load_samples(dataset, split, plan.data, backbone.medium)[:limit]
            files = [path for sample in samples for path in sample.frames]
            progress.more(len(files))
            digests.learn(files, progress.advance)
            contents = [data.identify(sample, digests) for sample in samples]
            splits.append(Split(samples, jobs(setting, dataset, split, lines), contents))
    return splits


def identity(splits: Sequence[Split]) -> str:
    """Hash of what was asked and of its data, code left out: the same command finds the same run after an
    edit."""
    asked = [[split.pairs, [job.cell.asked for job in split.jobs]] for split in splits]
    return hashlib.sha256(json.dumps(asked).encode()).hexdigest()[:16]
