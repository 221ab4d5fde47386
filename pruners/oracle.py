"""Sees the truth: what a perfect choice of tokens would reach."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

import torch

from pruners.base import REFERENT, ScorePruner, VisualTokens
from pruners.registry import register

if TYPE_CHECKING:
    from torch import Tensor


@register
@dataclass(frozen=True)
class Oracle(ScorePruner):
    """All tokens that the referent touches (most covered first), then the nearest around them."""

    name: ClassVar[str] = "oracle"
    reference: ClassVar[str] = "the truth mask"
    kind: ClassVar[Literal["method", "control"]] = "control"
    needs = frozenset({REFERENT})

    def score(self, tokens: VisualTokens) -> Tensor:
        """1 + coverage for the referent's tokens, minus the squared distance to the nearest of them for the
        others."""
        share = tokens.referent.float()
        index = torch.arange(len(tokens), device=share.device)
        place = torch.stack(
            [index // tokens.grid[1], index % tokens.grid[1]], 1
        ).float()  # whole numbers: exact ties
        inside = place[share > 0]
        if len(inside) == 0:  # no target: stay near the middle
            inside = place.mean(0, keepdim=True)
        return torch.where(share > 0, 1 + share, -(place[:, None] - inside).square().sum(2).amin(1))
