"""LLaVA-PruMerge: keep what the class token looks at and fold each kept token's nearest neighbours into
it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import torch

from pruners.base import (
    POOLED,
    Need,
    Pruner,
    Selection,
    UserError,
    VisualTokens,
    others,
    outliers,
    precise,
    top,
)
from pruners.registry import register

if TYPE_CHECKING:
    from torch import Tensor

NEIGHBOURS = 32


def cls_scores(tokens: VisualTokens) -> Tensor:
    """(N,) class attention of the last layer over the full width, one softmax with the class token's key in
    it."""
    keys = precise(tokens.keys(-1))
    return ((keys @ precise(tokens.cls_query(-1))) * keys.shape[1] ** -0.5).softmax(0)[1:]


def plus_adaptive(scores: Tensor) -> Tensor:
    """PruMerge+ as released, at no budget: the outliers, then every (1 / share / 3)-th patch that is none.

    Raises:
        UserError: no outlier, or more than a third of all patches; the released code has no grid for these.
    """
    size, share = len(scores), outliers(scores) / len(scores)
    if not 0 < share <= 1 / 3:
        raise UserError(
            f"PruMerge+ without a budget needs outliers up to a third of the patches, not a share of "
            f"{share:.3f}."
        )
    best = top(scores, int(size * share))
    grid = torch.arange(0, size - 1, int(int(1 / share) / 3), device=scores.device)
    return torch.cat([best, grid[~torch.isin(grid, best)]])


def plus_fixed(scores: Tensor, ratio: float) -> Tensor:
    """PruMerge+ with a fixed ratio as released, at no exact budget: best patches, then a grid that may repeat
    some."""
    size, step = len(scores), int(1 / ratio)
    grid = torch.arange(int(step / 2), size - 1, step, device=scores.device)
    return torch.cat([top(scores, int(size * ratio)), grid])


def plus_budget(scores: Tensor, count: int) -> Tensor:
    """EffiVLM-Bench's rule for exactly `count`: outliers first, then an even grid without them, cut at the
    end."""
    best = top(scores, min(count, outliers(scores)))
    if len(best) == count:
        return best
    grid = torch.arange(0, len(scores), max(1, len(scores) // count), device=scores.device)
    return torch.cat([best, grid[~torch.isin(grid, best)][: count - len(best)]])


def merge(tokens: VisualTokens, scores: Tensor, kept: Tensor) -> Tensor:
    """(len(kept) + 1, C): kept tokens with their 32 nearest added, weighted by raw scores, and the rest in
    one token.

    The official complement drops one of the lowest unselected patches for every duplicate in `kept`; so does
    this.
    """
    features, unit = (
        precise(tokens.patches),
        torch.nn.functional.normalize(precise(tokens.keys(-1)[1:]), dim=1),
    )
    free = others(kept, len(tokens))
    rest = free[len(kept) - (len(tokens) - len(free)) :]
    pool = torch.cat([kept, rest])
    weighted = scores[:, None] * features
    similarity = unit.index_select(0, kept) @ unit.index_select(0, pool).T
    similarity.fill_diagonal_(-torch.inf)
    near = top(similarity, min(NEIGHBOURS, len(pool) - 1))
    weights = torch.zeros_like(similarity).scatter_(1, near, 1.0)
    grown = features.index_select(0, kept) + weights @ weighted.index_select(0, pool)
    return torch.cat([grown, weighted.index_select(0, rest).sum(0, keepdim=True)]).to(tokens.patches.dtype)


@register
@dataclass(frozen=True)
class PruMerge(Pruner):
    """LLaVA-PruMerge at an exact budget: budget - 1 merged tokens and the official extra token.

    That is the released code with its adaptive count off and a ratio of (budget - 0.5) / N.

    Args:
        plus: add PruMerge+'s spatial grid, by EffiVLM-Bench's budget rule; the released code cannot hit a
            budget.
    """

    plus: bool = False
    name: ClassVar[str] = "prumerge"
    reference: ClassVar[str] = "LLaVA-PruMerge, ICCV 2025, https://arxiv.org/abs/2403.15388"
    needs = frozenset({Need("cls_query", -1), Need("keys", -1)})

    def select(self, tokens: VisualTokens, budget: int) -> Selection:
        """Best tokens by falling score (then the grid, ascending), the extra token last."""
        scores = cls_scores(tokens)
        kept = plus_budget(scores, budget - 1) if self.plus else top(scores, budget - 1)
        return Selection(torch.cat([kept, kept.new_tensor([POOLED])]), merge(tokens, scores, kept))
