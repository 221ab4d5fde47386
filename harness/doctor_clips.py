"""What the doctor says of referring video segmentation in a data folder."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from backbones import Finding
from harness import data
from harness.data.sample import DataError, Sample
from harness.data.video import davis, known, mevis, youtube
from harness.metrics.masks import FOREGROUND
from harness.progress import each


class Counts(NamedTuple):
    """Of a split; `objects` is None where it is not published."""

    videos: int
    objects: int | None
    expressions: int

    def __str__(self) -> str:
        objects = "" if self.objects is None else f"{self.objects} objects, "
        return f"{self.videos} videos, {objects}{self.expressions} expressions"


OFFICIAL: dict[str, dict[str, list[Counts]]] = {
    davis.NAME: {"val": [Counts(30, 61, 244)]},
    youtube.NAME: {"valid": [Counts(youtube.VIDEOS, None, youtube.EXPRESSIONS)]},
    mevis.NAME: {
        split: [Counts(videos, None, of[split]) for of in mevis.PUBLISHED.values()]
        for split, videos in mevis.VIDEOS.items()
    },
}
# where an id that no picture holds is that of another release; in MeViS the file itself may say "not seen"
PAINTED = (davis.NAME, youtube.NAME)
COUNTED_ALONE = "train"  # nobody waits for some hundred thousand frames
SUBMIT = "python -m harness submission RUN --data DIR --out FILE.zip"


def examine(root: Path) -> Iterator[Finding]:
    """Every split that is there, and what is expected of those that are not; nothing of a folder without
    video."""
    held = known.names(root)
    for name, module in known.KNOWN.items():
        if name in held:
            yield from _dataset(root, name)
        elif held:
            yield Finding("note", f"{name} is not in '{root}'; {module.expected(root)}")


def _dataset(root: Path, dataset: str) -> Iterator[Finding]:
    for split in [one for part in data.get(dataset).splits(dataset, root) for one in part]:
        try:
            samples = data.load_samples(dataset, split, root, "video")
            yield from _split(samples, dataset, split)
        except DataError as error:
            yield Finding("wrong", str(error))


def _split(samples: Sequence[Sample], dataset: str, split: str) -> Iterator[Finding]:
    name, scored = f"{dataset}:{split}", samples[0].scored
    found, official = _counted(samples), OFFICIAL[dataset].get(split, [])
    same = [one for one in official if _agree(one, found)]
    fine = True
    if official and not same:
        told = f"{name} has {found}, and the published split {' or '.join(map(str, official))}"
        if found.videos < official[0].videos:
            yield Finding("note", f"{told}; a part of it, whose scores compare with nobody's")
        else:
            fine = False
            yield Finding("wrong", f"{told}; unpack the release again")
    if split == COUNTED_ALONE:
        if fine:
            told = f"{name}: {found}{' as published' if same else ''}; frames were not looked at"
            yield Finding("ok", told)
        return
    broken, unseen = _looked_at(samples)
    if broken:
        yield Finding(
            "wrong",
            f"{name}: {len(broken)} of {len(samples)} videos cannot be used, first: {broken[0]}",
        )
    if unseen:
        told = f"{name}: {len(unseen)} expressions mean what no frame shows, first: {unseen[0]}"
        yield Finding("wrong" if dataset in PAINTED else "note", told)
    if fine and not broken and not (unseen and dataset in PAINTED):
        which = mevis.version(split, found.expressions) if dataset == mevis.NAME and same else None
        published = f" as published{f' in {which}' if which else ''}" if same else ""
        yield Finding("ok", f"{name}: {found}{published}, fingerprint {data.fingerprint(samples)}")
        yield from _notes(samples, dataset, split, scored)


def _counted(samples: Sequence[Sample]) -> Counts:
    spoken = [(sample.id, one.ref_id) for sample in samples for one in sample.expressions]
    one_each = samples[0].scored and samples[0].dataset in PAINTED
    return Counts(len(samples), len(set(spoken)) if one_each else None, len(spoken))


def _agree(official: Counts, found: Counts) -> bool:
    return all(one in (None, other) for one, other in zip(official, found, strict=True))


def _looked_at(samples: Sequence[Sample]) -> tuple[list[str], list[str]]:
    """Every frame and mask read once: what is broken of each clip that is, and expressions whose target is
    never seen."""
    broken, unseen = [], []
    for sample in each(samples, f"reading {samples[0].dataset}:{samples[0].split}", unit="videos"):
        seen = np.array([not target for target in sample.targets])
        try:
            for place in range(len(sample.frames)):
                sample.image(place)
                if sample.scored:
                    seen |= (sample.masks(place) == FOREGROUND).any(axis=(1, 2))
        except DataError as error:
            broken.append(str(error))
            continue
        unseen += [
            f"expression {one.id} of {sample.id}"
            for one, there in zip(sample.expressions, seen, strict=True)
            if not there
        ]
    return broken, unseen


def _notes(samples: Sequence[Sample], dataset: str, split: str, scored: bool) -> Iterator[Finding]:
    name = f"{dataset}:{split}"
    if not scored:
        yield Finding(
            "note", f"{name} has no masks here, so it gets no scores; {SUBMIT} makes what its server takes"
        )
    if dataset == youtube.NAME and split == "heldout":
        yield Finding(
            "note", f"{name} is a part of train, which most models learned from: compare pruners on it alone"
        )
    if dataset == davis.NAME:
        counted = sum(len(davis.annotated(sample)) for sample in samples)
        spoken = len({(sample.id, one.ref_id) for sample in samples for one in sample.expressions})
        if counted != spoken:
            yield Finding(
                "note",
                f"{name} speaks of {spoken} objects, and its first annotations hold {counted}; the official "
                f"score is of the latter",
            )
