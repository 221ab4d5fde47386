"""One image of a referring-segmentation split: its expressions, its pixels, the masks they name."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pycocotools import mask as coco_mask

from backbones.parts.image_files import UnreadableImage, WrongSize, read_image
from pruners.base import UserError

FARTHEST = 100_000  # pixels; a polygon corner beyond it is a broken file, and would make the rasteriser allocate wildly
LONGEST_OUTLINE = 10_000_000  # pixels; the rasteriser holds five points of each
MOST_MASK_BYTES = 2**31


class DataError(UserError):
    """A data set that is missing, damaged or not what was asked for; the message is one sentence for the
    user."""


@dataclass(frozen=True)
class Annotation:
    """One object of `instances.json`.

    Attributes:
        id: annotation id.
        segmentation: as in the file: polygons (list of flat x, y lists), RLE (dict or list of dicts,
            compressed or not), or empty.
    """

    id: int
    segmentation: Any


@dataclass(frozen=True)
class Expression:
    """One sentence. `text` is the file's, untouched; the protocol strips and lower-cases it."""

    id: int
    text: str
    ref_id: int


@dataclass(frozen=True)
class Sample:
    """An image with all its expressions of one split.

    Attributes:
        id: `dataset:split:image_id`, stable; seeds of draws derive from it.
        path: image file.
        expressions: in the order of the refs file.
        height, width: pixels, as `instances.json` declares them.
        targets: per expression the annotations whose union is its mask; empty where nothing is meant.
    """

    id: str
    dataset: str
    split: str
    image_id: int
    path: Path
    expressions: tuple[Expression, ...]
    height: int = 0
    width: int = 0
    targets: tuple[tuple[Annotation, ...], ...] = field(default=(), repr=False, compare=False)

    def image(self) -> NDArray[np.uint8]:
        """Decode the pixels as the official evaluation does, (H, W, 3) uint8 RGB; see
        `backbones.parts.image_files.read_image`.

        Raises:
            DataError: the file is gone, unreadable, or of another size than its annotations.
        """
        try:
            return read_image(self.path, (self.height, self.width))
        except FileNotFoundError:
            raise DataError(
                f"Image '{self.path}' of {self.id} is gone; put it back or load the data again."
            ) from None
        except WrongSize as error:
            raise DataError(
                f"Image '{self.path}' {error}; take images and instances.json from the same release."
            ) from None
        except UnreadableImage as error:
            raise DataError(
                f"Image '{self.path}' of {self.id} cannot be read ({error}); copy it anew."
            ) from None

    def masks(self) -> NDArray[np.uint8]:
        """Rasterise the target of every expression, (E, H, W) uint8.

        As in the official data class, parts of one object are summed, so 2 marks pixels where two parts
        overlap; several objects of one expression are joined by bitwise or; no target or an empty
        segmentation is all 0.

        Raises:
            DataError: a segmentation is malformed, or all masks together do not fit in memory.
        """
        if len(self.expressions) * self.height * self.width > MOST_MASK_BYTES:
            raise DataError(
                f"{self.id} asks for {len(self.expressions)} masks of {self.width}x{self.height} px, more than "
                f"{MOST_MASK_BYTES >> 30} GiB together; split its expressions or scale image and annotations down."
            )
        known: dict[int, NDArray[np.uint8]] = {}
        masks = np.zeros((len(self.expressions), self.height, self.width), dtype=np.uint8)
        for mask, target in zip(masks, self.targets, strict=True):
            for annotation in target:
                if annotation.id not in known:
                    known[annotation.id] = rasterise(annotation, self.height, self.width)
                mask |= known[annotation.id]
        return masks


def rasterise(annotation: Annotation, height: int, width: int) -> NDArray[np.uint8]:
    """Sum of an annotation's parts, (H, W) uint8; all 0 if it has none.

    Raises:
        DataError: the segmentation is neither polygons nor run lengths of an image of this size.
    """
    parts = annotation.segmentation
    if not parts:
        return np.zeros((height, width), dtype=np.uint8)
    if isinstance(parts, dict):
        parts = [parts]
    mask = np.zeros((height, width), dtype=np.uint8)
    try:
        if not isinstance(parts, list):
            raise ValueError(f"a {type(parts).__name__}, neither a list nor a dict")
        run_lengths = _from_polygon if isinstance(parts[0], list) else _from_runs
        for part in parts:  # one at a time: all of them together would take their number times the image
            mask += coco_mask.decode(run_lengths(part, height, width))
    except Exception as error:  # pycocotools raises bare Exception for what it cannot read
        raise DataError(
            f"Segmentation of annotation {annotation.id} is damaged ({error}); download instances.json again."
        ) from None
    return mask


