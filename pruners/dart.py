"""DART: a few tokens with large keys are pivots; what is most like a pivot leaves, what is least like one
stays."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

import torch

from pruners.base import LayerPruner, LayerView, Selection, UserError, others, precise, top
from pruners.registry import register
from pruners.views import LLM_KEYS, LLM_NORMED

if TYPE_CHECKING:
    from torch import Tensor


@register
@dataclass(frozen=True)
class Dart(LayerPruner):
    """DART at any budget.

    Of B tokens the release keeps v + (v + t) floor(B / (v + t)): v visual pivots, and equally many tokens for
    each of these and of t text pivots. Here the first pivots take one token more, until exactly the budget is
    kept; at 196, 132 and 68 tokens, the release's counts of B = 192, 128 and 64, both are the same.

    Args:
        layer: K, the index of the first layer that sees fewer tokens; keys come from layer K-1.
        visual_pivots, text_pivots: v and t.
        order: which pivot takes first. "set" is the release's: that of a Python set of their places in the
            sequence. "norm" is by falling norm, visual pivots first.
        budget: "final" and "mean" as FastV's; "label" takes it as the release's B.
    """

    layer: int = 2
    visual_pivots: int = 4
    text_pivots: int = 4
    order: Literal["set", "norm"] = "set"
    budget: Literal["final", "mean", "label"] = "final"
    name: ClassVar[str] = "dart"
    reference: ClassVar[str] = "DART, EMNLP 2025, https://arxiv.org/abs/2502.11494"
    needs = frozenset({LLM_KEYS, LLM_NORMED})

    def __post_init__(self) -> None:
        super().__post_init__()
        for field, least in (("layer", 1), ("visual_pivots", 1), ("text_pivots", 0)):
            if getattr(self, field) < least:
                raise UserError(
                    f"dart: {field} is a whole number from {least} on, not {getattr(self, field)!r}."
                )

    @property
    def budget_kind(self) -> str:
        """As the parameter `budget` says."""
        return self.budget

    def left(self, budget: int, patches: int, num_layers: int) -> int:
        """As FastV's, or by the release's B."""
        if self.budget != "label":
            return super().left(budget, patches, num_layers)
        pivots = self.visual_pivots + self.text_pivots
        return min(patches, self.visual_pivots + pivots * (budget // pivots))

    def norms(self, tokens: LayerView) -> tuple[Tensor, Tensor]:
        """(n,) L1 norms of the visual tokens' keys, and (Q,) of the question's."""
        visual, text = tokens.keys(), tokens.keys("question")
        return precise(visual).abs().sum((0, 2)), precise(text).abs().sum((0, 2))

    def pivots(self, tokens: LayerView, count: int) -> tuple[Tensor, Tensor]:
        """(v,) places among the visual tokens and (t,) among the question's, by falling norm."""
        visual, text = self.norms(tokens)
        return top(visual, min(count, self.visual_pivots)), top(text, self.text_pivots)

    def visited(self, tokens: LayerView, visual: Tensor, text: Tensor) -> list[int]:
        """Places of all pivots in the sequence, in the order in which they take tokens."""
        places = (torch.cat([visual, text + len(tokens)]) + tokens.start).tolist()
        return list(set(places)) if self.order == "set" else places

    def cut(self, tokens: LayerView, count: int) -> Selection:
        """Visual pivots, and for every pivot the free tokens with the lowest cosine similarity to it."""
        visual, text = self.pivots(tokens, count)
        order = self.visited(tokens, visual, text)
        states = torch.nn.functional.normalize(
            precise(torch.cat([tokens.normed(), tokens.normed("question")])), dim=1
        )
        like = states[: len(tokens)] @ states[torch.tensor(order, device=states.device) - tokens.start].T
        free, kept = others(visual, len(tokens)), [visual]
        each, more = divmod(count - len(visual), len(order))
        for number in range(len(order)):
            taken = top(-like[free, number], each + (number < more))
            kept.append(free[taken])
            free = free[others(taken, len(free))]
        return Selection(torch.cat(kept).sort().values)
