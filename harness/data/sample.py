"""One medium of a referring-segmentation split, an image or a clip: its expressions, its pixels, the masks
they name."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray
from pycocotools import mask as coco_mask

from backbones.parts.clips import Clip
from backbones.parts.image_files import UnreadableImage, WrongSize, read_image
from harness.store import code
from pruners.base import UserError
from pruners.errors import reason

# pixels; a polygon corner beyond it is a broken file, and would make the rasteriser allocate wildly
FARTHEST = 100_000
LONGEST_OUTLINE = 10_000_000  # pixels; the rasteriser holds five points of each
MOST_MASK_BYTES = 2**31
Form = Literal["", "phrase", "sentence"]


class DataError(UserError):
    """A data set that is missing, damaged or not what was asked for; the message is one sentence for the
    user."""


class DamagedSegmentation(DataError):
    """A segmentation that is none; the message lacks what mends it."""


@dataclass(frozen=True)
class Annotation:
    """One object of an image.

    Attributes:
        id: annotation id.
        segmentation: as COCO has it: polygons (list of flat x, y lists), RLE (dict or list of dicts,
            compressed or not), or empty. It is a part of what a run's data are known by.
    """

    id: int
    segmentation: Any

    def mask(self, height: int, width: int, frame: int = 0) -> NDArray[np.uint8]:
        """Sum of its parts in one frame, (height, width) uint8; all 0 if it has none.

        Raises:
            DamagedSegmentation: it is neither polygons nor run lengths of an image of this size.
        """
        return rasterise(self, height, width)

    def files(self) -> Sequence[Path]:
        """Files beside the data set's lists that the mask is read from: a part of what data are known by."""
        return ()


class Joined(Annotation):
    """One object whose parts are one where they overlap, as in COCO's own API."""

    def mask(self, height: int, width: int, frame: int = 0) -> NDArray[np.uint8]:
        return (super().mask(height, width, frame) > 0).astype(np.uint8)


@dataclass(frozen=True)
class Track(Annotation):
    """One object of a clip.

    Attributes:
        segmentation: one per frame, each as `Annotation` has it; None where the object is not to be seen.
    """

    segmentation: Sequence[Any]

    def mask(self, height: int, width: int, frame: int = 0) -> NDArray[np.uint8]:
        return rasterise(Annotation(self.id, self.segmentation[frame]), height, width)


@dataclass(frozen=True)
class Expression:
    """One sentence. `text` is the file's, untouched; the protocol strips and lower-cases it.

    Attributes:
        id: of the sentence within its sample; records are kept by it.
        ref_id: what sentences about one object share.
        group: who said it, where several people described the same objects; empty elsewhere. The answers to
            one group are measured together.
        form: where a data set tells them apart, "phrase" for the name of a thing and "sentence" for a
            question or a wish that stands by itself; a backbone may ask them in other words. Empty elsewhere.
    """

    id: int
    text: str
    ref_id: int
    group: str = ""
    form: Form = ""


@dataclass(frozen=True)
class Sample:
    """A medium with all its expressions of one split: an image, which is a clip of one frame, or a clip.

    Attributes:
        id: `dataset:split:` and what tells the medium from others of the split; stable; seeds of draws derive
            from it.
        image_id: number of the medium in its data set.
        frames: the image file, or those of a clip in order.
        expressions: in the order of the file that lists them.
        height, width: pixels, as the annotations declare them.
        targets: per expression the annotations whose union is its mask; empty where nothing is meant.
        cluster: what is drawn again in the bootstrap: folder and file name of the medium below the data root,
            so that splits and data sets that share media share clusters. By default the sample's own id.
        source: the file that holds sizes and segmentations, for sentences about what is wrong with it.
        window: frames that one call of the language model is about; 0 for all of them.
        scored: whether the truth is known; of one whose masks are not public, targets are empty.
        unspoken: objects that the official evaluation counts though no expression means them.
    """

    id: str
    dataset: str
    split: str
    image_id: int
    frames: tuple[Path, ...]
    expressions: tuple[Expression, ...]
    height: int = 0
    width: int = 0
    targets: tuple[tuple[Annotation, ...], ...] = field(default=(), repr=False, compare=False)
    cluster: str = ""
    source: str = "instances.json"
    window: int = 0
    scored: bool = True
    unspoken: tuple[Annotation, ...] = field(default=(), repr=False, compare=False)

    def __post_init__(self) -> None:
        if not self.cluster:
            object.__setattr__(self, "cluster", self.id)

    def image(self, frame: int = 0) -> NDArray[np.uint8]:
        """Decode the pixels of a frame as the official evaluation does, (H, W, 3) uint8 RGB; see
        `backbones.parts.image_files.read_image`.

        Raises:
            DataError: the file is gone, unreadable, or of another size than its annotations.
        """
        path = self.frames[frame]
        try:
            return read_image(path, (self.height, self.width))
        except FileNotFoundError:
            raise DataError(
                f"Image '{path}' of {self.id} is gone; put it back or load the data again."
            ) from None
        except WrongSize as error:
            raise DataError(
                f"Image '{path}' {error}; take images and {self.source} from the same release or export."
            ) from None
        except UnreadableImage as error:
            raise DataError(f"Image '{path}' of {self.id} cannot be read ({error}); copy it anew.") from None

    def clip(self) -> SampleClip:
        """The frames, decoded as `image` does when they are asked for."""
        return SampleClip(self.height, self.width, self.window, self)

    def masks(self, frame: int = 0) -> NDArray[np.uint8]:
        """Rasterise the target of every expression in a frame, (E, H, W) uint8.

        As in the official data class, parts of one object are summed, so 2 marks pixels where two parts
        overlap; several objects of one expression are joined by bitwise or; no target or an empty
        segmentation is all 0.

        Raises:
            DataError: a segmentation is malformed, or all masks together do not fit in memory.
        """
        if len(self.expressions) * self.height * self.width > MOST_MASK_BYTES:
            raise DataError(
                f"{self.id} asks for {len(self.expressions)} masks of {self.width}x{self.height} px, more "
                f"than "
                f"{MOST_MASK_BYTES >> 30} GiB together; split its expressions or scale image and "
                f"annotations down."
            )
        return self._rasterised(self.targets, frame)

    def unspoken_masks(self, frame: int = 0) -> NDArray[np.uint8]:
        """The same of every object that no expression means, (X, H, W) uint8."""
        return self._rasterised([(one,) for one in self.unspoken], frame)

    def _rasterised(self, targets: Sequence[tuple[Annotation, ...]], frame: int) -> NDArray[np.uint8]:
        known: dict[int, NDArray[np.uint8]] = {}
        masks = np.zeros((len(targets), self.height, self.width), dtype=np.uint8)
        for mask, target in zip(masks, targets, strict=True):
            for annotation in target:
                if annotation.id not in known:
                    known[annotation.id] = self._mask(annotation, frame)
                mask |= known[annotation.id]
        return masks

    def _mask(self, annotation: Annotation, frame: int) -> NDArray[np.uint8]:
        try:
            return annotation.mask(self.height, self.width, frame)
        except DamagedSegmentation as error:
            raise DataError(f"{reason(error)}; mend {self.source}, or download it again.") from None


