"""FastV: after a couple of language-model layers, keep the visual tokens that the last prompt token looks
at."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from pruners.base import LayerPruner, LayerView, Selection, UserError, precise, top
from pruners.registry import register
from pruners.views import LLM_ATTENTION


@register
@dataclass(frozen=True)
class FastV(LayerPruner):
    """FastV, the KV-cache aware official variant: kept tokens keep their original positions.

    Args:
        layer: K, the index of the first layer that sees fewer tokens; the scores come from layer K-1.
        budget: "final" counts the tokens after the cut; "mean" counts the average over all layers, as papers
            that compare with methods pruning before the language model do.
    """

    layer: int = 2
    budget: Literal["final", "mean"] = "final"
    name: ClassVar[str] = "fastv"
    reference: ClassVar[str] = "FastV, ECCV 2024, https://arxiv.org/abs/2403.06764"
    needs = frozenset({LLM_ATTENTION})

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.layer < 1:
            raise UserError(f"fastv: layer is a whole number from 1 on, not {self.layer!r}.")

    @property
    def budget_kind(self) -> str:
        """As the parameter `budget` says."""
        return self.budget

    def cut(self, tokens: LayerView, count: int) -> Selection:
        """The `count` visual tokens with the highest head-mean attention, in sequence order."""
        row = tokens.attention("last")[:, 0, tokens.visual]
        return Selection(top(precise(row).mean(0), count).sort().values)
