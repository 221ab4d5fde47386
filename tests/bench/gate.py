"""What the gate sees, and how often it is wrong: `python -m tests.bench.gate [RUNS]`.

First the share of falls that it catches: expressions of one pruner lose so many points of IoU on average,
each an exponentially distributed number of them (to no less than 0), in all expressions, in a random half, or
in one random split. Then its false alarms in the pruners whose choice hangs on rounding: RUNS new runs with
features that differ in it, alone and mixed by image.
"""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from harness.engine.ranks import Place
from harness.engine.rounding import shaken
from harness.gate import baseline as files
from harness.gate import check as gate
from harness.store import records

BASELINE = Path(__file__).parents[2] / "results" / "baseline.json"
FALLS, DRAWS, MIXES = (0.5, 1, 2, 5), 200, 200
CELLS = (("visionzip", 64), ("vispruner", 64))
WHERE = ("all", "half", "one split")


def fallen(part: pd.DataFrame, points: float, where: str, draw: np.random.Generator) -> pd.DataFrame:
    """A cell's rows after a fall of so many points on average where it falls."""
    split = part["sample"].str.rsplit(":", n=1).str[0]
    which = {
        "all": split == split,
        "half": draw.random(len(part)) < 0.5,
        "one split": split == draw.choice(split.unique()),
    }
    ratio = part["intersection"] / part["union"].clip(lower=1)
    ratio = (ratio - which[where] * draw.exponential(points / 100, len(part))).clip(lower=0)
    return part.assign(intersection=(ratio * part["union"]).round().astype(int))


def power(content: dict[str, Any], rows: pd.DataFrame) -> None:
    """Share of falls that are caught."""
    print(f"share of falls that the gate catches, {DRAWS} draws each, by mean fall in points of IoU")
    for pruner, budget in CELLS:
        part = rows[(rows["pruner"] == pruner) & (rows["budget"] == budget)]
        for where in WHERE:
            shares = []
            for points in FALLS:
                draws = (
                    fallen(part, points, where, np.random.default_rng((0, seed))) for seed in range(DRAWS)
                )
                shares.append(sum(bool(gate.compare(part, after, content).worse) for after in draws) / DRAWS)
            told = ", ".join(f"-{points:g}: {share:.1%}" for points, share in zip(FALLS, shares, strict=True))
            print(f"{pruner} at {budget}, {where}: {told}", flush=True)


def alarms(content: dict[str, Any], rows: pd.DataFrame, runs: int) -> None:
    """False alarms of runs that differ in rounding."""
    unsteady = sorted({cell["pruner"] for cell in content["cells"] if cell["rounding"]["tokens"]})
    backbone, rows = gate.plan_of(content["subset"]).load(Place()), rows[rows["pruner"].isin(unsteady)]
    some, found, alone = replace(gate.plan_of(content["subset"]), pruners=tuple(unsteady)), [], 0
    for seed in range(100, 100 + runs):  # none of those by which the baseline was accepted
        found.append(gate.run_subset(some, shaken(backbone, seed, content["noise"]["relative"])).frame)
        alone += len(gate.compare(rows, found[-1], content).worse)
    every, mixed = pd.concat(found, keys=range(runs), names=["run"]).reset_index("run"), 0
    images = records.images(every["sample"])
    for seed in range(MIXES):
        draw = np.random.default_rng((1, seed))
        chosen = {image: draw.integers(runs) for image in sorted(images.unique())}
        mixed += len(gate.compare(rows, every[every["run"] == images.map(chosen)], content).worse)
    cells = len(rows[files.KEY].drop_duplicates())
    print(
        f"false alarms of {', '.join(unsteady)} ({cells} cells): {alone} in {runs} runs, {mixed} in "
        f"{MIXES} mixed ones"
    )


def main() -> None:
    """Both tables."""
    content = gate.read_baseline(BASELINE)
    rows = files.frame(content)
    power(content, rows)
    alarms(content, rows, int(sys.argv[1]) if len(sys.argv) > 1 else 16)


if __name__ == "__main__":
    main()
