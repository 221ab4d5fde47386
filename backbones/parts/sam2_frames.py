"""Frames on their way into SAM2, and its masks on their way back."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

# of values 0 to 255
MEAN = torch.tensor((123.675, 116.28, 103.53)).view(3, 1, 1)
STD = torch.tensor((58.395, 57.12, 57.375)).view(3, 1, 1)


def sam2_pixels(image: NDArray[np.uint8], size: int) -> Tensor:
    """(H, W, 3) RGB -> (3, size, size) float32, in VideoGLaMM's two steps.

    PIL resizes whole grey levels until the longest side has `size` pixels; what is left to a square is
    stretched, after normalisation and without smoothing. Nothing is cut off or padded.
    """
    height, width = image.shape[:2]
    scale = size / max(height, width)
    target = int(width * scale + 0.5), int(height * scale + 0.5)
    resized = np.array(Image.fromarray(image).resize(target, Image.Resampling.BILINEAR))
    pixels = (torch.from_numpy(resized).permute(2, 0, 1).float() - MEAN) / STD
    return F.interpolate(pixels[None], (size, size), mode="bilinear", align_corners=False)[0]


def masks_to_frame(logits: Tensor, shape: tuple[int, int]) -> Tensor:
    """(B, h, w) logits of a square frame -> (B, H, W) float32 at the raw frame's height and width; a mask is
    where they exceed 0."""
    return F.interpolate(logits.float()[None], shape, mode="bilinear", align_corners=False)[0]
