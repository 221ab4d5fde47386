"""Seconds of J and F against the way of the official code, OpenCV's dilation of whole boundary maps with a
disk.

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

from harness.metrics.boundary import boundary_map, contour, pair_counts, radius, region

FOLDER = Path(__file__).parents[1] / "golden" / "video"
REPEATS = 5

Mask = NDArray[np.bool_]


@dataclass(frozen=True, eq=False)
class Frame:
    """One stored frame."""

    kind: str
    prediction: Mask
    target: Mask
    void: Mask | None
    j: float
    f: float


def frames(folder: Path) -> Iterator[Frame]:
    """All stored frames."""
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
            for t, kind in enumerate(stored[f"{case}_kind"].tolist()):
                void = part["void"][t] if "void" in part else None
                scores = float(stored[f"{case}_J"][t]), float(stored[f"{case}_F"][t])
                yield Frame(kind, part["pred"][t], part["gt"][t], void, *scores)


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


def j_of_whole_maps(one: Frame) -> float:
    seen = np.ones_like(one.target) if one.void is None else ~one.void
    inner = np.sum(one.prediction & one.target & seen)
    outer = np.sum((one.prediction | one.target) & seen)
    return float(inner / outer) if outer else 1.0


def f_of_whole_maps(one: Frame) -> float:
    seen = np.ones_like(one.target) if one.void is None else ~one.void
    drawn, edges = differing(one.prediction & seen), differing(one.target & seen)
    element = disk(radius(*one.target.shape))
    near_drawn, near_edges = (cv2.dilate(part.astype(np.uint8), element) for part in (drawn, edges))
    sizes = int(drawn.sum()), int(edges.sum())
    if not min(sizes):
        return float(sizes[0] == sizes[1])
    precision = (drawn * near_edges).sum() / sizes[0]
    recall = (edges * near_drawn).sum() / sizes[1]
    return float(2 * precision * recall / (precision + recall)) if precision + recall else 0.0


def both_of_whole_maps(one: Frame) -> tuple[float, float]:
    return j_of_whole_maps(one), f_of_whole_maps(one)


def both_of_bits(one: Frame) -> tuple[float, float]:
    counts = pair_counts(one.prediction[None], one.target[None], one.void)[0, 0]
    return float(region(*counts[:2])), float(contour(*counts[2:]))


def seconds(work: Callable[[Frame], object], one: Frame) -> float:
    """Median of a few runs behind one that is not counted."""
    work(one)
    taken = []
    for _ in range(REPEATS):
        start = time.perf_counter()
        work(one)
        taken.append(time.perf_counter() - start)
    return statistics.median(taken)


def compare(folder: Path) -> None:
    """Print milliseconds per frame of every size and kind, and how much faster bits are in all."""
    cv2.setNumThreads(1)
    rows: dict[tuple[str, str], list[tuple[float, float, float]]] = defaultdict(list)
    for one in frames(folder):
        for way in (both_of_whole_maps, both_of_bits):
            if way(one) != (one.j, one.f):
                raise SystemExit(f"{way.__name__} has {way(one)} of a frame {one.kind}, not {one.j}, {one.f}")
        assert np.array_equal(boundary_map(one.target), differing(one.target))
        height, width = one.target.shape
        times = tuple(seconds(way, one) for way in (both_of_whole_maps, f_of_whole_maps, both_of_bits))
        rows[f"{height}x{width}", one.kind].append(times)  # type: ignore[arg-type]
    print(
        "ms per frame: J and F of whole maps, F of them alone; J and F of bits; ratio of both, ratio to F alone"
    )
    for (size, kind), times in rows.items():
        if int(size.partition("x")[0]) >= 240:
            print(
                f"{size:9s} {kind:15s} {_told([sum(parts) / len(times) for parts in zip(*times, strict=True)])}"
            )
    every = [one for times in rows.values() for one in times]
    print(f"all {len(every)} frames together  {_told([sum(parts) for parts in zip(*every, strict=True)])}")


def _told(parts: list[float]) -> str:
    both, alone, bits = parts
    return (
        f"{1e3 * both:7.2f} {1e3 * alone:7.2f} {1e3 * bits:7.2f}   {both / bits:5.1f}x {alone / bits:5.1f}x"
    )


if __name__ == "__main__":
    compare(Path(sys.argv[1]) if len(sys.argv) > 1 else FOLDER)
