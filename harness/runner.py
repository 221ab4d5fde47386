"""Runs a sweep: any number of processes claim parts of the data, fill all cells of each, and write what they found."""

from __future__ import annotations

import hashlib
import json
import math
import resource
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from tqdm import tqdm

from backbones.base import Backbone
from harness import data
from harness.claims import Claims
from harness.fill import described, fill
from harness.loading import Key, Loaded, Parts, read_ahead
from harness.notes import say_what_is_cut
from harness.place import Place
from harness.protocol import check_protocol
from harness.provenance import collect, differences
from harness.records import (
    DONE,
    FOLDER,
    RUN,
    Writer,
    compact,
    compacted,
    incomplete,
    key,
    rows_of,
    run_info,
    split_folder,
    write_atomically,
)
from harness.stops import Stops
from harness.sweep import Job, Setting, expand, jobs
from pruners.base import Pruner, UserError

IMAGES_AT_ONCE = 8  # encoded, grounded and written together; at most nine, so that a digit counts a part's failures
CLAIMS = "claims"
PATIENCE = 0.5  # seconds between looks at what others work on
PICTURES, PICTURE_SIDE, PICTURE_FOLDER = 24, 384, "images"  # per split, pixels of the longest side


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

    @property
    def name(self) -> tuple[str, str]:
        """Data set and split."""
        return self.jobs[0].cell.dataset, self.jobs[0].cell.split

    @property
    def parts(self) -> list[list[data.Sample]]:
        """What is encoded, grounded, claimed and written together; the same however many processes work."""
        return [self.samples[start : start + IMAGES_AT_ONCE] for start in range(0, len(self.samples), IMAGES_AT_ONCE)]


def prepare(plan: Plan, backbone: Backbone) -> list[Split]:
    """Load all splits and expand all cells; whatever the user got wrong shows here, before anything runs."""
    lines = expand(plan.pruners, plan.budgets, plan.seed, backbone.grid, backbone.num_layers)
    setting = Setting(
        backbone.name, backbone.fingerprint, plan.protocol, backbone.dtype, backbone.attn, backbone.device.split(":")[0]
    )
    splits = []
    for dataset, split in plan.datasets:
        samples = data.load(dataset, split, plan.root)
        samples = samples[: plan.limit] if plan.limit else samples
        splits.append(Split(samples, jobs(setting, dataset, split, data.fingerprint(samples), lines)))
    return splits


def identity(splits: Sequence[Split]) -> str:
    """Hash of all cells: two runs with the same identity have the same records."""
    return hashlib.sha256(json.dumps([job.cell.id for split in splits for job in split.jobs]).encode()).hexdigest()[:16]


@dataclass(frozen=True)
class Way:
    """How a run is done; nothing here changes a record.

    Attributes:
        share: False does everything anew for every cell, to compare with.
        workers: processes that read images ahead.
        max_failures: share of the samples that may fail before the run stops; one may always.
    """

    share: bool = True
    workers: int = 0
    max_failures: float = 0.01
    place: Place = field(default_factory=Place)

    def __post_init__(self) -> None:
        if not 0 <= self.max_failures <= 1:
            raise UserError(f"--max-failures {self.max_failures} is no share; give 0.01 for one sample in a hundred.")
        if self.workers < 0:
            raise UserError(f"--workers {self.workers} is negative; give a number of processes, or 0.")


