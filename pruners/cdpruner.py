"""CDPruner: a determinantal point process, which wants tokens that differ, conditioned on the question."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

import torch

from pruners.base import (
    LLM_PATCHES,
    PROJECTED_PATCHES,
    TEXT_EMBEDS,
    Pruner,
    Selection,
    View,
    cosines,
    precise,
    top,
)
from pruners.registry import register

if TYPE_CHECKING:
    from torch import Tensor

EPSILON = 1e-6  # what the least relevant token has above nothing


@register
@dataclass(frozen=True)
class CDPruner(Pruner):
    """CDPruner, as the released code does it: greedy search for the largest determinant of r_i S_ij r_j, with
    the cosine S between projected tokens and the relevance r.

    Beyond the rank of the features the released code divides rounding errors by their roots, and keeps fewer
    tokens than were asked; here the most relevant of the others fill up then. Where all patches are equally
    relevant, difference alone decides. Relevance is scaled within a view, never over a batch.

    Args:
        relevance: "negative" as in the code, where the patches that look least like the question are the
            relevant ones; "positive" as in the paper. With several questions, the mean over them.
    """

    relevance: Literal["negative", "positive"] = "negative"
    name: ClassVar[str] = "cdpruner"
    reference: ClassVar[str] = "CDPruner, NeurIPS 2025, https://arxiv.org/abs/2506.10967"
    needs = frozenset({LLM_PATCHES, PROJECTED_PATCHES, TEXT_EMBEDS})

    def weights(self, view: View) -> Tensor:
        """(N,) relevance r, scaled to 0..1 and above 0."""
        patches, text = (
            torch.nn.functional.normalize(precise(x), dim=1)
            for x in (view.projected_patches, view.text_embeds)
        )
        cosine = (patches @ text.T).mean(1)
        score = -cosine if self.relevance == "negative" else cosine
        spread = score.max() - score.min()
        return torch.where(spread > 0, (score - score.min() + EPSILON) / spread, torch.ones_like(score))

    def picked(self, view: View, budget: int) -> Tensor:
        """(budget,) patches in the order of choice: the largest r^2 d, where d is what is left of a token of
        length 1 beside those that were chosen (S = L L^T, one row of L^T per choice)."""
        similarity, weights = cosines(view.llm_patches), self.weights(view)
        square = weights.square().to(similarity.dtype)
        left, rows = similarity.diagonal().clone(), torch.empty_like(similarity[:budget])
        nothing = max(1e-9, 10 * torch.finfo(left.dtype).eps)  # left by rounding: the rank is used up
        picks: list[int] = []
        for k in range(budget):
            pick = int((square * left).argmax())
            if left[pick] <= nothing:
                break
            rows[k] = (similarity[pick] - rows[:k, pick] @ rows[:k]) / left[pick].sqrt()
            left -= rows[k].square()
            left[pick] = -torch.inf
            picks.append(pick)
        chosen = torch.tensor(picks, dtype=torch.long, device=left.device)
        fill = top(weights.index_fill(0, chosen, -torch.inf), budget - len(picks))
        return torch.cat([chosen, fill])

    def select(self, view: View, budget: int) -> Selection:
        """The chosen patches in raster order."""
        return Selection(self.picked(view, budget).sort().values)
