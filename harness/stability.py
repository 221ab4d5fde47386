"""What hangs on rounding: the same choice again from features that differ in their last bits.

Another number of threads, attention kernel, processor or library version adds in another order, which moves float32 features by
a few parts in ten million. Noise of that size on the hidden states stands for all of them, and is the same wherever it is drawn.
"""

from __future__ import annotations

import hashlib
from copy import copy
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import torch

from harness.records import kept_tokens

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from numpy.typing import NDArray
    from torch import Tensor

    from backbones.base import Backbone, Encoding, Pixels

RELATIVE = 1e-7


def perturbed(encoding: Encoding, seed: int, sample: str, relative: float = RELATIVE) -> Encoding:
    """The encoding with every hidden state times (1 + relative * n), n standard normal; signals are answered anew.

    Args:
        seed, sample: what the noise follows from, on every device and in any order of images.
    """
    digest = hashlib.sha256(f"{seed}:{sample}".encode()).digest()
    draw = torch.Generator().manual_seed(int.from_bytes(digest[:8], "big") >> 1)

    def moved(state: Tensor) -> Tensor:
        noise = torch.randn(state.shape, generator=draw, dtype=torch.float64)
        return (state.double() * (1 + relative * noise.to(state.device))).to(state.dtype)

    return replace(encoding, hidden_states=tuple(moved(state) for state in encoding.hidden_states), signals={})


def shaken(backbone: Backbone, seed: int, relative: float = RELATIVE) -> Backbone:
    """The backbone with perturbed encodings; the noise of an image follows from the seed and from its pixels."""
    other, encode = copy(backbone), backbone.encode_pixels

    def encode_pixels(pixels: Sequence[Pixels]) -> list[Encoding]:
        names = [hashlib.sha256(one.vision.numpy(force=True).tobytes()).hexdigest() for one in pixels]
        return [perturbed(found, seed, name, relative) for found, name in zip(encode(pixels), names, strict=True)]

    other.encode_pixels = encode_pixels  # type: ignore[method-assign]
    return other


def moved_tokens(before: Iterable[str], after: Iterable[str], patches: int) -> NDArray[np.int64]:
    """How many kept patches of each selection are others, (n,).

    Args:
        before, after: n bitmaps as the records hold them (`harness.records.kept_tokens`).
        patches: bits of a bitmap.
    """
    pairs = zip(before, after, strict=True)
    lost = [int((kept_tokens(old, patches) & ~kept_tokens(new, patches)).sum()) for old, new in pairs]
    return np.array(lost, dtype=np.int64)
