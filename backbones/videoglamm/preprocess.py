"""Which frames VideoGLaMM's language model sees of a clip, and how the video encoder gets them."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

# ImageNet's, of values 0 to 1
MEAN = torch.tensor((0.485, 0.456, 0.406)).view(3, 1, 1)
STD = torch.tensor((0.229, 0.224, 0.225)).view(3, 1, 1)


def sampled(length: int, count: int) -> tuple[int, ...]:
    """Numbers of the `count` frames that are seen of so many: evenly spread and cut to whole numbers; of a
    shorter clip all, and the last one again and again.

    Example:
        >>> sampled(10, 4), sampled(2, 4)
        ((0, 3, 6, 9), (0, 1, 1, 1))
    """
    if length <= count:
        return tuple(min(number, length - 1) for number in range(count))
    return tuple(np.linspace(0, length - 1, count).astype(int).tolist())


def video_pixels(image: NDArray[np.uint8], size: int) -> Tensor:
    """The video encoder's branch: (H, W, 3) RGB stretched to the square, ImageNet's statistics;
    (3, size, size) float32."""
    square = torch.from_numpy(stretched(image, size)).permute(2, 0, 1).float()
    return (square / 255 - MEAN) / STD


def stretched(image: NDArray[np.uint8], size: int) -> NDArray[np.uint8]:
    """(size, size, 3): bilinear without smoothing, to the last grey level what OpenCV makes of whole ones.

    OpenCV weighs in 2048ths; it truncates 4 bits of a row's sums and then 16 of their products, and rounds
    what is left to whole levels.
    """
    left, part = _places(image.shape[1], size)
    inside = (left >= 0) & (left < image.shape[1] - 1)  # columns outside count as the edge, rows are doubled
    near, far = _weights(np.where(inside, part, np.float32(0)))
    wide = image.astype(np.int32)
    right = _clipped(left + 1, image.shape[1])
    rows = wide[:, _clipped(left, image.shape[1])] * near[:, None] + wide[:, right] * far[:, None]
    top, part = _places(image.shape[0], size)
    parts = zip((top, top + 1), _weights(part), strict=True)
    sums = [(weight[:, None, None] * (rows[_clipped(at, len(rows))] >> 4)) >> 16 for at, weight in parts]
    return ((sums[0] + sums[1] + 2) >> 2).astype(np.uint8)


def _places(length: int, size: int) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """Of every pixel of `size` the one of `length` at its left or top, and how far behind it it lies."""
    at = ((np.arange(size) + 0.5) * (1 / (size / length)) - 0.5).astype(np.float32)
    low = np.floor(at)
    return low.astype(np.int64), at - low


def _weights(part: NDArray[np.float32]) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
    """Of the pixels on both sides, in 2048ths."""
    near, far = (np.rint(one * np.float32(2048)).astype(np.int32) for one in (np.float32(1) - part, part))
    return near, far


def _clipped(places: NDArray[np.int64], length: int) -> NDArray[np.int64]:
    return places.clip(0, length - 1)
