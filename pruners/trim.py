"""TRIM: rank patches by CLIP similarity to the question, add one token with the mean of the rest."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from pruners.base import (
    POOLED,
    PROJECTED_PATCHES,
    TEXT_EMBEDS,
    Pruner,
    Selection,
    UserError,
    VisualTokens,
    precise,
    top,
)
from pruners.registry import register


@register
@dataclass(frozen=True)
class Trim(Pruner):
    """TRIM, as the released code does it: the lowest dot products stay.

    With several questions, which the released code refuses, the patches' shares are averaged over them.

    Args:
        keep: "lowest" as in the code, "highest" as in the paper.
        similarity: "dot" as in the code, "cosine" as in the paper.
    """

    keep: Literal["lowest", "highest"] = "lowest"
    similarity: Literal["dot", "cosine"] = "dot"
    name: ClassVar[str] = "trim"
    reference: ClassVar[str] = "TRIM, COLING 2025, https://arxiv.org/abs/2409.10994"
    needs = frozenset({PROJECTED_PATCHES, TEXT_EMBEDS})

    def __post_init__(self) -> None:
        if self.keep not in ("lowest", "highest") or self.similarity not in ("dot", "cosine"):
            raise UserError(f"{self.spec()}: keep is 'lowest' or 'highest', similarity is 'dot' or 'cosine'.")

    def shares(self, tokens: VisualTokens) -> Tensor:
        """(N,) softmax over patches of the (negated) similarity, mean over questions."""
        patches, text = precise(tokens.projected_patches), precise(tokens.text_embeds)
        if self.similarity == "cosine":
            patches, text = F.normalize(patches, dim=1), F.normalize(text, dim=1)
        sign = -1 if self.keep == "lowest" else 1
        return (sign * text @ patches.T).softmax(1).mean(0)

    def select(self, tokens: VisualTokens, budget: int) -> Selection:
        """budget - 1 patches in raster order, then the mean of all others."""
        kept = top(self.shares(tokens), budget - 1).sort().values
        rest = torch.ones(len(tokens), dtype=torch.bool, device=kept.device).index_fill_(0, kept, False)
        mean = precise(tokens.patches[rest]).mean(0, keepdim=True).to(tokens.patches.dtype)
        return Selection(torch.cat([kept, kept.new_tensor([POOLED])]), torch.cat([tokens.patches[kept], mean]))
