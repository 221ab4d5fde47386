"""TRIM: rank patches by CLIP similarity to the question, add one token with the mean of the rest."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

import torch

from pruners.base import (
    POOLED,
    PROJECTED_PATCHES,
    TEXT_EMBEDS,
    Pruner,
    Selection,
    VisualTokens,
    others,
    precise,
    top,
)
from pruners.registry import register

if TYPE_CHECKING:
    from torch import Tensor


@register
@dataclass(frozen=True)
class Trim(Pruner):
    """TRIM, as the released code does it with a fixed ratio: the lowest dot products stay.

    A budget is met as budget - 1 patches and the mean token (the code's ratio (budget - 0.5) / N); the code's
    adaptive count, the outliers of the shares, meets none and is left out. With several questions, which the
    released code refuses, the patches' shares are averaged over them.

    Args:
        keep: "lowest" as in the code, "highest" as in the paper.
        similarity: "dot" as in the code, "cosine" as in the paper.
    """

    keep: Literal["lowest", "highest"] = "lowest"
    similarity: Literal["dot", "cosine"] = "dot"
    name: ClassVar[str] = "trim"
    reference: ClassVar[str] = "TRIM, COLING 2025, https://arxiv.org/abs/2409.10994"
    needs = frozenset({PROJECTED_PATCHES, TEXT_EMBEDS})

    def shares(self, tokens: VisualTokens) -> Tensor:
        """(N,) softmax over patches of the (negated) similarity, mean over questions."""
        patches, text = precise(tokens.projected_patches), precise(tokens.text_embeds)
        if self.similarity == "cosine":
            patches, text = (
                torch.nn.functional.normalize(patches, dim=1),
                torch.nn.functional.normalize(text, dim=1),
            )
        sign = -1 if self.keep == "lowest" else 1
        return (sign * text @ patches.T).softmax(1).mean(0)

    def select(self, tokens: VisualTokens, budget: int) -> Selection:
        """budget - 1 patches in raster order, then the mean of all others."""
        kept = top(self.shares(tokens), budget - 1).sort().values
        rest = precise(tokens.patches.index_select(0, others(kept, len(tokens))))
        mean = rest.mean(0, keepdim=True).to(tokens.patches.dtype)
        features = torch.cat([tokens.patches.index_select(0, kept), mean])
        return Selection(torch.cat([kept, kept.new_tensor([POOLED])]), features)
