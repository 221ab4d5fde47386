"""Small clips in the official layouts of the video data sets, for the tests of whatever reads them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from harness.data import Sample, load_samples
from harness.data.video.places import FILES
from harness.data.video.writer import Said, Video, write_davis, write_mevis, write_youtube

HEIGHT, WIDTH = 40, 64  # not square: a swapped axis shows
VOID = slice(36, 40)  # rows
HELD_OUT = "v2"  # a name that falls into Refer-YouTube-VOS' heldout
DAVIS, YOUTUBE, MEVIS = "ref-davis17:val", "ref-youtube-vos:valid", "mevis:valid_u"


def boxes(frames: int, objects: int) -> np.ndarray:
    """Id maps, (T, H, W): object k is a box of 3x3 px in column k that moves down by a pixel per frame, the
    last one is gone in the last frame; the lowest rows are void."""
    ids = np.zeros((frames, HEIGHT, WIDTH), dtype=np.uint8)
    for place, one in enumerate(ids):
        for number in range(1, objects + 1):
            if (number, place) != (objects, frames - 1) or objects == 1:
                one[place : place + 3, 4 * number : 4 * number + 3] = number
        one[VOID] = 255
    return ids


def clip(name: str, frames: int = 3, objects: int = 2, said: tuple[Said, ...] | None = None) -> Video:
    """A clip of noise; of Ref-DAVIS four texts per object unless others are given."""
    seed = int.from_bytes(name.encode(), "big") % 2**32
    pixels = np.random.default_rng(seed).integers(0, 256, (frames, HEIGHT, WIDTH, 3), dtype=np.uint8)
    spoken = said or tuple(
        Said(f"{name}, {number}, in {file}", (number,), file)
        for number in range(1, objects + 1)
        for file in FILES
    )
    return Video(name, pixels, boxes(frames, objects), spoken)


def plain(name: str, frames: int = 3) -> Video:
    """A clip without void and with one text for each of two objects."""
    made = clip(name, frames, said=(Said(f"first in {name}", (1,)), Said(f"second in {name}", (2,))))
    made.ids[made.ids == 255] = 0
    return made


def davis(root: Path, *names: str) -> Path:
    return write_davis(root, [clip(name) for name in names or ("bear", "cat")])


def youtube(root: Path) -> Path:
    write_youtube(root, [plain("v1"), plain(HELD_OUT)], "train")
    return write_youtube(root, [plain("dog", 4), plain("ant")], "valid", test=[plain("cow")])


def mevis(root: Path) -> Path:
    both = Said("  Both  of\tTHEM ", (1, 2))
    runner = plain("runner")
    made = Video("runner", runner.frames, runner.ids, (*runner.said, both, Said("Nobody", ())))
    write_mevis(root, [made, plain("bird", 2)], "valid_u")
    return write_mevis(root, [plain("fish")], "valid")


def load(root: Path, which: str) -> list[Sample]:
    dataset, _, split = which.partition(":")
    return load_samples(dataset, split, root, "video")


def change(path: Path, edit: Callable[[Any], object]) -> None:
    """Edit a JSON file in place."""
    content = json.loads(path.read_text())
    edit(content)
    path.write_text(json.dumps(content))