def _from_polygon(part: Any, height: int, width: int) -> dict[str, Any]:
    """Run lengths of one polygon; two corners are a line without area (pycocotools would take four numbers
    for a box)."""
    if not isinstance(part, list) or len(part) < 4 or len(part) % 2:
        raise ValueError("a polygon needs an even number of at least 4 coordinates")
    if not all(type(v) in (int, float) and math.isfinite(v) and abs(v) <= FARTHEST for v in part):
        raise ValueError("a polygon has a coordinate that is no pixel position")
    corners = np.asarray(part, dtype=np.float64).reshape(-1, 2)
    if np.abs(corners - np.roll(corners, 1, axis=0)).max(axis=1).sum() > LONGEST_OUTLINE:
        raise ValueError(f"a polygon has an outline of more than {LONGEST_OUTLINE} pixels")
    (rle,) = coco_mask.frPyObjects([part if len(part) > 4 else [*part, *part[2:]]], height, width)
    return rle  # type: ignore[no-any-return]


def _from_runs(part: Any, height: int, width: int) -> dict[str, Any]:
    if not isinstance(part, dict) or not {"size", "counts"} <= part.keys():
        raise ValueError("run lengths need 'size' and 'counts'")
    if list(part["size"]) != [height, width]:
        raise ValueError(f"run lengths of size {part['size']} in an image of size {[height, width]}")
    counts = part["counts"] if isinstance(part["counts"], list) else _unpacked(part["counts"])
    # pycocotools decodes too short ones into memory that it has not initialised
    if not all(type(run) is int and run >= 0 for run in counts) or sum(counts) != height * width:
        raise ValueError(f"run lengths do not add up to {height * width} pixels")
    return coco_mask.frPyObjects({"size": [height, width], "counts": counts}, height, width)  # type: ignore[no-any-return]


def _unpacked(counts: str | bytes) -> list[int]:
    """Run lengths of COCO's compressed form.

    Six bits a character from '0' on: five of the number, least significant first, and whether more follow;
    the highest bit of the last five is the sign. From the fourth on, a number is the difference to the run
    two before.
    """
    packed = counts.encode("ascii") if isinstance(counts, str) else counts
    found: list[int] = []
    value = shift = 0
    for letter in packed:
        six = letter - 48
        if not 0 <= six < 64 or shift > 60:
            raise ValueError("run lengths have a character that they cannot have")
        value |= (six & 31) << shift
        shift += 5
        if six & 32:
            continue
        if six & 16:
            value -= 1 << shift
        found.append(value + found[-2] if len(found) > 2 else value)
        value = shift = 0
    if shift:
        raise ValueError("run lengths are cut off")
    return found


def fingerprint(samples: Iterable[Sample]) -> str:
    """Identity of what a run reads: 16 hex digits over expressions, targets and image bytes, in order.

    Folder names do not enter, so the same data give the same fingerprint on every machine. An image that
    cannot be read enters as missing; the run records it as failed.
    """
    digest = hashlib.sha256()
    for sample in samples:
        _digest(sample, digest)
    return digest.hexdigest()[:16]


def content(sample: Sample) -> str:
    """Identity of one sample: 16 hex digits over its expressions, their targets and its image's bytes."""
    digest = hashlib.sha256()
    _digest(sample, digest)
    return digest.hexdigest()[:16]


def _digest(sample: Sample, digest: hashlib._Hash) -> None:
    said = [[e.id, e.text, e.ref_id] for e in sample.expressions]
    meant = [[[a.id, a.segmentation] for a in target] for target in sample.targets]
    head = [sample.id, sample.path.name, sample.height, sample.width, said, meant]
    digest.update(json.dumps(head, sort_keys=True).encode())
    try:
        with sample.path.open("rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    except OSError:
        digest.update(b"missing")
