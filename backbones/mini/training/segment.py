"""Stage 1: SAM alone, class-agnostic, from point prompts.

Trained before any text is seen and frozen afterwards: whatever names the referent later has to come through
the prompt, so no text shortcut can hide in the mask decoder.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import SamModel

from backbones.glamm.preprocess import SAM_MEAN, SAM_STD
from backbones.mini.training.config import IMAGE
from backbones.mini.training.data import Scenes
from backbones.parts import sam as sams


def normalised_sam(images: np.ndarray, device: torch.device) -> Tensor:
    """(B, H, W, 3) uint8 -> (B, 3, H, W) float32 as the grounding branch gets them (no resize at 192 px)."""
    pixels = torch.from_numpy(np.ascontiguousarray(images)).to(device).permute(0, 3, 1, 2).float()
    return (pixels - SAM_MEAN.to(device)) / SAM_STD.to(device)


def init_sam(sam: SamModel) -> None:
    """Give every SAM parameter a working start: transformers leaves most of them at or near zero."""
    for module in sam.modules():
        if isinstance(module, nn.Linear | nn.Conv2d | nn.ConvTranspose2d):
            nn.init.xavier_uniform_(module.weight)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
        elif isinstance(module, nn.Embedding):
            nn.init.normal_(module.weight, std=0.5)
    for name, parameter in sam.named_parameters():
        if name.endswith("pos_embed"):
            nn.init.normal_(parameter, std=0.1)
        elif "rel_pos" in name:
            nn.init.normal_(parameter, std=0.02)
        elif name.endswith("positional_embedding"):
            nn.init.normal_(parameter, std=1.0)
            parameter.requires_grad_(False)


def embed_points(sam: SamModel, points: Tensor) -> Tensor:
    """Code of a positive point: points (..., 2) in pixels (x, y) -> (..., prompt width)."""
    return sams.point_prompt(sam, (points + 0.5) / IMAGE)


def mask_loss(logits: Tensor, truth: Tensor, bce_weight: float = 20.0) -> tuple[Tensor, Tensor]:
    """20 * BCE + dice at full resolution, and the mean IoU: logits (M, h, w), truth (M, H, W) bool."""
    full = F.interpolate(logits[:, None], size=truth.shape[-2:], mode="bilinear", align_corners=False)[:, 0]
    target = truth.float()
    bce = F.binary_cross_entropy_with_logits(full, target)
    share = full.sigmoid().flatten(1)
    flat = target.flatten(1)
    dice = 1 - (2 * (share * flat).sum(1) + 1) / (share.sum(1) + flat.sum(1) + 1)
    with torch.no_grad():
        hit = full > 0
        iou = (hit & truth).flatten(1).sum(1) / (hit | truth).flatten(1).sum(1).clamp(min=1)
    return bce_weight * bce + dice.mean(), iou.mean()


def draw_objects(scenes: Scenes, index: int, count: int, rng: np.random.Generator) -> np.ndarray:
    """`count` object numbers of a scene, without repetition while there are enough."""
    total = scenes.count(index)
    return np.concatenate([rng.permutation(total) for _ in range(-(-count // total))])[:count]


def point_in(owner: np.ndarray, k: int, center: np.ndarray, rng: np.random.Generator) -> tuple[float, float]:
    """Half the time a point near the centre (where the language model will point), else any pixel of the
    object."""
    if rng.random() < 0.6:
        x, y = center + rng.normal(0, 3, 2)
        return float(x), float(y)
    ys, xs = np.nonzero(owner == k + 1)
    pick = int(rng.integers(len(xs)))
    return float(xs[pick]), float(ys[pick])


class PointSegmentation:
    """Loss of stage 1 for `run_stage`."""

    def __init__(self, sam: SamModel, scenes: Scenes, batch: int = 8, masks: int = 4) -> None:
        self.sam, self.scenes, self.batch, self.masks = sam, scenes, batch, masks

    def __call__(self, step: int, rng: np.random.Generator) -> tuple[Tensor, dict[str, float]]:
        device = next(self.sam.parameters()).device
        picks = np.sort(rng.choice(len(self.scenes), self.batch, replace=False))
        points, truth = [], []
        for i in picks:
            owner = self.scenes.owner[i]
            for k in draw_objects(self.scenes, i, self.masks, rng):
                points.append(point_in(owner, int(k), self.scenes.centers[i, k], rng))
                truth.append(owner == k + 1)
        embedding = sams.encode(self.sam, normalised_sam(self.scenes.images[picks], device))
        prompts = embed_points(self.sam, torch.tensor(points, device=device))
        logits, _ = sams.decode(self.sam, embedding, prompts.view(self.batch, self.masks, -1))
        loss, iou = mask_loss(logits.flatten(0, 1), torch.from_numpy(np.stack(truth)).to(device))
        return loss, {"iou": float(iou)}
