"""ReasonSeg in its official layout (https://github.com/dvlab-research/LISA).

    DIR/reason_seg/ReasonSeg/<train, val, test>/NAME.jpg and NAME.json

A file holds `text`, of which the evaluation asks the first alone, `is_sentence`, and `shapes`: polygons with
labels. OpenCV draws them, as the official code does: its outlines and its filling are nobody else's. From
4.11 on it fills some polygons otherwise than the versions that every published number was made with (LISA
asks for 4.8), so those are refused.
"""

from __future__ import annotations

import json
import math
import reprlib
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from harness.data.dataset import DataSet, Splits
from harness.data.headers import size_of
from harness.data.sample import (
    FARTHEST,
    Annotation,
    DamagedSegmentation,
    DataError,
    Expression,
    Form,
    Sample,
)
from harness.metrics.masks import FOREGROUND, IGNORED
from pruners.base import nearest

NAME = "reasonseg"
LAYOUT = Path("reason_seg") / "ReasonSeg"
EVALUATION, OTHERS = ("val", "test"), ("train",)
INSTALL = "pip install 'groundprune[reasonseg]'"
OTHER_FILLING = (4, 11)  # the first OpenCV that fills otherwise
MOST_BYTES = 2**22  # of one file; they have a few KiB
MOST_SHAPES = 1000


class ReasonSeg(DataSet):
    """Questions that take some thought, one per image."""

    name = NAME
    reference = "https://github.com/dvlab-research/LISA"
    told = "val, test, train; read from --data DIR with reason_seg/ReasonSeg"

    def splits(self, dataset: str, root: Path | None) -> Splits:
        place = _place(root)
        there = {split: (place / split).is_dir() for split in (*EVALUATION, *OTHERS)}
        return Splits(
            [split for split in EVALUATION if there[split]], [split for split in OTHERS if there[split]]
        )

    def load(self, dataset: str, split: str, root: Path | None) -> list[Sample]:
        held = [name for part in self.splits(dataset, root) for name in part]
        if split not in held:
            raise DataError(f"{NAME} has no split {split!r}, it has {', '.join(held)}.{nearest(split, held)}")
        _opencv()
        folder = _place(root) / split
        names = sorted(
            {
                path.stem
                for path in folder.iterdir()
                if path.suffix in (".jpg", ".json") and not path.name.startswith(".")
            }
        )
        if not names:
            raise DataError(f"'{folder}' holds no image; {expected(root)}.")
        return [_sample(folder, name, number) for number, name in enumerate(names)]


def found(root: Path | None) -> Path | None:
    """The folder of the splits: below a data folder, or the data folder itself; None if it is not there."""
    places = [] if root is None else [root / LAYOUT, root / LAYOUT.name, root]
    return next(
        (
            place
            for place in places
            if place.name == LAYOUT.name and any((place / split).is_dir() for split in (*EVALUATION, *OTHERS))
        ),
        None,
    )


def expected(root: Path | None) -> str:
    """The tree that it needs, on one line."""
    return f"expected {_tree(root or Path('DIR'))}"


def hint(root: Path) -> str:
    """What to tell who gave a data folder without data."""
    return f" ReasonSeg is '{_tree(root)}'." if root.is_dir() else ""


def _tree(root: Path) -> str:
    return f"{root / LAYOUT}/{{{', '.join((*OTHERS, *EVALUATION))}}}/{{NAME.jpg, NAME.json}}"


def _place(root: Path | None) -> Path:
    if root is None:
        raise DataError(f"{NAME} is not shipped; name the folder that holds {LAYOUT} with --data DIR.")
    place = found(root)
    if place is None:
        raise DataError(f"{NAME} is not in '{root}'; {expected(root)}.")
    return place


class Shapes(Annotation):
    """The labelled polygons of one image.

    Attributes:
        segmentation: [value, [[x, y], ...]] of every polygon in whole pixels, in the order of the file; the
            value is 1 of the target and 255 of what is ignored.
    """

    def mask(self, height: int, width: int, frame: int = 0) -> NDArray[np.uint8]:
        """Shapes by falling area, later ones over earlier ones, (height, width) uint8: 0, 1 or 255.

        Of equal areas the official order is left to numpy's sorting; here it is the one of a stable sort,
        turned round as theirs is: the shape that the file names first lies on top.
        """
        areas = [
            int(np.count_nonzero(_drawn(np.zeros((height, width), dtype=np.uint8), points, 1)))
            for _, points in self.segmentation
        ]
        mask = np.zeros((height, width), dtype=np.uint8)
        for place in np.argsort(areas, kind="stable")[::-1]:
            value, points = self.segmentation[place]
            _drawn(mask, points, value)
        return mask


@dataclass(frozen=True)
class Damaged(Annotation):
    """Stands for the shapes of a file that cannot be read; its segmentation says why."""

    path: Path

    def mask(self, height: int, width: int, frame: int = 0) -> NDArray[np.uint8]:
        raise DamagedSegmentation(f"'{self.path}' cannot be used ({self.segmentation})")


