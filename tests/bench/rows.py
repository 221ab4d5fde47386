"""Does a run of a million rows load, close and report in seconds? `python -m tests.bench.rows
[--rows 1000000] [--report 400000]`.

Writes runs in the project's own format and by its own writers (37 cells, the eight RefCOCO splits, sentences,
masks of COCO's size, kept tokens), and measures each step in a process of its own: seconds of wall and
processor time, and the most resident memory. Steps, on the large run: the frame from its journals, closing it
(all rows checked, counted and written as tables), the frame from its tables as reports read it, and as
`load_records` gives it, masks and all; on the smaller one: the report as `python -m harness report RUN` makes
it.
"""

from __future__ import annotations

import argparse
import json
import random
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from PIL import Image
from pycocotools import mask as coco_mask
from tabulate import tabulate

from harness.store import records, run_folder
from harness.store.closing import close_run
from harness.store.journal import digest, write_atomically
from reports.looks import METHODS
from reports.page import SIZE

SPLITS = tuple((f"refcoco{kind}", split) for kind in ("", "+") for split in ("val", "testA", "testB"))
SPLITS += (("refcocog", "val"), ("refcocog", "test"))
CONTROLS, LAYERS = ("none", "random", "uniform", "oracle"), ("fastv", "pyramiddrop")
PRUNERS = (*METHODS[:7], *LAYERS, *CONTROLS[1:])
BUDGETS, PATCHES, DEPTH = (64, 128, 192), 576, 32
HEIGHT, WIDTH = 480, 640
EXPRESSIONS, IMAGES_AT_ONCE, JOURNALS = 3, 8, 4
PICTURED = 12  # images of every split with a picture
POOL = 10_000  # masks that are drawn; and kept tokens of every budget, a fifth as many
CODE = "c0de" * 4
WORDS = (
    *("the", "a", "left", "right", "red", "blue", "old", "small", "man", "woman", "dog", "chair", "table"),
    *("near", "behind", "of", "with", "on", "holding"),
)
SETTING = {
    "backbone": "glamm",
    "protocol": "each",
    "fingerprint": "a1b2" * 4,
    "dtype": "bfloat16",
    "attn": "sdpa",
    "device": "cuda",
    "code": CODE,
}


@cache
def cells_of(split: tuple[str, str]) -> dict[str, dict[str, Any]]:
    """What `run.json` says of the cells of a split: none, and every pruner at every budget."""
    lines = [("none", PATCHES), *((pruner, budget) for pruner in PRUNERS for budget in BUDGETS)]
    return {digest({"cell": [*split, *line]}): _cell(split, *line) for line in lines}


def _cell(split: tuple[str, str], pruner: str, budget: int) -> dict[str, Any]:
    return {
        "dataset": split[0],
        "split": split[1],
        "pruner": pruner,
        "budget": budget,
        "seed": 0,
        "setting": SETTING,
        "data": digest({"data": split}),
        "stage": "layer" if pruner in LAYERS else "tower",
        "budget_kind": "final",
        "schedule": f"576 x 2, {budget} x 30" if pruner in LAYERS else "",
        "kind": "control" if pruner in CONTROLS else "method",
        "needs": ["referent"] if pruner == "oracle" else [],
        "stochastic": pruner == "random",
        "grid": [24, 24],
        "source": digest({"source": pruner}),
        "asked": digest({"asked": [*split, pruner, budget]}),
    }


