"""Stage 2: CLIP. A dense per-patch helper loss on crops, then contrastive learning on whole scenes with the
helper on.

Real CLIP never had a dense loss. A CLIP of this size trained only contrastively does not learn to tell shapes
apart, so the helper reads shape, color, texture, size and the way to the object's centre from the features
that the language model gets.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import CLIPModel

from backbones.glamm.conversation import QUESTION_TEMPLATES
from backbones.glamm.preprocess import CLIP_MEAN, CLIP_STD
from backbones.mini.training.config import CLIP_PATCH, IMAGE
from backbones.mini.training.data import VALUES, Scenes
from backbones.mini.training.loop import cache
from backbones.parts import clip as clips

GRID = IMAGE // CLIP_PATCH
OFFSET_UNIT = 32.0  # pixels
# the silhouette helper draws the patch's object in 12 x 12 cells of 5 px around its centre
CELLS, CELL = (12, 5)


def normalised_clip(images: np.ndarray, device: torch.device) -> Tensor:
    """(B, H, W, 3) uint8 -> (B, 3, H, W) float32 as the CLIP branch gets them (no resize at 192 px)."""
    pixels = torch.from_numpy(np.ascontiguousarray(images)).to(device).permute(0, 3, 1, 2).float() / 255
    mean, std = (torch.tensor(v, device=device).view(1, 3, 1, 1) for v in (CLIP_MEAN, CLIP_STD))
    return (pixels - mean) / std


NEIGHBOURS = ((-1, -1), (-1, 0), (-1, 1), (0, -1), (0, 1), (1, -1), (1, 0), (1, 1))  # (rows, columns)
# frequencies that place a neighbour: near ones tell it apart, far ones rule out aliases
LOOK_AT = (0, 2, 5, 9)


def init_clip(clip: CLIPModel) -> None:
    """Start as a convolution would: in the first two layers head h looks at the h-th neighbour, one and two
    patches away.

    Positions are 2-D sines and cosines, on which a step to a neighbour is a rotation, so a query that asks
    for "one to the left" is a linear map of the own position. Later layers start with equal queries and keys.
    Everything is trained on from there; from random weights a model of this size needs far longer to read
    shapes.
    """
    width, heads = clip.config.vision_config.hidden_size, clip.config.vision_config.num_attention_heads
    quarter, head = width // 4, width // heads
    frequency = 1.0 / (100 ** (torch.arange(quarter) / quarter))
    angles = torch.arange(GRID)[:, None] * frequency
    axis = torch.cat([angles.sin(), angles.cos()], dim=1)  # (GRID, width / 2)
    table = torch.cat([axis[:, None].expand(GRID, GRID, -1), axis[None].expand(GRID, GRID, -1)], dim=-1)
    with torch.no_grad():
        clips.position_table(clip)[1:] = 0.5 * table.reshape(GRID * GRID, width)
        for number, (asking, asked, told) in enumerate(clips.looks(clip)):
            nn.init.normal_(told, std=width**-0.5)
            if number >= 2:
                nn.init.normal_(asking, std=width**-0.5)
                asked.copy_(asking)
                continue
            query, key = torch.zeros(width, width), torch.zeros(width, width)
            for h, step in enumerate(NEIGHBOURS):
                for a in (0, 1):
                    for n, f in enumerate(LOOK_AT):
                        sine, cosine = 2 * quarter * a + f, 2 * quarter * a + quarter + f
                        row = h * head + a * 2 * len(LOOK_AT) + 2 * n
                        turn = frequency[f] * step[a] * (number + 1)
                        key[row, sine] = key[row + 1, cosine] = 1.0
                        query[row, sine], query[row, cosine] = turn.cos(), turn.sin()
                        query[row + 1, cosine], query[row + 1, sine] = turn.cos(), -turn.sin()
            asked.copy_(key + 0.02 * torch.randn_like(key))
            asking.copy_(2.5 * head**0.5 * query + 0.02 * torch.randn_like(query))


class PatchReader(nn.Module):
    """Linear helper heads on penultimate features; dropped after training."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.sizes = [2, *(len(values) for values in VALUES), 2, CELLS * CELLS]
        self.heads = nn.Linear(width, sum(self.sizes))

    def forward(self, states: Tensor) -> tuple[Tensor, ...]:
        """(B, T, width) -> object, shape, color, texture, size logits, centre offset, silhouette, each (B, T,
        n)."""
        return self.heads(states).split(self.sizes, dim=-1)


