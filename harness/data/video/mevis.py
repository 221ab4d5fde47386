"""MeViS: sentences about motion, each of any number of objects (https://github.com/henghuiding/MeViS).

    DIR/mevis/{valid_u, valid, train}/{JPEGImages/VIDEO/00000.jpg, meta_expressions.json}
    DIR/mevis/{valid_u, train}/mask_dict.json

The second version has the same videos, more sentences, some of which mean nothing, and calls its list
`meta_expressions_v2.json`. Masks of valid are not public: it is answered for the competition's server.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from harness.data.dataset import DataSet, Splits
from harness.data.sample import Annotation, DamagedSegmentation, DataError, Expression, Sample, Track
from harness.data.video.lists import (
    ListedVideo,
    blamed,
    check_files,
    clip_sample,
    located,
    no_split,
    number,
    of_kind,
    read_list,
)
from harness.data.video.members import members
from harness.data.video.places import JPEGS, META, below

NAME = "mevis"
FOLDERS = ("mevis", "MeViS", "MeViS_release", "mevis_v2", "MeViSv2")
LISTS = (f"{META}.json", f"{META}_v2.json")
MASK_FILE = "mask_dict.json"
EVALUATION, OTHERS = ("valid_u",), ("valid", "train")
WITHOUT_MASKS = ("valid",)
MEND = "unpack the release again"
# expressions of the published splits, by version
PUBLISHED = {
    "v1": {"valid_u": 793, "valid": 2236, "train": 23051},
    "v2": {"valid_u": 907, "valid": 2523, "train": 27502},
}
VIDEOS = {"valid_u": 50, "valid": 140, "train": 1662}


class MeViS(DataSet):
    """Objects that are told apart by what they do."""

    name = NAME
    reference = "https://github.com/henghuiding/MeViS"
    medium = "video"
    told = "valid_u, valid (to be submitted), train; read from --data DIR with mevis"

    def splits(self, dataset: str, root: Path | None) -> Splits:
        place = _place(root)
        return Splits(*([split for split in part if _lists(place, split)] for part in (EVALUATION, OTHERS)))

    def load(self, dataset: str, split: str, root: Path | None) -> list[Sample]:
        held = [name for part in self.splits(dataset, root) for name in part]
        if split not in held:
            raise no_split(NAME, split, held)
        folder = _place(root) / split
        videos = read_list(_list(folder), MEND)
        scored = split not in WITHOUT_MASKS
        meant = _meant(folder, videos) if scored else {}
        masks = _masks(folder / MASK_FILE, meant)
        samples = [_sample(split, place, video, folder, meant, masks) for place, video in enumerate(videos)]
        frames = (path for sample in samples for path in sample.frames)
        check_files(f"{NAME}:{split}", "frames", frames, "unpack its JPEGImages again")
        return samples


def found(root: Path | None) -> Path | None:
    """The folder of the splits; None if it is not there."""
    places = below(root, FOLDERS)
    return next((one for one in places if any(_lists(one, split) for split in VIDEOS)), None)


def expected(root: Path | None) -> str:
    """The tree that it needs, on one line."""
    folder = (root or Path("DIR")) / FOLDERS[0]
    return f"expected {folder}/{{{', '.join(VIDEOS)}}}/{{{JPEGS}, {LISTS[0]}, {MASK_FILE}}}"


def version(split: str, expressions: int) -> str | None:
    """The published version that has so many expressions in a split; None if none has."""
    return next((name for name, counts in PUBLISHED.items() if counts.get(split) == expressions), None)


def _place(root: Path | None) -> Path:
    return located(found(root), NAME, root, FOLDERS[0], expected(root))


def _lists(place: Path, split: str) -> list[Path]:
    return [place / split / name for name in LISTS if (place / split / name).is_file()]


def _list(folder: Path) -> Path:
    """The list of a split; of both versions' nobody can tell which is meant."""
    first, *more = _lists(folder.parent, folder.name)
    if more:
        raise DataError(
            f"'{folder}' holds {first.name} and {more[0].name}, two versions whose scores do not compare; "
            f"move one of them away."
        )
    return first


