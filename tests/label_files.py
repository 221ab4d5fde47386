"""Labels in the layouts of their releases, and a run that they are about, whose numbers stand on paper.

Of every image the run answers two expressions, about a box to the left and one to the right. `litelvlm` finds
the left ones and `fastv` the right ones; the recorded truths are the boxes themselves.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pycocotools import mask as coco_mask

from harness.store import run_folder
from tests import a_run
from tests.a_run import HEIGHT, WIDTH, a_row, box, run_lengths, store

IMAGES = 8
COLUMN = ("refcoco", "val")
LEFT, RIGHT = (4, 2), (10, 30)  # top and left edge; 16 x 20 pixels each
METHODS = {"none": 576, "litelvlm": 64, "fastv(layer=3)": 64, "random": 64}


def text(image: int, place: int) -> str:
    return f"the {('left', 'right')[place]} man's hat {image}"


def truth(place: int) -> np.ndarray[Any, Any]:
    return box(*(LEFT, RIGHT)[place])


def answer(pruner: str, image: int, place: int) -> np.ndarray[Any, Any]:
    """A mask: the box without a column or two, or a few of its columns alone."""
    found = {"none": True, "litelvlm": place == 0, "fastv(layer=3)": place == 1}.get(pruner, image % 2 == 0)
    mask, left = truth(place), (LEFT, RIGHT)[place][1]
    if found:
        mask[:, : left + 1 + image % 2] = False
    else:
        mask[:, left + 5 + image % 3 :] = False
    return mask


def rows() -> list[dict[str, Any]]:
    found = []
    for pruner, budget in METHODS.items():
        for image in range(IMAGES):
            for place in range(2):
                mask, target = answer(pruner, image, place), truth(place)
                inner, union = int((mask & target).sum()), int((mask | target).sum())
                found.append(
                    a_row(COLUMN, pruner, budget, 0, place)
                    | {"sample": f"refcoco:val:{image}", "expression": 10 * image + place, "place": place}
                    | {"of": 2, "intersection": inner, "union": union, "mask": run_lengths(mask)}
                    | {"cell": pruner}
                )
    return found


def write_run(folder: Path, finished: bool = True) -> Path:
    """The run."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(a_run, "sample_rows", _samples)
        return store(folder, rows(), finished)


def _samples(rows: Sequence[Mapping[str, Any]], folder: Path, text_: str) -> list[dict[str, Any]]:
    found = {}
    for row in rows:
        image, place = row["expression"] // 10, row["place"]
        found[row["sample"], row["expression"]] = (
            {key: row[key] for key in ("dataset", "split", "sample", "expression", "place", "of")}
            | {"cell": "", "status": "sample", "height": HEIGHT, "width": WIDTH, "image": ""}
            | {
                "text": text(image, place),
                "truth": run_lengths(truth(place)),
            }
        )
    return list(found.values())


def digests(folder: Path) -> dict[str, bytes]:
    """Bytes of all that a run recorded."""
    kinds = (".jsonl", ".parquet", ".json")
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.suffix in kinds and path.name != run_folder.FOLDER
    }


# -- labels


def runs_of(mask: np.ndarray[Any, Any]) -> dict[str, Any]:
    found = coco_mask.encode(np.asfortranarray(mask.astype(np.uint8)))
    return {"counts": found["counts"].decode(), "size": list(mask.shape)}


def corner(place: int) -> list[float]:
    top, left = (LEFT, RIGHT)[place]
    return [float(left), float(top), 20.0, 16.0]


def an_object(number: int, image: int, place: int, mask: Any = None, **more: Any) -> dict[str, Any]:
    """One of RefCOCO-M's samples."""
    return {
        "id": number,
        "image_id": image,
        "category": "hat",
        "supercategory": "accessory",
        "label": "hat",
        "sentences": [text(image, place).upper() + "."],
        "bbox": corner(place),
        "mask": runs_of(truth(place)) if mask is None else mask,
    } | more


def write_refcoco_m(folder: Path, rows: Mapping[int, Sequence[Any]], shards: int = 2, **columns: Any) -> Path:
    """Rows of images, in shards as on the hub, beside pixels that nobody reads."""
    import pyarrow
    from pyarrow import parquet

    (folder / "data").mkdir(parents=True)
    items = list(rows.items())
    for shard in range(shards):
        some = [
            {"image": {"bytes": b"jpeg", "path": None}, "image_id": image, "file_name": f"COCO_{image}.jpg"}
            | {"samples": list(samples)}
            | columns
            for image, samples in items[shard::shards]
        ]
        name = f"validation-{shard:05d}-of-{shards:05d}.parquet"
        parquet.write_table(pyarrow.Table.from_pylist(some), folder / "data" / name)
    return folder


def write_ref_l4(
    path: Path, rows: Sequence[tuple[int, int, int]], key: str = "annotations", **more: Any
) -> Path:
    """Rows (image, place, caption_quality) of a reviewed file."""
    images, annotations = [], []
    for number, (image, place, quality) in enumerate(rows):
        images.append({"id": 100 + number, "original_id": image, "caption": text(image, place)})
        annotations.append(
            {"id": number, "image_id": 100 + number, "original_id": 7000 + 10 * image + place}
            | {"caption_quality": quality, "bbox": corner(place), "tokens_positive": [[[0, 3]]]}
        )
    path.write_text(json.dumps({"images": images, key: annotations} | more))
    return path
