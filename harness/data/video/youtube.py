"""Refer-YouTube-VOS (https://github.com/skynbe/Refer-Youtube-VOS).

    DIR/ref-youtube-vos/meta_expressions/{train, valid, test}/meta_expressions.json
    DIR/ref-youtube-vos/{train, valid}/JPEGImages/VIDEO/00005.jpg
    DIR/ref-youtube-vos/train/Annotations/VIDEO/00005.png

The list of valid also names the videos of test, which are left out. Masks of valid are not in the release:
it is answered for the competition's server, and scored here where `valid/Annotations` holds pictures of ids
and the list says which id is meant (`obj_id`, as in train's). `heldout` is a part of train: the videos for
which the SHA-256 of their name, as a number, is divisible by HELD_OUT.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

from harness.data.dataset import DataSet, Splits
from harness.data.sample import Annotation, DataError, Expression, Sample
from harness.data.video.davis import youtube_like
from harness.data.video.lists import (
    MOST_NUMBER,
    ListedVideo,
    blamed,
    check_files,
    clip_sample,
    located,
    no_split,
    number,
    read_list,
)
from harness.data.video.painted import painted
from harness.data.video.places import JPEGS, MASKS, META, below

NAME = "ref-youtube-vos"
FOLDERS = ("ref-youtube-vos", "refer_youtube_vos", "processed/refer_youtube_vos", "rvos")
EVALUATION, OTHERS = ("valid",), ("heldout", "train")
FOLDER_OF = {"valid": "valid", "heldout": "train", "train": "train"}
HELD_OUT = 16  # one video of so many: as many as valid has, about 200 of 3,471
VIDEOS, EXPRESSIONS = 202, 834  # of valid
MEND = "unpack the release again"


class RefYouTube(DataSet):
    """Objects of YouTube-VOS, each named by sentences of several people."""

    name = NAME
    reference = "https://github.com/skynbe/Refer-Youtube-VOS"
    medium = "video"
    told = "valid (to be submitted), heldout (a part of train), train; read from --data DIR with " + NAME

    def splits(self, dataset: str, root: Path | None) -> Splits:
        place = _place(root)
        return Splits(
            *([split for split in part if _list(place, split).is_file()] for part in (EVALUATION, OTHERS))
        )

    def load(self, dataset: str, split: str, root: Path | None) -> list[Sample]:
        held = [name for part in self.splits(dataset, root) for name in part]
        if split not in held:
            raise no_split(NAME, split, held)
        place = _place(root)
        videos = _videos(place, split)
        folder = place / FOLDER_OF[split]
        scored = split != "valid" or masks_are_there(folder, videos)
        samples = [_sample(split, count, video, folder, scored) for count, video in enumerate(videos)]
        frames = (path for sample in samples for path in sample.frames)
        check_files(f"{NAME}:{split}", "frames", frames, MEND)
        tracks = {track for sample in samples for target in sample.targets for track in target[:1]}
        masks = sorted({path for track in tracks for path in track.files()})
        check_files(f"{NAME}:{split}", "masks", masks, MEND)
        return samples


def found(root: Path | None) -> Path | None:
    """The folder with the lists; None if it is not there."""
    return next(
        (
            one
            for one in below(root, FOLDERS)
            if any(_list(one, split).is_file() for split in FOLDER_OF) and (one != root or youtube_like(one))
        ),
        None,
    )


def expected(root: Path | None) -> str:
    """The tree that it needs, on one line."""
    folder = (root or Path("DIR")) / FOLDERS[0]
    return (
        f"expected {folder}/{{{META}/{{train, valid, test}}/{META}.json, valid/{JPEGS}, "
        f"train/{{{JPEGS}, {MASKS}}}}}"
    )


def is_held_out(video: str) -> bool:
    """Whether a video of train belongs to `heldout`."""
    return int(hashlib.sha256(video.encode()).hexdigest(), 16) % HELD_OUT == 0


def masks_are_there(folder: Path, videos: list[ListedVideo]) -> bool:
    """Whether valid can be scored here: masks lie beside it, and its list says which object is meant."""
    if not (folder / MASKS).is_dir():
        return False
    return all("obj_id" in one.record for video in videos for one in video.expressions)


def _place(root: Path | None) -> Path:
    return located(found(root), NAME, root, FOLDERS[0], expected(root))


def _list(place: Path, split: str) -> Path:
    return place / META / FOLDER_OF.get(split, split) / f"{META}.json"


def _videos(place: Path, split: str) -> list[ListedVideo]:
    """The videos of a split."""
    path = _list(place, split)
    listed = read_list(path, MEND)
    if split == "heldout":
        chosen = [video for video in listed if is_held_out(video.name)]
        if not chosen:
            raise DataError(
                f"None of the {len(listed)} videos of '{path}' is held out (one of {HELD_OUT} is); "
                f"take {NAME}:train."
            )
        return chosen
    if split != "valid":
        return listed
    test = _list(place, "test")
    if test.is_file():
        others = {video.name for video in read_list(test, MEND)}
        return [video for video in listed if video.name not in others]
    if len(listed) > VIDEOS:
        raise DataError(
            f"'{path}' names {len(listed)} videos, those of test among them, and there is no '{test}' to "
            f"tell them apart by; {MEND}."
        )
    return listed


def _sample(split: str, place: int, video: ListedVideo, folder: Path, scored: bool) -> Sample:
    expressions = []
    targets: list[tuple[Annotation, ...]] = []
    masks = folder / MASKS / video.name
    with blamed(_list(folder.parent, split), MEND):
        for one in video.expressions:
            if not scored:
                expressions.append(Expression(one.id, one.text, one.id))
                targets.append(())
                continue
            what = f"'obj_id' of expression {one.id} of video {video.name}"
            if not (object_id := number(one.record.get("obj_id"), what, MOST_NUMBER)):
                raise ValueError(f"{what} is 0, which is no object")
            expressions.append(Expression(one.id, one.text, object_id))
            targets.append((painted(object_id, object_id, masks, video.frames, void=False),))
    frames = folder / JPEGS / video.name
    return clip_sample(NAME, split, place, video, frames, expressions, targets, MASKS, scored=scored)
