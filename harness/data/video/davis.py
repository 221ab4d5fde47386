"""Ref-DAVIS-17, as it is downloaded or as ReferFormer and VideoGLaMM convert it.

    DIR/ref-davis/DAVIS/{JPEGImages/480p, Annotations_unsupervised/480p, ImageSets/2017/val.txt,
                         davis_semantics.json}
    DIR/ref-davis/davis_text_annotations/Davis17_annot{1,2}{,_full_video}.txt

    DIR/ref-davis/meta_expressions/valid/meta_expressions.json
    DIR/ref-davis/valid/{JPEGImages, Annotations}/VIDEO/00000.{jpg, png}

Two people described every object, once from the first frame and once from the full video: four groups of
expressions, which are answered and scored apart. Expression 4k + a is that of the k-th object in text file a;
objects are sorted by their id as a text, as the official converter does
(https://github.com/wjn922/ReferFormer). The official score counts the objects of the first annotation, which
may be more than those that are spoken of (`annotated`): the texts are of the annotations of 2017, and the
unsupervised ones were made anew in 2019, so that ids need not agree either.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from backbones.parts.json_files import load_json
from harness.data.dataset import DataSet, Splits
from harness.data.sample import DamagedSegmentation, DataError, Expression, Sample
from harness.data.video.davis_texts import read_texts
from harness.data.video.lists import (
    MOST_NUMBER,
    ListedVideo,
    blamed,
    check_files,
    clip_sample,
    file_names,
    located,
    no_split,
    number,
    of_kind,
    read_list,
)
from harness.data.video.painted import VOID, Painted, painted, read_ids
from harness.data.video.places import FILES, IDS, JPEGS, MASKS, META, TEXTS, below, plain
from pruners.errors import reason

NAME = "ref-davis17"
WINDOW = 64  # frames of one call of the language model in VideoGLaMM's evaluation
GROUPS = tuple(f"anno_{place}" for place in range(len(FILES)))
SPLITS = {"val": "valid", "train": "train"}  # and their folders in the converted layout
# the converted layout's folder, and that of the downloads
FOLDERS = (
    *("ref-davis", "ref-davis17", "ref_davis", "refer_davis/2017", "processed/refer_davis/2017"),
    *("refer_davis", "2017", "DAVIS17"),
)
MEND = "unpack the release again"


class RefDavis(DataSet):
    """Objects of DAVIS 2017, each named by four sentences."""

    name = NAME
    reference = "https://davischallenge.org"
    medium = "video"
    told = "val, train; read from --data DIR with ref-davis, as downloaded or as ReferFormer converts it"

    def splits(self, dataset: str, root: Path | None) -> Splits:
        held = _place(root).splits()
        return Splits(*([one for one in held if (one == "val") is first] for first in (True, False)))

    def load(self, dataset: str, split: str, root: Path | None) -> list[Sample]:
        place = _place(root)
        if split not in place.splits():
            raise no_split(NAME, split, place.splits())
        samples = [
            _sample(split, count, video, place.jpegs(split) / video.name, place.masks(split) / video.name)
            for count, video in enumerate(place.read(split))
        ]
        frames = (path for sample in samples for path in sample.frames)
        check_files(f"{NAME}:{split}", "frames", frames, MEND)
        masks = (path for sample in samples for path in _first(sample).files())
        check_files(f"{NAME}:{split}", "masks", masks, MEND)
        return samples


@dataclass(frozen=True)
class Place:
    """Where the data lie in the converted layout."""

    folder: Path

    def splits(self) -> list[str]:
        return [split for split in SPLITS if self.list_file(split).is_file()]

    def jpegs(self, split: str) -> Path:
        """Folder of the videos' folders of frames."""
        return self.folder / SPLITS[split] / JPEGS

    def masks(self, split: str) -> Path:
        """Folder of the videos' folders of id pictures."""
        return self.folder / SPLITS[split] / MASKS

    def read(self, split: str) -> list[ListedVideo]:
        """Its videos.

        Raises:
            DataError: files are missing or damaged.
        """
        return read_list(self.list_file(split), MEND)

    def list_file(self, split: str) -> Path:
        """The list of a split's expressions."""
        return self.folder / META / SPLITS[split] / f"{META}.json"


