"""How frames come into SAM2 and masks back."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from backbones.parts.sam2_frames import MEAN, STD, masks_to_frame, sam2_pixels


def stretched(lines: np.ndarray, size: int) -> np.ndarray:
    """(n, ...) -> (`size`, ...): between the two nearest lines' middles, the outer ones beyond them."""
    place = ((np.arange(size) + 0.5) * len(lines) / size - 0.5).clip(0, len(lines) - 1)
    low = np.minimum(place.astype(int), max(len(lines) - 2, 0))
    part = (place - low).reshape(-1, *[1] * (lines.ndim - 1))
    return (1 - part) * lines[low] + part * lines[np.minimum(low + 1, len(lines) - 1)]


@pytest.mark.parametrize("shape", [(48, 64), (64, 48), (64, 64), (31, 77)])
def test_frames_are_resized_then_stretched(shape: tuple[int, int]) -> None:
    """The long side as PIL resizes it; the short side linearly between its lines, without smoothing."""
    image = np.random.default_rng(0).integers(0, 256, (*shape, 3), dtype=np.uint8)
    size = 64
    height, width = (int(side * size / max(shape) + 0.5) for side in shape)
    resized = np.asarray(Image.fromarray(image).resize((width, height), Image.Resampling.BILINEAR))
    normed = (resized.astype(np.float64) - MEAN.numpy().ravel()) / STD.numpy().ravel()
    expected = stretched(normed, size) if height < size else normed
    expected = stretched(expected.swapaxes(0, 1), size).swapaxes(0, 1) if width < size else expected
    got = sam2_pixels(image, size)
    assert got.dtype == torch.float32
    np.testing.assert_allclose(got.permute(1, 2, 0).numpy(), expected, atol=1e-5)


def test_masks_return_to_the_raw_frame() -> None:
    logits = torch.randn(2, 16, 16, generator=torch.Generator().manual_seed(0))
    got = masks_to_frame(logits.half(), (30, 50))
    assert got.shape == (2, 30, 50) and got.dtype == torch.float32
    by_rows = stretched(logits.half().numpy().astype(np.float64).transpose(1, 2, 0), 30)
    expected = stretched(by_rows.swapaxes(0, 1), 50).transpose(2, 1, 0)
    np.testing.assert_allclose(got.numpy(), expected, atol=1e-5)
