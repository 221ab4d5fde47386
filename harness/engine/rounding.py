"""What hangs on rounding: the same choice again from features that differ in their last bits.

Another number of threads, attention kernel, processor or library version adds in another order, which moves
float32 features by a few parts in ten million. Noise of that size on the hidden states stands for all of
them, and is the same wherever it is drawn.
"""

from __future__ import annotations

import hashlib
from copy import copy
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import torch

from harness.store.rows import kept_tokens

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from numpy.typing import NDArray
    from torch import Tensor

    from backbones.base import Backbone, Encoding, Pixels
    from pruners.base import Selection

RELATIVE = 1e-7
# Noise in units of the last place (eps) that stands for another kernel or device through a whole vision
# tower. The states of two attention kernels are 2.2 eps apart in float32, but in directions of their own, and
# independent noise has to be about four times as large to exchange as many tokens. In half precision the
# states are 0.8 eps away from those in float32.
PLACES, HALF_PLACES = 8, 1
# features this many times farther apart than the noise are other features: a merge that went otherwise
SAME = 64


def perturbed(encoding: Encoding, seed: int, sample: str, relative: float = RELATIVE) -> Encoding:
    """The encoding with every hidden state times (1 + relative * n), n standard normal; signals are answered
    anew.

    Args:
        seed, sample: what the noise follows from, on every device and in any order of images.
    """
    digest = hashlib.sha256(f"{seed}:{sample}".encode()).digest()
    draw = torch.Generator().manual_seed(int.from_bytes(digest[:8], "big") >> 1)

    def moved(state: Tensor) -> Tensor:
        noise = torch.randn(state.shape, generator=draw, dtype=torch.float64)
        return (state.double() * (1 + relative * noise.to(state.device))).to(state.dtype)

    return replace(
        encoding, hidden_states=tuple(moved(state) for state in encoding.hidden_states), signals={}
    )


def of_type(dtype: torch.dtype) -> float:
    """Relative noise that stands for another kernel in this precision."""
    facts = torch.finfo(dtype)
    return (HALF_PLACES if facts.bits < 32 else PLACES) * facts.eps


def same_choice(one: Selection, other: Selection, relative: float) -> bool:
    """Whether two selections send the same tokens, up to noise in merged features."""
    if not torch.equal(one.indices, other.indices) or (one.features is None) != (other.features is None):
        return False
    if one.features is None or other.features is None:
        return True
    apart = (one.features.double() - other.features.double()).abs().amax()
    return bool(apart <= SAME * relative * one.features.double().abs().amax())


def shaken(backbone: Backbone, seed: int, relative: float = RELATIVE) -> Backbone:
    """The backbone with perturbed encodings; the noise of an image follows from the seed and from its
    pixels."""
    other, encode = copy(backbone), backbone.encode_pixels

    def encode_pixels(pixels: Sequence[Pixels]) -> list[Encoding]:
        names = [hashlib.sha256(one.vision.numpy(force=True).tobytes()).hexdigest() for one in pixels]
        return [
            perturbed(found, seed, name, relative) for found, name in zip(encode(pixels), names, strict=True)
        ]

    other.encode_pixels = encode_pixels  # type: ignore[method-assign]
    return other


def moved_tokens(before: Iterable[str], after: Iterable[str], patches: int) -> NDArray[np.int64]:
    """How many kept patches of each selection are others, (n,).

    Args:
        before, after: n bitmaps as the records hold them (`harness.store.records.kept_tokens`).
        patches: bits of a bitmap.
    """
    pairs = zip(before, after, strict=True)
    lost = [int((kept_tokens(old, patches) & ~kept_tokens(new, patches)).sum()) for old, new in pairs]
    return np.array(lost, dtype=np.int64)
