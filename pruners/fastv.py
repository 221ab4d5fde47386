"""FastV: after a couple of language-model layers, keep the visual tokens that the last prompt token looks
at."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

from pruners.base import ImpossibleBudget, LayerPruner, UserError, precise, top
from pruners.registry import register

if TYPE_CHECKING:
    from torch import Tensor


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

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.layer < 1:
            raise UserError(f"fastv: layer is a whole number from 1 on, not {self.layer!r}.")

    @property
    def budget_kind(self) -> str:
        """As the parameter `budget` says."""
        return self.budget

    def check(self, budget: int, patches: int, num_layers: int) -> None:
        """Also refuse a mean below what the uncut layers alone cost."""
        super().check(budget, patches, num_layers)
        if self.tokens_after(budget, patches, num_layers) < 1:
            least = next(
                mean
                for mean in range(budget, patches + 1)
                if self.tokens_after(mean, patches, num_layers) >= 1
            )
            raise ImpossibleBudget(
                f"{self.spec()} cannot average {budget} tokens: {self.layer} of {num_layers} layers see all {patches}, "
                f"so the least mean is {least}."
            )

    def tokens_after(self, budget: int, patches: int, num_layers: int) -> int:
        """The budget itself, or m of (K n + (L - K) m) / L = budget."""
        if self.budget == "final":
            return budget
        return round((budget * num_layers - self.layer * patches) / (num_layers - self.layer))

    def keep(self, attention: Tensor, count: int) -> Tensor:
        """The `count` visual tokens with the highest head-mean attention, in sequence order."""
        return top(precise(attention).mean(0), count).sort().values
