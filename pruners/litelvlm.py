"""LiteLVLM: keep the patches that look least like the text, fill up with what the class token would read."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

import torch

from pruners.base import (
    PROJECTED_PATCHES,
    TEXT_EMBEDS,
    Need,
    Pruner,
    Selection,
    UserError,
    VisualTokens,
    precise,
    top,
)
from pruners.registry import register

if TYPE_CHECKING:
    from torch import Tensor


@register
@dataclass(frozen=True)
class LiteLVLM(Pruner):
    """LiteLVLM ("CLIP Tricks You"), as the released code does it.

    Args:
        combine: how the low-similarity sets of several questions join; the code takes the union of sets of
            floor(budget / questions), the slides say intersection (here of sets of the whole budget).
        context_share: part of the budget reserved for context tokens. The code reserves none, so with one
            question the context branch never acts; the slides describe it as acting.
    """

    combine: Literal["union", "intersection"] = "union"
    context_share: float = 0.0
    name: ClassVar[str] = "litelvlm"
    reference: ClassVar[str] = "LiteLVLM, ICML 2026, https://arxiv.org/abs/2605.13178"
    needs = frozenset(
        {Need("cls_query", -1), Need("keys", -1), Need("values", -1), PROJECTED_PATCHES, TEXT_EMBEDS}
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.context_share <= 1:
            raise UserError(f"litelvlm: context_share lies between 0 and 1, not {self.context_share!r}.")

    def context_scores(self, tokens: VisualTokens) -> Tensor:
        """(N,) w_j ||v_j||: softmax over patches of cos(q, k_j) / sqrt(C), times the norm of the value."""
        query, keys = precise(tokens.cls_query(-1)), precise(tokens.keys(-1)[1:])
        logits = torch.nn.functional.cosine_similarity(query[None], keys) / keys.shape[1] ** 0.5
        return logits.softmax(0) * precise(tokens.values(-1)[1:]).norm(dim=1)

    def low_similarity(self, tokens: VisualTokens, budget: int) -> Tensor:
        """Ascending indices of the patches least similar to the questions."""
        # (M, N), not normalised
        similarity = precise(tokens.text_embeds) @ precise(tokens.projected_patches).T
        room = budget - int(self.context_share * budget)
        count = room // len(similarity) if self.combine == "union" else room
        chosen = torch.zeros_like(similarity, dtype=torch.bool)
        for row, low in zip(chosen, similarity.argsort(dim=1, stable=True)[:, :count], strict=True):
            row[low] = True
        return (chosen.any(0) if self.combine == "union" else chosen.all(0)).nonzero()[:, 0]

    def select(self, tokens: VisualTokens, budget: int) -> Selection:
        """Context tokens by falling score, then the low-similarity tokens in raster order."""
        low = self.low_similarity(tokens, budget)
        if len(low) == budget:  # nothing to fill
            return Selection(low)
        rank = top(self.context_scores(tokens), len(tokens))
        fill = rank[~torch.isin(rank, low)][: budget - len(low)]
        return Selection(torch.cat([fill, low]))
