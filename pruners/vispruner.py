"""VisPruner: half by class attention, half by throwing away, round by round, tokens that have a
near-duplicate."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import torch

from pruners.base import Need, Pruner, Selection, UserError, VisualTokens, precise, top
from pruners.registry import register

if TYPE_CHECKING:
    from torch import Tensor

PER_ROUND = 8


@register
@dataclass(frozen=True)
class VisPruner(Pruner):
    """VisPruner at any budget.

    The released code fails where the list of candidates is odd or fewer than eight are to stay; here the
    first half is one longer then, and a round drops no more than the first half holds. Wherever the released
    code runs, both agree. Similarities are float64: a last-bit difference changes every later round.

    Args:
        ratio: part of the budget that attention chooses.
    """

    ratio: float = 0.5
    name: ClassVar[str] = "vispruner"
    reference: ClassVar[str] = "VisPruner, ICCV 2025, https://arxiv.org/abs/2412.01818"
    needs = frozenset({Need("cls_attention", -2)})

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.ratio <= 1:
            raise UserError(f"vispruner: ratio lies between 0 and 1, not {self.ratio!r}.")

    def ranked(self, tokens: VisualTokens) -> Tensor:
        """Patches by falling mean class attention."""
        return top(precise(tokens.cls_attention(-2)).mean(0)[1:], len(tokens))

    def select(self, tokens: VisualTokens, budget: int) -> Selection:
        """Important and diverse patches together, in raster order."""
        rank, important = self.ranked(tokens), int(budget * self.ratio)
        diverse = budget - important
        left = rank[important:]
        if diverse == 0:
            left = left[:0]
        unit = torch.nn.functional.normalize(tokens.patches.double(), dim=1)
        similarity = unit @ unit.T
        while len(left) > diverse:
            a, b = left[0::2], left[1::2]
            drop = min(PER_ROUND, len(left) - diverse, len(a))
            closest = similarity.take(a[:, None] * len(unit) + b).amax(1)
            left = torch.cat([a[closest.argsort(descending=True, stable=True)[drop:]], b])
        return Selection(torch.cat([rank[:important], left]).sort().values)
