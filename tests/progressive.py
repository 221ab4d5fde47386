"""A plugin of methods that cut more than once, merge inside the language model, or act at both places: short
forms of published ones, each reading what that one reads."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from pruners import (
    POOLED,
    Cut,
    ImpossibleBudget,
    LayerPruner,
    LayerView,
    Need,
    Pruner,
    Selection,
    View,
    register,
)
from pruners.base import others, precise, top
from pruners.uniform import Uniform
from pruners.views import LLM_ATTENTION, LLM_ATTENTION_AHEAD, LLM_HIDDEN, LLM_INPUTS, LLM_KEYS, LLM_NORMED

Places = Literal["kept", "compact"]


def shrinking(budget: int, patches: int, layers: tuple[int, ...]) -> tuple[Cut, ...]:
    """Cuts by one share each, the last to the budget."""
    share = (budget / patches) ** (1 / len(layers))
    counts = [max(budget, round(patches * share ** (k + 1))) for k in range(len(layers) - 1)]
    return tuple(map(Cut, layers, [*counts, budget]))


def averaging(budget: int, patches: int, layers: tuple[int, ...], num_layers: int) -> tuple[Cut, ...]:
    """The same with a last count that makes the mean over the layers the budget."""
    runs = [end - start for start, end in zip(layers, (*layers[1:], num_layers), strict=True)]
    low, high = 0.0, 1.0
    for _ in range(60):
        share = (low + high) / 2
        sum_ = patches * (layers[0] + sum(run * share ** (k + 1) for k, run in enumerate(runs)))
        low, high = (share, high) if sum_ < budget * num_layers else (low, share)
    counts = [round(patches * low ** (k + 1)) for k in range(len(layers) - 1)]
    spent = patches * layers[0] + sum(run * count for run, count in zip(runs, counts, strict=False))
    return tuple(map(Cut, layers, [*counts, round((budget * num_layers - spent) / runs[-1])]))


def best(score: Tensor, count: int) -> Selection:
    """The highest scores, in the order in which they stand."""
    return Selection(top(score, count).sort().values)


@register
@dataclass(frozen=True)
class Pyramid(LayerPruner):
    """PyramidDrop: stage by stage, by what the last token would look at in the layer to come."""

    layers: tuple[int, ...] = (1, 2)
    budget: Literal["final", "mean"] = "final"
    placed: Places = "compact"
    name = "pyramid"
    reference = "https://arxiv.org/abs/2410.17247"
    needs = frozenset({LLM_ATTENTION_AHEAD})

    @property
    def budget_kind(self) -> str:
        return self.budget

    @property
    def positions(self) -> Places:
        return self.placed

    def cuts(self, budget: int, patches: int, num_layers: int) -> tuple[Cut, ...]:
        if self.budget == "final":
            return shrinking(budget, patches, self.layers)
        return averaging(budget, patches, self.layers, num_layers)

    def check(self, budget: int, patches: int, num_layers: int) -> None:
        super().check(budget, patches, num_layers)
        if self.budget == "mean" and self.cuts(budget, patches, num_layers)[-1].keep < 1:
            raise ImpossibleBudget(f"{self.spec()} cannot average {budget} tokens; give more.")

    def cut(self, tokens: LayerView, count: int) -> Selection:
        return best(precise(tokens.attention(ahead=True)[:, 0, tokens.visual]).mean(0), count)


@register
@dataclass(frozen=True)
class Withdraw(LayerPruner):
    """VTW: all visual tokens leave at once, where the mean over the layers is the budget; what whole layers
    leave over stays for one layer more."""

    name = "withdraw"
    reference = "https://arxiv.org/abs/2405.05803"

    @property
    def budget_kind(self) -> str:
        return "mean"

    def cuts(self, budget: int, patches: int, num_layers: int) -> tuple[Cut, ...]:
        layer, rest = divmod(budget * num_layers, patches)
        last = [Cut(layer, rest)] if rest else []
        return tuple(cut for cut in (*last, Cut(layer + bool(rest), 0)) if cut.layer < num_layers)

    def check(self, budget: int, patches: int, num_layers: int) -> None:
        super().check(budget, patches, num_layers)
        if budget * num_layers < patches:
            raise ImpossibleBudget(f"{self.spec()} cannot average {budget} tokens; give more.")

    def cut(self, tokens: LayerView, count: int) -> Selection:
        return Selection(torch.arange(count, device=tokens.indices.device))


@register
@dataclass(frozen=True)
class Recycle(LayerPruner):
    """SparseVLM: what the words that look at the image look at; an eighth of what stays is made of the
    rest."""

    layers: tuple[int, ...] = (1, 2)
    name = "recycle"
    reference = "https://arxiv.org/abs/2410.04417"
    needs = frozenset({LLM_ATTENTION, LLM_HIDDEN, LLM_INPUTS})

    @property
    def positions(self) -> Places:
        return "compact"

    def cuts(self, budget: int, patches: int, num_layers: int) -> tuple[Cut, ...]:
        return shrinking(budget, patches, self.layers)

    def cut(self, tokens: LayerView, count: int) -> Selection:
        shares = precise(tokens.inputs()) @ precise(tokens.inputs("text")).T
        looks = shares.softmax(1).mean(0)
        raters = (looks >= looks.mean()).nonzero()[:, 0] + tokens.text.start
        score = precise(tokens.attention(raters)[..., tokens.visual]).mean((0, 1))
        groups = min(count // 8, len(tokens) - count)
        kept = top(score, count - groups).sort().values
        hidden = tokens.hidden()
        if groups == 0:
            return Selection(kept)
        rest = precise(hidden[others(kept, len(tokens))]).chunk(groups)
        made = torch.stack([part.mean(0) for part in rest]).to(hidden.dtype)
        made = torch.cat([made, made[-1:].expand(groups - len(made), -1)])
        marks = kept.new_full((groups,), POOLED)
        return Selection(torch.cat([kept, marks]), torch.cat([hidden[kept], made]))


@register
@dataclass(frozen=True)
class Distinct(LayerPruner):
    """DART: tokens with the largest keys, and those least like them or the largest words; the former
    first."""

    layer: int = 1
    name = "distinct"
    reference = "https://arxiv.org/abs/2502.11494"
    needs = frozenset({LLM_KEYS, LLM_NORMED})

    def cut(self, tokens: LayerView, count: int) -> Selection:
        image, text = (precise(tokens.keys(of)).abs().sum((0, 2)) for of in ("visual", "text"))  # type: ignore[arg-type]
        pivots, words = top(image, min(4, count)), top(text, 4)
        states = F.normalize(precise(tokens.normed()), dim=1)
        near = torch.cat([states[pivots], F.normalize(precise(tokens.normed("text")[words]), dim=1)])
        alike = (states @ near.T).amax(1)
        free = others(pivots, len(tokens))
        return Selection(torch.cat([pivots, free[top(-alike[free], count - len(pivots))]]))


@register
@dataclass(frozen=True)
class Upright(LayerPruner):
    """FEATHER: what the last token looks at without positions, beside an even grid at the first cut."""

    layers: tuple[int, ...] = (1, 2)
    name = "upright"
    reference = "https://arxiv.org/abs/2412.13180"
    needs = frozenset({LLM_ATTENTION})

    def cuts(self, budget: int, patches: int, num_layers: int) -> tuple[Cut, ...]:
        return shrinking(budget, patches, self.layers)

    def cut(self, tokens: LayerView, count: int) -> Selection:
        score = precise(tokens.logits(rotary=False)[:, 0, tokens.visual]).softmax(-1).mean(0)
        if tokens.number == 0:
            score = score + 2 * (tokens.indices % max(1, 2 * len(tokens) // count) == 0)
        return best(score, count)


@register
@dataclass(frozen=True)
class Spread(Pruner):
    """Nuwa: twice the budget or more enters, each token with its neighbours added, at its place; the last
    token's row halves them in the middle of the language model."""

    ratio: float = 2.0
    name = "spread"
    reference = "https://openreview.net (Nuwa, ICLR 2026)"
    needs = frozenset({Need("cls_attention", -2), LLM_ATTENTION})

    @property
    def positions(self) -> Places:
        return "kept"

    def entering(self, budget: int, patches: int, num_layers: int) -> int:
        return min(patches, round(self.ratio * budget))

    def cuts(self, budget: int, patches: int, num_layers: int) -> tuple[Cut, ...]:
        if self.entering(budget, patches, num_layers) == budget:
            return ()
        return (Cut(num_layers // 2, budget),)

    def select(self, view: View, budget: int) -> Selection:
        kept = top(precise(view.cls_attention(-2)).sum(0)[1:], budget).sort().values
        mean = view.patches.mean(0, keepdim=True)
        return Selection(kept, view.patches[kept] + 0.1 * mean)

    def cut(self, tokens: LayerView, count: int) -> Selection:
        return best(precise(tokens.attention()[:, 0, tokens.visual]).mean(0), count)


@register
@dataclass(frozen=True)
class Placed(Uniform):
    """The even grid, at its places."""

    name = "placed"  # type: ignore[misc]

    @property
    def positions(self) -> Places:
        return "kept"
