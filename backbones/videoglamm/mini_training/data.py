"""RefClips' train split as memory-mapped arrays: of every clip the frames that the language model sees.

Evaluation splits draw their seeds from other names.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from backbones.videoglamm.preprocess import sampled
from harness.data.refclips.language import MOTIONS, describe_clip
from harness.data.refclips.scenes import COLORS, HEIGHT, SHAPES, SIZES, TEXTURES, WIDTH, PaintedClip
from harness.data.refclips.splits import painted

SAMPLED = 4  # frames that the language model sees of a clip
MOST_OBJECTS = 4
ATTRIBUTES = ("shape", "color", "texture", "size", "motion", "edge")
EDGES = ("stays", "enters", "leaves")
VALUES = (SHAPES, tuple(COLORS), TEXTURES, tuple(SIZES), MOTIONS, EDGES)
MIDDLE = np.array((WIDTH / 2, HEIGHT / 2) * 2, dtype=np.float32)
UNIT = 96.0  # pixels


def seen_frames(length: int) -> NDArray[np.int64]:
    """Numbers of the frames that are seen of a clip of so many."""
    return np.array(sampled(length, SAMPLED))


@dataclass(frozen=True)
class Clips:
    """The train split.

    Attributes:
        frames: (clips, 4, H, W, 3) uint8.
        owner: (clips, 4, H, W) uint8, 0 for background, k+1 for object k.
        traits: (clips, 4, 6) int8, indices into VALUES; -1 where there is no object.
        ways: (clips, 4, 4) float32, x and y of the first and the last centre in pixels.
    """

    frames: NDArray[np.uint8]
    owner: NDArray[np.uint8]
    traits: NDArray[np.int8]
    ways: NDArray[np.float32]

    def __len__(self) -> int:
        return len(self.frames)

    def first(self, count: int) -> Clips:
        """The first `count` clips."""
        return Clips(self.frames[:count], self.owner[:count], self.traits[:count], self.ways[:count])

    def count(self, index: int) -> int:
        """Objects of a clip."""
        return int((self.traits[index, :, 0] >= 0).sum())

    def expressions(
        self, index: int, rng: np.random.Generator, per_family: int
    ) -> list[tuple[int, str, str]]:
        """Fresh (object, family, expression) triples of a clip."""
        things: list[Any] = []
        for k in range(self.count(index)):
            told = {name: VALUES[a][self.traits[index, k, a]] for a, name in enumerate(ATTRIBUTES)}
            way = [float(v) for v in self.ways[index, k]]
            edge = told.pop("edge")
            things.append(
                SimpleNamespace(
                    **told,
                    enters=edge == "enters",
                    leaves=edge == "leaves",
                    start=(way[0], way[1]),
                    end=(way[2], way[3]),
                    center=(way[0], way[1]),
                )
            )
        return describe_clip(things, rng, per_family)


def scaled(ways: NDArray[np.float32]) -> NDArray[np.float32]:
    """Ways in pixels to units of half a frame around its middle."""
    return (ways - MIDDLE) / UNIT


def _pack(clip: PaintedClip) -> tuple[Any, ...]:
    seen = seen_frames(len(clip.frames))
    owner = np.zeros((SAMPLED, HEIGHT, WIDTH), dtype=np.uint8)
    traits = np.full((MOST_OBJECTS, len(ATTRIBUTES)), -1, dtype=np.int8)
    ways = np.zeros((MOST_OBJECTS, 4), dtype=np.float32)
    for k, actor in enumerate(clip.actors):
        owner[clip.masks[k, seen]] = k + 1
        edge = EDGES[actor.enters + 2 * actor.leaves]
        told = (*(getattr(actor, name) for name in ATTRIBUTES[:-1]), edge)
        traits[k] = [values.index(value) for values, value in zip(VALUES, told, strict=True)]
        ways[k] = (*actor.start, *actor.end)
    return clip.frames[seen], owner, traits, ways


def build_clips(folder: Path, clips: int, split: str = "train") -> Clips:
    """Paint the first `clips` clips of a split into `folder`, or open them if they are there."""
    shapes: dict[str, tuple[tuple[int, ...], type]] = {
        "frames": ((clips, SAMPLED, HEIGHT, WIDTH, 3), np.uint8),
        "owner": ((clips, SAMPLED, HEIGHT, WIDTH), np.uint8),
        "traits": ((clips, MOST_OBJECTS, len(ATTRIBUTES)), np.int8),
        "ways": ((clips, MOST_OBJECTS, 4), np.float32),
    }
    done, wanted = folder / "clips.json", {"clips": clips, "split": split}
    if not (done.exists() and json.loads(done.read_text()) == wanted):
        folder.mkdir(parents=True, exist_ok=True)
        arrays = [
            np.lib.format.open_memmap(folder / f"{name}.npy", "w+", dtype=kind, shape=shape)
            for name, (shape, kind) in shapes.items()
        ]
        for index in tqdm(range(clips), desc=f"painting RefClips {split}", mininterval=5):
            for array, part in zip(arrays, _pack(painted(split, index)), strict=True):
                array[index] = part
        for array in arrays:
            array.flush()
        done.write_text(json.dumps(wanted))
    return Clips(**{name: np.load(folder / f"{name}.npy", mmap_mode="r") for name in shapes})
