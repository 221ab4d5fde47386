"""Nuwa: tokens spread over cells of the image, each taking in what is like it around it, at their places;
halfway through the language model, those stay that the last prompt token looks at."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from math import ceil
from typing import TYPE_CHECKING, ClassVar, Literal

import torch

from pruners.base import (
    Cut,
    ImpossibleBudget,
    LayerView,
    Need,
    Pruner,
    Selection,
    UserError,
    View,
    precise,
    top,
)
from pruners.registry import register
from pruners.views import LLM_ATTENTION

if TYPE_CHECKING:
    from torch import Tensor

# the vision tower's layers that compare patches: the 16th to the last of 24
UPPER = tuple(Fraction(layer, 24) for layer in range(16, 25))
DROP = 7  # what enters the language model is seven times what leaves the cut
REACH, DIAGONAL = 280, 23**2 + 23**2  # squares of the published radius and of its grid's diagonal, in patches


@register
@dataclass(frozen=True)
class Nuwa(Pruner):
    """Nuwa at any budget, a mean over the layers: 1.75 times as many tokens enter, and a quarter is left.

    Args:
        cells: whether tokens are chosen cell by cell, of 2 x 2 patches, and not over the whole image.
        aggregate: "add" adds what is around to a token's own feature, as for LLaVA; "mean" weighs its own as
            well, as the release does for Qwen.
        quantile: of the chosen tokens' class attention, from which on a token keeps its own feature as it is.
        radius: within which tokens take others in: "published" in patches, or "scaled" with the diagonal of
            the grid; the same on 24 x 24.
        cut_layer: the first layer that sees fewer tokens; by default half the language model.
        positions: "kept" leaves every token, text included, at its place in the whole sequence; "compact"
            numbers them anew.
    """

    cells: bool = True
    aggregate: Literal["add", "mean"] = "add"
    quantile: float = 0.55
    radius: Literal["scaled", "published"] = "scaled"
    cut_layer: int | None = None
    positions: Literal["kept", "compact"] = "kept"
    name: ClassVar[str] = "nuwa"
    reference: ClassVar[str] = "Nuwa, ICLR 2026, https://github.com/Man-PaperRejected/Nuwa"
    needs = frozenset({Need("cls_attention", -2), *(Need("hidden", layer) for layer in UPPER), LLM_ATTENTION})

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.quantile <= 1:
            raise UserError(f"nuwa: quantile lies between 0 and 1, not {self.quantile!r}.")
        if self.cut_layer is not None and self.cut_layer < 1:
            raise UserError(f"nuwa: cut_layer is a whole number from 1 on, not {self.cut_layer!r}.")

    @property
    def budget_kind(self) -> str:
        """As published."""
        return "mean"

    def entering(self, budget: int, patches: int, num_layers: int) -> int:
        """S of K S + (L - K) S / 7 = L budget; less where one token has to be left behind the cut."""
        before, total = self.cut_layer or num_layers // 2, budget * num_layers
        entering = min(patches, round(total / (before + (num_layers - before) / DROP)))
        if round((total - before * entering) / (num_layers - before)) >= 1:
            return entering
        return (total - (num_layers - before)) // before

    def cuts(self, budget: int, patches: int, num_layers: int) -> tuple[Cut, ...]:
        """One, to what makes the mean the budget."""
        before, entering = self.cut_layer or num_layers // 2, self.entering(budget, patches, num_layers)
        left = round((budget * num_layers - before * entering) / (num_layers - before))
        left = min(max(left, 1), entering)
        return (Cut(before, left),) if left < entering else ()

    def check(self, budget: int, patches: int, num_layers: int) -> None:
        """Also refuse a cut outside the language model."""
        super().check(budget, patches, num_layers)
        if not 1 <= (self.cut_layer or num_layers // 2) < num_layers:
            raise ImpossibleBudget(
                f"{self.spec()} cuts outside the language model, which has {num_layers} layers; give "
                f"cut_layer 1 to {num_layers - 1}."
            )

    def chosen(self, view: View, count: int) -> tuple[Tensor, Tensor]:
        """(S,) patches, ascending, and (S,) whether each keeps its own feature."""
        attention = precise(view.cls_attention(-2)).sum(0)[1:]
        kept = top(self._candidates(attention, view.grid, count), count).sort().values
        score = attention[kept]
        rank = ceil(Fraction(str(self.quantile)) * (count - 1))  # as written: 0.55 (S - 1) may be whole
        return kept, score >= score.sort().values[rank]

    def _candidates(self, attention: Tensor, grid: tuple[int, int], count: int) -> Tensor:
        """(N,) attention, -inf where a cell has enough patches with more of it."""
        if not self.cells:
            return attention
        rows, columns = grid
        inside = torch.nn.functional.pad(
            attention.view(rows, columns), (0, columns % 2, 0, rows % 2), value=-torch.inf
        )
        cells = inside.unflatten(0, (-1, 2)).unflatten(2, (-1, 2)).transpose(1, 2)  # (R, C, 2, 2)
        ranks = cells.flatten(2).argsort(dim=-1, descending=True, stable=True).argsort(dim=-1).view_as(cells)
        each = next(n for n in range(1, 5) if int(((ranks < n) & cells.isfinite()).sum()) >= count)
        kept = cells.masked_fill(ranks >= each, -torch.inf).transpose(1, 2).reshape(inside.shape)
        return kept[:rows, :columns].reshape(-1)

    def reach(self, grid: tuple[int, int]) -> float:
        """Square of the radius in patches."""
        if self.radius == "published":
            return REACH
        return max(1, round(REACH / DIAGONAL * ((grid[0] - 1) ** 2 + (grid[1] - 1) ** 2)))

    def gathered(self, view: View, kept: Tensor, own: Tensor) -> Tensor:
        """(S, C) features: some tokens' own, the others' with a weighted mean of what is like them around."""
        near, every = kept[~own], torch.arange(len(view), device=kept.device)
        states = torch.nn.functional.normalize(self._states(view), dim=1)
        places = torch.stack([every // view.grid[1], every % view.grid[1]], dim=1).to(states.dtype)
        far = torch.cdist(places[near], places, compute_mode="donot_use_mm_for_euclid_dist")
        weight = (states[near] @ states.T).relu() * (1 - far / self.reach(view.grid) ** 0.5).relu()
        weight = weight / (weight.sum(1, keepdim=True) + 1e-8)
        if self.aggregate == "add":
            weight[torch.arange(len(near), device=kept.device), near] = 1
        features = precise(view.patches)
        out = features[kept]
        out[~own] = weight @ features
        return out.to(view.patches.dtype)

    def _states(self, view: View) -> Tensor:
        """(N, C) mean of what the vision tower's upper layers made of the patches."""
        return torch.stack([precise(view.hidden(layer))[1:] for layer in UPPER]).mean(0)

    def select(self, view: View, budget: int) -> Selection:
        """The patches with the most class attention in their cells, in raster order, with their
        neighbours."""
        kept, own = self.chosen(view, budget)
        return Selection(kept, self.gathered(view, kept, own))

    def cut(self, tokens: LayerView, count: int) -> Selection:
        """The `count` visual tokens with the highest head-mean attention, in sequence order."""
        row = tokens.attention("prompt")[:, 0, tokens.visual]
        return Selection(top(precise(row).mean(0), count).sort().values)
