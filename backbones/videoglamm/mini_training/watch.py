"""Stage `watch`: the video encoder, by dense helper heads on the features that the language model gets.

Every patch that lies on an object is asked for the object's looks, for its motion, and for its first and last
centre, in every frame: all four frames have to be compared for that. Head f of all blocks but the first is
asked to look at the same object in frame f. Real InternVideo2 never had such losses.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from backbones.mini.training.loop import cache
from backbones.parts.internvideo2 import VideoEncoder, VideoNumbers
from backbones.videoglamm import preprocess
from backbones.videoglamm.mini_training.data import (
    ATTRIBUTES,
    MOST_OBJECTS,
    SAMPLED,
    UNIT,
    VALUES,
    Clips,
    scaled,
)

NUMBERS = VideoNumbers(width=96, depth=4, heads=4, hidden=256, patch=6, image=96, frames=SAMPLED)
WEIGHT = {"shape": 1.0, "color": 1.0, "texture": 0.5, "size": 1.0, "motion": 2.0, "edge": 1.0}
WAVES = 8  # of a position along one axis
ASKED = 48  # patches of a clip whose attention is asked for
COVERED = 0.3  # of a patch, from which on it counts as the object's
NEAR = (4, 6)  # of these, the coarse ones that attention begins with


def video_pixels(frames: NDArray[np.uint8], size: int = NUMBERS.image) -> Tensor:
    """(..., H, W, 3) uint8 -> (..., 3, size, size) as the video encoder's branch gets them."""
    flat = frames.reshape(-1, *frames.shape[-3:])
    return torch.stack([preprocess.video_pixels(frame.copy(), size) for frame in flat]).unflatten(
        0, frames.shape[:-3]
    )


@torch.no_grad()
def initialise(encoder: VideoEncoder) -> None:
    """Begin where comparing frames is easy: head f of every block looks in frame f for what is like the own
    patch, rather nearby.

    Positions are one channel per frame, a constant one, and sines and cosines of column and row; the query
    reads the constant, the key its frame, and both read content and coarse place. Everything is trained on
    from there.
    """
    numbers = encoder.numbers
    width, head, rows = numbers.width, numbers.width // numbers.heads, numbers.grid[0]
    first = numbers.frames + 1  # channel of the first wave
    waves = 1.2 * (0.08 / 1.2) ** (torch.arange(WAVES) / (WAVES - 1))
    angles = torch.arange(rows)[:, None] * waves
    axis = torch.cat([angles.sin(), angles.cos()], dim=1)  # (rows, 2 WAVES)
    place = torch.zeros(numbers.frames, rows, rows, width)
    for frame in range(numbers.frames):
        place[frame, ..., frame] = 1.0
    place[..., numbers.frames] = 1.0
    place[..., first : first + 2 * WAVES] = 0.7 * axis[None, None]
    place[..., first + 2 * WAVES : first + 4 * WAVES] = 0.7 * axis[None, :, None]
    encoder.pos_embed.copy_(torch.cat([torch.zeros(1, width), place.flatten(0, 2)])[None])
    nn.init.normal_(encoder.patch_embed.proj.weight, std=0.06)
    encoder.patch_embed.proj.bias.zero_()
    content = slice(first + 4 * WAVES, width)  # channels that hold no place
    for block in encoder.blocks:
        query, key = 0.02 * torch.randn(2, width, width)
        for h in range(numbers.heads):
            rows_of = slice(h * head, (h + 1) * head)
            alike = torch.randn(head, width - content.start) * (width - content.start) ** -0.5
            for asking in (query, key):
                asking[rows_of, content] += 1.5 * alike
            query[h * head, numbers.frames] = key[h * head, h % numbers.frames] = 2.5
            for n, wave in enumerate(NEAR):
                for axis_of in (0, 1):
                    for part in (0, 1):
                        row = h * head + 1 + 4 * n + 2 * axis_of + part
                        channel = first + (2 * axis_of + part) * WAVES + wave
                        query[row, channel] = key[row, channel] = 0.8
        attention = block.attn
        told = width**-0.5 * torch.randn(width, width)
        attention.qkv.weight.copy_(torch.cat([query, key, told]))
        attention.q_norm.weight.fill_(2.5)
        attention.k_norm.weight.fill_(1.5)
        for linear in (attention.proj, block.mlp.fc1, block.mlp.fc2):
            nn.init.normal_(linear.weight, std=linear.in_features**-0.5)
            linear.bias.zero_()
        for factor in (block.ls1, block.ls2):
            factor.gamma.fill_(0.4)


def matrices(encoder: VideoEncoder) -> list[nn.Parameter]:
    """All matrices of the blocks."""
    return [p for block in encoder.blocks for p in block.parameters() if p.ndim == 2]


