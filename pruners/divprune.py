"""DivPrune: the subset whose tokens are farthest from each other, chosen greedily."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import torch

from pruners.base import LLM_PATCHES, Pruner, Selection, View, cosines
from pruners.registry import register

if TYPE_CHECKING:
    from torch import Tensor

SAME = 1e-6  # cosine distances below this are rounding: the two are duplicates


@register
@dataclass(frozen=True)
class DivPrune(Pruner):
    """DivPrune, as the released code does it: first the token whose nearest other one is farthest, then
    always the one that is farthest from all chosen ones.

    Where fewer tokens differ than are to stay, the released code chooses one of them again and again, and a
    token of norm 0 makes its distances NaN. Here a token is chosen once, the lowest index first among
    duplicates. The released code computes in the model's precision, in which the choice is chaotic; here
    distances are float32 or better.
    """

    name: ClassVar[str] = "divprune"
    reference: ClassVar[str] = "DivPrune, CVPR 2025, https://arxiv.org/abs/2503.02175"
    needs = frozenset({LLM_PATCHES})

    def picked(self, view: View, budget: int) -> Tensor:
        """(budget,) patches in the order of choice, the first one where several are equally far."""
        distance = 1 - cosines(view.llm_patches)
        distance.masked_fill_(distance < SAME, 0).fill_diagonal_(torch.inf)
        pick = distance.amin(0).argmax(0, keepdim=True)
        picks, nearest = [pick], torch.full_like(distance[0], torch.inf)
        for _ in range(budget - 1):  # a running minimum over the chosen ones, which are out
            nearest = torch.minimum(nearest, distance.index_select(0, pick)[0])
            nearest = nearest.index_fill_(0, pick, -torch.inf)
            pick = nearest.argmax(0, keepdim=True)
            picks.append(pick)
        return torch.cat(picks)

    def select(self, view: View, budget: int) -> Selection:
        """The chosen patches in raster order."""
        return Selection(self.picked(view, budget).sort().values)
