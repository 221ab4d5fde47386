"""Which frames VideoGLaMM's language model sees of a clip, and how the video encoder gets them."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

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
    """The video encoder's branch: (H, W, 3) RGB stretched to the square, bilinear without smoothing and in
    whole grey levels, ImageNet's statistics; (3, size, size) float32."""
    pixels = torch.from_numpy(np.ascontiguousarray(image)).permute(2, 0, 1)[None].float()
    square = F.interpolate(pixels, (size, size), mode="bilinear", align_corners=False)[0]
    return (square.round() / 255 - MEAN) / STD
