"""No pruning: the upper bound of every table."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch

from pruners.base import Pruner, Selection, VisualTokens
from pruners.registry import register


@register
@dataclass(frozen=True)
class NoPruning(Pruner):
    """Every visual token, in raster order, whatever the budget."""

    name: ClassVar[str] = "none"
    reference: ClassVar[str] = "all visual tokens"
    kind: ClassVar[Literal["method", "control"]] = "control"

    def select(self, tokens: VisualTokens, budget: int) -> Selection:
        """All patches."""
        return Selection(torch.arange(len(tokens), device=tokens.patches.device))
