"""HiPrune: patches that a middle layer of the vision tower attends to, their neighbours, and a deep layer's
registers."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from typing import TYPE_CHECKING, ClassVar, Literal

import torch

from pruners.base import Need, Pruner, Selection, UserError, View, precise, top
from pruners.registry import register

if TYPE_CHECKING:
    from torch import Tensor

DEPTH, AROUND = 24, 5  # layers of the tower that the method was written for; an anchor and its neighbours


@register
@dataclass(frozen=True)
class HiPrune(Pruner):
    """HiPrune, as the released code does it.

    Fewer anchors stay where they and their neighbours are more than the budget, where the released code
    fails; with alpha 0.1 a budget of 25 or fewer has none.

    Args:
        alpha: part of the budget for anchors and their neighbours, 0 to 1.
        object_layer: where anchors are looked for, 1 to 24 of a tower of 24 layers; in a deeper or shallower
            one the layer at the same share of the depth.
        score: "received" is what a patch receives from all tokens, "cls" from the class token alone.
        wrap: whether the neighbour beyond the end of a row is the next row's first patch, and the one beyond
            the image its first or last patch, as in the code; False leaves both out.
    """

    alpha: float = 0.1
    object_layer: int = 9
    score: Literal["received", "cls"] = "received"
    wrap: bool = True
    name: ClassVar[str] = "hiprune"
    reference: ClassVar[str] = "HiPrune, 2025, https://arxiv.org/abs/2508.00553"
    needs = frozenset({Need("received_attention", Fraction(9, DEPTH)), Need("received_attention", -2)})

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.alpha <= 1:
            raise UserError(f"hiprune: alpha lies between 0 and 1, not {self.alpha!r}.")
        if not 1 <= self.object_layer <= DEPTH:
            raise UserError(f"hiprune: object_layer is 1 to {DEPTH}, not {self.object_layer!r}.")
        needs = frozenset(Need(f"{self.score}_attention", layer) for layer in (self.middle, -2))
        object.__setattr__(self, "needs", needs)

    @property
    def middle(self) -> Fraction:
        """The layer of the anchors, as a share of the depth."""
        return Fraction(self.object_layer, DEPTH)

    def attention(self, view: View, layer: int | Fraction) -> Tensor:
        """(N,) attention that patches get in a layer, mean over heads."""
        got = view.received_attention(layer) if self.score == "received" else view.cls_attention(layer)
        return precise(got).mean(0)[-len(view) :]

    def around(self, anchors: Tensor, grid: tuple[int, int]) -> Tensor:
        """Ascending: the anchors, and the patches left, right, above and below of them."""
        columns, size = grid[1], grid[0] * grid[1]
        steps = anchors.new_tensor([-columns, -1, 0, 1, columns])
        near = anchors[:, None] + steps
        if self.wrap:
            return near.clamp(0, size - 1).unique()
        beside = near // columns == anchors[:, None] // columns
        vertical = (steps.abs() == columns) & (near >= 0) & (near < size)
        return near[beside | vertical].unique()

    def objects(self, view: View, budget: int) -> tuple[Tensor, Tensor]:
        """Anchors by falling attention, and ascending what stands around them."""
        count = round(budget * self.alpha / AROUND)
        rank = top(self.attention(view, self.middle), count)
        while True:
            found = self.around(rank[:count], view.grid)
            if len(found) <= budget:
                return rank[:count], found
            count -= 1

    def registers(self, view: View, found: Tensor, count: int) -> Tensor:
        """The `count` patches that get most in the deep layer, by falling attention, without those that were
        found."""
        return top(self.attention(view, -2).index_fill(0, found, -torch.inf), count)

    def select(self, view: View, budget: int) -> Selection:
        """Anchors, neighbours and registers in raster order."""
        found = self.objects(view, budget)[1]
        registers = self.registers(view, found, budget - len(found))
        return Selection(torch.cat([found, registers]).sort().values)
