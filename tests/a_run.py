"""A small recorded run, written by hand, whose numbers can be checked on paper."""

from __future__ import annotations

from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from pycocotools import mask as coco_mask

from harness.store import records, run_folder
from harness.store.journal import write_atomically

COLUMNS = (("refcocog", "val"), ("refcoco", "testA"), ("refcoco", "val"), ("refcoco+", "val"))
LINES = (
    ("none", 576, (0,)),
    ("litelvlm", 64, (0,)),
    ("fastv(layer=3)", 64, (0,)),
    ("oracle", 64, (0,)),
    ("random", 64, (0, 1, 2)),
    ("fastv(layer=3)", 192, (0,)),
    ("random", 192, (0, 1, 2)),
)
SETTING = {
    "backbone": "glamm-mini",
    "protocol": "each",
    "fingerprint": "a1b2",
    "dtype": "float32",
    "attn": "sdpa",
    "device": "cpu",
}
HEIGHT, WIDTH = 48, 64


def run_lengths(mask: np.ndarray[Any, Any]) -> str:
    """COCO run lengths of a (H, W) bool mask."""
    return str(coco_mask.encode(np.asfortranarray(mask.astype(np.uint8)))["counts"].decode())


def box(top: int, left: int, height: int = 16, width: int = 20) -> np.ndarray[Any, Any]:
    """A rectangle in an empty image."""
    mask = np.zeros((HEIGHT, WIDTH), dtype=bool)
    mask[top : top + height, left : left + width] = True
    return mask


def a_row(column: tuple[str, str], pruner: str, budget: int, seed: int, place: int) -> dict[str, Any]:
    rank = [line[:2] for line in LINES].index((pruner, budget))
    rng = np.random.default_rng([rank, seed, place])
    return {
        "backbone": "glamm-mini",
        "dataset": column[0],
        "split": column[1],
        "protocol": "each",
        "pruner": pruner,
        "budget": budget,
        "seed": seed,
        "cell": f"{column}{pruner}{budget}{seed}",
        "sample": f"{column[0]}:{column[1]}:{place // 2}",
        "expression": place,
        "place": place % 2,
        "of": 2,
        "status": "ok",
        "tokens_final": budget,
        "tokens_mean": 336.0 if "fastv" in pruner else float(budget),
        "intersection": 90 - 10 * rank + seed + place,
        "union": 100 + place,
        "iou": (90 - 10 * rank + seed + place) / (100 + place),
        "coverage": 0.5,
        "frames": 1,
        "views": 1,
        "tokens_llm": 640,
        "code": "",
        "kept": records.pack_tokens(rng.permutation(576)[:budget], 576),
        "mask": run_lengths(box(4 + rank, 6 + seed + place)),
    }


def some_rows() -> list[dict[str, Any]]:
    return [
        a_row(column, pruner, budget, seed, place)
        for column, (pruner, budget, seeds), place in product(COLUMNS, LINES, range(4))
        for seed in seeds
    ]


def sample_rows(rows: list[dict[str, Any]], folder: Path, text: str) -> list[dict[str, Any]]:
    """What was asked of every image, with a picture of each."""
    (folder / "images").mkdir(exist_ok=True, parents=True)
    found = {}
    for row in rows:
        if row["status"] == "ok":
            name = f"images/{row['sample'].replace(':', '-')}.jpg"
            pixels = np.full((HEIGHT, WIDTH, 3), 90 + 40 * (row["expression"] // 2) % 160, dtype=np.uint8)
            Image.fromarray(pixels).save(folder / name)
            found[(row["sample"], row["expression"])] = {
                key: row[key] for key in ("dataset", "split", "sample", "expression", "place", "of")
            } | {
                "cell": "",
                "status": "sample",
                "text": text,
                "height": HEIGHT,
                "width": WIDTH,
                "truth": run_lengths(box(4, 6 + row["expression"])),
                "image": name,
            }
    return list(found.values())


def store(
    folder: Path,
    rows: list[dict[str, Any]],
    finished: bool = True,
    setting: dict[str, str] | None = None,
    data: str = "d1",
    kind: str = "final",
    text: str = "the left one",
    schedule: str = "",
    **info: Any,
) -> Path:
    """Write a run folder.

    Args:
        setting: what differs from SETTING, in all cells.
        data: fingerprint of every split.
        kind: what the budgets of fastv count.
        schedule: of fastv.
        info: more of run.json.
    """
    rows = [
        row
        | (
            {"iou": row["intersection"] / row["union"] if row["union"] else 1.0}
            if row["status"] == "ok"
            else {"place": -1}
        )
        for row in rows
    ]
    shared = SETTING | (setting or {})
    cells = {row["cell"]: a_cell(row, shared, data, kind, schedule) for row in rows}
    whole = [*sample_rows(rows, folder, text), *rows]
    tables = {}
    for dataset, split in records.splits_of(cells):
        place = records.split_folder(folder, dataset, split)
        place.mkdir(exist_ok=True, parents=True)
        writer = records.Writer(place, cells)
        writer.append(row for row in whole if (row["dataset"], row["split"]) == (dataset, split))
        tables[place.name] = records.compact(place, records.Journals(place, cells).tables())
    facts: dict[str, Any] = {
        "schema": records.SCHEMA,
        "run": "c3d4",
        "plan": {"seed": 7},
        "cells": cells,
        "editions": [{"time": "2026-01-01T00:00:00+00:00", "cells": list(cells), "files": {}}],
        "edition": 0,
        "provenance": {"commit": "0123456789abcdef", "dirty": True, "packages": {"torch": "2.9.1"}},
    }
    write_atomically(folder / records.RUN, facts | info, run_folder.LOOSE)
    if finished:
        done = {
            "schema": records.SCHEMA,
            "cells": run_folder.cells_digest(cells),
            "splits": tables,
            "peak_memory_bytes": 1,
        }
        write_atomically(folder / records.DONE, done)
    return folder


def a_cell(
    row: dict[str, Any], setting: dict[str, str], data: str, kind: str, schedule: str = ""
) -> dict[str, Any]:
    """What run.json says of a row's cell."""
    name = row["pruner"].partition("(")[0]
    return {key: row[key] for key in ("dataset", "split", "pruner", "budget", "seed")} | {
        "setting": setting | {"backbone": row["backbone"], "protocol": row["protocol"]},
        "data": data,
        "stage": "layer" if name == "fastv" else "tower",
        "budget_kind": kind if name == "fastv" else "final",
        "schedule": schedule if name == "fastv" else "",
        "kind": "control" if name in ("none", "oracle", "random") else "method",
        "needs": ["referent"] if name == "oracle" else [],
        "stochastic": name == "random",
        "grid": [24, 24],
        "source": name,
    }
