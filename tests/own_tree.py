"""Small own data, for the tests of whatever reads them."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from tests.refer_tree import HEIGHT, SHIFTED, SQUARE, WIDTH

HEADER = ("split", "image", "expression", "annotations", "group")
ROWS = (
    ("val", "a.png", "the left square", "11", ""),
    ("val", "a.png", "both squares", "11 12", ""),
    ("val", "b.png", "a cat", "", ""),
    ("test", "b.png", "the square", "21", ""),
)
ANNOTATIONS = {11: ("a.png", [SQUARE]), 12: ("a.png", [SHIFTED]), 21: ("b.png", [SQUARE, SHIFTED])}


def instances(images: Iterable[str] = ("a.png", "b.png")) -> dict[str, Any]:
    """The content of annotations.json."""
    ids = {name: 7 + k for k, name in enumerate(images)}
    return {
        "images": [
            {"id": number, "file_name": name, "height": HEIGHT, "width": WIDTH}
            for name, number in ids.items()
        ],
        "annotations": [
            {"id": number, "image_id": ids[name], "segmentation": parts}
            for number, (name, parts) in ANNOTATIONS.items()
        ],
    }


def as_csv(rows: Iterable[Iterable[str]] = ROWS, header: Iterable[str] = HEADER) -> str:
    """A list of expressions as spreadsheets write it."""
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows([header, *rows])
    return text.getvalue()


def write_own(root: Path, listed: str | bytes | None = None, name: str = "mine", kind: str = "csv") -> Path:
    """Write the data set below `root`; returns the list of expressions.

    Args:
        listed: its content, ROWS by default.
    """
    folder = root / name
    (folder / "images").mkdir(parents=True)
    noise = np.random.default_rng(0)
    for image in ("a.png", "b.png"):
        pixels = noise.integers(0, 256, (HEIGHT, WIDTH, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / "images" / image)
    (folder / "annotations.json").write_text(json.dumps(instances()))
    path = folder / f"expressions.{kind}"
    content = as_csv() if listed is None else listed
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path
