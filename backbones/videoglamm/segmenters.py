"""Prompts to masks through a clip: SAM or SAM2 on every frame by itself, or SAM2 with what it remembers.

A segmenter prepares a frame on the CPU, encodes it once for all prompts, and decodes all prompts on it; what
it remembers of a clip is held by what `start` returns.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, NamedTuple, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from backbones.glamm.preprocess import masks_to_image, sam_pixels
from backbones.parts import sam
from backbones.parts.sam2_frames import masks_to_frame, sam2_pixels

Ready = TypeVar("Ready")
Step = Callable[[Any], Tensor]  # an encoded frame -> (B, h, w) logits of the prompts


class Prepared(NamedTuple):
    """A frame on the CPU.

    Attributes:
        pixels: (3, H', H') float32.
        resized: height and width of the frame in it.
        original: height and width of the raw frame.
    """

    pixels: Tensor
    resized: tuple[int, int]
    original: tuple[int, int]


class Segmenter(ABC):
    """What makes masks of prompts.

    Args:
        model: the module that holds the weights.
        size: side of the frames that it gets.
    """

    def __init__(self, model: Any, size: int) -> None:
        self.model, self.size = model, size

    @abstractmethod
    def prepare(self, frame: NDArray[np.uint8]) -> Prepared:
        """(H, W, 3) RGB, resized and normalised."""

    @abstractmethod
    def encode(self, pixels: Tensor) -> Any:
        """What all prompts share of one frame (1, 3, H', H')."""

    @abstractmethod
    def start(self, prompts: Tensor) -> Step:
        """Begin a clip with prompts (B, P); the frames then come one after the other."""

    @abstractmethod
    def back(self, logits: Tensor, frame: Prepared) -> Tensor:
        """(h, w) logits of one mask -> (H, W) float32 at the raw frame's size."""


class SamFrames(Segmenter):
    """SAM: every frame by itself with the same prompts."""

    def prepare(self, frame: NDArray[np.uint8]) -> Prepared:
        pixels, resized = sam_pixels(frame, self.size)
        return Prepared(pixels, resized, frame.shape[:2])

    def encode(self, pixels: Tensor) -> Tensor:
        return sam.encode(self.model, pixels)

    def start(self, prompts: Tensor) -> Step:
        return lambda embedding: sam.decode(self.model, embedding, prompts[None])[0][0]

    def back(self, logits: Tensor, frame: Prepared) -> Tensor:
        return masks_to_image(logits[None], self.size, frame.resized, frame.original)[0]


class Sam2Frames(Segmenter):
    """SAM2 on every frame by itself, as VideoGLaMM is trained."""

    def prepare(self, frame: NDArray[np.uint8]) -> Prepared:
        return Prepared(sam2_pixels(frame, self.size), (self.size,) * 2, frame.shape[:2])

    def encode(self, pixels: Tensor) -> Any:
        from backbones.parts import sam2

        return sam2.encode_frame(self.model, pixels)

    def start(self, prompts: Tensor) -> Step:
        from backbones.parts import sam2

        return lambda frame: sam2.framewise(self.model, frame, prompts)

    def back(self, logits: Tensor, frame: Prepared) -> Tensor:
        return masks_to_frame(logits[None], frame.original)[0]


class Sam2Video(Sam2Frames):
    """SAM2 prompted on the first frame, and from there on by its memory, as VideoGLaMM is run."""

    def start(self, prompts: Tensor) -> Step:
        from backbones.parts import sam2

        return sam2.Tracker(self.model, prompts).step


def segmenter(model: Any, size: int, tracks: bool, branch: str) -> Segmenter:
    """The one of a model and a branch.

    Args:
        tracks: whether the model is SAM2.
    """
    kind = SamFrames if not tracks else Sam2Video if branch == "video" else Sam2Frames
    return kind(model, size)


def ahead(work: Callable[[int], Ready], numbers: range) -> Iterator[Ready]:
    """`work` of all numbers in order, the next one done by a thread while this one is used."""
    with ThreadPoolExecutor(1) as reader:
        coming: Future[Ready] | None = None
        for number in numbers:
            now = coming or reader.submit(work, number)
            coming = reader.submit(work, number + 1) if number + 1 in numbers else None
            yield now.result()


def sound(logits: Tensor) -> Tensor:
    """(B,) whether all logits of (B, h, w) are numbers."""
    return torch.isfinite(logits).flatten(1).all(1)
