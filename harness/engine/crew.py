"""One process's part in a run: it claims parts of the data, fills all cells of each, and closes what is
complete. A part is a few media with all samples that ask about them, whatever splits these are of."""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from backbones.base import Backbone
from harness.data import Sample
from harness.engine.cells import Job
from harness.engine.claims import Claims
from harness.engine.evaluate import Asks, description_rows, failed, fill
from harness.engine.interrupts import Stops
from harness.engine.noise import NoiseWatch
from harness.engine.prefetch import Loaded, LoadedMedium, Parts, read_ahead
from harness.engine.recorded import Recorded
from harness.engine.splits import Split, parts, samples_of
from harness.engine.steps import Steps
from harness.engine.way import Way
from harness.progress import Stage, say, stage
from harness.store import closing
from harness.store.editions import LOCK, Opened
from harness.store.journal import alone
from harness.store.records import Writer
from harness.store.rows import row_key
from harness.store.run_folder import frame_picture, shown_frames, split_folder
from pruners.base import UserError

# images or clips of a split that are looked at for what rounding changes, and of how many each is one
PROBED, PROBED_OF = 8, 8
PATIENCE = 0.5  # seconds between looks at what others work on
FIRST_WORD = 10.0  # seconds of waiting for others before it is said, then after twice as long again and again
PICTURES, PICTURE_SIDE, PICTURE_FOLDER = 24, 384, "images"  # per split, pixels of the longest side
LOOKED = 1.0  # seconds for which is believed how many parts are finished
Left = dict[str, tuple[str, ...]]  # samples of a part that lack results, with the cells that lack them


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
        self.parts = parts(splits, backbone.medium)
        self.firsts = [0, *accumulate(map(len, self.parts))]  # number of every part's first medium
        self.claims = Claims(
            folder / opened.claims,
            [[medium.key for medium in part] for part in self.parts],
            recorded=any(next(place.glob("*.jsonl"), None) is not None for place in places),
        )
        cells = opened.info["cells"]
        self.writers = [Writer(place, cells) for place in places]
        self.recorded = [Recorded(place, cells) for place in places]
        self.todo: dict[int, Left] = {}  # of parts that are claimed
        self.begun: set[int] = set()  # of those, which had been begun before
        self.looked: set[int] = set()  # parts whose records were looked for
        self.filled: set[int] = set()  # parts that this process has filled
        self.noise = NoiseWatch()
        self.total = sum(len(split.samples) for split in splits)
        self.results = sum(len(split.samples) * len(split.jobs) for split in splits)
        self._worth = np.array(
            [
                sum(len(splits[number].jobs) for number, _ in self._askers(part))
                for part in range(len(self.parts))
            ]
        )
        self._looked: tuple[float, int] = (-math.inf, 0)

    def _askers(self, part: int) -> list[tuple[int, int]]:
        """The samples of a part: number of the split and place in it."""
        return [asker for medium in self.parts[part] for asker in medium.samples]

    def _samples(self, part: int) -> list[tuple[int, Sample]]:
        """The samples of a part, with the numbers of their splits."""
        return [(number, self.splits[number].samples[place]) for number, place in self._askers(part)]

    def close(self) -> None:
        """Let go of every claim and journal."""
        for writer in self.writers:
            writer.close()
        self.claims.close()

    def work(self, closes: bool = True) -> bool:
        """Until everything is recorded, or until nothing is left for a process that is not the first.

        Args:
            closes: whether this process may close the run.
        """
        video = self.backbone.medium == "video"
        preprocess = self.backbone.preprocess_clip if video else self.backbone.preprocess
        dataset = Parts(samples_of(self.splits, self.parts), preprocess, self.backbone.medium)
        pin = self.backbone.device.startswith("cuda")
        waited, told = 0.0, FIRST_WORD
        done, unit = self.finished_results(), "clips" if video else "images"
        shown = stage("evaluating", self.results, f"{unit} x cells", done, quiet=self.way.place.rank > 0)
        with shown as progress, Stops("this clip" if video else "these images", forked=not closes) as stops:
            self._check_failures("")
            while True:
                for part, loaded in read_ahead(dataset, self._claim(), self.way.workers, pin):
                    self._fill(part, loaded, progress, stops)
                    progress.at(max(progress.done, self.finished_results()), "")
                    stops.check()
                    waited, told = 0.0, FIRST_WORD
                self._check_place()
                complete = closes and self.way.place.leads and self.claims.done and self._finish()
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
        left = self.claims.open
        held = [
            self._named(part) + (f" (process {who})" if (who := self.claims.holder(part)) else "")
            for part in left[:3]
        ]
        more = f" and {len(left) - 3} other parts" if len(left) > 3 else ""
        return f"{', '.join(held)}{more}, which another process of this run has claimed" if held else ""

    def _named(self, part: int) -> str:
        """A part in words."""
        unit = "clip" if self.backbone.medium == "video" else "image"
        first, last = self.firsts[part] + 1, self.firsts[part + 1]
        span = f"{unit} {first}" if first == last else f"{unit}s {first} to {last}"
        return f"{span} of {self.firsts[-1]}"

    def _check_place(self) -> None:
        """See that the run folder is still where it was.

        Raises:
            UserError: it was moved or removed.
        """
        if not self.claims.in_place:
            raise UserError(
                f"{str(self.folder)!r} was moved or removed while this process worked in it; "
                "nothing recorded is lost, give the command again with --out and where it is now."
            )

    def _claim(self) -> Iterator[int]:
        """Parts that this process may work on, as its team's leader claims them when they are asked for; what
        is left of each stands in `todo`, the same for the whole team."""
        mine = self._claims() if self.way.place.leads else iter(())
        while (claimed := self.way.place.agree(next(mine, None))) is not None:
            part, self.todo[part] = claimed
            yield part

    def _claims(self) -> Iterator[tuple[int, Left]]:
        for part in self.way.place.order(len(self.parts)):
            state = self.claims.take(part)
            if state is None:
                continue
            if state == "abandoned":
                self.begun.add(part)
                # all that is begun comes up in turn, so it is looked for in one go
                some = {part} if part in self.looked else {part, *np.flatnonzero(self.claims.begun).tolist()}
                self._look(some)
                self.looked |= some
            if left := self._left(part):
                yield part, left
            else:
                self.claims.finish(part, len(self._failed(part)))

    def _look(self, some: Iterable[int]) -> None:
        """Read what is recorded of some parts."""
        names: list[set[str]] = [set() for _ in self.splits]
        for part in some:
            for number, sample in self._samples(part):
                names[number].add(sample.id)
        for recorded, samples in zip(self.recorded, names, strict=True):
            if samples:
                recorded.look(samples)

    def _left(self, part: int) -> Left:
        """Samples of a part that lack results, with the cells that lack them."""
        found: Left = {}
        for number, sample in self._samples(part):
            jobs = self.splits[number].jobs
            if part in self.begun:
                jobs = [job for job in jobs if not self.recorded[number].complete(job, sample.id)]
            if jobs:
                found[sample.id] = tuple(job.cell.id for job in jobs)
        return found

    def _failed(self, part: int) -> set[str]:
        """Samples of a part that are recorded as failed under any cell of their split."""
        return {
            sample.id
            for number, sample in self._samples(part)
            if any(
                (job.cell.id, sample.id) in self.recorded[number].failures for job in self.splits[number].jobs
            )
        }

    def _fill(self, part: int, loaded: list[LoadedMedium], progress: Stage, stops: Stops) -> None:
        left, begun = self.todo.pop(part), progress.done
        count, where = sum(map(len, left.values())), self._named(part)

        def show(share: float, step: str) -> None:
            progress.at(begun + share * count, f"{step}, {where}")

        rows = list(self._rows(part, loaded, left, Steps(show)))
        stops.check_torn()
        self.filled.add(part)
        if not self.way.place.leads:
            return
        if sentence := self.noise.look(row for _, row in rows):
            say(sentence)
        self._check_place()
        for number in dict.fromkeys(number for number, _ in rows):
            recorded = self.recorded[number]
            self.writers[number].append(
                row
                for split, row in rows
                if split == number and (part not in self.begun or row_key(row) not in recorded)
            )
        failed = {row["sample"]: row["reason"] for _, row in rows if row["status"] == "failed"}
        before = self._failed(part) if part in self.begun else set()
        self.claims.finish(part, len(before | failed.keys()))
        if failed:
            self._check_failures("; ".join(f"{name}: {why}" for name, why in list(failed.items())[:1]))

    def _rows(
        self, part: int, loaded: Sequence[LoadedMedium], left: Left, steps: Steps
    ) -> Iterator[tuple[int, dict[str, Any]]]:
        """What is asked of a part's samples and their results under the cells that are left, each with the
        number of its split."""
        places = {self.splits[n].samples[place].id: (n, place) for n, place in self._askers(part)}
        asks: dict[str, list[Job]] = {}
        for name, cells in left.items():
            wanted = set(cells)
            asks[name] = [job for job in self.splits[places[name][0]].jobs if job.cell.id in wanted]
        media = []
        for medium in loaded:
            chosen = [
                one.held_to(self.splits[places[one.sample.id][0]].content[one.sample.id])
                for one in medium.samples
                if one.sample.id in asks
            ]
            media.append(medium._replace(samples=chosen))
            for one in chosen:
                number, place = places[one.sample.id]
                image = self._picture(place, one, medium.image)
                for code in dict.fromkeys(job.cell.setting.code for job in asks[one.sample.id]):
                    yield from ((number, row) for row in description_rows(one, image, code))
        setting = next(iter(asks.values()))[0].cell.setting
        found = fill(
            media,
            asks,
            self.backbone,
            setting.protocol,
            setting.draws,
            share=self.way.share,
            probed={name for name, (_, place) in places.items() if _is_probed(place)},
            steps=steps,
        )
        rows = self._unchanged(found, media, asks) if self.backbone.medium == "video" else found
        yield from ((places[row["sample"]][0], row) for row in rows)

    def _unchanged(
        self, rows: Iterator[dict[str, Any]], media: Sequence[LoadedMedium], asks: Asks
    ) -> Iterator[dict[str, Any]]:
        """Results of clips, whose frames are read again while they are grounded; of a clip that is another
        one by then, why there is none."""
        made = list(rows)
        for medium in media:
            for before, after in zip(medium.samples, medium.again().samples, strict=True):
                name = before.sample.id
                mine = [row for row in made if row["sample"] == name]
                changed = after.error and not before.error
                yield from failed(before.sample, asks[name], after.error) if changed else mine

    def _picture(self, number: int, one: Loaded, image: NDArray[np.uint8] | None) -> str:
        """Keep a small picture of the first samples of a split for reports; its path below the run folder."""
        if image is None or number >= PICTURES:
            return ""
        name = split_folder(self.folder, one.sample.dataset, one.sample.split).name
        path = Path(PICTURE_FOLDER) / f"{name}-{one.sample.image_id}.jpg"
        (self.folder / PICTURE_FOLDER).mkdir(exist_ok=True)
        self._save(image, path)
        for frame in shown_frames(len(one.sample.frames))[1:]:
            with suppress(UserError):  # its failure is told elsewhere
                self._save(one.sample.image(frame), frame_picture(path, frame))
        return str(path)

    def _save(self, image: NDArray[np.uint8], path: Path) -> None:
        picture = Image.fromarray(image)
        picture.thumbnail((PICTURE_SIDE, PICTURE_SIDE))
        picture.save(self.folder / path, quality=85)

    def finished_results(self) -> int:
        """Samples times cells of the parts that are closed, whoever filled them; looked up at most once in
        LOOKED seconds."""
        then, found = self._looked
        if (now := time.monotonic()) - then >= LOOKED:
            found = int(self._worth[self.claims.finished].sum())
            self._looked = now, found
        return found

    def _check_failures(self, latest: str) -> None:
        most = max(1, math.ceil(self.way.max_failures * self.total))

        def too_many(failed: int) -> bool:
            # a run without answers is none
            return failed > most or failed == self.total > self.way.max_failures * self.total

        failed = self.claims.failed
        if too_many(failed):  # a state may be damaged; the records know
            every = range(len(self.parts))
            self._look(every)
            failed = sum(len(self._failed(part)) for part in every)
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
            UserError: a part lacks records although this process has filled it, or too many samples failed.
        """
        self._check_failures("")  # in parts that others filled
        images = {job.cell.id: len(split.samples) for split in self.splits for job in split.jobs}
        lost = set().union(*closing.lacking(self.folder, self.info, images).values())
        for part in range(len(self.parts)) if lost else ():
            if absent := lost & {sample.id for _, sample in self._samples(part)}:
                if part in self.filled:
                    raise UserError(
                        f"{min(absent)} has no complete results although it was evaluated; "
                        f"look at its expressions, and whether {str(self.folder)!r} lost files meanwhile."
                    )
                self.claims.reopen(part)
        if not lost:
            with alone(self.folder / LOCK):  # others may be complete, too, or have gone on with other code
                closing.close_run(self.folder, images)
        return not lost


def _is_probed(place: int) -> bool:
    """Whether a split's sample is looked at for what rounding changes: the first of every PROBED_OF, up to
    PROBED of them."""
    before, rest = divmod(place, PROBED_OF)
    return not rest and before < PROBED
