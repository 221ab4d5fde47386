"""One process's part in a run: it claims parts of the data, fills all cells of each, and closes what is
complete."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from backbones.base import Backbone
from harness.engine.cells import Job
from harness.engine.claims import Claims
from harness.engine.evaluate import description_rows, failed, fill
from harness.engine.interrupts import Stops
from harness.engine.noise import NoiseWatch
from harness.engine.prefetch import Key, Loaded, Parts, read_ahead
from harness.engine.ranks import Place
from harness.engine.recorded import Recorded
from harness.engine.splits import IMAGES_AT_ONCE, Split
from harness.engine.steps import Steps
from harness.progress import Stage, say, stage
from harness.store import closing
from harness.store.editions import LOCK, Opened
from harness.store.journal import alone
from harness.store.records import Journals, Writer
from harness.store.rows import row_key
from harness.store.run_folder import frame_picture, shown_frames, split_folder
from pruners.base import UserError

# images or clips of a split that are looked at for what rounding changes: one of every IMAGES_AT_ONCE
PROBED = 8
PATIENCE = 0.5  # seconds between looks at what others work on
FIRST_WORD = 10.0  # seconds of waiting for others before it is said, then after twice as long again and again
PICTURES, PICTURE_SIDE, PICTURE_FOLDER = 24, 384, "images"  # per split, pixels of the longest side
Left = list[tuple[list[str], tuple[str, ...]]]  # samples of a part, with the cells that lack their results


@dataclass(frozen=True)
class Way:
    """How a run is done; nothing here changes a record.

    Attributes:
        share: False does everything anew for every cell, to compare with.
        workers: processes that read images ahead.
        max_failures: share of the samples that may fail before the run stops; one may always.
        keep_code: go on with cells that other code began, and mark the rows.

    Raises:
        UserError: a number makes no sense.
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


