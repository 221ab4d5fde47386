"""Answers as the competitions' servers and DAVIS' evaluator take them, written and checked.

Refer-YouTube-VOS  zip: Annotations/VIDEO/EXPRESSION/FRAME.png, one channel of 0 and 255
MeViS              zip: VIDEO/EXPRESSION/FRAME.png, the same
Ref-DAVIS-17       folder: anno_0 ... anno_3/VIDEO/00000.png, pictures of ids
"""

from __future__ import annotations

import io
import secrets
import shutil
import zipfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from harness.data.registry import load_samples
from harness.data.sample import DataError, Sample
from harness.data.video import davis, mevis, youtube
from harness.data.video.painted import palette

TOPS = {youtube.NAME: "Annotations/", mevis.NAME: ""}
STAMP = (1980, 1, 1, 0, 0, 0)  # the same answers give the same bytes
MOST_BYTES = 2**26  # of one picture
FAST = 1  # compression of pictures of two values: a smaller file is not worth the minutes


@dataclass(frozen=True)
class Answer:
    """The masks that answer one expression.

    Attributes:
        frames: names without the ending, in order.
        masks: (H, W) bool of every frame, in the same order; may be made while they are read.
    """

    video: str
    expression: int
    frames: Sequence[str]
    masks: Iterable[NDArray[np.bool_]]


def name_of(sample: Sample) -> str:
    """A clip's video."""
    return sample.id.rpartition(":")[2]


# -- archives


def write_submission(answers: Iterable[Answer], dataset: str, path: Path) -> int:
    """Write the zip that a data set's server takes; it is there whole or not at all.

    Args:
        dataset: ref-youtube-vos or mevis.

    Returns:
        How many pictures are in it.

    Raises:
        DataError: the data set has no server, an answer has more or fewer masks than frames, or the file
            cannot be written.
    """
    top, count = _top(dataset), 0
    partial = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    try:
        with zipfile.ZipFile(partial, "w") as archive:
            for answer in answers:
                for frame, mask in _pairs(answer):
                    name = f"{top}{answer.video}/{answer.expression}/{frame}.png"
                    archive.writestr(zipfile.ZipInfo(name, STAMP), _png(mask))
                    count += 1
        partial.replace(path)
    except OSError as error:
        raise DataError(
            f"'{path}' cannot be written ({error.strerror}); name a file in a folder of yours."
        ) from None
    finally:
        partial.unlink(missing_ok=True)
    return count


def _top(dataset: str) -> str:
    if dataset not in TOPS:
        raise DataError(
            f"{dataset} has no server that takes a zip, {' and '.join(TOPS)} have; name one of these."
        )
    return TOPS[dataset]


def _pairs(answer: Answer) -> Iterator[tuple[str, NDArray[np.bool_]]]:
    masks = iter(answer.masks)
    for frame in answer.frames:
        mask = next(masks, None)
        if mask is None:
            break
        yield frame, mask
    else:
        if next(masks, None) is None:
            return
    raise DataError(
        f"The answer to expression {answer.expression} of {answer.video} has not one mask for each of "
        f"{len(answer.frames)} frames; make it again."
    )


def _png(mask: NDArray[np.bool_]) -> bytes:
    file = io.BytesIO()
    Image.fromarray(np.where(mask, 255, 0).astype(np.uint8)).save(file, "png", compress_level=FAST)
    return file.getvalue()


def validate_submission(path: Path, dataset: str, split: str, root: Path | None) -> int:
    """Check a zip before a server does: its names against the list of expressions, and every picture.

    Returns:
        How many pictures are in it.

    Raises:
        DataError: what is wrong, in one sentence that names the first picture.
    """
    wanted = _wanted(load_samples(dataset, split, root, "video"), _top(dataset))
    try:
        with zipfile.ZipFile(path) as archive:
            held = {info.filename: info for info in archive.infolist() if not info.is_dir()}
            if len(held) < sum(not info.is_dir() for info in archive.infolist()):
                raise DataError(f"'{path}' holds a file twice under one name; write it anew.")
            _check_names(path, held, wanted)
            for name, size in wanted.items():
                if held[name].file_size > MOST_BYTES:
                    raise DataError(
                        f"'{name}' in '{path}' has {held[name].file_size >> 20} MiB; write it anew."
                    )
                with archive.open(name) as file:
                    _check_picture(path, name, file, size)
    except OSError as error:
        raise DataError(f"'{path}' cannot be read ({error.strerror}); name a zip file.") from None
    except (zipfile.BadZipFile, NotImplementedError, RuntimeError) as error:
        raise DataError(f"'{path}' is no whole zip file ({error}); write it anew.") from None
    return len(wanted)


def _wanted(samples: Iterable[Sample], top: str) -> dict[str, tuple[int, int]]:
    """Name and (height, width) of every picture that is due."""
    return {
        f"{top}{name_of(sample)}/{one.id}/{frame.stem}.png": (sample.height, sample.width)
        for sample in samples
        for one in sample.expressions
        for frame in sample.frames
    }


