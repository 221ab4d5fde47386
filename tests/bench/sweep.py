"""What does sharing save? `python -m tests.bench.sweep [--limit 2] [--datasets all] [--times 3]`.

One sweep of all pruners at 64, 128 and 192 tokens on the embedded backbone, twice in one process: with
everything computed once that cells have in common, and cell by cell as with --no-share. Both fill run folders
through the runner; the folders are compared row for row. Wall time tells what a user waits, processor time
what neighbours on the machine cannot change.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from pathlib import Path

import pandas as pd
import torch

import backbones
from backbones.base import Backbone
from harness.cost import projection, sharing
from harness.cost.lines import lines_of
from harness.cost.store import BASELINE
from harness.engine.runner import Plan, Split, Way, prepare, run
from harness.store import records
from pruners import parse

BUDGETS = (64, 128, 192)
EXACT = ["cell", "sample", "expression", "kept", "tokens_final", "tokens_mean", "coverage"]
PIXELS = ["intersection", "union"]


def once(
    plan: Plan, backbone: Backbone, splits: list[Split], share: bool, folder: Path
) -> tuple[float, float]:
    """Wall and processor seconds of a run into `folder`."""
    wall, processor = time.perf_counter(), time.process_time()
    if not run(plan, backbone, splits, folder, Way(share=share)):
        raise SystemExit("another process works on the bench's folder")
    return time.perf_counter() - wall, time.process_time() - processor


def multiply_adds() -> sharing.Account:
    """The same for GLaMM-7B without its weights: the methods and the upper bound, one conversation of three
    expressions."""
    every = lines_of(parse("all"), BUDGETS, 0, (24, 24), 32)
    lines = [line for line in every if line.pruner.kind == "method" or line.name == BASELINE]
    shapes = backbones.one("glamm-7b").shapes()
    prompt = shapes.prompt()
    return sharing.account(projection.project(shapes, lines, prompt), lines, prompt)


def main() -> None:
    """Run both ways in turn, compare what they recorded, print medians and ratios."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--limit", type=int, default=2, help="images per split")
    parser.add_argument("--datasets", default="all")
    parser.add_argument("--times", type=int, default=3)
    given = parser.parse_args()
    plan = Plan(budgets=BUDGETS, datasets=given.datasets, limit=given.limit)
    backbone = backbones.load("glamm-mini")
    splits = prepare(plan, backbone)
    taken: dict[bool, list[tuple[float, float]]] = {True: [], False: []}
    with tempfile.TemporaryDirectory() as place:
        # what a process does once (kernels, the constant beginning) is paid before
        once(
            plan,
            backbone,
            [Split(split.samples[:1], split.jobs, split.contents[:1]) for split in splits[:1]],
            True,
            Path(place) / "warm",
        )
        for number in range(given.times):
            for share in (True, False):
                taken[share].append(once(plan, backbone, splits, share, Path(place) / f"{share}-{number}"))
        shared, naive = (records.load_records(Path(place) / f"{share}-0") for share in (True, False))
    pd.testing.assert_frame_equal(shared[EXACT], naive[EXACT])
    # the last layer's states are read by plain products one way and by fused attention the other, so sums
    # round differently
    apart = (shared[PIXELS] - naive[PIXELS]).abs().max(axis=1)
    print(
        f"{len(shared)} rows of {sum(len(split.jobs) for split in splits)} cells, "
        f"{torch.get_num_threads()} threads"
    )
    print(
        f"kept tokens of both ways are equal; pixel counts differ in {(apart > 0).sum()} rows, by "
        f"{apart.max()} pixels at most"
    )
    for k, name in enumerate(("wall", "processor")):
        once_for_all, cell_by_cell = (
            statistics.median(pair[k] for pair in taken[share]) for share in (True, False)
        )
        ratio = cell_by_cell / once_for_all
        print(
            f"{name} time: cell by cell {cell_by_cell:.1f} s, shared {once_for_all:.1f} s, ratio {ratio:.2f}"
        )
    full = multiply_adds()
    words = (
        f"cell by cell {full.naive / 1e12:.2f} TMAC per image, shared {full.shared / 1e12:.2f}, ratio "
        f"{full.ratio:.2f}"
    )
    print(f"glamm-7b, {full.cells} cells, projected: {words}")


if __name__ == "__main__":
    main()