@dataclass(frozen=True)
class Downloaded(Place):
    """Where they lie as they were downloaded: `folder` is that of DAVIS, `texts` of the text files."""

    texts: Path

    def splits(self) -> list[str]:
        return [split for split in SPLITS if self._set(split).is_file()]

    def jpegs(self, split: str) -> Path:
        return self.folder / JPEGS / "480p"

    def masks(self, split: str) -> Path:
        return self.folder / IDS / "480p"

    def read(self, split: str) -> list[ListedVideo]:
        with blamed(self._set(split), MEND):
            names = [plain(name, "video") for name in self._set(split).read_text("utf-8").split()]
            if not names or len(set(names)) < len(names):
                raise ValueError("it names a video twice" if names else "it names no video")
        frames = {name: tuple(file_names(self.jpegs(split) / name, ".jpg")) for name in names}
        absent = [name for name in names if not frames[name]]
        if absent:
            raise DataError(
                f"{len(absent)} of {len(names)} videos of {NAME}:{split} have no frames, the first is "
                f"'{self.jpegs(split) / absent[0]}'; {MEND}."
            )
        spoken = read_texts(self.texts, names)
        return [ListedVideo(name, frames[name], spoken[name]) for name in sorted(names)]

    def _set(self, split: str) -> Path:
        return self.folder / "ImageSets" / "2017" / f"{split}.txt"


def found(root: Path | None) -> Place | None:
    """Where it is in a data folder; None if it is not. Of both layouts the converted one is taken: the
    official converter moves the files out of the other one."""
    places = list(below(root, FOLDERS))
    converted = (Place(place) for place in places if place != root or not youtube_like(place))
    downloaded = (
        Downloaded(davis, next((one for one in texts if one.is_dir()), texts[0]))
        for place in places
        for davis in (place / "DAVIS", place / "DAVIS17" / "DAVIS")
        for texts in [[davis.parent / TEXTS, davis / TEXTS, place / TEXTS]]
    )
    return next((one for one in (*converted, *downloaded) if one.splits()), None)


def youtube_like(folder: Path) -> bool:
    """Whether a folder that is named itself holds Refer-YouTube-VOS, which has the same layout: it has test
    videos and, as a rule, no masks of valid."""
    if "davis" in folder.absolute().as_posix().lower() or folder.absolute().name == "2017":
        return False
    return (folder / META / "test").is_dir() or not (folder / "valid" / MASKS).is_dir()


def expected(root: Path | None) -> str:
    """The trees that it may lie in, on one line."""
    folder = (root or Path("DIR")) / FOLDERS[0]
    return (
        f"expected {folder}/{{DAVIS/{{{JPEGS}/480p, {IDS}/480p, ImageSets/2017/val.txt}}, {TEXTS}/*.txt}} or "
        f"{folder}/{{{META}/valid/{META}.json, valid/{{{JPEGS}, {MASKS}}}}}"
    )


def _place(root: Path | None) -> Place:
    return located(found(root), NAME, root, FOLDERS[0], expected(root))


def _sample(split: str, place: int, video: ListedVideo, jpegs: Path, masks: Path) -> Sample:
    _check_frames(split, video, masks)
    expressions, targets = [], []
    for one, group in zip(video.expressions, _groups(split, video), strict=True):
        object_id = _object(split, video, one.record)
        expressions.append(Expression(one.id, one.text, object_id, group=group))
        targets.append((painted(object_id, object_id, masks, video.frames, void=True),))
    sample = clip_sample(NAME, split, place, video, jpegs, expressions, targets, MASKS, WINDOW)
    with suppress(DataError):  # an annotation that cannot be read fails its clip alone, when it is measured
        spoken = {one.ref_id for one in expressions}
        unspoken = tuple(one for one in annotated(sample) if one.id not in spoken)
        sample = replace(sample, unspoken=unspoken)
    return sample


def _object(split: str, video: ListedVideo, record: Any) -> int:
    try:
        found = number(record["obj_id"], "'obj_id'", MOST_NUMBER)
        if not found:
            raise ValueError("'obj_id' is 0, which is no object")
        return found
    except KeyError:
        raise DataError(f"An expression of {NAME}:{split}:{video.name} has no 'obj_id'; {MEND}.") from None
    except ValueError as error:
        raise DataError(f"In {NAME}:{split}:{video.name} an expression's {error}; {MEND}.") from None


