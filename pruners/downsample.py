"""Average pooling over an even grid: fewer tokens without choosing any."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch

from pruners.base import POOLED, Pruner, Selection, VisualTokens
from pruners.registry import register
from pruners.uniform import grid_cells, middles


@register
@dataclass(frozen=True)
class Downsample(Pruner):
    """The mean of the patches in each of `budget` near-square cells, cells row by row; each stands at its
    cell's middle."""

    name: ClassVar[str] = "downsample"
    reference: ClassVar[str] = "average pooling"
    kind: ClassVar[Literal["method", "control"]] = "control"

    def select(self, tokens: VisualTokens, budget: int) -> Selection:
        """One mean per cell."""
        plane = tokens.patches.unflatten(0, tokens.grid)
        pooled = [plane[cell].flatten(0, 1).mean(0) for cell in grid_cells(tokens.grid, budget)]
        marks = torch.full((budget,), POOLED, device=plane.device)
        return Selection(marks, torch.stack(pooled), marks.new_tensor(middles(tokens.grid, budget)))
