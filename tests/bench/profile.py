"""Where does the time of a run go? `python -m tests.bench.profile [--limit 12] [--datasets all]`.

The main command's run in one process of one thread, costs and report included. A thread looks every few
milliseconds at what the main one is in; a part's share of these looks is its share of the time.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import threading
import time
from collections import Counter
from pathlib import Path
from types import FrameType

import torch
from tabulate import tabulate

import backbones
from harness.cost.measure import measure_costs
from harness.engine.runner import Plan, Way, prepare, run
from reports import report

EVERY = 0.004  # seconds between two looks
REST = "all else"
# where a function is in the stack, the time is the part's; the innermost that is listed counts
PARTS = {
    ("harness/engine/splits.py", "prepare"): "reading the data sets",
    ("harness/engine/prefetch.py", "_load"): "decoding and preparing images, masks of the truth",
    ("harness/engine/evaluate.py", "_encode"): "encoding images",
    ("harness/engine/chosen.py", "of"): "choosing before the language model",
    ("backbones/parts/cuts.py", "chosen"): "choosing at cuts",
    ("backbones/parts/shared.py", "_context"): "layers: visual tokens and sentence",
    ("backbones/parts/shared.py", "_branches"): "layers: questions and answers",
    ("backbones/parts/behind.py", "_onward"): "layers behind cuts",
    ("backbones/glamm/language.py", "said"): "rest of the language model",
    ("backbones/glamm/backbone.py", "_decoded"): "mask decoder",
    ("backbones/glamm/preprocess.py", "masks_to_image"): "masks to image size",
    ("harness/engine/evaluate.py", "_scored"): "scoring",
    ("harness/store/records.py", "append"): "writing records",
    ("harness/store/closing.py", "close_run"): "tables of the finished run",
    ("harness/store/closing.py", "lacking"): "tables of the finished run",
    ("harness/cost/measure.py", "count"): "costs: counting",
    ("harness/cost/measure.py", "measure_costs"): "costs: timing",
    ("reports/figures.py", "draw_figures"): "report: figures",
    ("reports/__init__.py", "report"): "report: tables and page",
}


def part_of(frame: FrameType | None) -> str:
    """The part that a stack is in."""
    while frame is not None:
        code = frame.f_code
        for (file, name), part in PARTS.items():
            if code.co_name == name and code.co_filename.endswith(file):
                return part
        frame = frame.f_back
    return REST


class Sampler:
    """Counts, while it is entered, what the thread that made it is in."""

    def __init__(self) -> None:
        self.seen: Counter[str] = Counter()
        self._thread, self._ended = threading.get_ident(), threading.Event()

    def _watch(self) -> None:
        while not self._ended.wait(EVERY):
            self.seen[part_of(sys._current_frames().get(self._thread))] += 1

    def __enter__(self) -> Sampler:
        threading.Thread(target=self._watch, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()


def main() -> None:
    """Run, and print the parts, largest first."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--limit", type=int, default=12, help="images per split")
    parser.add_argument("--datasets", default="all")
    given = parser.parse_args()
    torch.set_num_threads(1)
    plan = Plan(budgets=("64", "128", "192"), datasets=given.datasets, limit=given.limit)
    backbone = backbones.load("glamm-mini")
    begin = time.perf_counter()
    with tempfile.TemporaryDirectory() as place, Sampler() as sampler:
        folder = Path(place) / "run"
        splits = prepare(plan, backbone)
        run(plan, backbone, splits, folder, Way())
        measure_costs(plan, splits, backbone, folder)
        report(folder)
    whole, looks = time.perf_counter() - begin, sampler.seen.total()
    rows = [(part, whole * count / looks, 100 * count / looks) for part, count in sampler.seen.most_common()]
    print(tabulate(rows, headers=("part", "seconds", "%"), tablefmt="pipe", floatfmt=("", ".1f", ".1f")))
    print(f"\n{whole:.0f} s without loading, {looks} looks, one process of one thread")


if __name__ == "__main__":
    main()
