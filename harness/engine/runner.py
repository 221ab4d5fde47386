"""Runs a sweep: any number of processes claim parts of the data, fill all cells of each, and write what they
found."""

from __future__ import annotations

import hashlib
import json
import math
import resource
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path

import torch
from PIL import Image
from tqdm import tqdm

from backbones.base import Backbone
from harness import data
from harness.engine.cells import Job, Setting, expand, jobs
from harness.engine.claims import Claims
from harness.engine.evaluate import described, fill
from harness.engine.interrupts import Stops
from harness.engine.prefetch import Key, Loaded, Parts, read_ahead
from harness.engine.ranks import Place
from harness.engine.served import served
from harness.store import code
from harness.store.editions import LOCK, Opened, open_run
from harness.store.journal import alone, write_atomically
from harness.store.records import (
    CUT_OFF,
    DONE,
    SCHEMA,
    Journals,
    Writer,
    cells_digest,
    cells_of,
    compact,
    done_info,
    incomplete,
    run_info,
    split_folder,
)
from harness.store.rows import description, key
from pruners.base import TEXT_EMBEDS, Pruner, UserError

IMAGES_AT_ONCE = (
    8  # encoded, grounded and written together; at most nine, so that a digit counts a part's failures
)
PROBED = 8  # parts of a split whose first image is looked at for what rounding changes
CLAIMS = "claims"
PATIENCE = 0.5  # seconds between looks at what others work on
FIRST_WORD = 10.0  # seconds of waiting for others before it is said, then after twice as long again and again
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
    def described(self) -> str:
        """What stands for the cell in the rows that describe its samples."""
        return description(self.jobs[0].cell.setting.code)

    @property
    def parts(self) -> list[list[data.Sample]]:
        """What is encoded, grounded, claimed and written together; the same however many processes work."""
        return [
            self.samples[start : start + IMAGES_AT_ONCE]
            for start in range(0, len(self.samples), IMAGES_AT_ONCE)
        ]


def prepare(plan: Plan, backbone: Backbone) -> list[Split]:
    """Load all splits and expand all cells; whatever the user got wrong shows here, before anything runs."""
    backbone.check_protocol(plan.protocol)
    pruners, _ = served(plan.pruners, backbone)
    lines = expand(pruners, plan.budgets, plan.seed, backbone.grid, backbone.num_layers)
    setting = Setting(
        backbone.name,
        backbone.fingerprint,
        plan.protocol,
        backbone.dtype,
        backbone.attn,
        backbone.device.split(":")[0],
        code.of_backbone(type(backbone)),
        plan.seed if plan.protocol in backbone.drawn else 0,
    )
    splits = []
    for dataset, split in plan.datasets:
        samples = data.load(dataset, split, plan.root)
        samples = samples[: plan.limit] if plan.limit else samples
        splits.append(Split(samples, jobs(setting, dataset, split, data.fingerprint(samples), lines)))
    return splits


def identity(splits: Sequence[Split]) -> str:
    """Hash of what was asked, code left out: the same command finds the same run after an edit."""
    return hashlib.sha256(
        json.dumps([job.cell.asked for split in splits for job in split.jobs]).encode()
    ).hexdigest()[:16]


@dataclass(frozen=True)
class Way:
    """How a run is done; nothing here changes a record.

    Attributes:
        share: False does everything anew for every cell, to compare with.
        workers: processes that read images ahead.
        max_failures: share of the samples that may fail before the run stops; one may always.
        keep_code: go on with cells that other code began, and mark the rows.
    """

    share: bool = True
    workers: int = 0
    max_failures: float = 0.01
    place: Place = field(default_factory=Place)
    keep_code: bool = False

    def __post_init__(self) -> None:
        if not 0 <= self.max_failures <= 1:
            raise UserError(
                f"--max-failures {self.max_failures} is no share; give 0.01 for one sample in a hundred."
            )
        if self.workers < 0:
            raise UserError(f"--workers {self.workers} is negative; give a number of processes, or 0.")