def _opencv() -> ModuleType:
    """OpenCV.

    Raises:
        DataError: it is not there, or draws other masks.
    """
    try:
        import cv2
    except ImportError as error:
        raise DataError(f"ReasonSeg's polygons are drawn by OpenCV ({error}); {INSTALL}.") from None
    if tuple(int(part) for part in cv2.__version__.split(".")[:2]) >= OTHER_FILLING:
        raise DataError(
            f"OpenCV {cv2.__version__} fills polygons otherwise than the one that ReasonSeg's masks are "
            f"drawn with officially (before 4.11); {INSTALL}."
        )
    return cv2


def _drawn(mask: NDArray[np.uint8], points: list[list[int]], value: int) -> NDArray[np.uint8]:
    """Draw a polygon into a mask, outline and interior."""
    cv2 = _opencv()
    polygon = [np.array(points, dtype=np.int32)]
    cv2.polylines(mask, polygon, True, value)
    cv2.fillPoly(mask, polygon, value)
    return mask


class _File(NamedTuple):
    """What an annotation file says."""

    text: str
    form: Form
    shapes: list[Any]


def _sample(folder: Path, name: str, number: int) -> Sample:
    """One image. What is wrong with its files is told when its pixels or its mask are asked for, so that it
    costs this image alone."""
    path = folder / f"{name}.json"
    try:
        said = _read(path)
        target: tuple[Annotation, ...] = (Shapes(number, said.shapes),) if said.shapes else ()
    except (OSError, KeyError, TypeError, ValueError, RecursionError) as error:
        said = _File("", "", [])
        target = (Damaged(number, _reason(error), path),)
    height, width = size_of(folder / f"{name}.jpg")
    return Sample(
        id=f"{NAME}:{folder.name}:{name}",
        dataset=NAME,
        split=folder.name,
        image_id=number,
        frames=(folder / f"{name}.jpg",),
        expressions=(Expression(0, said.text, number, form=said.form),),
        height=height,
        width=width,
        targets=(target,),
        cluster=f"{LAYOUT.name}/{folder.name}/{name}.jpg",
        source=path.name,
    )


def _reason(error: Exception) -> str:
    if isinstance(error, OSError):
        return error.strerror or str(error)
    if isinstance(error, KeyError):
        return f"it has no {error}"
    return "it is nested too deeply" if isinstance(error, RecursionError) else str(error)


def _read(path: Path) -> _File:
    """An annotation file.

    Raises:
        OSError, KeyError, TypeError, ValueError, RecursionError: it cannot be read, or lacks what it needs.
    """
    if (size := path.stat().st_size) > MOST_BYTES:
        raise ValueError(f"it has {size >> 20} MiB")
    content = path.read_bytes()
    try:
        held = json.loads(content.decode("utf-8-sig"))
    except UnicodeDecodeError:  # as officially
        held = json.loads(content.decode("cp1252"))
    if not isinstance(held, dict):
        raise TypeError(f"it holds a {type(held).__name__}")
    texts, sentence, shapes = held["text"], held["is_sentence"], held["shapes"]
    if not isinstance(texts, list) or not texts or not isinstance(texts[0], str) or not texts[0].strip():
        raise ValueError(f"its 'text' is {reprlib.repr(texts)}, no list that begins with a text")
    texts[0].encode()  # half a character raises a ValueError
    if not isinstance(sentence, bool):
        raise ValueError(f"its 'is_sentence' is {reprlib.repr(sentence)}, neither true nor false")
    if not isinstance(shapes, list) or len(shapes) > MOST_SHAPES:
        raise ValueError(f"its 'shapes' are no list of at most {MOST_SHAPES}")
    return _File(texts[0], "sentence" if sentence else "phrase", shapes_of(shapes))


def shapes_of(shapes: list[Any]) -> list[Any]:
    """The polygons of a file as `Shapes` has them, without those that mark no part of the image.

    Raises:
        KeyError, TypeError, ValueError: one is none.
    """
    return [shape for shape in map(_shape, shapes) if shape]


def _shape(shape: Any) -> list[Any]:
    """A polygon; nothing for one that marks no part of the image."""
    label, points = shape["label"], shape["points"]
    if not isinstance(label, str) or not isinstance(points, list):
        raise ValueError(f"a shape has the label {reprlib.repr(label)} and {reprlib.repr(points)} as points")
    if label.lower() == "flag" or not points:
        return []
    for point in points:
        if not isinstance(point, list) or len(point) != 2 or not all(map(_pixel, point)):
            raise ValueError(f"a shape has the point {reprlib.repr(point)}, which is no pixel position")
    value = IGNORED if "ignore" in label.lower() else FOREGROUND
    return [value, [[int(x), int(y)] for x, y in points]]  # towards zero, as numpy makes int32 of them


def _pixel(value: Any) -> bool:
    return type(value) in (int, float) and math.isfinite(value) and abs(value) <= FARTHEST
