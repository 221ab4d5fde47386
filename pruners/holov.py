"""HoloV: every part of the image gets a share of the budget, so that context survives everywhere."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

import torch

from pruners.base import LLM_PATCHES, Need, Pruner, Selection, UserError, View, precise, top
from pruners.registry import register

if TYPE_CHECKING:
    from torch import Tensor

SCALE, DIVERSITY, EPSILON = 1000, 0.09, 1e-6  # of attention and of diversity in a token's score


@register
@dataclass(frozen=True)
class HoloV(Pruner):
    """HoloV, as the released code does it: crops are runs of patches in raster order, a crop's share of the
    budget follows its mean score, and attention alone chooses inside a crop.

    Where a crop's share is larger than the crop, the released code fills up with rows of zeros. Such a row is
    no patch, and it would be counted as a token that was kept; here the patches with most attention among
    those that are left take the place of these rows, behind all others. The diversity term is rescaled to a
    crop's mean attention, so that it changes no share unless a crop's patches are all but equal; it is
    computed nevertheless.

    Args:
        crops: how many, 16 as in the code for LLaVA; "rule" takes as many as that for Qwen, int((1024 / 576)
            N / budget). Never more than there are patches.
    """

    crops: int | Literal["rule"] = 16
    name: ClassVar[str] = "holov"
    reference: ClassVar[str] = "HoloV, NeurIPS 2025, https://arxiv.org/abs/2510.02912"
    needs = frozenset({LLM_PATCHES, Need("cls_attention", -2)})

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.crops != "rule" and self.crops < 1:
            raise UserError(f"holov: crops is 1 or more, or 'rule', not {self.crops!r}.")

    def runs(self, patches: int, budget: int) -> tuple[tuple[int, int], ...]:
        """(crops, patches of each): first those that are one patch longer."""
        crops = int(1024 / 576 * patches / budget) if self.crops == "rule" else self.crops
        crops = max(1, min(crops, patches))
        size, longer = divmod(patches, crops)
        return tuple(run for run in ((longer, size + 1), (crops - longer, size)) if run[0])

    def scores(self, features: Tensor, attention: Tensor) -> Tensor:
        """(crops,) mean score of crops of k patches: features (crops, k, width), attention (crops, k)."""
        size = attention.shape[1]
        if size == 1:
            return attention[:, 0]
        unit = features / (features.norm(dim=-1, keepdim=True) + EPSILON)
        similarity = unit @ unit.transpose(1, 2)
        similarity.diagonal(dim1=1, dim2=2).zero_()
        mean = similarity.sum(2, keepdim=True) / (size - 1)
        variance = (similarity - mean).square().sum(2) / (size - 1)
        scaled = SCALE * attention
        weight = DIVERSITY * scaled.mean(1) / (variance.mean(1) + EPSILON)
        return (scaled + weight[:, None] * variance).mean(1)

    def shared(self, view: View, budget: int) -> tuple[Tensor, Tensor]:
        """Kept patches, crop by crop, by falling attention inside (a whole crop in raster order), and how
        many every crop gives; where crops are too small, fewer than `budget`."""
        features, attention = precise(view.llm_patches), self.attention(view)
        runs = self.runs(len(view), budget)
        patches = torch.arange(len(view), device=attention.device)
        parts = [
            part.unflatten(0, run)
            for part, run in zip(patches.split([crops * size for crops, size in runs]), runs, strict=True)
        ]
        score = torch.cat([self.scores(features[crops], attention[crops]) for crops in parts])
        share = score / (score.sum() + EPSILON)
        room = (share * budget).floor().long()
        room[top(share, budget - int(room.sum()))] += 1
        kept, counts = [], []
        for crops, asked in zip(parts, room.split([len(crops) for crops in parts]), strict=True):
            size = crops.shape[1]
            count = asked.clamp(max=size)[:, None]
            order = crops.gather(1, top(attention[crops], size))
            order = torch.where(count == size, crops, order)
            kept.append(order[torch.arange(size, device=order.device) < count])
            counts.append(count[:, 0])
        return torch.cat(kept), torch.cat(counts)

    def attention(self, view: View) -> Tensor:
        """(N,) class attention, mean over heads."""
        return precise(view.cls_attention(-2)).mean(0)[1:]

    def select(self, view: View, budget: int) -> Selection:
        """Crop by crop, then what fills up by falling attention."""
        kept, _ = self.shared(view, budget)
        left = self.attention(view).index_fill(0, kept, -torch.inf)
        return Selection(torch.cat([kept, top(left, budget - len(kept))]))
