"""Stage `ways`: the mask decoder learns to find an object by the way that it takes through the clip.

All frames of a clip are decoded with one and the same prompt, so the prompt cannot say where the object is in
a frame; it says where its first and its last centre are, and the decoder takes what lies on that line. A
small teacher turns ways into prompts. The language model later imitates them, and the teacher is dropped.
"""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import SamModel

from backbones.glamm.preprocess import masks_to_image, sam_pixels
from backbones.mini.training.config import IMAGE
from backbones.mini.training.loop import cache
from backbones.parts import sam as sams
from backbones.videoglamm.mini_training.data import SAMPLED, Clips, scaled
from harness.data.refclips.scenes import HEIGHT, WIDTH

RESIZED = (round(HEIGHT * IMAGE / WIDTH), IMAGE)  # of a frame in the mask decoder's padded square
WAVES = 3
ASKED = 3  # prompts of a frame
NOISE = 0.03  # of a way's numbers, in half frames


class WayCode(nn.Module):
    """The teacher: ways (..., 4) in half frames -> prompts (..., P)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.first = nn.Linear(4 + 6 * 2 * WAVES, 128)
        self.second = nn.Linear(128, width)

    def forward(self, ways: Tensor) -> Tensor:
        """Sines and cosines of first, middle and last centre, then a perceptron."""
        points = torch.cat([ways, (ways[..., :2] + ways[..., 2:]) / 2], dim=-1)
        angles = torch.cat([points * (math.pi / 2 * 2**k) for k in range(WAVES)], dim=-1)
        return self.second(F.gelu(self.first(torch.cat([ways, angles.sin(), angles.cos()], dim=-1))))  # type: ignore[no-any-return]


def grounding_pixels(frames: NDArray[np.uint8]) -> Tensor:
    """(M, H, W, 3) uint8 -> (M, 3, 192, 192) as the mask decoder's branch gets them."""
    return torch.stack([sam_pixels(frame, IMAGE)[0] for frame in frames])


@torch.no_grad()
def cache_embeddings(sam: SamModel, clips: Clips, path: Path, batch: int = 8) -> NDArray[np.float16]:
    """Frozen image embeddings of all frames, (clips, 4, P, g, g) float16."""
    width = sam.config.prompt_encoder_config.hidden_size
    grid = sam.config.vision_config.image_size // sam.config.vision_config.patch_size

    def compute(part: slice) -> Tensor:
        pixels = grounding_pixels(clips.frames[part].reshape(-1, HEIGHT, WIDTH, 3))
        return sams.encode(sam, pixels).unflatten(0, (-1, SAMPLED))

    return cache(path, len(clips), (SAMPLED, width, grid, grid), batch, compute)


class WaySegmentation(nn.Module):
    """Loss of the stage for `run_stage`: 20 BCE + dice on random frames, also those without the object."""

    def __init__(self, sam: SamModel, clips: Clips, batch: int = 6) -> None:
        super().__init__()
        self.code = WayCode(sam.config.prompt_encoder_config.hidden_size)
        self.mask_decoder = sam.mask_decoder
        self._sam = [sam]  # kept out of the module tree: its encoders are frozen
        self.clips, self.batch = clips, batch
        self.embeddings: NDArray[np.float16] | None = None

    def loss(self, step: int, rng: np.random.Generator) -> tuple[Tensor, dict[str, float]]:
        """Two frames of every clip of a batch, three prompts each."""
        assert self.embeddings is not None
        clips, sam = self.clips, self._sam[0]
        picks = np.sort(rng.choice(len(clips), self.batch, replace=False))
        seen = np.stack([rng.permutation(SAMPLED)[:2] for _ in picks]).ravel()
        rows = picks.repeat(2)
        asked = np.stack([np.resize(rng.permutation(clips.count(int(i))), ASKED) for i in rows])
        ways = scaled(np.stack([clips.ways[i][k] for i, k in zip(rows, asked, strict=True)]))
        noisy = ways + NOISE * rng.standard_normal(ways.shape)
        prompts = self.code(torch.from_numpy(noisy).float())
        embeddings = torch.from_numpy(self.embeddings[rows, seen].astype(np.float32))
        logits = sams.decode(sam, embeddings, prompts)[0].flatten(0, 1)
        owner = clips.owner[rows, seen]
        truth = torch.from_numpy(owner[:, None] == asked[..., None, None] + 1).flatten(0, 1)
        return half_size_loss(logits, truth)


def half_size_loss(logits: Tensor, truth: Tensor) -> tuple[Tensor, dict[str, float]]:
    """20 BCE + dice of low-resolution logits (M, h, w) against masks (M, H, W), at half the frame's size."""
    height, width = HEIGHT // 2, WIDTH // 2
    full = masks_to_image(logits, width, (RESIZED[0] * width // IMAGE, width), (height, width))
    target = F.avg_pool2d(truth[:, None].float(), 2)[:, 0]
    bce = F.binary_cross_entropy_with_logits(full, target)
    share, flat = full.sigmoid().flatten(1), target.flatten(1)
    dice = 1 - (2 * (share * flat).sum(1) + 1) / (share.sum(1) + flat.sum(1) + 1)
    with torch.no_grad():
        hit, real = (full > 0).flatten(1), (target > 0.5).flatten(1)
        there = real.any(1)
        overlap = (hit & real).sum(1) / (hit | real).sum(1).clamp(min=1)
        silent = (~hit.any(1)).float()
    figures = {
        "iou": float(overlap[there].mean()),
        "silent": float(silent[~there].mean()) if (~there).any() else 1.0,
    }
    return 20 * bce + dice.mean(), figures
