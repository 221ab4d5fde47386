"""Random patches: what a method has to beat."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

import torch

from pruners.base import ScorePruner, VisualTokens
from pruners.registry import register

if TYPE_CHECKING:
    from torch import Tensor


@register
@dataclass(frozen=True)
class Random(ScorePruner):
    """Uniformly drawn patches; the draw depends on (seed, sample id) alone."""

    seed: int = 0
    name: ClassVar[str] = "random"
    reference: ClassVar[str] = "uniform draw without replacement"
    kind: ClassVar[Literal["method", "control"]] = "control"
    stochastic: ClassVar[bool] = True

    def score(self, tokens: VisualTokens) -> Tensor:
        """Independent uniform numbers."""
        digest = hashlib.sha256(f"{self.seed}:{tokens.sample}".encode()).digest()
        generator = torch.Generator().manual_seed(int.from_bytes(digest[:8], "big") >> 1)
        return torch.rand(len(tokens), generator=generator).to(tokens.patches.device)