def _groups(split: str, video: ListedVideo) -> Iterator[str]:
    """The group of every expression: of each object one of each text file, in the order of the files."""
    objects = [_object(split, video, one.record) for one in video.expressions]
    each = [objects[start : start + len(FILES)] for start in range(0, len(objects), len(FILES))]
    ids = [one.id for one in video.expressions]
    whole = ids == list(range(len(ids))) and all(len(set(of)) == 1 and len(of) == len(FILES) for of in each)
    if not whole or len({of[0] for of in each}) < len(each):
        raise DataError(
            f"{NAME}:{split}:{video.name} has expressions of the objects {objects}, not {len(FILES)} of "
            f"each, one behind the other; {MEND}."
        )
    return (GROUPS[number % len(GROUPS)] for number in ids)


def _check_frames(split: str, video: ListedVideo, masks: Path) -> None:
    """A frame that was lost would make a shorter clip, with another score."""
    painted_ones = file_names(masks, ".png")
    surplus = [name for name in painted_ones if name not in set(video.frames)]
    for place, name in enumerate(video.frames):
        if name != f"{place:05d}":
            raise DataError(
                f"{NAME}:{split}:{video.name} has the frame '{name}.jpg' where {place:05d}.jpg is due; "
                f"{MEND}."
            )
    if surplus:
        raise DataError(
            f"{NAME}:{split}:{video.name} has the mask '{masks / surplus[0]}.png' without a frame; {MEND}."
        )


def _first(sample: Sample) -> Painted:
    track = sample.targets[0][0]
    assert isinstance(track, Painted)  # made above
    return track


def annotated(sample: Sample) -> tuple[Painted, ...]:
    """The objects that the official evaluation counts: 1 to the largest id in the first frame's annotation,
    spoken of or not. (DAVIS' unsupervised annotations hold objects that no text names.)

    Raises:
        DataError: the annotation cannot be read.
    """
    track = _first(sample)
    try:
        ids = read_ids(track.files()[0], (sample.height, sample.width))
    except DamagedSegmentation as error:
        raise DataError(f"{reason(error)}; mend {sample.source}, or download it again.") from None
    count = int(np.where(ids == VOID, 0, ids).max())
    names = [path.stem for path in track.files()]
    return tuple(painted(one, one, track.folder, names, void=True) for one in range(1, count + 1))


def convert_davis(root: Path, target: Path, splits: Sequence[str] = tuple(SPLITS)) -> list[str]:
    """Write the converted layout of what was downloaded, for other people's tools.

    Args:
        root: data folder with the downloads; they stay as they are.
        target: folder that gets `meta_expressions` and the splits' folders.

    Returns:
        The splits that were there.

    Raises:
        DataError: there are no downloads, or files are missing or damaged.
    """
    place = _place(root)
    if not isinstance(place, Downloaded):
        raise DataError(f"'{place.folder}' is converted already; name the folder that holds the downloads.")
    held = [split for split in splits if split in place.splits()]
    for split in held:
        videos, made = place.read(split), Place(target)
        named = _categories(place.folder / "davis_semantics.json", videos)
        for video in videos:
            _copy(place.jpegs(split) / video.name, made.jpegs(split) / video.name)
            _copy(place.masks(split) / video.name, made.masks(split) / video.name)
        listed = {
            video.name: {
                "expressions": {str(one.id): dict(one.record) for one in video.expressions},
                "frames": list(video.frames),
            }
            for video in videos
        }
        for path, content in ((made.list_file(split), listed), (target / SPLITS[split] / "meta.json", named)):
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(json.dumps({"videos": content}))
    return held


def _categories(path: Path, videos: Sequence[ListedVideo]) -> dict[str, Any]:
    """What DAVIS says that the objects of every video are."""
    with blamed(path, "unpack DAVIS-2017_semantics-480p.zip"):
        known = of_kind(load_json(path), dict, "it")
        return {
            video.name: {
                "objects": {
                    key: {"category": str(what)}
                    for key, what in of_kind(known[video.name], dict, f"video {video.name}").items()
                }
            }
            for video in videos
        }


def _copy(source: Path, target: Path) -> None:
    with blamed(source, MEND):
        shutil.copytree(source, target, dirs_exist_ok=True)
