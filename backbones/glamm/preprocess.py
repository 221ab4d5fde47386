"""GLaMM's two image branches, exact to the last grey level: PIL resizes, and masks find their way back."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

CLIP_MEAN = np.array((0.48145466, 0.4578275, 0.40821073), dtype=np.float32)
CLIP_STD = np.array((0.26862954, 0.26130258, 0.27577711), dtype=np.float32)
SAM_MEAN = torch.tensor((123.675, 116.28, 103.53)).view(3, 1, 1)
SAM_STD = torch.tensor((58.395, 57.12, 57.375)).view(3, 1, 1)


def clip_pixels(image: NDArray[np.uint8], size: int) -> Tensor:
    """CLIP branch: shortest side to `size` (bicubic), centre crop, CLIP statistics; (3, size, size)
    float32."""
    height, width = image.shape[:2]
    short, long = min(height, width), max(height, width)
    target = (size, int(size * long / short))
    new_height, new_width = target if height <= width else target[::-1]
    resized = np.asarray(Image.fromarray(image).resize((new_width, new_height), Image.Resampling.BICUBIC))
    top, left = (new_height - size) // 2, (new_width - size) // 2
    crop = resized[top : top + size, left : left + size].astype(np.float32) / 255
    return torch.from_numpy(np.ascontiguousarray(((crop - CLIP_MEAN) / CLIP_STD).transpose(2, 0, 1)))


def patch_shares(masks: NDArray[np.bool_], size: int, grid: tuple[int, int]) -> Tensor:
    """(N,) share of every CLIP patch that the union of (M, H, W) masks covers, in the CLIP branch's
    geometry."""
    union = np.asarray(masks, dtype=bool).any(0)
    height, width = union.shape
    short, long = min(height, width), max(height, width)
    target = (size, int(size * long / short))
    new_height, new_width = target if height <= width else target[::-1]
    picture = Image.fromarray(union.astype(np.uint8) * 255).resize(
        (new_width, new_height), Image.Resampling.BILINEAR
    )
    top, left = (new_height - size) // 2, (new_width - size) // 2
    crop = np.asarray(picture)[top : top + size, left : left + size].astype(np.float32) / 255
    rows, columns = grid
    return torch.from_numpy(crop.reshape(rows, size // rows, columns, size // columns).mean((1, 3)).ravel())


def sam_pixels(image: NDArray[np.uint8], size: int) -> tuple[Tensor, tuple[int, int]]:
    """Grounding branch: longest side to `size` (bilinear on uint8), SAM statistics, then zero padding right
    and bottom.

    Returns:
        (3, size, size) float32, and height and width before the padding.
    """
    height, width = image.shape[:2]
    scale = size / max(height, width)
    new_height, new_width = int(height * scale + 0.5), int(width * scale + 0.5)
    resized = np.array(Image.fromarray(image).resize((new_width, new_height), Image.Resampling.BILINEAR))
    pixels = (torch.from_numpy(resized).permute(2, 0, 1).float() - SAM_MEAN) / SAM_STD
    return F.pad(pixels, (0, size - new_width, 0, size - new_height)), (new_height, new_width)


def sam_pixels_mmcv(image: NDArray[np.uint8], size: int) -> tuple[Tensor, tuple[int, int]]:
    """The same through mmcv (extra `mmcv`), equal to the last bit in tests; a quarter less CPU time on COCO's
    image sizes."""
    import mmcv

    resized = mmcv.imrescale(image, (size, size), backend="pillow")
    pixels = mmcv.imnormalize(resized, SAM_MEAN.numpy().ravel(), SAM_STD.numpy().ravel(), to_rgb=False)
    padded = mmcv.impad(pixels, shape=(size, size), pad_val=0)
    return torch.from_numpy(padded).permute(2, 0, 1), resized.shape[:2]


def masks_to_image(low: Tensor, size: int, resized: tuple[int, int], original: tuple[int, int]) -> Tensor:
    """(M, h, w) decoder logits -> (M, H, W) float32 at the raw image's size, through the padded square as
    officially."""
    square = F.interpolate(low.float()[None], (size, size), mode="bilinear", align_corners=False)
    crop = square[..., : resized[0], : resized[1]]
    return F.interpolate(crop, original, mode="bilinear", align_corners=False)[0]
