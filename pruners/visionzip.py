"""VisionZip: keep what the class token looks at, merge the rest into a few evenly spaced targets."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import torch

from pruners.base import CLS, ImpossibleBudget, Need, Pruner, Selection, VisualTokens, others, precise, top
from pruners.registry import register

if TYPE_CHECKING:
    from torch import Tensor


@register
@dataclass(frozen=True)
class VisionZip(Pruner):
    """VisionZip, as the released code does it: a contextual token is its target plus the mean of the target's
    members.

    Args:
        contextual: merged tokens within the budget; None takes the authors' share of 10 in 64 (192 = 162 +
            30, 128 = 108 + 20, 64 = 54 + 10), rounded down. The class token counts among the others.
    """

    contextual: int | None = None
    name: ClassVar[str] = "visionzip"
    reference: ClassVar[str] = "VisionZip, CVPR 2025, https://arxiv.org/abs/2412.04467"
    needs = frozenset({Need("cls_attention", -2), Need("keys", -2)})

    def split(self, budget: int) -> tuple[int, int]:
        """(dominant with the class token, contextual)."""
        contextual = budget * 10 // 64 if self.contextual is None else self.contextual
        return budget - contextual, contextual

    def check(self, budget: int, patches: int, num_layers: int) -> None:
        """Also refuse a split that leaves no room for the class token."""
        super().check(budget, patches, num_layers)
        dominant, contextual = self.split(budget)
        if dominant < 1 or contextual < 0:
            raise ImpossibleBudget(
                f"{self.spec()} leaves no room for the class token in a budget of {budget}: give "
                f"contextual=0 to {budget - 1}."
            )

    def merge(self, tokens: VisualTokens, rest: Tensor, contextual: int) -> tuple[Tensor, Tensor, Tensor]:
        """Contextual features (c, C), target positions in `rest` (c,), and the target number of every other
        (r - c,)."""
        metric = precise(tokens.keys(-2)[1:]).unflatten(1, (tokens.num_heads, -1)).mean(1)[rest]
        unit = torch.nn.functional.normalize(metric, dim=1)
        targets = torch.arange(contextual, device=rest.device) * max(1, len(rest) // contextual)
        members = others(targets, len(rest))
        assign = (unit[members] @ unit[targets].T).argmax(1)
        features = precise(tokens.patches[rest])
        total = torch.zeros_like(features[:contextual]).index_add_(0, assign, features[members])
        count = torch.bincount(assign, minlength=contextual).clamp(min=1)
        return features[targets] + total / count[:, None], targets, assign

    def select(self, tokens: VisualTokens, budget: int) -> Selection:
        """The class token, dominant patches in raster order, contextual tokens in the order of their
        targets."""
        dominant, contextual = self.split(budget)
        attention = precise(tokens.cls_attention(-2)).sum(0)[1:]
        kept = top(attention, dominant - 1).sort().values
        plain = Selection(torch.cat([kept.new_tensor([CLS]), kept]))
        features = plain.gather(tokens)
        if contextual == 0:
            return Selection(plain.indices, features)
        rest = others(kept, len(tokens))
        merged, targets, _ = self.merge(tokens, rest, contextual)
        together = torch.cat([features, merged.to(features.dtype)])
        return Selection(torch.cat([plain.indices, rest[targets]]), together)
