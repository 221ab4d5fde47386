"""FEATHER: what the last prompt token looks at when positions are left out, beside an even grid; twice."""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil, sqrt
from typing import TYPE_CHECKING, ClassVar, Literal

import torch

from pruners.base import Cut, LayerPruner, LayerView, Selection, UserError, precise, top
from pruners.registry import register
from pruners.stages import bracket, check_ascending, check_numbers, named, scaled, settled, spans, total
from pruners.views import LLM_ATTENTION

if TYPE_CHECKING:
    from torch import Tensor

LATE, EARLY = (8, 16), (2, 16)  # of 32 layers: as released, and for budgets that it does not reach
FINEST = 3  # the released stride


@register
@dataclass(frozen=True)
class Feather(LayerPruner):
    """FEATHER at any budget, a mean over the layers.

    The release keeps a share k of the tokens at the first cut, unites them with the grid, and k^2 of what is
    there at the second, so that its counts vary with the image; budgets are not its authors'. Here both
    counts are exact: the grid and the best others, then the best of these. k is the share with which the
    layers average the budget.

    Args:
        layers: the first layers that see fewer tokens; rows come from the layers before. By default 8 and 16
            of 32 layers, or 2 and 16 for budgets below 1.2 times what the layers before the first cut cost.
        stride: of the grid in patches; 0 for no grid. By default the least from 3 on with which the grid is
            half of what the first cut keeps, or less,
            and no grid where one point is more.
        rope: whether queries and keys are turned to their positions, as FastV's.
        protect: whether the grid also survives the second cut.
        counts: tokens behind both cuts; about (216, 19) of 576 in the release. They allow one budget, the
            mean that they make.
    """

    layers: tuple[int, ...] | None = None
    stride: int | None = None
    rope: bool = False
    protect: bool = False
    counts: tuple[int, ...] | None = None
    name: ClassVar[str] = "feather"
    reference: ClassVar[str] = "FEATHER, ICCV 2025, https://arxiv.org/abs/2412.13180"
    needs = frozenset({LLM_ATTENTION})

    def __post_init__(self) -> None:
        super().__post_init__()
        check_ascending("feather", "layers", self.layers)
        check_numbers("feather", "counts", self.counts, 0)
        for field, wrong in (("layers", self.layers), ("counts", self.counts)):
            if wrong is not None and len(wrong) != len(LATE):
                raise UserError(f"feather: {field} are two whole numbers, not {wrong!r}.")
        if self.counts is not None and self.counts[0] < self.counts[1]:
            raise UserError(f"feather: counts do not grow, as (216, 19), not {self.counts!r}.")
        if self.stride is not None and self.stride < 0:
            raise UserError(f"feather: stride is a whole number from 0 on, not {self.stride!r}.")

    @property
    def budget_kind(self) -> Literal["label", "mean"]:
        """Counts make the mean that they make."""
        return "mean" if self.counts is None else "label"

    def steps(self, grid: tuple[int, int]) -> tuple[int, ...]:
        """Strides that are tried."""
        return (*range(FINEST, max(grid) + 1), 0) if self.stride is None else (self.stride,)

    def step(self, count: int, grid: tuple[int, int]) -> int:
        """The stride where the first cut keeps `count` tokens."""
        steps = self.steps(grid)
        return next((step for step in steps if 2 * _points(grid, step) <= count), steps[-1])

    def cuts(self, budget: int, patches: int, num_layers: int) -> tuple[Cut, ...]:
        """One before each of the layers."""
        layers = self.layers or scaled(LATE, num_layers)
        if self.counts is None and not self.layers and 10 * budget * num_layers < 12 * layers[0] * patches:
            layers = scaled(EARLY, num_layers)
        runs, counts = spans(layers, num_layers), list(self.counts or (patches, patches))
        if self.counts is not None:
            found = tuple(Cut(k, min(patches, count)) for k, count in zip(layers, counts, strict=True))
            mean = total([cut.keep for cut in found], runs, patches) / num_layers
            return named(self, found, mean, budget, num_layers)
        square = (ceil(sqrt(patches)),) * 2  # near enough to say how many points a grid has
        for step in self.steps(square):
            points = min(patches, _points(square, step))

            def left(k: float, points: int = points) -> tuple[float, float]:
                first = k * patches + points * (1 - k)  # the best k, and of the others those on the grid
                return first, k**2 * first

            share = bracket(lambda k: total(left(k), runs, patches), budget * num_layers)[1]
            first = max(1, round(left(share)[0]))
            counts = [first, max(1, round(share**2 * first))]
            if 2 * points <= first:
                break
        return settled(self, counts, layers, budget, patches, num_layers)

    def check(self, budget: int, patches: int, num_layers: int) -> None:
        """Also refuse a mean below what the layers before the first cut cost."""
        super().check(budget, patches, num_layers)
        self.cuts(budget, patches, num_layers)

    def score(self, tokens: LayerView) -> Tensor:
        """(n,) head-mean of the last prompt token's row, a softmax over the visual tokens alone."""
        row = tokens.logits("prompt", rotary=self.rope)[:, 0, tokens.visual]
        return precise(row).softmax(-1).mean(0)

    def cut(self, tokens: LayerView, count: int) -> Selection:
        """The best `count` tokens; the grid before all others at the first cut."""
        best = top(self.score(tokens), len(tokens))
        if tokens.number == 0 or self.protect:
            step = self.step(len(tokens) if tokens.number else count, tokens.grid)
            even = _even(tokens, step)[best]
            best = torch.cat([best[even], best[~even]])
        return Selection(best[:count].sort().values)


def _points(grid: tuple[int, int], step: int) -> int:
    """Points of a grid of this stride."""
    return ceil(grid[0] / step) * ceil(grid[1] / step) if step else 0


def _even(tokens: LayerView, step: int) -> Tensor:
    """(n,) which visual tokens lie on the grid."""
    rows, columns = tokens.grid
    place = tokens.indices % (rows * columns)  # of each view
    if not step:
        return torch.zeros_like(place, dtype=torch.bool)
    return (place // columns % step == 0) & (place % columns % step == 0)
