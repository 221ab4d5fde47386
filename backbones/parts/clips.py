"""Clips: frames that are decoded when they are asked for, so that a long one takes no more memory than
a short one."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray
from pycocotools import mask as coco_mask

BETWEEN = " "  # between the frames of a clip's run lengths; no letter of COCO's


@dataclass(frozen=True)
class Clip(ABC):
    """Frames of one size in order.

    Attributes:
        height, width: pixels of every frame.
        window: frames that one call of the language model is about; 0 for all of them.
    """

    height: int
    width: int
    window: int

    @abstractmethod
    def __len__(self) -> int:
        """How many frames there are."""

    @abstractmethod
    def frame(self, number: int) -> NDArray[np.uint8]:
        """Decode a frame, (H, W, 3) uint8 RGB.

        Raises:
            UserError: it cannot be read.
        """

    def windows(self) -> list[range]:
        """The frames of every call of the language model.

        Example:
            >>> import numpy as np
            >>> Frames.of([np.zeros((2, 2, 3), np.uint8)] * 5, window=2).windows()
            [range(0, 2), range(2, 4), range(4, 5)]
        """
        step = self.window or len(self)
        return [range(start, min(start + step, len(self))) for start in range(0, len(self), step)]


@dataclass(frozen=True)
class Frames(Clip):
    """A clip in memory."""

    images: Sequence[NDArray[np.uint8]] = field(repr=False, default=())

    @classmethod
    def of(cls, images: Sequence[NDArray[np.uint8]], window: int = 0) -> Frames:
        """The clip of (H, W, 3) arrays."""
        height, width = images[0].shape[:2]
        return cls(height, width, window, images)

    def __len__(self) -> int:
        return len(self.images)

    def frame(self, number: int) -> NDArray[np.uint8]:
        return self.images[number]


def run_lengths(mask: NDArray[np.bool_]) -> str:
    """The `counts` of COCO's compressed run lengths of an (H, W) mask."""
    counts: bytes = coco_mask.encode(np.asfortranarray(mask, dtype=np.uint8))["counts"]
    return counts.decode()


def decoded(counts: str, height: int, width: int) -> NDArray[np.bool_]:
    """(T, H, W) bool: the frames of run lengths that stand one behind the other."""
    frames = [{"size": [height, width], "counts": one.encode()} for one in counts.split(BETWEEN)]
    return np.stack([coco_mask.decode(one) for one in frames]).astype(np.bool_)
