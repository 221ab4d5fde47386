"""`python -m tests.bench.bootstrap`: how long the intervals of a large table take, and how often intervals
hold the truth."""

from __future__ import annotations

import sys
import time

import numpy as np

from harness.metrics.bootstrap import DRAWS, estimate, resample
from tests.simulated import coverage

IMAGES, ROWS = 10_000, 20


def speed() -> None:
    """All scores of a table and all differences to its first row."""
    generator = np.random.default_rng(0)
    unions = generator.integers(1, 100_000, (IMAGES, ROWS)).astype(np.float64)
    intersections = unions * generator.random((IMAGES, ROWS))
    start = time.perf_counter()
    part = resample(intersections, unions)
    for row in range(ROWS):
        weight = np.eye(ROWS)[row]
        estimate([part], [weight])
        if row:
            estimate([part], [weight - np.eye(ROWS)[0]])
    print(
        f"{IMAGES} images x {ROWS} rows, {DRAWS} draws, intervals and differences: "
        f"{time.perf_counter() - start:.1f} s"
    )


def cover(repetitions: int) -> None:
    """Coverage at several sizes."""
    error = 100 * np.sqrt(0.95 * 0.05 / repetitions)
    print(
        f"share of 95 % intervals that hold the truth, {repetitions} simulations, Monte-Carlo error "
        f"{error:.2f} points"
    )
    print("images x splits: score, difference; share of equal pruners called different (5 % asked)")
    independent = [
        (images, splits, False)
        for images, splits in ((6, 1), (6, 8), (12, 1), (25, 1), (50, 1), (50, 8), (200, 1), (1000, 1))
    ]
    for images, splits, shared in (*independent, (50, 3, True), (200, 3, True)):
        found = coverage(images, repetitions, splits, shared=shared)
        which = f"{images} x {splits}{' (the same images)' if shared else ''}"
        print(
            f"{which}: {found['score']:.1%}, {found['difference']:.1%}; {found['false alarm']:.1%}",
            flush=True,
        )


if __name__ == "__main__":
    speed()
    cover(int(sys.argv[1]) if len(sys.argv) > 1 else 2000)
