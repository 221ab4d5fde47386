"""FasterVLM: the patches that the class token looks at."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from pruners.base import Need, ScorePruner, View, precise
from pruners.registry import register

if TYPE_CHECKING:
    from torch import Tensor


@register
@dataclass(frozen=True)
class FasterVLM(ScorePruner):
    """FasterVLM: the highest class attention of the layer that the projector reads; raster order."""

    name: ClassVar[str] = "fastervlm"
    reference: ClassVar[str] = "FasterVLM, 2024, https://arxiv.org/abs/2412.01818"
    needs = frozenset({Need("cls_attention", -2)})

    def score(self, view: View) -> Tensor:
        """(N,) class attention, mean over heads."""
        return precise(view.cls_attention(-2)).mean(0)[1:]
