"""RefShapes' train split as memory-mapped arrays, so that training never waits for the painter.

Evaluation splits draw their seeds from other names.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from harness.data.refshapes.language import describe_scene
from harness.data.refshapes.scenes import COLORS, SHAPES, SIZE, SIZES, TEXTURES, Scene
from harness.data.refshapes.writer import scene

MOST_OBJECTS = 9
ATTRIBUTES = ("shape", "color", "texture", "size")
VALUES = (SHAPES, tuple(COLORS), TEXTURES, tuple(SIZES))


def train_scene(index: int) -> Scene:
    """The index-th training scene; crowds take turns."""
    return scene("train", index)


@dataclass(frozen=True)
class Scenes:
    """The train split.

    Attributes:
        images: (scenes, 192, 192, 3) uint8.
        owner: (scenes, 192, 192) uint8, 0 for background, k+1 for object k.
        looks: (scenes, 9, 4) int8, index of shape, color, texture, size; -1 where there is no object.
        centers: (scenes, 9, 2) float32, x and y in pixels.
    """

    images: NDArray[np.uint8]
    owner: NDArray[np.uint8]
    looks: NDArray[np.int8]
    centers: NDArray[np.float32]

    def __len__(self) -> int:
        return len(self.images)

    def first(self, count: int) -> Scenes:
        """The first `count` scenes."""
        return Scenes(self.images[:count], self.owner[:count], self.looks[:count], self.centers[:count])

    def count(self, index: int) -> int:
        """Objects of a scene."""
        return int((self.looks[index, :, 0] >= 0).sum())

    def expressions(
        self, index: int, rng: np.random.Generator, per_family: int
    ) -> list[tuple[int, str, str]]:
        """Fresh (object, family, expression) triples of a scene."""
        things: list[Any] = [
            SimpleNamespace(
                **{name: VALUES[a][self.looks[index, k, a]] for a, name in enumerate(ATTRIBUTES)},
                center=tuple(float(v) for v in self.centers[index, k]),
            )
            for k in range(self.count(index))
        ]
        found = describe_scene(things, rng, per_family)
        return [(k, family, text) for family, pairs in found.items() for k, text in pairs]


def _pack(index: int) -> tuple[Any, ...]:
    painted = train_scene(index)
    owner = np.zeros((SIZE, SIZE), dtype=np.uint8)
    looks = np.full((MOST_OBJECTS, 4), -1, dtype=np.int8)
    centers = np.zeros((MOST_OBJECTS, 2), dtype=np.float32)
    for k, thing in enumerate(painted.objects):
        owner[thing.mask] = k + 1
        looks[k] = [
            values.index(getattr(thing, name)) for values, name in zip(VALUES, ATTRIBUTES, strict=True)
        ]
        centers[k] = thing.center
    return painted.image, owner, looks, centers


def build_scenes(folder: Path, scenes: int, workers: int = 2) -> Scenes:
    """Paint the first `scenes` training scenes into `folder`, or open them if they are there; one worker is
    this process."""
    shapes: dict[str, tuple[tuple[int, ...], type]] = {
        "images": ((scenes, SIZE, SIZE, 3), np.uint8),
        "owner": ((scenes, SIZE, SIZE), np.uint8),
        "looks": ((scenes, MOST_OBJECTS, 4), np.int8),
        "centers": ((scenes, MOST_OBJECTS, 2), np.float32),
    }
    done = folder / "scenes.json"
    if not (done.exists() and json.loads(done.read_text())["scenes"] == scenes):
        folder.mkdir(parents=True, exist_ok=True)
        arrays = [
            np.lib.format.open_memmap(folder / f"{name}.npy", "w+", dtype=kind, shape=shape)
            for name, (shape, kind) in shapes.items()
        ]
        with get_context("spawn").Pool(workers) if workers > 1 else nullcontext() as pool:
            packed: Iterator[tuple[Any, ...]] = (
                pool.imap(_pack, range(scenes), chunksize=64) if pool else map(_pack, range(scenes))
            )
            for index, parts in enumerate(tqdm(packed, total=scenes, desc="painting RefShapes train")):
                for array, part in zip(arrays, parts, strict=True):
                    array[index] = part
        for array in arrays:
            array.flush()
        done.write_text(json.dumps({"scenes": scenes}))
    return Scenes(**{name: np.load(folder / f"{name}.npy", mmap_mode="r") for name in shapes})