@dataclass(frozen=True)
class Runs(Track):
    """One object of a clip as run lengths.

    Attributes:
        frames: of its clip; as many masks there must be.
    """

    frames: int

    def mask(self, height: int, width: int, frame: int = 0) -> NDArray[np.uint8]:
        if len(self.segmentation) != self.frames:
            raise DamagedSegmentation(
                f"Annotation {self.id} has masks of {len(self.segmentation)} frames, and its clip has "
                f"{self.frames}"
            )
        return super().mask(height, width, frame)


def _meant(folder: Path, videos: Sequence[ListedVideo]) -> dict[tuple[str, int], tuple[int, ...]]:
    """The annotations that every expression means, by video and id; none where nothing is meant."""
    found = {}
    with blamed(_list(folder), MEND):
        for video in videos:
            for one in video.expressions:
                what = f"'anno_id' of expression {one.id} of video {video.name}"
                held = of_kind(one.record.get("anno_id"), list, what)
                found[video.name, one.id] = tuple(dict.fromkeys(number(key, what) for key in held))
    return found


def _masks(path: Path, meant: dict[tuple[str, int], tuple[int, ...]]) -> dict[int, list[Any]]:
    """Per annotation that is meant its run lengths or None, frame by frame."""
    wanted = {one for ids in meant.values() for one in ids}
    found: dict[int, list[Any]] = {}
    if wanted:
        with blamed(path, MEND):
            for key, value in members(path):
                if key.isascii() and key.isdigit() and len(key) < 12 and int(key) in wanted:
                    found[int(key)] = list(_frames(key, value))
    for (video, expression), ids in meant.items():
        if lost := [one for one in ids if one not in found]:
            raise DataError(
                f"Expression {expression} of {NAME}:{path.parent.name}:{video} means annotation {lost[0]}, "
                f"which '{path}' does not hold; take both files from the same download."
            )
    return found


def _frames(key: str, value: Any) -> Iterator[Any]:
    """Run lengths of one annotation with what they share held once.

    Raises:
        TypeError, ValueError: they are none.
    """
    sizes: dict[str, Any] = {}
    for place, runs in enumerate(of_kind(value, list, f"annotation {key}")):
        if runs is None:
            yield None
            continue
        of_kind(runs, dict, f"annotation {key} in frame {place}")
        size, counts = runs.get("size"), runs.get("counts")
        whole = isinstance(size, list) and len(size) == 2 and all(type(one) is int for one in size)
        if not whole or not isinstance(counts, str | list):
            raise ValueError(f"annotation {key} has no run lengths in frame {place}")
        yield {"size": sizes.setdefault(str(size), size), "counts": counts}


def _sample(
    split: str,
    place: int,
    video: ListedVideo,
    folder: Path,
    meant: dict[tuple[str, int], tuple[int, ...]],
    masks: dict[int, list[Any]],
) -> Sample:
    """One video; expressions that mean the same objects share a ref, which is the first one's id."""
    tracks: dict[int, Runs] = {}
    refs: dict[tuple[int, ...], int] = {}
    expressions = []
    targets: list[tuple[Annotation, ...]] = []
    for one in video.expressions:
        ids = meant.get((video.name, one.id), ())
        ref = refs.setdefault(tuple(sorted(ids)), one.id) if meant else one.id
        # as officially: lower case, one blank between words
        expressions.append(Expression(one.id, " ".join(one.text.lower().split()), ref))
        for key in ids:
            tracks.setdefault(key, Runs(key, masks[key], len(video.frames)))
        targets.append(tuple(tracks[key] for key in ids))
    frames, scored = folder / JPEGS / video.name, split not in WITHOUT_MASKS
    return clip_sample(NAME, split, place, video, frames, expressions, targets, MASK_FILE, scored=scored)
