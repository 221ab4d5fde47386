"""InternVideo2's video encoder, plain: what a model that reads its penultimate block needs of it.

Source: InternVideo2 (Wang et al., ECCV 2024). Chunks of a few frames are cut into patches of one frame each;
all patches of a chunk and one class token attend to each other. Names of tensors are the official ones, so
that an official state dict loads once `PREFIX` and what `own_name` says is unneeded are gone.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from backbones.parts.attention import attend
from pruners.errors import UserError

PREFIX = "vision_encoder."
EPS = 1e-6
# of CLIP's alignment, of single images, and of the heads that compare videos with texts
UNNEEDED = re.compile(r"(clip_|final_clip_decoder\.|img_pos_embed$)")
_BLOCK = re.compile(r"blocks\.(\d+)\.")


@dataclass(frozen=True)
class VideoNumbers:
    """Sizes of an encoder; the defaults are those of InternVideo2-Stage2 1B, 224 px, 4 frames.

    Attributes:
        width: of a token.
        depth: blocks of the official model; the last one is never run and not built.
        heads: of every attention; they divide the width.
        hidden: width inside of a block's two-layer perceptron.
        patch: side of a patch in pixels.
        image: side of a frame in pixels, a multiple of `patch`.
        frames: of a chunk.
    """

    width: int = 1408
    depth: int = 40
    heads: int = 16
    hidden: int = 6144
    patch: int = 14
    image: int = 224
    frames: int = 4

    def __post_init__(self) -> None:
        if min(vars(self).values()) < 1 or self.depth < 2:
            raise UserError(
                f"{self} has a size below 1, or fewer than 2 blocks; give the checkpoint's numbers."
            )
        if self.width % self.heads or self.image % self.patch:
            raise UserError(
                f"{self.heads} heads must divide the width {self.width}, and patches of {self.patch} pixels "
                f"the frame's side {self.image}; give the checkpoint's numbers."
            )

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of a frame's patches."""
        side = self.image // self.patch
        return side, side

    @property
    def tokens(self) -> int:
        """Patches of a frame."""
        return self.grid[0] * self.grid[1]


class RmsNorm(nn.Module):
    """Division by the root mean square over the last axis, computed in float32, and a weight per channel."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, states: Tensor) -> Tensor:
        """(..., C) -> (..., C)."""
        full = states.float()
        normed = full * (full.square().mean(-1, keepdim=True) + EPS).rsqrt()
        return self.weight * normed.to(states.dtype)


class LayerScale(nn.Module):
    """A factor per channel, multiplied in float32."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.ones(width))

    def forward(self, states: Tensor) -> Tensor:
        """(..., C) -> (..., C)."""
        return (states.float() * self.gamma.float()).to(states.dtype)


class Attention(nn.Module):
    """Self-attention whose queries and keys are normed over the full width, before heads are split."""

    def __init__(self, width: int, heads: int, attn: str) -> None:
        super().__init__()
        self.heads, self.attn = heads, attn
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        self.proj = nn.Linear(width, width)
        self.q_norm, self.k_norm = RmsNorm(width), RmsNorm(width)

    def forward(self, states: Tensor) -> Tensor:
        """(B, L, C) -> (B, L, C)."""
        query, key, value = self.qkv(states).chunk(3, dim=-1)
        query, key, value = (
            given.unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for given in (self.q_norm(query), self.k_norm(key), value)
        )
        mixed = attend(self.attn, query, key, value, query.shape[-1] ** -0.5, causal=False)
        return self.proj(mixed)  # type: ignore[no-any-return]