def run(
    plan: Plan, backbone: Backbone, splits: Sequence[Split], folder: Path, way: Way | None = None
) -> bool:
    """Fill all cells into `folder`, continuing what is there, together with whoever else works on it.

    Returns:
        Whether all is there; a process that is not the launcher's first goes when nothing is left to claim.

    Raises:
        UserError: the folder holds another run or cannot be written, memory does not suffice, or too many
            samples failed.
    """
    way = way or Way()
    asked = asdict(plan) | {
        "pruners": [pruner.spec() for pruner in plan.pruners],
        "cut_off": _cut_off(plan, backbone, splits),
    }
    _, left_out = served(plan.pruners, backbone)
    for sentence in left_out.values() if way.place.rank == 0 else ():
        print(f"left out: {sentence}", file=sys.stderr)
    if asked["cut_off"] and way.place.rank == 0:
        print(f"{asked['cut_off']} {CUT_OFF}", file=sys.stderr)
    try:
        opened = open_run(
            folder,
            identity(splits),
            asked,
            [split.jobs for split in splits],
            backbone.grid,
            backbone.device,
            way.keep_code,
            geometry=backbone.geometry,
            left_out=left_out,
        )
        if way.place.rank == 0:
            for sentence in opened.said:
                print(sentence, file=sys.stderr)
        if opened.finished:
            return True
        if not all(
            split_folder(folder, *split.name).resolve().is_relative_to(folder.resolve()) for split in splits
        ):
            raise UserError(
                f"Records of {str(folder)!r} lie in a linked folder outside of it; give a new --out folder."
            )
        splits = [replace(split, jobs=jobs) for split, jobs in zip(splits, opened.jobs, strict=True)]
        places = [split_folder(folder, *split.name) for split in splits]
        for place in places:
            place.mkdir(parents=True, exist_ok=True)
        crew = _Crew(plan, backbone, splits, folder, way, places, opened)
    except OSError as error:
        raise UserError(
            f"Cannot write to {str(folder)!r} ({error.strerror}); give --out a folder that you may write."
        ) from error
    try:
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


def _cut_off(plan: Plan, backbone: Backbone, splits: Sequence[Split]) -> int:
    """How many questions are longer than the text tower that a pruner of the plan reads."""
    if not any(TEXT_EMBEDS in pruner.needs for pruner in served(plan.pruners, backbone)[0]):
        return 0
    talks = (
        talk
        for split in splits
        for sample in split.samples
        for talk in backbone.conversations(
            sample.id, [one.text for one in sample.expressions], plan.protocol, plan.seed
        )
    )
    return sum(backbone.cut_off([turn.question for turn in talk.turns]) for talk in talks)


class _Recorded:
    """Which results a split has already, whoever wrote them; reads on where it stopped."""

    def __init__(self, journals: Journals) -> None:
        self._journals = journals
        self._places: dict[tuple[str, str], set[int]] = {}
        self._of: dict[tuple[str, str], int] = {}
        self._failed: set[tuple[str, str]] = set()

    @property
    def failures(self) -> set[tuple[str, str]]:
        """(cell, sample) that are recorded as failed."""
        return self._failed

    def update(self) -> None:
        """Read what was written since the last time."""
        for _, row in self._journals.new():
            pair = row["cell"], row["sample"]
            self._places.setdefault(pair, set()).add(row["place"])
            self._of[pair] = row["of"]
            if row["status"] == "failed":
                self._failed.add(pair)

    def __contains__(self, key: tuple[str, str, int]) -> bool:
        return key[2] in self._places.get(key[:2], ())

    def has_of(self, sample: str, cells: Iterable[str]) -> bool:
        """Whether anything of a sample is there."""
        return any((cell, sample) in self._of for cell in cells)

    def complete(self, cell: str, sample: str, described: str) -> bool:
        """Whether a cell has all rows of a sample, and the sample is described if it could be read."""
        pair = cell, sample
        if pair not in self._of or len(self._places[pair]) < self._of[pair]:
            return False
        return cell == described or pair in self._failed or self.complete(described, sample, described)