def silhouette(owner: np.ndarray, k: int, center: np.ndarray) -> np.ndarray:
    """(144,) share of every cell around the object's centre that the object covers."""
    half = CELLS * CELL // 2
    x, y = (int(v) for v in center)
    padded = np.zeros((2 * half, 2 * half), dtype=np.float32)
    top, left = max(0, y - half), max(0, x - half)
    piece = owner[top : y + half, left : x + half] == k + 1
    padded[
        top - y + half : top - y + half + piece.shape[0], left - x + half : left - x + half + piece.shape[1]
    ] = piece
    return padded.reshape(CELLS, CELL, CELLS, CELL).mean((1, 3)).ravel()


def patch_targets(
    full: np.ndarray, cut: tuple[slice, slice], looks: np.ndarray, centers: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Labels of every patch of a crop.

    Args:
        full: (192, 192) object number + 1 per pixel of the scene.
        cut: rows and columns of the crop.
        looks, centers: of the scene.

    Returns:
        (patches, 5) class labels with -1 for "do not ask", (patches, 2) offsets to the centre with NaN
        likewise, and (patches, 144) silhouettes of the patches whose offset is told.
    """
    owner, whole = full[cut], np.bincount(full.ravel(), minlength=10)
    corner = np.array([cut[0].start, cut[1].start])
    rows, cols = owner.shape[0] // CLIP_PATCH, owner.shape[1] // CLIP_PATCH
    blocks = owner.reshape(rows, CLIP_PATCH, cols, CLIP_PATCH).transpose(0, 2, 1, 3).reshape(rows * cols, -1)
    counts = (blocks[:, :, None] == np.arange(1, 10)).sum(1)  # (patches, 9)
    k, area = counts.argmax(1), counts.max(1)
    inside = area >= 12
    labels = np.full((rows * cols, 5), -1, dtype=np.int64)
    labels[counts.sum(1) == 0, 0] = 0
    labels[inside, 0] = 1
    labels[inside, 1:] = looks[k[inside]]
    seen = np.bincount(owner.ravel(), minlength=10)[1:]
    partial = seen < 0.97 * whole[1:]
    labels[inside & partial[k], 1] = -1
    labels[inside & partial[k], 4] = -1
    ys, xs = np.divmod(np.arange(rows * cols), cols)
    here = np.stack([xs, ys], 1) * CLIP_PATCH + CLIP_PATCH / 2 + corner[::-1]
    told = inside & ~partial[k]
    offsets = np.where(told[:, None], (centers[k] - here) / OFFSET_UNIT, np.nan).astype(np.float32)
    drawn = np.zeros((rows * cols, CELLS * CELLS), dtype=np.float32)
    for one in np.unique(k[told]):
        drawn[told & (k == one)] = silhouette(full, int(one), centers[one])
    return labels, offsets, drawn


def helper_loss(
    outputs: tuple[Tensor, ...], labels: Tensor, offsets: Tensor, drawn: Tensor
) -> tuple[Tensor, dict[str, float]]:
    """Sum of five cross-entropies (shape counts double), the centre's L1 and the silhouette's BCE; the
    accuracies."""
    names = ("object", "shape", "color", "texture", "size")
    losses, figures = [], {}
    for a, name in enumerate(names):
        logits, target = outputs[a].flatten(0, 1), labels[..., a].flatten()
        asked = target >= 0
        losses.append((2 if name == "shape" else 1) * F.cross_entropy(logits[asked], target[asked]))
        figures[name] = float((logits[asked].argmax(-1) == target[asked]).float().mean())
    told = ~offsets[..., 0].isnan()
    off = (outputs[5][told] - offsets[told]).abs().mean()
    figures["offset_px"] = float(off) * OFFSET_UNIT
    outline = F.binary_cross_entropy_with_logits(outputs[6][told], drawn[told])
    figures["silhouette"] = float(outline)
    return torch.stack(losses).sum() + 2 * off + 5 * outline, figures


class PatchReading(nn.Module):
    """Loss of the crop stage for `run_stage`: windows around one object, at a tenth of the cost of a whole
    scene."""

    def __init__(self, clip: CLIPModel, scenes: Scenes, batch: int = 48, side: int = 9) -> None:
        super().__init__()
        self.clip, self.reader = clip, PatchReader(clip.config.vision_config.hidden_size)
        self.scenes, self.batch, self.side = scenes, batch, side

    def loss(self, step: int, rng: np.random.Generator) -> tuple[Tensor, dict[str, float]]:
        """One batch of random windows."""
        device = next(self.parameters()).device
        scenes, side = self.scenes, self.side
        images, targets, windows = [], [], []
        for i in np.sort(rng.choice(len(scenes), self.batch, replace=False)):
            x, y = (
                scenes.centers[i, rng.integers(scenes.count(i))] / CLIP_PATCH
                - side / 2
                + rng.uniform(-1, 1, 2)
            )
            left, top = (int(np.clip(round(float(v)), 0, GRID - side)) for v in (x, y))
            y, x, size = top * CLIP_PATCH, left * CLIP_PATCH, side * CLIP_PATCH
            cut = (slice(y, y + size), slice(x, x + size))
            targets.append(patch_targets(scenes.owner[i], cut, scenes.looks[i], scenes.centers[i]))
            images.append(scenes.images[i][cut])
            ys, xs = np.mgrid[top : top + side, left : left + side]
            windows.append((ys * GRID + xs).ravel())
        pixels = normalised_clip(np.stack(images), device)
        states = clips.hidden_states(self.clip, pixels, torch.from_numpy(np.stack(windows)).to(device))[-1]
        labels, offsets, drawn = (
            torch.from_numpy(np.stack(part)).to(device) for part in zip(*targets, strict=True)
        )
        return helper_loss(self.reader(states[:, 1:]), labels, offsets, drawn)


class SceneMatching(nn.Module):
    """Loss of the contrastive stage for `run_stage`: whole scenes against sentences, the dense helper still
    on.

    Half of the sentences are evaluation's questions about one object, half name up to three objects of the
    scene.
    """

    def __init__(
        self, clip: CLIPModel, reader: PatchReader, scenes: Scenes, tokenizer: Any, batch: int = 16
    ) -> None:
        super().__init__()
        self.clip, self.reader = clip, reader
        self.scenes, self.tokenizer, self.batch = scenes, tokenizer, batch

    def _sentence(self, index: int, rng: np.random.Generator) -> str:
        found = self.scenes.expressions(index, rng, 3)
        looks = [text.removeprefix("the ") for _, family, text in found if family == "refshapes+"]
        if rng.random() < 0.5 and looks:
            chosen = [looks[int(k)] for k in rng.permutation(len(looks))[:3]]
            return "a picture of " + " and ".join(f"the {text}" for text in chosen)
        text = found[int(rng.integers(len(found)))][2] if found else "shape"
        return QUESTION_TEMPLATES[int(rng.integers(len(QUESTION_TEMPLATES)))].format(text)

    def loss(self, step: int, rng: np.random.Generator) -> tuple[Tensor, dict[str, float]]:
        """One batch of whole scenes."""
        device = next(self.parameters()).device
        scenes = self.scenes
        picks = np.sort(rng.choice(len(scenes), self.batch, replace=False))
        whole = (slice(0, IMAGE), slice(0, IMAGE))
        targets = [patch_targets(scenes.owner[i], whole, scenes.looks[i], scenes.centers[i]) for i in picks]
        states = clips.hidden_states(self.clip, normalised_clip(scenes.images[picks], device))[-1]
        labels, offsets, drawn = (
            torch.from_numpy(np.stack(part)).to(device) for part in zip(*targets, strict=True)
        )
        helper, figures = helper_loss(self.reader(states[:, 1:]), labels, offsets, drawn)
        words = self.tokenizer(
            [self._sentence(int(i), rng) for i in picks], padding=True, truncation=True, return_tensors="pt"
        ).to(device)
        text = clips.embed_text(self.clip, words)
        image = clips.pooled(self.clip, states)
        scores = self.clip.logit_scale.exp() * F.normalize(image, dim=-1) @ F.normalize(text, dim=-1).T
        same = torch.arange(len(picks), device=device)
        match = (F.cross_entropy(scores, same) + F.cross_entropy(scores.T, same)) / 2
        figures |= {"match": float(match), "found": float((scores.argmax(1) == same).float().mean())}
        return 0.5 * helper + match, figures


@torch.no_grad()
def cache_features(clip: CLIPModel, scenes: Scenes, path: Path, batch: int = 32) -> np.ndarray:
    """Penultimate patch features of all scenes, (scenes, 576, width) float16, computed once and
    memory-mapped."""
    width = clip.config.vision_config.hidden_size
    return cache(path, len(scenes), (GRID * GRID, width), batch, lambda part: _features(clip, scenes, part))


def _features(clip: CLIPModel, scenes: Scenes, part: slice) -> Tensor:
    device = next(clip.parameters()).device
    return clips.hidden_states(clip, normalised_clip(scenes.images[part], device))[-1][:, 1:]
