"""How fast an atlas is measured, and in how much memory, on records that are made up.

python -m tests.bench.atlas --expressions 500 --lines 40 --size 480x640
python -m tests.bench.atlas --expressions 10000 --lines 40 --size 96x128
"""

from __future__ import annotations

import argparse
import resource
from pathlib import Path
from time import perf_counter

import numpy as np
import pandas as pd

from backbones.parts.clips import run_lengths
from harness.diagnosis.atlas import measure_atlas, worst
from tests.test_atlas import SETTING

PER_IMAGE = 3  # expressions
POOL = 300  # masks that answers are drawn from


def ellipses(rng: np.random.Generator, height: int, width: int) -> list[tuple[str, np.ndarray]]:
    """Referents of all sizes and places, as run lengths and as pixels."""
    ys, xs = np.mgrid[0:height, 0:width]
    found = []
    for _ in range(POOL):
        middle, radius = rng.random(2) * (height, width), (0.04 + 0.4 * rng.random(2) ** 2) * (height, width)
        mask = ((ys - middle[0]) / radius[0]) ** 2 + ((xs - middle[1]) / radius[1]) ** 2 <= 1
        found.append((run_lengths(mask), mask))
    return found


def a_run(expressions: int, lines: int, height: int, width: int) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Records and samples of `lines` methods and the unpruned row."""
    rng = np.random.default_rng(0)
    pool = ellipses(rng, height, width)
    inner = np.array([[int((one & other).sum()) for _, other in pool[:PER_IMAGE]] for _, one in pool])
    area = np.array([int(mask.sum()) for _, mask in pool])
    place = np.arange(expressions)
    truth = place % PER_IMAGE
    frames = []
    for line in range(lines + 1):
        drawn = rng.integers(POOL, size=expressions)
        shared = inner[drawn, truth]
        frames.append(
            pd.DataFrame(
                {
                    "pruner": f"method{line}" if line else "none",
                    "budget": 64 if line else 576,
                    "seed": 0,
                    "sample": [f"refcoco:val:{k // PER_IMAGE}" for k in place],
                    "expression": place,
                    "cluster": [f"train2014/{k // PER_IMAGE}.jpg" for k in place],
                    "frames": 1,
                    "coverage": rng.random(expressions),
                    "mask": [pool[k][0] for k in drawn],
                    "intersection": shared,
                    "iou": shared / np.maximum(area[drawn] + area[truth] - shared, 1),
                    "positions": "compact",
                    "own_positions": False,
                    "kind": "method",
                    "budget_kind": "final",
                    "geometry": "centre-crop",
                }
            ).assign(**SETTING)
        )
    samples = pd.DataFrame(
        {
            "sample": [f"refcoco:val:{k // PER_IMAGE}" for k in place],
            "expression": place,
            "text": [("the man in blue", "left woman", "dog near the big red car")[k % 3] for k in place],
            "dataset": "refcoco",
            "split": "val",
            "height": height,
            "width": width,
            "truth": [pool[k][0] for k in truth],
            "image": "",
        }
    )
    return pd.concat(frames, ignore_index=True), samples


def main() -> None:
    """Print rows per second and the most memory that the process held."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--expressions", type=int, default=500)
    parser.add_argument("--lines", type=int, default=40)
    parser.add_argument("--size", default="480x640", metavar="HxW")
    given = parser.parse_args()
    height, width = map(int, given.size.split("x"))
    frame, samples = a_run(given.expressions, given.lines, height, width)
    before = resource.getrusage(resource.RUSAGE_SELF)
    start = perf_counter()
    found = measure_atlas(frame, samples, Path("run"))
    worst(found, 3)
    took, after = perf_counter() - start, resource.getrusage(resource.RUSAGE_SELF)
    own = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    print(
        f"{len(frame):,} rows of {height} x {width} px in {took:.1f} s, of which {own:.1f} s on a processor: "
        f"{len(frame) / own:,.0f} rows per second of it; at most {after.ru_maxrss / 2**10:.0f} MiB of "
        f"memory, {before.ru_maxrss / 2**10:.0f} of them for the records"
    )


if __name__ == "__main__":
    main()