def owners(owner: NDArray[np.uint8], grid: tuple[int, int]) -> NDArray[np.int64]:
    """(..., H, W) object numbers -> (..., rows * columns, 4) pixels of every object in every patch."""
    *lead, height, width = owner.shape
    rows, columns = grid
    blocks = owner.reshape(-1, rows, height // rows, columns, width // columns).transpose(0, 1, 3, 2, 4)
    blocks = blocks.reshape(*lead, rows * columns, -1)
    return np.stack([(blocks == k).sum(-1) for k in range(1, MOST_OBJECTS + 1)], axis=-1)


class Watching(nn.Module):
    """Loss of the stage for `run_stage`; the heads are dropped afterwards."""

    def __init__(self, encoder: VideoEncoder, clips: Clips, batch: int = 4) -> None:
        super().__init__()
        self.encoder, self.clips, self.batch = encoder, clips, batch
        self.sizes = [2, *(len(values) for values in VALUES), 4]
        self.heads = nn.Linear(encoder.numbers.width, sum(self.sizes))

    def loss(self, step: int, rng: np.random.Generator) -> tuple[Tensor, dict[str, float]]:
        """One batch of whole clips."""
        clips = self.clips
        picks = np.sort(rng.choice(len(clips), self.batch, replace=False))
        counts = owners(clips.owner[picks], self.encoder.numbers.grid)  # (B, T, P, 4)
        counts = counts.reshape(len(picks), -1, MOST_OBJECTS)
        pixels = clips.owner[0, 0].size / self.encoder.numbers.tokens
        on = counts > COVERED * pixels
        asked = np.stack([_some(np.flatnonzero(one.any(-1)), rng) for one in on])
        states, rows = self._encoded(video_pixels(clips.frames[picks]), torch.from_numpy(asked))
        loss, figures = self.judged(states, counts, pixels, picks)
        same = np.stack(
            [(one[where][:, None] & one[None]).any(-1) for one, where in zip(on, asked, strict=True)]
        )
        look = _look(rows, torch.from_numpy(same), self.encoder.numbers.frames)
        return loss + look, figures | {"look": float(look)}

    def _encoded(self, frames: Tensor, asked: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Features (B, T * P, C), and the attention (B, H, A, T * P) of some patches (B, A) in all blocks but
        the first."""
        encoder, rows = self.encoder, []
        patches = encoder.patch_embed(frames)
        states = (
            torch.cat([encoder.cls_token.expand(len(patches), -1, -1), patches], dim=1) + encoder.pos_embed
        )
        for number, block in enumerate(encoder.blocks):
            if number:
                attention = block.attn
                query, key, _ = attention.qkv(block.norm1(states)).chunk(3, dim=-1)
                query = query.gather(1, asked[..., None].expand(-1, -1, query.shape[-1]) + 1)
                query, key = (
                    part.unflatten(-1, (attention.heads, -1)).transpose(1, 2)
                    for part in (attention.q_norm(query), attention.k_norm(key))
                )
                logits = query @ key.transpose(-1, -2) * query.shape[-1] ** -0.5
                rows.append(logits.softmax(-1)[..., 1:])
            states = block(states)
        return states[:, 1:], rows

    def judged(
        self, states: Tensor, counts: NDArray[np.int64], pixels: float, picks: NDArray[np.int64]
    ) -> tuple[Tensor, dict[str, float]]:
        """Loss and figures of features (B, T * P, C).

        Args:
            counts: (B, T * P, 4) pixels of every object in every patch of so many `pixels`.
        """
        clips = self.clips
        mine, area = counts.argmax(-1), counts.max(-1)
        object_ = torch.from_numpy(area >= COVERED * pixels)
        nothing = torch.from_numpy(counts.sum(-1) == 0)
        told = self.heads(states).split(self.sizes, dim=-1)
        sure = object_ | nothing
        losses = [F.cross_entropy(told[0][sure], object_[sure].long())]
        inside = object_.numpy()
        whose = np.arange(len(picks))[:, None].repeat(counts.shape[1], 1)[inside]
        traits = torch.from_numpy(clips.traits[picks][whose, mine[inside]]).long()
        figures = {"object": float((told[0][sure].argmax(-1) == object_[sure].long()).float().mean())}
        for a, name in enumerate(ATTRIBUTES):
            logits = told[1 + a][object_]
            losses.append(WEIGHT[name] * F.cross_entropy(logits, traits[:, a]))
            figures[name] = float((logits.argmax(-1) == traits[:, a]).float().mean())
        ways = torch.from_numpy(scaled(clips.ways[picks][whose, mine[inside]]))
        off = (told[-1][object_] - ways).abs().mean()
        figures["px"] = float(off) * UNIT
        return torch.stack(losses).sum() + 4 * off, figures


def _some(places: NDArray[np.int64], rng: np.random.Generator) -> NDArray[np.int64]:
    """ASKED of the places, again and again where there are fewer."""
    return np.resize(rng.permutation(places), ASKED) if len(places) else np.zeros(ASKED, dtype=np.int64)


def _look(rows: list[Tensor], same: Tensor, frames: int) -> Tensor:
    """Mean surprise of head f at where the patch's object is in frame f.

    Args:
        rows: attention (B, H, A, T * P).
        same: (B, A, T * P) which patches lie on the same object.
    """
    found = []
    split = same.float().unflatten(-1, (frames, -1))
    for row in rows:
        for head in range(frames):
            here = split[:, :, head]
            mass = (row[:, head].unflatten(-1, (frames, -1))[:, :, head] * here).sum(-1)
            found.append(-mass[here.sum(-1) > 0].clamp(min=1e-6).log().mean())
    return torch.stack(found).mean()


@torch.no_grad()
def cache_states(encoder: VideoEncoder, clips: Clips, path: Path, batch: int = 4) -> NDArray[np.float16]:
    """Frozen features of all clips, (clips, 4 * P, C) float16."""
    tokens = SAMPLED * encoder.numbers.tokens
    return cache(
        path,
        len(clips),
        (tokens, encoder.numbers.width),
        batch,
        lambda part: encoder.encode(video_pixels(clips.frames[part])),
    )
