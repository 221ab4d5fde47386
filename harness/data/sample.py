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
from PIL import Image, UnidentifiedImageError
from pycocotools import mask as coco_mask

from pruners.base import UserError

FARTHEST = 100_000  # pixels; a polygon corner beyond it is a broken file, and would make the rasteriser allocate wildly


class DataError(UserError):
    """A data set that is missing, damaged or not what was asked for; the message is one sentence for the user."""


@dataclass(frozen=True)
class Annotation:
    """One object of `instances.json`.

    Attributes:
        id: annotation id.
        segmentation: as in the file: polygons (list of flat x, y lists), RLE (dict or list of dicts, compressed or
            not), or empty.
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
        """Read the pixels as they are stored, (H, W, 3) uint8 RGB; annotations know nothing of EXIF's turns.

        Raises:
            DataError: the file is gone, unreadable, or of another size than its annotations.
        """
        try:
            with Image.open(self.path) as opened:
                deep = opened.mode.startswith("I")  # 16 bits, which PIL would cut off at 255
                shown = Image.fromarray((np.asarray(opened) >> 8).astype(np.uint8)) if deep else opened
                pixels = np.array(shown.convert("RGB"), dtype=np.uint8)
        except FileNotFoundError:
            raise DataError(f"Image '{self.path}' of {self.id} is gone; put it back or load the data again.") from None
        except (OSError, SyntaxError, ValueError, UnidentifiedImageError, Image.DecompressionBombError) as error:
            raise DataError(f"Image '{self.path}' of {self.id} cannot be read ({error}); copy it anew.") from None
        if pixels.shape[:2] != (self.height, self.width):
            raise DataError(
                f"Image '{self.path}' is {pixels.shape[1]}x{pixels.shape[0]} px, but its annotations are for "
                f"{self.width}x{self.height}; take images and instances.json from the same release."
            )
        return pixels

    def masks(self) -> NDArray[np.uint8]:
        """Rasterise the target of every expression, (E, H, W) uint8.

        As in the official data class, parts of one object are summed, so 2 marks pixels where two parts overlap;
        several objects of one expression are joined by bitwise or; no target or an empty segmentation is all 0.

        Raises:
            DataError: a segmentation is malformed.
        """
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
    try:
        if not isinstance(parts, list):
            raise ValueError(f"a {type(parts).__name__}, neither a list nor a dict")
        rles = _from_polygons(parts, height, width) if isinstance(parts[0], list) else _from_rles(parts, height, width)
        decoded: NDArray[np.uint8] = coco_mask.decode(rles)
    except Exception as error:  # pycocotools raises bare Exception for what it cannot read
        raise DataError(
            f"Segmentation of annotation {annotation.id} is damaged ({error}); download instances.json again."
        ) from None
    return decoded.sum(axis=2).astype(np.uint8)


def _from_polygons(parts: list[Any], height: int, width: int) -> list[dict[str, Any]]:
    for part in parts:
        if not isinstance(part, list) or len(part) < 4 or len(part) % 2:
            raise ValueError("a polygon needs an even number of at least 4 coordinates")
        if not all(type(v) in (int, float) and math.isfinite(v) and abs(v) <= FARTHEST for v in part):
            raise ValueError("a polygon has a coordinate that is no pixel position")
    rles: list[dict[str, Any]] = coco_mask.frPyObjects(parts, height, width)
    return rles


def _from_rles(parts: list[Any], height: int, width: int) -> list[dict[str, Any]]:
    rles = []
    for part in parts:
        if not isinstance(part, dict) or not {"size", "counts"} <= part.keys():
            raise ValueError("run lengths need 'size' and 'counts'")
        if list(part["size"]) != [height, width]:
            raise ValueError(f"run lengths of size {part['size']} in an image of size {[height, width]}")
        counts = part["counts"]
        if isinstance(counts, list):
            if not all(type(run) is int and run >= 0 for run in counts) or sum(counts) != height * width:
                raise ValueError(f"run lengths do not add up to {height * width} pixels")
            rles.append(coco_mask.frPyObjects(part, height, width))
        else:  # a copy: the caller's data stay as they were read
            rles.append({"size": [height, width], "counts": counts.encode() if isinstance(counts, str) else counts})
    return rles


def fingerprint(samples: Iterable[Sample]) -> str:
    """Identity of what a run reads: 16 hex digits over expressions, targets and image bytes, in order.

    Folder names do not enter, so the same data give the same fingerprint on every machine. An image that cannot be read
    enters as missing; the run records it as failed.
    """
    digest = hashlib.sha256()
    for sample in samples:
        said = [[e.id, e.text, e.ref_id] for e in sample.expressions]
        meant = [[[a.id, a.segmentation] for a in target] for target in sample.targets]
        head = [sample.id, sample.path.name, sample.height, sample.width, said, meant]
        digest.update(json.dumps(head, sort_keys=True).encode())
        try:
            digest.update(hashlib.sha256(sample.path.read_bytes()).digest())
        except OSError:
            digest.update(b"missing")
    return digest.hexdigest()[:16]
