"""The lists of expressions that all three data sets have, and samples made of their entries."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, TypeVar

from backbones.parts.json_files import load_json
from harness.data.headers import size_of
from harness.data.refs import unicode_text
from harness.data.sample import Annotation, DataError, Expression, Sample
from harness.data.video.places import plain
from pruners.base import nearest

MOST_BYTES = 2**28  # of a list; the largest has some ten MiB
MOST_NUMBER = 254  # of an object in a picture of ids: 0 is none, 255 void
Place = TypeVar("Place")
WHOLE = re.compile(r"0|[1-9][0-9]{0,8}")


@dataclass(frozen=True)
class Listed:
    """One expression; `record` is its entry in the list."""

    id: int
    text: str
    record: Mapping[str, Any]


@dataclass(frozen=True)
class ListedVideo:
    """One video; `frames` are names without the ending, in order."""

    name: str
    frames: tuple[str, ...]
    expressions: tuple[Listed, ...]


@contextmanager
def blamed(path: Path, mend: str) -> Iterator[None]:
    """What is found wrong inside of the block is told as this file's fault.

    Raises:
        DataError: instead of an OSError, KeyError, TypeError, ValueError or RecursionError.
    """
    try:
        yield
    except DataError:
        raise
    except OSError as error:
        raise DataError(f"'{path}' cannot be read ({error.strerror or 'it is no file'}); {mend}.") from None
    except (KeyError, TypeError, ValueError, RecursionError) as error:
        what = f"no {error}" if isinstance(error, KeyError) else " ".join(str(error).split())
        raise DataError(f"'{path}' cannot be used ({what}); {mend}.") from None


def read_list(path: Path, mend: str) -> list[ListedVideo]:
    """All videos of a list of expressions, sorted by name; those that nothing is said about are left out, as
    officially.

    Args:
        mend: what to do where it is missing or damaged, as the end of a sentence.

    Raises:
        DataError: it cannot be read, or is no list of expressions.
    """
    with blamed(path, mend):
        content = load_json(path, MOST_BYTES)
        videos = of_kind(of_kind(content, dict, "it")["videos"], dict, "'videos'")
        listed = [_video(plain(name, "video"), entry) for name, entry in sorted(videos.items())]
    return [video for video in listed if video.expressions]


def of_kind(value: Any, kind: type, what: str) -> Any:
    """The value, if it is of this type.

    Raises:
        TypeError: it is not.
    """
    if not isinstance(value, kind):
        raise TypeError(f"{what} is a {type(value).__name__}, not a {kind.__name__}")
    return value


def number(value: Any, what: str, most: int = 10**9) -> int:
    """A whole number from 0 on, which the lists write as text or as a number.

    Raises:
        ValueError: it is none, or larger.
    """
    text = str(value) if type(value) is int and 0 <= value <= most else value
    if not isinstance(text, str) or not WHOLE.fullmatch(text) or int(text) > most:
        raise ValueError(f"{what} is {_short(value)}, no whole number from 0 to {most}")
    return int(text)


def _short(value: Any) -> str:
    return f"a number of {value.bit_length()} bits" if type(value) is int else repr(value)[:60]


def _video(name: str, entry: Any) -> ListedVideo:
    where = f"video {name}"
    try:
        held = of_kind(of_kind(entry, dict, "it").get("frames", []), list, "'frames'")
        frames = [plain(frame, "frame") for frame in held]
        said = of_kind(entry["expressions"], dict, "'expressions'")
    except KeyError as error:
        raise ValueError(f"{where} has no {error}") from None
    except (TypeError, ValueError) as error:
        raise ValueError(f"{where}: {error}") from None
    if not frames or any(one >= two for one, two in pairwise(frames)):
        raise ValueError(f"{where} has {'frames that are not in order' if frames else 'no frames'}")
    expressions = [_expression(f"expression {key!r} of {where}", key, one) for key, one in said.items()]
    return ListedVideo(name, tuple(frames), tuple(sorted(expressions, key=lambda one: one.id)))


def _expression(where: str, key: str, record: Any) -> Listed:
    text = record.get("exp") if isinstance(record, dict) else None
    if not isinstance(text, str) or not text.strip():
        raise ValueError(f"{where} has no text 'exp'")
    return Listed(number(key, f"the id of {where}"), unicode_text(text), record)


def clip_sample(
    dataset: str,
    split: str,
    place: int,
    video: ListedVideo,
    folder: Path,
    expressions: Sequence[Expression],
    targets: Sequence[tuple[Annotation, ...]],
    source: str,
    window: int = 0,
    scored: bool = True,
) -> Sample:
    """One clip.

    Args:
        place: of the video among all of the split.
        folder: of its frames; the first one that can be read says how large all are.
        source: what holds the masks.
    """
    frames = tuple(folder / f"{name}.jpg" for name in video.frames)
    sizes = (size_of(path) for path in frames)
    height, width = next((size for size in sizes if size != (1, 1)), (1, 1))
    return Sample(
        id=f"{dataset}:{split}:{video.name}",
        dataset=dataset,
        split=split,
        image_id=place,
        frames=frames,
        expressions=tuple(expressions),
        height=height,
        width=width,
        targets=tuple(targets),
        cluster=f"{dataset}/{video.name}",
        source=source,
        window=window,
        scored=scored,
    )


def check_files(name: str, what: str, paths: Iterable[Path], mend: str) -> None:
    """See that files are there, looking once into each folder.

    Args:
        name: data set and split.
        what: they are, in the plural.

    Raises:
        DataError: some are not; the first one is named.
    """
    held: dict[Path, frozenset[str]] = {}
    count, absent = 0, []
    for path in paths:
        if path.parent not in held:
            held[path.parent] = frozenset(_names(path.parent))
        count += 1
        if path.name not in held[path.parent]:
            absent.append(path)
    if absent:
        raise DataError(
            f"{len(absent)} of {count} {what} of {name} are missing, the first is '{absent[0]}'; {mend}."
        )


def _names(folder: Path) -> list[str]:
    try:
        return os.listdir(folder)
    except OSError:
        return []


def file_names(folder: Path, ending: str) -> list[str]:
    """Names without their ending of the files of a folder that end so, sorted; hidden ones are nobody's."""
    return sorted(
        name.removesuffix(ending)
        for name in _names(folder)
        if name.endswith(ending) and not name.startswith(".")
    )


def located(place: Place | None, dataset: str, root: Path | None, folder: str, expected: str) -> Place:
    """What was found of a data set in a data folder.

    Args:
        place: None if it is not there.
        folder: of the data set in a data folder.
        expected: the tree that it needs, as the end of a sentence.

    Raises:
        DataError: it is not there, or no data folder was named.
    """
    if root is None:
        raise DataError(f"{dataset} is not shipped; name the folder that holds {folder} with --data DIR.")
    if place is None:
        raise DataError(f"{dataset} is not in '{root}'; {expected}.")
    return place


def no_split(dataset: str, split: str, held: Sequence[str]) -> DataError:
    """What to raise where a split is asked for that is not there."""
    return DataError(
        f"{dataset} has no split {split!r}, it has {', '.join(held) or 'none'}.{nearest(split, held)}"
    )