def _check_names(path: Path, held: Mapping[str, object], wanted: Mapping[str, tuple[int, int]]) -> None:
    absent = [name for name in wanted if name not in held]
    surplus = [name for name in held if name not in wanted]
    if absent:
        instead = next((name for name in surplus if _ends_alike(name, absent[0])), "")
        raise DataError(
            f"'{path}' lacks {len(absent)} of {len(wanted)} pictures, the first is '{absent[0]}'"
            + (f" ('{instead}' stands in its place)" if instead else "")
            + "; answer every expression in every listed frame."
        )
    if surplus:
        raise DataError(
            f"'{path}' holds {len(surplus)} files that nobody asks for, the first is '{surplus[0]}'; leave "
            f"them out."
        )


def _ends_alike(one: str, other: str) -> bool:
    """Whether one name is the other in a folder more or less."""
    return one.endswith(f"/{other}") or other.endswith(f"/{one}")


def _check_picture(path: Path, name: str, file: IO[bytes], size: tuple[int, int]) -> None:
    wrong = None
    try:
        with Image.open(file, formats=["PNG"]) as opened:
            if opened.size != size[::-1]:
                wrong = f"has {opened.width}x{opened.height} px, and its frame {size[1]}x{size[0]}"
            elif opened.mode != "L":
                wrong = f"has the mode {opened.mode}, and one channel of 8 bits (L) is due"
            elif others := [value for value, n in enumerate(opened.histogram()) if n and value % 255]:
                wrong = f"has the value {others[0]}, and 0 and 255 alone are due"
    except zipfile.BadZipFile:
        raise
    except Exception as error:  # a damaged file can raise nearly anything
        wrong = f"is no PNG that can be read ({' '.join(str(error).split()) or type(error).__name__})"
    if wrong:
        raise DataError(f"'{name}' in '{path}' {wrong}; write it anew.")


# -- Ref-DAVIS


def write_davis_results(answers: Iterable[Answer], samples: Sequence[Sample], folder: Path) -> int:
    """Write the folders that DAVIS' own evaluator takes (task unsupervised), one for each group.

    The masks of a group are merged into one picture of ids per frame. Where they overlap, the object that
    comes first wins, as officially: there, masks and a background of 0.1 are compared and the first of the
    largest is taken. The id is the object's place in its group, from 1 on.

    Args:
        answers: all of a video one behind the other.
        samples: of the split.
        folder: that is not there yet, or empty; it is there whole or not at all.

    Returns:
        How many pictures are there.

    Raises:
        DataError: an answer is missing, stands there twice or has other frames than its clip, or the folder
            holds something or cannot be written.
    """
    partial = folder.with_name(f".{folder.name}.{secrets.token_hex(4)}")
    try:
        if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
            raise DataError(f"'{folder}' is there already and not empty; name a new folder.")
        partial.mkdir(parents=True)
        count = _write_groups(answers, {name_of(sample): sample for sample in samples}, partial)
        partial.replace(folder)
    except OSError as error:
        raise DataError(
            f"'{folder}' cannot be written ({error.strerror}); name a new folder in one of yours."
        ) from None
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return count


def _write_groups(answers: Iterable[Answer], known: Mapping[str, Sample], folder: Path) -> int:
    """The folders of all groups; how many pictures are in them."""
    colours, count = palette(), 0
    done: set[str] = set()
    current: _Merged | None = None
    for answer in answers:
        if current is None or current.video != answer.video:
            count += current.write(folder, colours) if current else 0
            if answer.video not in known or answer.video in done:
                raise DataError(f"The video '{answer.video}' is answered where it is not asked for.")
            done.add(answer.video)
            current = _Merged(answer.video, known[answer.video])
        current.add(answer)
    count += current.write(folder, colours) if current else 0
    if lost := [name for name in known if name not in done]:
        raise DataError(f"{len(lost)} of {len(known)} videos have no answer, the first is {lost[0]}.")
    return count


class _Merged:
    """The answers to one video: per group pictures of ids, (T, H, W) uint8."""

    def __init__(self, video: str, sample: Sample) -> None:
        self.video, self.sample = video, sample
        self.ids = {
            group: np.zeros((len(sample.frames), sample.height, sample.width), dtype=np.uint8)
            for group in davis.GROUPS
        }
        places = {group: 0 for group in davis.GROUPS}
        self.due: dict[int, tuple[str, int]] = {}
        for one in sample.expressions:
            places[one.group] += 1
            self.due[one.id] = one.group, places[one.group]

    def add(self, answer: Answer) -> None:
        frames = tuple(path.stem for path in self.sample.frames)
        if answer.expression not in self.due or tuple(answer.frames) != frames:
            raise DataError(
                f"Expression {answer.expression} of {self.video} is answered twice, unasked, or in other "
                f"frames."
            )
        group, number = self.due.pop(answer.expression)
        for ids, (_, mask) in zip(self.ids[group], _pairs(answer), strict=True):
            ids[mask & ((ids == 0) | (ids > number))] = number

    def write(self, folder: Path, colours: list[int]) -> int:
        if self.due:
            raise DataError(f"{len(self.due)} expressions of {self.video} have no answer.")
        for group, clip in self.ids.items():
            place = folder / group / self.video
            place.mkdir(parents=True, exist_ok=True)
            for number, ids in enumerate(clip):
                picture = Image.fromarray(ids, "P")
                picture.putpalette(colours)
                picture.save(place / f"{number:05d}.png")
        return sum(len(clip) for clip in self.ids.values())
