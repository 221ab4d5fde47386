"""COCO instances files: images with their sizes, annotations with their segmentations. Whatever stands in a
file, no other error comes of it than one sentence."""

from __future__ import annotations

import reprlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from backbones.parts.image_files import UnreadableImage, check_size
from backbones.parts.json_files import load_json
from harness.data.sample import DataError

MOST_BYTES = 2**30  # of a file; that of all COCO train2014 has 450 MiB


@dataclass(frozen=True)
class Picture:
    """One image record; `name` is a path below the image folder."""

    id: int
    name: str
    height: int
    width: int


@contextmanager
def load_instances(path: Path) -> Iterator[Any]:
    """The content of an instances file; what is found missing in it inside of the block is told as its fault.

    Raises:
        DataError: it cannot be read, is no JSON, or (in the block) a KeyError, TypeError or ValueError.
    """
    try:
        content = load_json(path, MOST_BYTES)
    except ValueError as error:
        raise DataError(f"'{path}' is not valid JSON ({error}); download it again.") from None
    except OSError as error:
        raise DataError(f"'{path}' cannot be read ({error.strerror}).") from None
    try:
        yield content
    except DataError:
        raise
    except (KeyError, TypeError, ValueError) as error:
        what = f"no {error}" if isinstance(error, KeyError) else str(error)
        raise DataError(
            f"'{path}' is not a COCO instances file ({what}); mend that, or download it again."
        ) from None


def picture(number: int, record: Any, folders: Sequence[str]) -> Picture:
    """One image record.

    Args:
        folders: of the image folder, which some files write before a name.

    Raises:
        ValueError: it has no usable size or name.
    """
    try:
        height, width = whole(record, "height"), whole(record, "width")
        check_size(height, width)
        return Picture(number, below(record["file_name"], folders), height, width)
    except UnreadableImage as error:
        raise ValueError(f"image {number} has no usable size: {error}") from None
    except ValueError as error:
        raise ValueError(f"image {number}: {error}") from None


def below(name: Any, folders: Sequence[str]) -> str:
    """A path below the image folder: `1.jpg`, or `train2014/1.jpg` as some releases have it.

    Raises:
        ValueError: it is none, or leads out of the folder.
    """
    parts = name.replace("\\", "/").split("/") if isinstance(name, str) else [""]
    for folder in folders:
        parts = parts[1:] if len(parts) > 1 and parts[0] == folder else parts
    if any(part in ("", ".", "..") for part in parts):
        raise ValueError(f"no usable file name: {name!r}")
    return "/".join(parts)


def shallow(number: int, segmentation: Any) -> Any:
    """Polygons or run lengths are lists of lists or of dicts of lists; deeper ones would only exhaust who
    looks at them.

    Raises:
        ValueError: it is deeper.
    """
    level = [segmentation]
    for _ in range(4):
        level = [
            inner
            for outer in level
            if isinstance(outer, list | dict)
            for inner in (outer.values() if isinstance(outer, dict) else outer)
            if isinstance(inner, list | dict)
        ]
        if not level:
            return segmentation
    raise ValueError(f"the segmentation of annotation {number} is nested too deeply")


def whole(record: Any, key: str) -> int:
    """A whole number of 64 bits, which a table may hold as 11.0.

    Raises:
        KeyError, TypeError, ValueError: there is none.
    """
    value = record[key]
    if type(value) is float and value.is_integer():
        value = int(value)
    if type(value) is not int or not -(2**63) <= value < 2**63:
        # Python refuses to print numbers of thousands of digits
        shown = f"a number of {value.bit_length()} bits" if type(value) is int else reprlib.repr(value)
        raise ValueError(f"'{key}' is {shown}, not a whole number")
    return value
