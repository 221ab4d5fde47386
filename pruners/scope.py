"""SCOPE: tokens that the class token looks at and that cover what is not covered yet, chosen greedily."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

import torch

from pruners.base import Need, Pruner, Selection, UserError, View, cosines, precise
from pruners.registry import register

if TYPE_CHECKING:
    from torch import Tensor


@register
@dataclass(frozen=True)
class Scope(Pruner):
    """SCOPE, as the released code does it: the token with the largest gain in coverage times saliency is
    next.

    Coverage of a patch is its largest cosine to a chosen one, and 0 at least. A patch of norm 0, which makes
    the released code's numbers NaN, covers nothing and cannot be covered.

    Args:
        alpha: exponent of the saliency, 0 to 100; 0 looks at coverage alone.
        combine: "multi" multiplies gain and saliency; "add" adds them, saliency summed over heads.
    """

    alpha: float = 1.0
    combine: Literal["multi", "add"] = "multi"
    name: ClassVar[str] = "scope"
    reference: ClassVar[str] = "SCOPE, NeurIPS 2025, https://arxiv.org/abs/2510.24214"
    needs = frozenset({Need("cls_attention", -2)})

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.alpha <= 100:
            raise UserError(f"scope: alpha lies between 0 and 100, not {self.alpha!r}.")

    def picked(self, view: View, budget: int) -> Tensor:
        """(budget,) patches in the order of choice, the lowest index first among equals."""
        saliency = precise(view.cls_attention(-2)).sum(0)[1:].double() ** self.alpha
        # what j could still add to the coverage of i: max(0, cos_ij - cover_i), all of it at first
        missing = cosines(view.patches).double().clamp_(min=0)
        gain, out, picks = missing.sum(0), torch.zeros_like(saliency), []
        for _ in range(budget):
            score = gain * saliency if self.combine == "multi" else gain + saliency
            pick = (score + out).argmax(0, keepdim=True)
            picks.append(pick)
            out.index_fill_(0, pick, -torch.inf)
            more = missing.index_select(1, pick)[:, 0]
            rows = more.nonzero()[:, 0]  # only these are covered better than before
            before = missing[rows]
            after = (before - more[rows, None]).clamp_(min=0)
            gain = gain - (before - after).sum(0)
            missing[rows] = after
        return torch.cat(picks)

    def select(self, view: View, budget: int) -> Selection:
        """The chosen patches in raster order."""
        return Selection(self.picked(view, budget).sort().values)