class Drawn:
    """Masks, kept tokens and sentences to choose from."""

    def __init__(self, pool: int = POOL) -> None:
        self.draw = random.Random(0)
        numbers = np.random.default_rng(0)
        self.masks = [_outline(numbers) for _ in range(pool)]
        self.kept = {
            budget: [
                records.pack_tokens(numbers.permutation(PATCHES)[:budget], PATCHES)
                for _ in range(pool // 5 if budget < PATCHES else 1)
            ]
            for budget in (*BUDGETS, PATCHES)
        }

    def sentence(self) -> str:
        """As people write them, three to nine words."""
        return " ".join(self.draw.choices(WORDS, k=self.draw.randint(3, 9)))

    def answer(self, cell: str, entry: dict[str, Any], image: dict[str, Any], place: int) -> dict[str, Any]:
        """A row of status ok, with every field that a run writes."""
        draw, budget = self.draw, entry["budget"]
        union = draw.randint(2_000, 60_000)
        inner = round(union * draw.betavariate(4, 2))
        layer = entry["stage"] == "layer"
        return image | {
            "cell": cell,
            "place": place,
            "expression": image["expression"] + place,
            "status": "ok",
            **{name: entry[name] for name in ("pruner", "budget", "seed")},
            **{name: SETTING[name] for name in ("backbone", "protocol")},
            "tokens_final": budget,
            "tokens_mean": (2 * PATCHES + (DEPTH - 2) * budget) / DEPTH if layer else float(budget),
            "tokens_llm": budget + 60,
            "intersection": inner,
            "union": union,
            "iou": inner / union,
            "coverage": draw.random(),
            "kept": draw.choice(self.kept[budget]),
            "mask": draw.choice(self.masks),
        }


def _outline(numbers: np.random.Generator) -> str:
    """COCO run lengths of an object with a wavy edge, 20 to 150 pixels across."""
    y, x = np.ogrid[-90:90, -90:90]
    tall, wide = numbers.integers(10, 75, 2)
    wave = 1 + 0.2 * np.sin(numbers.integers(1, 6) * np.arctan2(y, x))
    mask = np.zeros((HEIGHT, WIDTH), dtype=np.uint8, order="F")
    top, left = numbers.integers(HEIGHT - 180), numbers.integers(WIDTH - 180)
    mask[top : top + 180, left : left + 180] = np.hypot(y / tall, x / wide) < wave
    return str(coco_mask.encode(mask)["counts"].decode())


def write(folder: Path, rows: int) -> int:
    """Write an unfinished run of about so many rows; how many it has."""
    per_split = max(1, rows // (len(SPLITS) * EXPRESSIONS * len(cells_of(SPLITS[0]))))
    samples: dict[str, list[list[str]]] = {f"{dataset}:{split}": [] for dataset, split in SPLITS}
    for name, known in samples.items():
        known += [[f"{name}:{k}", digest({"sample": [name, k]})] for k in range(per_split)]
    cells = {cell: entry for split in SPLITS for cell, entry in cells_of(split).items()}
    images = {name: len(known) for name, known in samples.items()}
    plan = {"seed": 0, "limit": 0, "budgets": list(BUDGETS)}
    info = {
        "schema": run_folder.SCHEMA,
        "run": digest({"rows": rows}),
        "plan": plan,
        "cells": cells,
        "samples": samples,
        "sweeps": [{"plan": plan, "cells": list(cells), "images": images}],
        "editions": [{"time": "2026-01-01T00:00:00+00:00", "cells": list(cells), "files": {}}],
        "edition": 0,
        "provenance": {"commit": "0123456789abcdef", "dirty": False, "packages": {}},
    }
    (folder / "images").mkdir(parents=True)
    write_atomically(folder / run_folder.RUN, info, run_folder.LOOSE)
    drawn = Drawn()
    for split in SPLITS:
        place = run_folder.split_folder(folder, *split)
        place.mkdir(parents=True)
        writers = [records.Writer(place, cells) for _ in range(JOURNALS)]
        for part in range(0, per_split, IMAGES_AT_ONCE):
            writer = writers[part // IMAGES_AT_ONCE % JOURNALS]
            for number in range(part, min(part + IMAGES_AT_ONCE, per_split)):
                writer.append(of_image(folder, drawn, split, number))
        for writer in writers:
            writer.close()
    return per_split * len(cells) * EXPRESSIONS


def of_image(folder: Path, drawn: Drawn, split: tuple[str, str], number: int) -> Iterator[dict[str, Any]]:
    """The rows of one image: its description, and the answers of all cells."""
    name = ":".join(split)
    first = EXPRESSIONS * number
    shared = {"dataset": split[0], "split": split[1], "sample": f"{name}:{number}", "of": EXPRESSIONS}
    shared |= {"expression": first}
    picture = ""
    if number < PICTURED:
        picture = f"images/{name.replace(':', '-')}-{number}.jpg"
        Image.new("RGB", (320, 240), (90, 40 + number, 60)).save(folder / picture)
    for place in range(EXPRESSIONS):
        yield shared | {
            "cell": f"@{CODE}",
            "place": place,
            "expression": first + place,
            "status": "sample",
            "text": drawn.sentence(),
            "height": HEIGHT,
            "width": WIDTH,
            "truth": drawn.draw.choice(drawn.masks),
            "image": picture,
            "content": digest({"sample": [name, number]}),
        }
    seen = shared | {"cluster": f"coco/train2014/{number}.jpg", "frames": 1, "views": 1}
    for cell, entry in cells_of(split).items():
        for place in range(EXPRESSIONS):
            yield drawn.answer(cell, entry, seen, place)


def _load(folder: Path) -> str:
    return _told(records.read_run(folder, masks=False).frame)


def _load_all(folder: Path) -> str:
    return _told(records.load_records(folder))


def _told(frame: pd.DataFrame) -> str:
    return f"{len(frame):,} rows, {frame.memory_usage(deep=True).sum() / 2**20:.0f} MiB"


def _close(folder: Path) -> str:
    close_run(folder, {})
    tables = list((folder / run_folder.FOLDER).rglob("*.parquet"))
    return f"{sum(table.stat().st_size for table in tables) / 2**20:.0f} MiB of tables"


def _report(folder: Path) -> str:
    from reports import report

    made = report(folder)
    page = (folder / "report.html").stat().st_size
    beside = sum(path.stat().st_size for path in (folder / "samples").glob("*"))
    board = (folder / "leaderboard.md").read_bytes()
    return (
        f"{len(made.runs.frame):,} rows; page {page / 1e6:.2f} MB (at most {SIZE / 1e6:.1f}), samples beside "
        f"it {beside / 1e6:.0f} MB; leaderboard.md {digest({'text': board.decode()})}"
    )


STEPS: dict[str, Callable[[Path], str]] = {
    "load": _load,
    "load_all": _load_all,
    "close": _close,
    "report": _report,
}


def step(name: str, folder: Path) -> None:
    """Do one step and print what it took, as JSON."""
    start = time.perf_counter()
    told = STEPS[name](folder)
    usage = resource.getrusage(resource.RUSAGE_SELF)
    seconds = time.perf_counter() - start
    print(json.dumps([seconds, usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 2**10, told]))


def measured(name: str, folder: Path) -> list[Any]:
    """Seconds, processor seconds, MiB at most and what was made by a step in a fresh process."""
    words = [sys.executable, "-m", "tests.bench.rows", "--step", name, "--folder", str(folder)]
    done = subprocess.run(words, check=True, capture_output=True, text=True)
    found: list[Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def main() -> None:
    """Write the runs, measure, print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--report", type=int, default=400_000, help="rows of the run that is reported")
    parser.add_argument("--step", choices=STEPS, help="one step alone, on --folder")
    parser.add_argument("--folder", type=Path, help="where the runs lie, or are written; by default nowhere")
    given = parser.parse_args()
    if given.step:
        step(given.step, given.folder)
        return
    with tempfile.TemporaryDirectory() as place:
        home = given.folder or Path(place)
        large, small = home / f"rows-{given.rows}", home / f"rows-{given.report}"
        for folder, count in ((large, given.rows), (small, given.report)):
            if not folder.exists():
                print(f"{write(folder, count):,} rows written to {folder}", flush=True)
        table = [["the frame from journals, as reports read it", *measured("load", large)]]
        table.append(["closing: checked, counted, tables written", *measured("close", large)])
        table.append(["the frame from tables, as reports read it", *measured("load", large)])
        table.append(["`load_records`, all columns as texts", *measured("load_all", large)])
        if small != large:
            measured("close", small)
        table.append([f"the report, {given.report:,} rows", *measured("report", small)])
    heads = ["step", "wall s", "processor s", "peak MiB", ""]
    print(tabulate(table, headers=heads, tablefmt="pipe", floatfmt=("", ".1f", ".1f", ".0f", "")))


if __name__ == "__main__":
    main()