class Crew:
    """Works on a run that is open, together with whoever else does.

    Args:
        splits: samples, and the cells that `run.json` knows.
    """

    def __init__(
        self, backbone: Backbone, splits: Sequence[Split], folder: Path, way: Way, opened: Opened
    ) -> None:
        self.backbone, self.splits, self.folder, self.way, self.info = (
            backbone,
            splits,
            folder,
            way,
            opened.info,
        )
        places = [split_folder(folder, *split.name) for split in splits]
        for place in places:
            place.mkdir(parents=True, exist_ok=True)
        self.parts = [split.parts for split in splits]
        cells = opened.info["cells"]
        self.claims = [
            Claims(place / opened.claims, len(parts)) for place, parts in zip(places, self.parts, strict=True)
        ]
        self.writers = [Writer(place, cells) for place in places]
        self.recorded = [Recorded(Journals(place, cells)) for place in places]
        self.begun: set[Key] = set()  # parts of which something may be recorded already
        self.todo: dict[Key, Left] = {}  # of parts that are claimed
        self.filled: set[Key] = set()  # parts that this process has filled
        self.noise = NoiseWatch()
        self.total = sum(len(split.samples) for split in splits)
        self.results = sum(len(split.samples) * len(split.jobs) for split in splits)
        for number, recorded in enumerate(self.recorded):
            recorded.update()
            asked = [*splits[number].described, *(job.cell.id for job in splits[number].jobs)]
            for k, part in enumerate(self.parts[number]):
                if any(recorded.has_of(sample.id, asked) for sample in part):
                    self.begun.add((number, k))

    def close(self) -> None:
        """Let go of every claim and journal."""
        for writer, claims in zip(self.writers, self.claims, strict=True):
            writer.close()
            claims.close()

    def work(self) -> bool:
        """Until everything is recorded, or until nothing is left for a process that is not the first."""
        video = self.backbone.medium == "video"
        preprocess = self.backbone.preprocess_clip if video else self.backbone.preprocess
        dataset = Parts(self.parts, preprocess, self.backbone.medium)
        pin = self.backbone.device.startswith("cuda")
        waited, told = 0.0, FIRST_WORD
        done, unit = self.finished_results(), "clips" if video else "images"
        shown = stage("evaluating", self.results, f"{unit} x cells", done, quiet=self.way.place.rank > 0)
        with shown as progress, Stops("this clip" if video else "these images") as stops:
            self._check_failures("")
            while True:
                for (number, part), loaded in read_ahead(dataset, self._claim(), self.way.workers, pin):
                    self._fill(number, part, loaded, progress, stops)
                    progress.at(self.finished_results(), "")
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
                    say(f"waiting for {others}")
                    told *= 2

    def _held(self) -> str:
        """The parts that other processes have claimed, in words."""
        held = [
            self._named(number, part) + (f" (process {who})" if (who := claims.holder(part)) else "")
            for number, claims in enumerate(self.claims)
            for part in claims.open
        ]
        more = f" and {len(held) - 3} other parts" if len(held) > 3 else ""
        return f"{', '.join(held[:3])}{more}, which another process of this run has claimed" if held else ""

    def _named(self, number: int, part: int) -> str:
        """A part in words."""
        first, count = self.splits[number].at_once * part + 1, len(self.parts[number][part])
        return f"images {first} to {first + count - 1} of {':'.join(self.splits[number].name)}"

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
        """Parts that this process may work on, as its team's leader claims them when they are asked for; what
        is left of each stands in `todo`, the same for the whole team."""
        mine = self._claims() if self.way.place.leads else iter(())
        while (claimed := self.way.place.agree(next(mine, None))) is not None:
            key, self.todo[key] = claimed
            yield key

    def _claims(self) -> Iterator[tuple[Key, Left]]:
        everything = [(number, part) for number, parts in enumerate(self.parts) for part in range(len(parts))]
        for place in self.way.place.order(len(everything)):
            number, part = everything[place]
            state = self.claims[number].take(part)
            if state is None:
                continue
            if state == "abandoned":
                self.begun.add((number, part))
                self.recorded[number].update()
            if left := self._left(number, part):
                yield (number, part), left
            else:
                failed = self._failed(number) & {sample.id for sample in self.parts[number][part]}
                self.claims[number].finish(part, len(failed))

    def _left(self, number: int, part: int) -> Left:
        """Samples of a part that lack results, together with those that lack them of the same cells."""
        split, samples = self.splits[number], self.parts[number][part]
        found: dict[tuple[str, ...], list[str]] = {}
        for sample in samples:
            jobs = split.jobs
            if (number, part) in self.begun:
                jobs = [job for job in jobs if not self.recorded[number].complete(job, sample.id)]
            found.setdefault(tuple(job.cell.id for job in jobs), []).append(sample.id)
        return [(names, cells) for cells, names in found.items() if cells]

    def _failed(self, number: int) -> set[str]:
        """Samples of a split that are recorded as failed under any of its cells."""
        cells = {job.cell.id for job in self.splits[number].jobs}
        return {sample for cell, sample in self.recorded[number].failures if cell in cells}

    def _fill(self, number: int, part: int, loaded: list[Loaded], progress: Stage, stops: Stops) -> None:
        left, split = self.todo.pop((number, part)), self.splits[number]
        first = split.at_once * part + 1
        where = f"{':'.join(split.name)} {first}-{first + len(self.parts[number][part]) - 1}"
        rows: list[dict[str, Any]] = []
        for names, cells in left:
            begun, count = progress.done, len(names) * len(cells)

            def show(share: float, step: str, begun: float = begun, count: int = count) -> None:
                progress.at(begun + share * count, f"{step}, {where}")

            rows += self._rows(number, part, loaded, names, cells, Steps(show))
        stops.check_torn()
        self.filled.add((number, part))
        if not self.way.place.leads:
            return
        if sentence := self.noise.look(rows):
            say(sentence)
        self._check_place()
        recorded = self.recorded[number]
        self.writers[number].append(
            row for row in rows if (number, part) not in self.begun or row_key(row) not in recorded
        )
        failed = {row["sample"]: row["reason"] for row in rows if row["status"] == "failed"}
        before = self._failed(number) & {sample.id for sample in self.parts[number][part]}
        self.claims[number].finish(part, len(before | failed.keys()))
        if failed:
            self._check_failures("; ".join(f"{name}: {why}" for name, why in list(failed.items())[:1]))

    def _rows(
        self,
        number: int,
        part: int,
        loaded: Sequence[Loaded],
        names: Sequence[str],
        cells: Sequence[str],
        steps: Steps,
    ) -> Iterator[dict[str, Any]]:
        """What is asked of some samples of a part, and their results under some cells."""
        split = self.splits[number]
        jobs = [job for job in split.jobs if job.cell.id in cells]
        chosen = [
            (k, one.held_to(split.content[one.sample.id]))
            for k, one in enumerate(loaded)
            if one.sample.id in names
        ]
        for k, one in chosen:
            image = self._picture(part * split.at_once + k, one)
            for code in dict.fromkeys(job.cell.setting.code for job in jobs):
                yield from description_rows(one, image, code)
        setting = jobs[0].cell.setting
        found = fill(
            [one for _, one in chosen],
            jobs,
            self.backbone,
            setting.protocol,
            setting.draws,
            share=self.way.share,
            probed=self._probed(number, part),
            steps=steps,
        )
        yield from self._unchanged(found, chosen, jobs) if self.backbone.medium == "video" else found

    def _unchanged(
        self,
        rows: Iterator[dict[str, Any]],
        chosen: Sequence[tuple[int, Loaded]],
        jobs: Sequence[Job],
    ) -> Iterator[dict[str, Any]]:
        """Results of clips, whose frames are read again while they are grounded; of a clip that is another
        one by then, why there is none."""
        made = list(rows)
        for _, one in chosen:
            after = one.again()
            mine = [row for row in made if row["sample"] == one.sample.id]
            yield from failed(one.sample, jobs, after.error) if after.error and not one.error else mine

    def _probed(self, number: int, part: int) -> set[str]:
        """The samples of a part that are looked at for what rounding changes."""
        eighth, rest = divmod(part * self.splits[number].at_once, IMAGES_AT_ONCE)
        return {self.parts[number][part][0].id} if not rest and eighth < PROBED else set()

    def _picture(self, number: int, one: Loaded) -> str:
        """Keep a small picture of the first samples of a split for reports; its path below the run folder."""
        if one.image is None or number >= PICTURES:
            return ""
        name = split_folder(self.folder, one.sample.dataset, one.sample.split).name
        path = Path(PICTURE_FOLDER) / f"{name}-{one.sample.image_id}.jpg"
        (self.folder / PICTURE_FOLDER).mkdir(exist_ok=True)
        self._save(one.image, path)
        for frame in shown_frames(len(one.sample.frames))[1:]:
            with suppress(UserError):  # its failure is told elsewhere
                self._save(one.sample.image(frame), frame_picture(path, frame))
        return str(path)

    def _save(self, image: NDArray[np.uint8], path: Path) -> None:
        picture = Image.fromarray(image)
        picture.thumbnail((PICTURE_SIDE, PICTURE_SIDE))
        picture.save(self.folder / path, quality=85)

    def finished_results(self) -> int:
        """Images times cells of the parts that are closed, whoever filled them."""
        return sum(
            len(parts[k]) * len(split.jobs)
            for split, parts, claims in zip(self.splits, self.parts, self.claims, strict=True)
            for k in set(range(len(parts))) - set(claims.open)
        )

    def _check_failures(self, latest: str) -> None:
        most = max(1, math.ceil(self.way.max_failures * self.total))

        def too_many(failed: int) -> bool:
            # a run without answers is none
            return failed > most or failed == self.total > self.way.max_failures * self.total

        failed = sum(claims.failed for claims in self.claims)
        if too_many(failed):  # a claim is one byte that may be damaged; the records know
            for recorded in self.recorded:
                recorded.update()
            failed = sum(len(self._failed(number)) for number in range(len(self.splits)))
        if too_many(failed):
            raise UserError(
                f"{failed} of {self.total} samples failed, more than --max-failures {self.way.max_failures:g}"
                f"{f' ({latest})' if latest else ''}; mend the data, or go on with --out {self.folder} and "
                f"a larger share."
            )

    def _finish(self) -> bool:
        """Close the run if all of it is there; False if a result of this process's cells is missing after
        all, whose part is then open again.

        Raises:
            UserError: a part lacks records although this process has filled it.
        """
        images = {job.cell.id: len(split.samples) for split in self.splits for job in split.jobs}
        lost = closing.lacking(self.folder, self.info, images)
        for number, (split, parts, claims) in enumerate(
            zip(self.splits, self.parts, self.claims, strict=True)
        ):
            for part, samples in enumerate(parts):
                if absent := lost.get(split.name, set()) & {sample.id for sample in samples}:
                    if (number, part) in self.filled:
                        raise UserError(
                            f"{min(absent)} has no complete results although it was evaluated; "
                            f"look at its expressions, and whether {str(self.folder)!r} lost files meanwhile."
                        )
                    self.begun.add((number, part))
                    claims.reopen(part)
        if not lost:
            with alone(self.folder / LOCK):  # others may be complete, too, or have gone on with other code
                closing.close_run(self.folder, images)
        return not lost