def run(plan: Plan, backbone: Backbone, splits: Sequence[Split], folder: Path, way: Way | None = None) -> bool:
    """Fill all cells into `folder`, continuing what is there, together with whoever else works on it.

    Returns:
        Whether all is there; a process that is not the launcher's first goes when nothing is left to claim.

    Raises:
        UserError: the folder holds another run or cannot be written, memory does not suffice, or too many samples failed.
    """
    way = way or Way()
    try:
        _open(plan, backbone, splits, folder)
        if (folder / DONE).exists():
            return True
        places = [split_folder(folder, *split.name) for split in splits]
        for place in places:
            place.mkdir(parents=True, exist_ok=True)
        crew = _Crew(plan, backbone, splits, folder, way, places)
    except OSError as error:
        raise UserError(f"Cannot write to {str(folder)!r} ({error.strerror}); give --out a folder that you may write.") from error
    try:
        if way.place.leads:
            samples = [sample for split in splits for sample in split.samples]
            say_what_is_cut(backbone, plan.pruners, samples, plan.protocol, plan.seed)
        return crew.work()
    except torch.OutOfMemoryError as error:
        raise UserError(
            f"{backbone.device} is out of memory even with the smallest batch; nothing recorded is lost, "
            f"give the same command with --out {folder} where there is more."
        ) from error
    except OSError as error:
        raise UserError(
            f"Writing to {str(folder)!r} failed ({error.strerror}); nothing recorded is lost, "
            "make room and give the same command with this --out again."
        ) from error
    finally:
        crew.close()


def _open(plan: Plan, backbone: Backbone, splits: Sequence[Split], folder: Path) -> None:
    """Make the run folder, or see that it holds this run; a change of code or machine is written down."""
    name, facts = identity(splits), collect(backbone.device)
    folder.mkdir(parents=True, exist_ok=True)
    if not (folder / RUN).exists():
        if (folder / FOLDER).exists():
            raise UserError(f"{str(folder)!r} holds records without run.json; give a new --out folder.")
        asked = asdict(plan) | {"pruners": [pruner.spec() for pruner in plan.pruners]}
        cells = {
            job.cell.id: asdict(job.cell) | {"stage": job.pruner.stage, "budget_kind": job.pruner.budget_kind}
            for split in splits
            for job in split.jobs
        }
        write_atomically(folder / RUN, {"run": name, "asked": asked, "provenance": facts, "cells": cells}, only_new=True)
    known = run_info(folder)
    if known.get("run") != name:
        raise UserError(f"{str(folder)!r} holds another run ({known.get('run')}, this one is {name}); give a new --out folder.")
    if (folder / DONE).exists():
        return
    if changed := differences(known.get("provenance", {}), facts):
        known.setdefault("continued", []).append({"changed": changed, "provenance": facts})
        write_atomically(folder / RUN, known)


