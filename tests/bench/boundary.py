"""Processor seconds of J and F against the way of the official code: OpenCV's dilation of whole boundary maps
with a disk.

python -m tests.bench.boundary [FOLDER] reads the masks of tests/golden/video, or of another folder of its
layout, and holds both to the stored scores while it measures.
"""

from __future__ import annotations

import statistics
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from harness.metrics.boundary import clip_counts, contour, radius, region

FOLDER = Path(__file__).parents[1] / "golden" / "video"
REPEATS = 5
LARGE = 400_000  # px of frames that are looked at one by one

Mask = NDArray[np.bool_]


@dataclass(frozen=True, eq=False)
class Frames:
    """Stored frames of one size: masks (T, H, W) and scores (T,)."""

    kinds: list[str]
    prediction: Mask
    target: Mask
    void: Mask | None
    j: NDArray[np.float64]
    f: NDArray[np.float64]

    @property
    def size(self) -> str:
        return "x".join(map(str, self.target.shape[1:]))

    def frame(self, t: int) -> Frames:
        """One of them alone."""
        part = slice(t, t + 1)
        void = None if self.void is None else self.void[part]
        sides = self.prediction[part], self.target[part]
        return Frames(self.kinds[part], *sides, void, self.j[part], self.f[part])


def clips(folder: Path) -> Iterator[Frames]:
    """All stored frames, size by size."""
    for path in sorted(folder.glob("jf_*.npz")):
        stored = np.load(path)
        for key in sorted(key for key in stored.files if key.endswith("_shape")):
            case, shape = key.removesuffix("_shape"), stored[key]
            part = {
                side: np.unpackbits(stored[f"{case}_{side}"], count=int(np.prod(shape)))
                .reshape(shape)
                .astype(bool)
                for side in ("pred", "gt", "void")
                if f"{case}_{side}" in stored
            }
            scores = stored[f"{case}_J"], stored[f"{case}_F"]
            yield Frames(stored[f"{case}_kind"].tolist(), part["pred"], part["gt"], part.get("void"), *scores)


def disk(reach: int) -> NDArray[np.uint8]:
    """Of radius `reach` around its centre."""
    y, x = np.ogrid[-reach : reach + 1, -reach : reach + 1]
    return (x * x + y * y <= reach * reach).astype(np.uint8)


def differing(mask: Mask) -> Mask:
    """The boundary map with one boolean per pixel."""
    right, below, across = np.zeros((3, *mask.shape), dtype=bool)
    right[:, :-1], below[:-1], across[:-1, :-1] = mask[:, 1:], mask[1:], mask[1:, 1:]
    found = (mask ^ right) | (mask ^ below) | (mask ^ across)
    found[-1], found[:, -1] = mask[-1] ^ right[-1], mask[:, -1] ^ below[:, -1]
    found[-1, -1] = False
    return found


def j_of_whole_maps(prediction: Mask, target: Mask, seen: Mask) -> float:
    inner = np.sum(prediction & target & seen)
    outer = np.sum((prediction | target) & seen)
    return float(inner / outer) if outer else 1.0


def f_of_whole_maps(prediction: Mask, target: Mask, seen: Mask) -> float:
    drawn, edges = differing(prediction & seen), differing(target & seen)
    element = disk(radius(*target.shape))
    near_drawn, near_edges = (cv2.dilate(part.astype(np.uint8), element) for part in (drawn, edges))
    sizes = int(drawn.sum()), int(edges.sum())
    if not min(sizes):
        return float(sizes[0] == sizes[1])
    precision = (drawn * near_edges).sum() / sizes[0]
    recall = (edges * near_drawn).sum() / sizes[1]
    return float(2 * precision * recall / (precision + recall)) if precision + recall else 0.0


def alone(score: Callable[[Mask, Mask, Mask], float], some: Frames) -> list[float]:
    """A score frame by frame."""
    seen = np.ones_like(some.target) if some.void is None else ~some.void
    return [score(*frame) for frame in zip(some.prediction, some.target, seen, strict=True)]


def both_of_whole_maps(some: Frames) -> tuple[list[float], list[float]]:
    return alone(j_of_whole_maps, some), alone(f_of_whole_maps, some)


def both_of_bits(some: Frames) -> tuple[list[float], list[float]]:
    counts = clip_counts(some.prediction[None], some.target[None], some.void)[0, 0]
    parts = np.moveaxis(counts, -1, 0)
    return region(*parts[:2]).tolist(), contour(*parts[2:]).tolist()


WAYS: tuple[Callable[[Frames], object], ...] = (
    both_of_whole_maps,
    lambda some: alone(f_of_whole_maps, some),
    both_of_bits,
)


def seconds(work: Callable[[Frames], object], some: Frames) -> float:
    """Median of a few runs behind one that is not counted; of the processor, which others may be using."""
    work(some)
    taken = []
    for _ in range(REPEATS):
        start = time.process_time()
        work(some)
        taken.append(time.process_time() - start)
    return statistics.median(taken)


def compare(folder: Path) -> None:
    """Print milliseconds per frame, of clips by their size and of large frames alone by their kind."""
    cv2.setNumThreads(1)
    print(
        "ms per frame: J and F of whole maps, F of them alone; J and F of bits; ratios of both, of F to both"
    )
    kinds: dict[tuple[str, str], list[list[float]]] = defaultdict(list)
    total, count = np.zeros(3), 0
    for some in clips(folder):
        for way in (both_of_whole_maps, both_of_bits):
            if way(some) != (some.j.tolist(), some.f.tolist()):
                raise SystemExit(f"{way.__name__} has other scores of {some.size} than those that are stored")
        frames = len(some.kinds)
        taken = np.array([seconds(way, some) for way in WAYS])
        print(f"{frames:3d} frames {some.size:9s} {_told(taken / frames)}", flush=True)
        total, count = total + taken, count + frames
        if some.target[0].size >= LARGE:
            for t, kind in enumerate(some.kinds):
                kinds[some.size, kind].append([seconds(way, some.frame(t)) for way in WAYS])
    print(f"{count} frames together  {_told(total / count)}")
    for (size, kind), rows in kinds.items():
        print(f"alone {size:9s} {kind:15s} {_told(np.mean(rows, axis=0))}")


def _told(taken: NDArray[np.float64]) -> str:
    both, boundaries, bits = taken.tolist()
    times = "".join(f"{1e3 * one:8.2f}" for one in (both, boundaries, bits))
    return f"{times}   {both / bits:5.1f}x {boundaries / bits:5.1f}x"


if __name__ == "__main__":
    compare(Path(sys.argv[1]) if len(sys.argv) > 1 else FOLDER)
