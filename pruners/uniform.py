"""An even grid of patches: the cheapest control that covers the whole image."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch

from pruners.base import Pruner, Selection, VisualTokens
from pruners.registry import register


def grid_cells(grid: tuple[int, int], budget: int) -> list[tuple[slice, slice]]:
    """Split the grid into exactly `budget` near-square cells, row by row.

    Bands of rows are as equal as whole rows allow; a band gets its share of the cells, as equal as whole
    columns allow.
    """
    rows, columns = grid
    bands = min(rows, max(-(-budget // columns), round((budget * rows / columns) ** 0.5)))
    found = []
    for band in range(bands):
        high = slice(band * rows // bands, (band + 1) * rows // bands)
        count = (band + 1) * budget // bands - band * budget // bands
        found += [(high, slice(k * columns // count, (k + 1) * columns // count)) for k in range(count)]
    return found


def middles(grid: tuple[int, int], budget: int) -> list[int]:
    """The middle patch of every cell, cell by cell."""
    return [
        (high.start + high.stop - 1) // 2 * grid[1] + (wide.start + wide.stop - 1) // 2
        for high, wide in grid_cells(grid, budget)
    ]


@register
@dataclass(frozen=True)
class Uniform(Pruner):
    """The middle patch of each of `budget` near-square cells, in raster order."""

    name: ClassVar[str] = "uniform"
    reference: ClassVar[str] = "even grid stride"
    kind: ClassVar[Literal["method", "control"]] = "control"

    def select(self, tokens: VisualTokens, budget: int) -> Selection:
        """One patch per cell."""
        middle = middles(tokens.grid, budget)
        return Selection(torch.tensor(sorted(middle), device=tokens.patches.device))