class Perceptron(nn.Module):
    """Two linear layers with a GELU between."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.fc1, self.act, self.fc2 = nn.Linear(width, hidden), nn.GELU(), nn.Linear(hidden, width)

    def forward(self, states: Tensor) -> Tensor:
        """(..., C) -> (..., C)."""
        return self.fc2(self.act(self.fc1(states)))  # type: ignore[no-any-return]


class Block(nn.Module):
    """Attention and perceptron, each normed before and scaled after."""

    def __init__(self, numbers: VideoNumbers, attn: str) -> None:
        super().__init__()
        width = numbers.width
        self.norm1, self.norm2 = RmsNorm(width), RmsNorm(width)
        self.attn = Attention(width, numbers.heads, attn)
        self.mlp = Perceptron(width, numbers.hidden)
        self.ls1, self.ls2 = LayerScale(width), LayerScale(width)

    def forward(self, states: Tensor) -> Tensor:
        """(B, L, C) -> (B, L, C)."""
        states = states + self.ls1(self.attn(self.norm1(states)))
        return states + self.ls2(self.mlp(self.norm2(states)))  # type: ignore[no-any-return]


class PatchEmbed(nn.Module):
    """Patches of single frames as tokens."""

    def __init__(self, numbers: VideoNumbers) -> None:
        super().__init__()
        size = (1, numbers.patch, numbers.patch)
        self.proj = nn.Conv3d(3, numbers.width, kernel_size=size, stride=size)

    def forward(self, frames: Tensor) -> Tensor:
        """(B, T, 3, h, w) -> (B, T * P, C), frame by frame, each in raster order."""
        return self.proj(frames.transpose(1, 2)).flatten(2).transpose(1, 2)  # type: ignore[no-any-return]


class VideoEncoder(nn.Module):
    """The encoder up to its penultimate block, new weights drawn by torch's own rules.

    Args:
        attn: attention implementation ("eager", "sdpa", "flash_attention_2").
    """

    def __init__(self, numbers: VideoNumbers, attn: str = "sdpa") -> None:
        super().__init__()
        self.numbers = numbers
        self.patch_embed = PatchEmbed(numbers)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, numbers.width))
        self.pos_embed = nn.Parameter(torch.zeros(1, numbers.frames * numbers.tokens + 1, numbers.width))
        self.blocks = nn.ModuleList(Block(numbers, attn) for _ in range(numbers.depth - 1))

    def forward(self, frames: Tensor) -> Tensor:
        """One chunk (B, T, 3, h, w) of `numbers.frames` frames -> (B, T * P, C): see `encode`."""
        patches = self.patch_embed(frames)
        states = torch.cat([self.cls_token.expand(len(patches), -1, -1), patches], dim=1) + self.pos_embed
        for block in self.blocks:
            states = block(states)
        return states[:, 1:]

    def encode(self, frames: Tensor) -> Tensor:
        """A clip in chunks of consecutive frames, which do not see each other.

        Args:
            frames: (B, T, 3, h, w) normalised; T is a multiple of `numbers.frames`.

        Returns:
            (B, T * P, C): the penultimate block's output without its class token and without a norm, all
            patches of the first frame first.

        Raises:
            UserError: the frames' count or size is another.
        """
        count, size = frames.shape[1], tuple(frames.shape[-2:])
        if count == 0 or count % self.numbers.frames:
            raise UserError(
                f"The video encoder reads chunks of {self.numbers.frames} frames and got {count} frames; "
                f"give a multiple."
            )
        if size != (self.numbers.image,) * 2:
            raise UserError(
                f"The video encoder reads frames of {self.numbers.image} x {self.numbers.image} pixels and "
                f"got {size[0]} x {size[1]}; resize them."
            )
        chunks = frames.unflatten(1, (-1, self.numbers.frames)).flatten(0, 1)
        return self(chunks).unflatten(0, (len(frames), -1)).flatten(1, 2)  # type: ignore[no-any-return]


def own_name(name: str, depth: int) -> str | None:
    """An encoder's official tensor name, `PREFIX` removed, as this module has it; None where it is unneeded.

    Args:
        depth: blocks of the official model, whose last one is not built.
    """
    block = _BLOCK.match(name)
    last = block is not None and int(block[1]) == depth - 1
    return None if last or UNNEEDED.match(name) else name
