"""Small data sets in the official REFER layout, for the tests of whatever reads them."""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

HEIGHT, WIDTH = 40, 64  # not square: a swapped axis shows
SQUARE = [10.0, 5.0, 30.0, 5.0, 30.0, 25.0, 10.0, 25.0]  # x 10..29, y 5..24
SHIFTED = [20.0, 15.0, 40.0, 15.0, 40.0, 35.0, 20.0, 35.0]  # overlaps it in x 20..29, y 15..24


def ref(number: int, image: int, ann: int | list[int], split: str, *texts: str) -> dict[str, Any]:
    sentences = [
        {"sent_id": number * 10 + k, "sent": text, "raw": text, "tokens": text.split()}
        for k, text in enumerate(texts)
    ]
    return {"ref_id": number, "ann_id": ann, "image_id": image, "split": split, "sentences": sentences}


def write_tree(
    root: Path,
    refs: Any,
    annotations: dict[int, Any] | None = None,
    dataset: str = "refcoco",
    author: str = "unc",
    images: tuple[int, ...] = (1, 2),
) -> Path:
    folder, pixels = root / "Refer_Segm" / dataset, root / "Refer_Segm" / "coco_2014" / "train2014"
    folder.mkdir(parents=True)
    pixels.mkdir(parents=True, exist_ok=True)
    for image in images:
        Image.fromarray(np.full((HEIGHT, WIDTH, 3), image, dtype=np.uint8)).save(pixels / f"{image}.png")
    (folder / f"refs({author}).p").write_bytes(pickle.dumps(refs, protocol=2))
    instances = {
        "images": [{"id": i, "file_name": f"{i}.png", "height": HEIGHT, "width": WIDTH} for i in images],
        "annotations": [{"id": k, "segmentation": s} for k, s in (annotations or {11: [SQUARE]}).items()],
    }
    (folder / "instances.json").write_text(json.dumps(instances))
    return root
