"""SparseVLM: in three layers of the language model, words that relate to the image rate the visual tokens;
part of what drops out goes on as averages of clusters."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, ClassVar, Literal

import torch

from pruners.base import (
    POOLED,
    Cut,
    ImpossibleBudget,
    LayerPruner,
    LayerView,
    Selection,
    UserError,
    others,
    precise,
    top,
)
from pruners.registry import register
from pruners.stages import (
    DEPTH,
    bracket,
    check_ascending,
    check_inside,
    check_numbers,
    named,
    scaled,
    settled,
    spans,
    total,
)
from pruners.views import LLM_ATTENTION, LLM_HIDDEN, LLM_INPUTS, LLM_ROTARY

if TYPE_CHECKING:
    from torch import Tensor

LAYERS = (2, 6, 15)  # that rate, whatever the depth, in models of 32 layers and more
PUBLISHED = 576
ROWS = {  # by version and label, tokens kept of 576
    "1.0": {192: (300, 200, 110), 128: (303, 110, 36), 96: (238, 48, 26), 64: (66, 30, 17)},
    "plus": {192: (300, 200, 118), 128: (238, 108, 60), 96: (246, 54, 28), 64: (66, 34, 20)},
}


def pool_size(dropped: int) -> int:
    """How many of the dropped tokens are recycled."""
    return int(0.3 * dropped) + 1


def clusters(dropped: int) -> int:
    """Merged tokens that these become."""
    return pool_size(dropped) // 10 + 1


@register
@dataclass(frozen=True)
class SparseVLM(LayerPruner):
    """SparseVLM, version 1.0 of the released code, and SparseVLM+, which is its version 2.0.

    Args:
        version: "plus" merges nothing, keeps positions, and divides attention by what two vectors of ones
            would have for logit at these positions, before it takes the heads that look at the image most.
        counts: tokens that the three layers keep, merged ones not counted. They allow one budget: the mean
            that they make, counted as "label" does.
        budget: "label" is the release's table, where 192 of 576 is the mean over the layers of the tokens
            that leave each (the layers see 206.5); other budgets and images have the nearest row of the
            table times one factor. "mean" is what the layers see, by such a factor.
        recycle: whether version 1.0 merges.
        noise: of clusters' densities, drawn evenly from 0 to this; the release draws up to 1e-6 anew each
            time. Here every choice draws the same.
        layers: those that rate; tokens drop out of what they put out. By default 2, 6 and 15, and in models
            of fewer than 32 layers the same shares.
        heads: how many "plus" takes.
    """

    version: Literal["1.0", "plus"] = "1.0"
    counts: tuple[int, ...] | None = None
    budget: Literal["label", "mean"] = "label"
    recycle: bool = True
    noise: float = 0.0
    layers: tuple[int, ...] | None = None
    heads: int = 14
    name: ClassVar[str] = "sparsevlm"
    reference: ClassVar[str] = "SparseVLM, ICML 2025, https://arxiv.org/abs/2410.04417"
    needs = frozenset({LLM_ATTENTION, LLM_HIDDEN, LLM_INPUTS, LLM_ROTARY})

    def __post_init__(self) -> None:
        super().__post_init__()
        check_numbers("sparsevlm", "counts", self.counts, 1)
        for field, values in (("counts", self.counts), ("layers", self.layers)):
            if values is not None and len(values) != len(LAYERS):
                raise UserError(f"sparsevlm: {field} are three whole numbers, not {values!r}.")
        if self.counts is not None and any(one < other for one, other in pairwise(self.counts)):
            raise UserError(f"sparsevlm: counts do not grow, as (300, 200, 110), not {self.counts!r}.")
        if self.layers is not None:
            check_ascending("sparsevlm", "layers", tuple(layer + 1 for layer in self.layers))
        if self.noise < 0:
            raise UserError(f"sparsevlm: noise is a number from 0 on, not {self.noise!r}.")
        if self.heads < 1:
            raise UserError(f"sparsevlm: heads is a whole number from 1 on, not {self.heads!r}.")

    @property
    def budget_kind(self) -> Literal["label", "mean"]:
        """As the parameter `budget` says; counts make the mean that they make."""
        return self.budget if self.counts is None else "label"

    @property
    def positions(self) -> Literal["compact", "kept"]:
        """Numbered anew at every cut; "plus" leaves gaps."""
        return "compact" if self.version == "1.0" else "kept"

    @property
    def merges(self) -> bool:
        """Whether dropped tokens are recycled."""
        return self.version == "1.0" and self.recycle

    # -- how many

    def seen(self, kept: list[int], patches: int) -> list[int]:
        """Tokens behind every cut, merged ones included; one token at least drops out where they merge."""
        found, there = [], patches
        for count in kept:
            count = min(count, there - 1 if self.merges else there)
            there = count + (clusters(there - count) if self.merges else 0)
            found.append(there)
        return found

    def cuts(self, budget: int, patches: int, num_layers: int) -> tuple[Cut, ...]:
        """Three, one behind each of the layers."""
        rating = self.layers or LAYERS
        layers = tuple(layer + 1 for layer in rating)
        if self.layers is None and num_layers < DEPTH:
            layers = scaled(layers, num_layers)
        check_inside(self, layers, num_layers)
        runs = spans(layers, num_layers)
        if self.budget == "label":  # what leaves the layers: the last layer before a cut counts as cut
            runs = [runs[0] - 1, *runs[1:-1], runs[-1] + 1]

        def made(kept: list[int]) -> tuple[Cut, ...]:
            return tuple(map(Cut, layers, self.seen(kept, patches)))

        def mean(kept: list[int]) -> float:
            return total(self.seen(kept, patches), runs, patches) / num_layers

        if self.counts is not None:
            return named(self, made(list(self.counts)), mean(list(self.counts)), budget, num_layers)
        rows = ROWS[self.version]
        row = min(rows, key=lambda label: abs(label / PUBLISHED - budget / patches))
        if self.budget == "label" and (row, patches) == (budget, PUBLISHED) and num_layers >= DEPTH:
            return made(list(rows[row]))

        def scaled_row(factor: float) -> list[int]:
            return [min(patches, max(1, round(factor * count))) for count in rows[row]]

        both = bracket(lambda factor: mean(scaled_row(factor)), budget, patches)
        if self.budget == "label":
            if (least := int(mean([1] * len(layers)))) > budget:
                raise ImpossibleBudget(
                    f"{self.spec()} cannot be named {budget} tokens: the least label is {least}."
                )
            return made(scaled_row(both[1]))
        nearest = min(map(scaled_row, both), key=lambda kept: abs(mean(kept) - budget))
        return settled(
            self, nearest, layers, budget, patches, num_layers, lambda kept: self.seen(kept, patches)
        )

    def check(self, budget: int, patches: int, num_layers: int) -> None:
        """Also refuse a budget below what the layers before the first cut cost."""
        super().check(budget, patches, num_layers)
        self.cuts(budget, patches, num_layers)

    def kept(self, tokens: LayerView, count: int) -> int:
        """How many of the tokens stay as they are where `count` go on: the most, if several make it."""
        there = len(tokens)
        if not self.merges:
            return count
        if self.counts is not None:
            return min(self.counts[tokens.number], there - 1)
        return next(k for k in range(min(count, there) - 1, -1, -1) if k + clusters(there - k) == count)

    # -- which

    def raters(self, tokens: LayerView) -> Tensor:
        """(R,) tokens of the question that image tokens look like more than on average, by what enters the
        language model; all of them, if none does."""
        looks = precise(tokens.inputs()) @ precise(tokens.inputs("question")).T
        share = looks.softmax(1).mean(0)
        found = (share > share.mean()).nonzero()[:, 0]
        return found if len(found) else torch.arange(len(share), device=share.device)

    def ratings(self, tokens: LayerView) -> Tensor:
        """(H', R, n) what raters pay to visual tokens, in the heads that count."""
        places = tokens.question.start + self.raters(tokens)
        rows = precise(tokens.attention(places)[..., tokens.visual])
        if self.version == "1.0":
            return rows
        visual, text = (precise(tokens.rotary(of)) for of in ("visual", "text"))  # type: ignore[arg-type]
        ones = text[places - tokens.text.start] @ visual.T * 2 / visual.shape[1] ** 0.5
        rows = rows / ones
        return rows[self.looking(rows)]

    def looking(self, rows: Tensor) -> Tensor:
        """(14,) the heads with the largest sums of (H, R, n), or all of fewer."""
        return top(rows.sum((1, 2)), self.heads).sort().values

    def pool(self, score: Tensor, kept: Tensor) -> Tensor:
        """(p,) dropped tokens that are recycled, by falling score."""
        rest = others(kept, len(score))
        return rest[top(score[rest], pool_size(len(rest)))]

    def cut(self, tokens: LayerView, count: int) -> Selection:
        """The best rated in sequence order, and merged tokens behind them."""
        score = self.ratings(tokens).mean((0, 1))
        kept = top(score, self.kept(tokens, count)).sort().values
        if not self.merges:
            return Selection(kept)
        hidden, pool = tokens.hidden(), self.pool(score, kept)
        merged = self.clustered(precise(hidden[pool]), count - len(kept))[2]
        marks = kept.new_full((len(merged),), POOLED)
        return Selection(torch.cat([kept, marks]), torch.cat([hidden[kept], merged.to(hidden.dtype)]))

    def clustered(self, states: Tensor, count: int) -> tuple[Tensor, Tensor, Tensor]:
        """Density peaks: (m,) centres, (p,) the cluster of every token, and (m, width) their averages.

        Distances come from differences, so that they are symmetric to the last bit: mutual neighbours are
        equally dense.
        """
        far = torch.cdist(states, states, compute_mode="donot_use_mm_for_euclid_dist")
        far = far / states.shape[1] ** 0.5
        density = (-far.sort(dim=1).values[:, :count].square().mean(1)).exp() + self.jitter(states)
        denser = density > density[:, None]
        lonely = torch.where(denser, far, far.max()).amin(1)
        centres = top(density * lonely, count)
        group = far[centres].argmin(0)
        group[centres] = torch.arange(count, device=group.device)
        sums = states.new_zeros(count, states.shape[1]).index_add_(0, group, states)
        return centres, group, sums / (group.bincount(minlength=count)[:, None] + 1e-6)

    def jitter(self, states: Tensor) -> Tensor:
        """(p,) what is added to densities."""
        if not self.noise:
            return states.new_zeros(len(states))
        draw = torch.Generator().manual_seed(0)
        return (self.noise * torch.rand(len(states), generator=draw, dtype=torch.float64)).to(states)