class _Crew:
    """One process's part in a run: it claims parts, fills them, and closes what is complete."""

    def __init__(
        self,
        plan: Plan,
        backbone: Backbone,
        splits: Sequence[Split],
        folder: Path,
        way: Way,
        places: list[Path],
        opened: Opened,
    ) -> None:
        self.plan, self.backbone, self.splits, self.folder, self.way, self.places = (
            plan,
            backbone,
            splits,
            folder,
            way,
            places,
        )
        self.cells = opened.info["cells"]
        self.parts = [split.parts for split in splits]
        claims = CLAIMS if opened.edition == 0 else f"{CLAIMS}-{opened.edition}"
        self.claims = [
            Claims(place / claims, len(parts)) for place, parts in zip(places, self.parts, strict=True)
        ]
        self.writers = [Writer(place, self.cells) for place in places]
        self.recorded = [_Recorded(Journals(place, self.cells)) for place in places]
        self.begun: set[Key] = set()  # parts of which something may be recorded already
        self.filled: set[Key] = set()  # parts that this process has filled
        self.total = sum(len(split.samples) for split in splits)
        for number, recorded in enumerate(self.recorded):
            recorded.update()
            cells = [splits[number].described, *(job.cell.id for job in splits[number].jobs)]
            for k, part in enumerate(self.parts[number]):
                if any(recorded.has_of(sample.id, cells) for sample in part):
                    self.begun.add((number, k))

    def close(self) -> None:
        for writer, claims in zip(self.writers, self.claims, strict=True):
            writer.close()
            claims.close()

    def work(self) -> bool:
        """Until everything is recorded, or until nothing is left for a process that is not the first."""
        bar = tqdm(total=self.total, unit="image", disable=self.way.place.rank > 0 or not sys.stderr.isatty())
        dataset = Parts(self.parts, self.backbone.preprocess)
        pin = self.backbone.device.startswith("cuda")
        waited, told = 0.0, FIRST_WORD
        with bar, Stops() as stops:
            self._check_failures("")
            while True:
                for (number, part), loaded in read_ahead(dataset, self._claim(), self.way.workers, pin):
                    bar.set_description(" ".join(self.splits[number].name))
                    self._fill(number, part, loaded)
                    bar.update(self._finished_samples() - bar.n)
                    stops.check()
                    waited, told = 0.0, FIRST_WORD
                self._check_place()
                complete = (
                    self.way.place.leads and all(claims.done for claims in self.claims) and self._finish()
                )
                if self.way.place.agree(complete):
                    return True
                if self.way.place.rank >= self.way.place.team:
                    return False
                stops.check()
                time.sleep(PATIENCE)
                waited += PATIENCE
                if waited >= told and (others := self._held()):
                    print(f"waiting for {others}", file=sys.stderr)
                    told *= 2

    def _held(self) -> str:
        """The parts that other processes have claimed, in words."""
        held = [
            f"images {IMAGES_AT_ONCE * part + 1} to {IMAGES_AT_ONCE * part + len(self.parts[number][part])} of "
            f"{':'.join(self.splits[number].name)}"
            + (f" (process {who})" if (who := claims.holder(part)) else "")
            for number, claims in enumerate(self.claims)
            for part in claims.open
        ]
        more = f" and {len(held) - 3} other parts" if len(held) > 3 else ""
        return f"{', '.join(held[:3])}{more}, which another process of this run has claimed" if held else ""

    def _check_place(self) -> None:
        """See that the run folder is still where it was.

        Raises:
            UserError: it was moved or removed.
        """
        if not all(claims.in_place for claims in self.claims):
            raise UserError(
                f"{str(self.folder)!r} was moved or removed while this process worked in it; "
                "nothing recorded is lost, give the command again with --out and where it is now."
            )

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
            if state is None:
                continue
            if state == "abandoned" or (number, part) in self.begun:
                self.begun.add((number, part))
                self.recorded[number].update()
                if not self._left(number, part):
                    self.claims[number].finish(part, self._failures(number, part))
                    continue
            yield number, part

    def _left(self, number: int, part: int) -> list[Job]:
        """Cells that lack a result of a part."""
        split, recorded = self.splits[number], self.recorded[number]
        if (number, part) not in self.begun:
            return split.jobs
        samples = self.parts[number][part]
        return [
            job
            for job in split.jobs
            if not all(recorded.complete(job.cell.id, sample.id, split.described) for sample in samples)
        ]

    def _failures(self, number: int, part: int) -> int:
        """Samples of a recorded part that failed under any cell."""
        return len(self._failed(number) & {sample.id for sample in self.parts[number][part]})

    def _failed(self, number: int) -> set[str]:
        """Samples of a split that are recorded as failed under any of its cells."""
        cells = {job.cell.id for job in self.splits[number].jobs}
        return {sample for cell, sample in self.recorded[number].failures if cell in cells}

    def _fill(self, number: int, part: int, loaded: list[Loaded]) -> None:
        recorded, jobs = self.recorded[number], self._left(number, part)
        code = self.splits[number].jobs[0].cell.setting.code
        rows = [
            row
            for k, one in enumerate(loaded)
            for row in described(one, self._picture(part * IMAGES_AT_ONCE + k, one), code)
        ]
        probed = {self.parts[number][part][0].id} if part < PROBED else set()
        rows += fill(
            loaded,
            jobs,
            self.backbone,
            self.plan.protocol,
            self.plan.seed,
            share=self.way.share,
            probed=probed,
        )
        self.filled.add((number, part))
        if not self.way.place.leads:
            return
        self._check_place()
        self.writers[number].append(
            row for row in rows if (number, part) not in self.begun or key(row) not in recorded
        )
        reasons = {row["sample"]: row["reason"] for row in rows if row["status"] == "failed"}
        self.claims[number].finish(part, len(reasons))
        if reasons:
            self._check_failures(
                "; ".join(f"{sample}: {reason}" for sample, reason in list(reasons.items())[:1])
            )

    def _picture(self, number: int, one: Loaded) -> str:
        """Keep a small picture of the first samples of a split for reports; its path below the run folder."""
        if one.image is None or number >= PICTURES:
            return ""
        name = split_folder(self.folder, one.sample.dataset, one.sample.split).name
        path = Path(PICTURE_FOLDER) / f"{name}-{one.sample.image_id}.jpg"
        (self.folder / PICTURE_FOLDER).mkdir(exist_ok=True)
        picture = Image.fromarray(one.image)
        picture.thumbnail((PICTURE_SIDE, PICTURE_SIDE))
        picture.save(self.folder / path, quality=85)
        return str(path)

    def _finished_samples(self) -> int:
        return sum(
            len(parts[k])
            for parts, claims in zip(self.parts, self.claims, strict=True)
            for k in set(range(len(parts))) - set(claims.open)
        )

    def _check_failures(self, latest: str) -> None:
        most = max(1, math.ceil(self.way.max_failures * self.total))

        def too_many(failed: int) -> bool:
            return (
                failed > most or failed == self.total > self.way.max_failures * self.total
            )  # a run without answers is none

        failed = sum(claims.failed for claims in self.claims)
        if too_many(failed):  # a claim is one byte that may be damaged; the records know
            for recorded in self.recorded:
                recorded.update()
            failed = sum(len(self._failed(number)) for number in range(len(self.splits)))
        if too_many(failed):
            raise UserError(
                f"{failed} of {self.total} samples failed, more than --max-failures {self.way.max_failures:g}"
                f"{f' ({latest})' if latest else ''}; mend the data, or go on with --out {self.folder} and a larger share."
            )

    def _finish(self) -> bool:
        """Write the tables of every split; False if a record is missing after all, whose part is then open
        again.

        Raises:
            UserError: a part lacks records although this process has filled it.
        """
        cells = {job.cell.id for split in self.splits for job in split.jobs}
        shown = cells | {split.described for split in self.splits}
        for number, (split, parts, claims) in enumerate(
            zip(self.splits, self.parts, self.claims, strict=True)
        ):
            rows = (row for row in Journals(self.places[number], self.cells).rows() if row["cell"] in shown)
            wanted = ((job.cell.id, sample.id) for job in split.jobs for sample in split.samples)
            if not (lost := incomplete(rows, wanted, split.described)):
                continue
            for part, samples in enumerate(parts):
                if absent := lost & {sample.id for sample in samples}:
                    if (number, part) in self.filled:
                        raise UserError(
                            f"{min(absent)} has no complete results although it was evaluated; "
                            f"look at its expressions, and whether {str(self.folder)!r} lost files meanwhile."
                        )
                    self.begun.add((number, part))
                    claims.reopen(part)
            return False
        with alone(self.folder / LOCK):  # others may be complete, too, or have gone on with other code
            info = run_info(self.folder)
            if set(cells_of(info)) == cells and not done_info(self.folder):
                self._close_run(cells, shown)
        return True

    def _close_run(self, cells: set[str], shown: set[str]) -> None:
        tables = {}
        for place in self.places:
            rows = (row for row in Journals(place, self.cells).rows() if row["cell"] in shown)
            tables[place.name] = compact(place, rows)
        closed = {
            "schema": SCHEMA,
            "run": identity(self.splits),
            "cells": cells_digest(cells),
            "splits": tables,
            "finished": datetime.now(UTC).isoformat(timespec="seconds"),
            "peak_memory_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
        }
        write_atomically(self.folder / DONE, closed)