@dataclass(frozen=True)
class SampleClip(Clip):
    """The frames of a sample."""

    sample: Sample

    def __len__(self) -> int:
        return len(self.sample.frames)

    def frame(self, number: int) -> NDArray[np.uint8]:
        return self.sample.image(number)


def rasterise(annotation: Annotation, height: int, width: int) -> NDArray[np.uint8]:
    """Sum of an annotation's parts, (H, W) uint8; all 0 if it has none.

    Raises:
        DamagedSegmentation: it is neither polygons nor run lengths of an image of this size.
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
        raise DamagedSegmentation(
            f"Segmentation of annotation {annotation.id} is damaged ({error})"
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


FileDigest = Callable[[Path], bytes]  # SHA-256 of a file's bytes, MISSING of one that cannot be read
MISSING = b"missing"


def file_digest(path: Path) -> bytes:
    """SHA-256 of a file's bytes; MISSING if it cannot be read."""
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").digest()
    except OSError:
        return MISSING


def fingerprint(samples: Iterable[Sample], of_file: FileDigest = file_digest) -> str:
    """Identity of what a run reads: 16 hex digits over expressions, targets and image bytes, in order.

    Folder names do not enter, so the same data give the same fingerprint on every machine. An image that
    cannot be read enters as missing; the run records it as failed. Samples and annotations of classes that
    are not this project's enter with the source of these.
    """
    digest = hashlib.sha256()
    for sample in samples:
        for part in _identity(sample, of_file):
            digest.update(part)
    return digest.hexdigest()[:16]


class Content(NamedTuple):
    """What a sample is known by, 16 hex digits each.

    Attributes:
        sample: as `content` has it.
        medium: over its pixels alone: samples of one medium have the same, whatever data set and split they
            are of. One that cannot be read has its own.
    """

    sample: str
    medium: str


def content(sample: Sample, of_file: FileDigest = file_digest) -> str:
    """Identity of one sample: 16 hex digits over its expressions, targets and image bytes, as `fingerprint`
    has it."""
    return fingerprint([sample], of_file)


def identify(sample: Sample, of_file: FileDigest = file_digest) -> Content:
    """What a sample and its medium are known by."""
    once = cache(of_file)
    whole = content(sample, once)
    files = [once(path) for path in sample.frames]
    if MISSING in files:
        return Content(whole, whole)
    seen = [sample.height, sample.width, sample.window, *(digest.hex() for digest in files)]
    return Content(whole, hashlib.sha256(json.dumps(seen).encode()).hexdigest()[:16])


def _said(one: Expression) -> list[Any]:
    """What of an expression enters a digest; what most data sets leave empty only where it is not."""
    more = [one.group, one.form] if one.form else [one.group] if one.group else []
    return [one.id, one.text, one.ref_id, *more]


def _identity(sample: Sample, of_file: FileDigest) -> Iterator[bytes]:
    said = [_said(expression) for expression in sample.expressions]
    meant = [[[a.id, a.segmentation] for a in target] for target in sample.targets]
    names = [path.name for path in sample.frames]
    name = names[0] if len(names) == 1 else names
    head = [sample.id, name, sample.height, sample.width, said, meant]
    if sample.window or not sample.scored:
        head += [sample.window, sample.scored]
    if sample.unspoken:
        head.append([[a.id, a.segmentation] for a in sample.unspoken])
    yield json.dumps(head, sort_keys=True).encode()
    classes = {type(sample), *(type(one) for target in sample.targets for one in target)}
    yield "".join(code.of_others(classes)).encode()
    masks = dict.fromkeys(path for target in sample.targets for one in target for path in one.files())
    yield from map(of_file, (*sample.frames, *masks))
