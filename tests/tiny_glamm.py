"""The official tiny GLaMM as a loaded backbone, a picture and a question for it."""

from __future__ import annotations

from pathlib import Path

import numpy as np

import backbones
from backbones.base import Turn
from backbones.glamm.backbone import GlammBackbone

TURN = Turn("Can you segment the left dog in this image?", "It is [SEG].")


def picture(height: int, width: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def load(folder: Path, **settings: object) -> GlammBackbone:
    """The backbone of a folder with `checkpoint` and `clip`."""
    found = backbones.load("glamm", checkpoint=folder / "checkpoint", clip=str(folder / "clip"), **settings)  # type: ignore[arg-type]
    assert isinstance(found, GlammBackbone)
    return found
