"""A Llama as costs ask for it: its layers over ids and visual tokens, loaded or as shapes alone."""

from __future__ import annotations

from contextlib import nullcontext

import torch
from torch import Tensor
from transformers import LlamaConfig, LlamaModel

from backbones.costs import Layers
from backbones.parts import llama
from backbones.parts.contexts import Context, whole_positions
from backbones.parts.cuts import Cutting
from backbones.parts.faithful import LayerRun, Stage, run_layers


def prefill(
    llm: LlamaModel,
    before: Tensor,
    visual: Tensor,
    after: Tensor,
    cut: Cutting | None = None,
    context: Context | None = None,
    stage: Stage = nullcontext,
) -> LayerRun:
    """The language model's layers over ids (B, a), visual tokens (B, n, width) and ids (B, b).

    Args:
        cut: what leaves every row on the way.
        context: which patches the tokens are, where they stand, of how many views, and the tail that is among
            the n; without, the first n of one view.
    """
    embeds = torch.cat([llama.embed_ids(llm, before), visual, llama.embed_ids(llm, after)], dim=1)
    rows, start, count = len(visual), before.shape[1], visual.shape[1]
    patches = positions = None
    views, tail = (context.views, context.tail) if context is not None else (1, 0)
    if context is not None:
        positions = whole_positions([context] * rows, start, after.shape[1], visual.device)
        patches = context.patches.expand(rows, -1)
    return run_layers(
        llm,
        embeds,
        visual_start=start,
        visual_count=count - tail,
        views=views,
        tail=tail,
        cuttings=[cut] * rows if cut is not None else (),
        patches=patches,
        positions=positions,
        stage=stage,
    )


class LlamaLayers(Layers):
    """The first `count` layers of a Llama of these numbers, with new weights."""

    def __init__(self, config: LlamaConfig, count: int, attn: str, dtype: torch.dtype) -> None:
        short = LlamaConfig.from_dict(config.to_dict() | {"num_hidden_layers": count})
        before = torch.get_default_dtype()
        torch.set_default_dtype(dtype)
        try:
            self._llm = llama.build_llama(short, attn).eval().requires_grad_(False)
        finally:
            torch.set_default_dtype(before)

    def run(self, hidden: Tensor) -> LayerRun:
        """All of them over states (1, n, width), nothing pruned."""
        return run_layers(self._llm, hidden)

    def prefill(
        self,
        before: Tensor,
        visual: Tensor,
        after: Tensor,
        cut: Cutting | None = None,
        context: Context | None = None,
        stage: Stage = nullcontext,
    ) -> tuple[int, ...]:
        """Lengths of a pass; arguments are those of `prefill`."""
        return prefill(self._llm, before, visual, after, cut, context, stage).lengths