class _Crew:
    """One process's part in a run: it claims parts, fills them, and closes what is complete."""

    def __init__(
        self, plan: Plan, backbone: Backbone, splits: Sequence[Split], folder: Path, way: Way, places: list[Path]
    ) -> None:
        self.plan, self.backbone, self.splits, self.folder, self.way, self.places = plan, backbone, splits, folder, way, places
        self.parts = [split.parts for split in splits]
        self.claims = [Claims(place / CLAIMS, len(parts)) for place, parts in zip(places, self.parts, strict=True)]
        self.writers = [Writer(place) for place in places]
        self.abandoned: set[Key] = set()
        self.total = sum(len(split.samples) for split in splits)

    def close(self) -> None:
        for writer, claims in zip(self.writers, self.claims, strict=True):
            writer.close()
            claims.close()

    def work(self) -> bool:
        """Until everything is recorded, or until nothing is left for a process that is not the first."""
        bar = tqdm(total=self.total, unit="image", disable=self.way.place.rank > 0 or not sys.stderr.isatty())
        dataset = Parts(self.parts, self.backbone.preprocess)
        pin = self.backbone.device.startswith("cuda")
        with bar, Stops() as stops:
            self._check_failures("")
            while True:
                for (number, part), loaded in read_ahead(dataset, self._claim(), self.way.workers, pin):
                    bar.set_description(" ".join(self.splits[number].name))
                    self._fill(number, part, loaded)
                    bar.update(self._finished_samples() - bar.n)
                    stops.check()
                complete = self.way.place.leads and all(claims.done for claims in self.claims) and self._finish()
                if self.way.place.agree(complete):
                    return True
                if self.way.place.rank >= self.way.place.team:
                    return False
                stops.check()
                time.sleep(PATIENCE)

    def _claim(self) -> Iterator[Key]:
        """Parts that this process may work on, as its team's leader claims them when they are asked for."""
        mine = self._claims() if self.way.place.leads else iter(())
        while (claimed := self.way.place.agree(next(mine, None))) is not None:
            yield claimed

    def _claims(self) -> Iterator[Key]:
        everything = [(number, part) for number, parts in enumerate(self.parts) for part in range(len(parts))]
        for place in self.way.place.order(len(everything)):
            number, part = everything[place]
            state = self.claims[number].take(part)
            if state == "abandoned":
                self.abandoned.add((number, part))
            if state is not None:
                yield number, part

    def _fill(self, number: int, part: int, loaded: list[Loaded]) -> None:
        split = self.splits[number]
        there: set[tuple[Any, ...]] = set()
        if (number, part) in self.abandoned:  # whoever began it may have written some of it
            ours = {one.sample.id for one in loaded}
            there = {key(row) for row in rows_of(self.places[number]) if row["sample"] in ours}
        rows = [row for k, one in enumerate(loaded) for row in described(one, self._picture(part * IMAGES_AT_ONCE + k, one))]
        rows += fill(loaded, split.jobs, self.backbone, self.plan.protocol, self.plan.seed, share=self.way.share)
        if not self.way.place.leads:
            return
        self.writers[number].append(row for row in rows if key(row) not in there)
        reasons = {row["sample"]: row["reason"] for row in rows if row["status"] == "failed"}
        self.claims[number].finish(part, len(reasons))
        if reasons:
            self._check_failures("; ".join(f"{sample}: {reason}" for sample, reason in list(reasons.items())[:1]))

    def _picture(self, number: int, one: Loaded) -> str:
        """Keep a small picture of the first samples of a split for reports; its path below the run folder."""
        if one.image is None or number >= PICTURES:
            return ""
        path = Path(PICTURE_FOLDER) / f"{one.sample.dataset}-{one.sample.split}-{one.sample.image_id}.jpg"
        (self.folder / PICTURE_FOLDER).mkdir(exist_ok=True)
        picture = Image.fromarray(one.image)
        picture.thumbnail((PICTURE_SIDE, PICTURE_SIDE))
        picture.save(self.folder / path, quality=85)
        return str(path)

    def _finished_samples(self) -> int:
        return sum(
            len(parts[k])
            for parts, claims in zip(self.parts, self.claims, strict=True)
            for k, state in enumerate(claims.states())
            if chr(state).isdigit()
        )

    def _check_failures(self, latest: str) -> None:
        failed = sum(claims.failed for claims in self.claims)
        most = max(1, math.ceil(self.way.max_failures * self.total))
        if failed > most or failed == self.total > self.way.max_failures * self.total:  # a run without any answer is none
            raise UserError(
                f"{failed} of {self.total} samples failed, more than --max-failures {self.way.max_failures:g}"
                f"{f' ({latest})' if latest else ''}; mend the data, or go on with --out {self.folder} and a larger share."
            )

    def _finish(self) -> bool:
        """Compact every split; False if a record is missing after all, whose part is then open again."""
        for split, parts, claims, place in zip(self.splits, self.parts, self.claims, self.places, strict=True):
            if compacted(place):
                continue
            wanted = ((job.cell.id, sample.id) for job in split.jobs for sample in split.samples)
            if lost := incomplete(place, wanted):
                for number, part in enumerate(parts):
                    if lost & {sample.id for sample in part}:
                        claims.reopen(number)
                return False
            compact(place)
        if not (self.folder / DONE).exists():
            peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
            write_atomically(self.folder / DONE, {"run": identity(self.splits), "peak_memory_bytes": peak})
        return True
