"""Ref-L4's review of RefCOCO, RefCOCO+ and RefCOCOg, as https://huggingface.co/datasets/JierunChen/Ref-L4
releases it.

    refcocos_annotation_reviewed/refcoco_val_reviewed.json, refcoco+_testA_reviewed.json, ...

One record is an expression: `images[]` has a row's `id`, COCO's number of the image as `original_id`, and the
sentence as `caption`; `annotations[]` (or `annotation[]`) names the row by `image_id` and has
`caption_quality`, 1 of a sound expression and 0 of a wrong one, and `bbox` of instances.json. Masks are as
they were.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from harness.labels.base import BadLabels, Label, Labels, box, number, plain

NAMED = re.compile(r"(refcocog|refcoco\+|refcoco)_(val|testA|testB|test)(_.*)?", re.IGNORECASE)
ANNOTATIONS = ("annotations", "annotation")
SPLITS = {"vala": "val", "testa": "testA", "testb": "testB"}
AGAIN = "download https://huggingface.co/datasets/JierunChen/Ref-L4 again"


def read_ref_l4(path: Path, content: dict[str, Any]) -> Labels:
    """All labels of one reviewed file.

    Args:
        content: of the file.

    Raises:
        BadLabels: it is damaged, or its name does not say of which data set and split it is.
    """
    named = NAMED.fullmatch(path.stem)
    if named is None:
        raise BadLabels(
            f"The name of {str(path)!r} does not say which data set and split it is about; call it as it is "
            f"released, e.g. refcoco_val_reviewed.json or refcoco+_testA_reviewed.json."
        )
    dataset, split = named[1].lower(), SPLITS.get(named[2].lower(), named[2].lower())
    author = "umd" if dataset == "refcocog" else "unc"
    rows = _rows(path, content["images"])
    found: dict[tuple[int, str], list[Label]] = {}
    used: set[int] = set()
    key = next(name for name in ANNOTATIONS if name in content)
    if not isinstance(content[key], list):
        raise BadLabels(f"{key} of {str(path)!r} is no list; {AGAIN}.")
    for place, one in enumerate(content[key]):
        try:
            row, label = _label(one, place)
            if row not in rows:
                raise ValueError(f"it is of the row {row}, which images does not hold")
            if row in used:
                raise ValueError(f"it is the second of the row {row}")
        except ValueError as error:
            raise BadLabels(f"{key} {place} of {str(path)!r} is damaged ({error}); {AGAIN}.") from None
        used.add(row)
        found.setdefault(rows[row], []).append(label)
    return Labels(
        "Ref-L4",
        path,
        "expressions of caption_quality 0 are dropped, and masks are the run's",
        "CC BY-NC 4.0: read it, and do not pass it on",
        (dataset, f"{dataset}({author})"),
        (split,),
        found,
    )


def _rows(path: Path, images: Any) -> dict[int, tuple[int, str]]:
    """Image and sentence by the number of the row."""
    if not isinstance(images, list):
        raise BadLabels(f"images of {str(path)!r} is no list; {AGAIN}.")
    rows: dict[int, tuple[int, str]] = {}
    for place, one in enumerate(images):
        try:
            if not isinstance(one, dict) or not isinstance(one.get("caption"), str):
                raise ValueError("it has no caption")
            row, image = (number(one.get(name), name) for name in ("id", "original_id"))
            if row in rows:
                raise ValueError(f"its id {row} is given twice")
        except ValueError as error:
            raise BadLabels(f"images {place} of {str(path)!r} is damaged ({error}); {AGAIN}.") from None
        rows[row] = image, plain(one["caption"])
    return rows


def _label(one: Any, place: int) -> tuple[int, Label]:
    """The row's number and what is said of it.

    Raises:
        ValueError: something is missing or of another type.
    """
    if not isinstance(one, dict):
        raise ValueError(f"it is a {type(one).__name__}")
    quality = number(one.get("caption_quality"), "caption_quality")
    if quality not in (0, 1):
        raise ValueError(f"its caption_quality is {quality}, neither 1 nor 0")
    return number(one.get("image_id"), "image_id"), Label(f"row {place}", quality == 1, box(one.get("bbox")))
