"""The language model over embeddings, dropping visual tokens on the way: the faithful path.

Layers run with whatever attention the model was built with; the one attention row that a layer-stage pruner
reads is computed beside them from the rotated queries and keys.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import LlamaModel

from backbones.parts import llama
from backbones.parts.llama import Past, tokens_at
from pruners import checks
from pruners.base import LayerPruner

Stage = Callable[[str], AbstractContextManager[Any]]  # entered around a named part of the work, for meters


@dataclass(frozen=True)
class LayerRun:
    """Result of a pass.

    Attributes:
        hidden: (B, L', width) after the final norm.
        positions: (B, L') position ids of what is left; gaps stay where tokens were dropped.
        lengths: sequence length that every layer saw.
        kept: (B, m) sorted visual indices left by the pruner, None without one.
        scores: (B, H, n) attention rows that the pruner got, None without one.
    """

    hidden: Tensor
    positions: Tensor
    lengths: tuple[int, ...]
    kept: Tensor | None = None
    scores: Tensor | None = None


def run_layers(
    llm: LlamaModel,
    hidden: Tensor,
    *,
    visual_start: int = 0,
    visual_count: int = 0,
    pruner: LayerPruner | None = None,
    keep: int = 0,
    past: Past | None = None,
    first_position: int = 0,
    last: Tensor | None = None,
    stage: Stage = nullcontext,
) -> LayerRun:
    """Run the language model on embeddings.

    Args:
        hidden: (B, L, width) input embeddings.
        visual_start, visual_count: the visual span.
        pruner: cuts the span to `keep` tokens before its layer; kept tokens keep their position ids (FastV).
        past: has earlier tokens, and takes these tokens' keys and values; layers behind the cut take fewer.
        first_position: position id of the first token, for decoding steps.
        last: (B,) position of each row's last token, if fill stands behind it.
        stage: "pruner" is entered around what the pruner costs.
    """
    batch, length = hidden.shape[:2]
    positions = torch.arange(first_position, first_position + length, device=hidden.device).expand(batch, -1)
    by = llama.rotary(llm, positions, hidden.dtype)
    lengths: list[int] = []
    kept = scores = None
    for layer in llama.layers(llm):
        lengths.append(hidden.shape[1])
        if pruner is None or layer.index != pruner.layer - 1:
            hidden = layer(hidden, by, past)
            continue
        entered, here = hidden, past if past is not None else Past()
        hidden = layer(entered, by, here)
        with stage("pruner"):
            visual = slice(visual_start, visual_start + visual_count)
            ends = last if last is not None else torch.full((batch,), length - 1, device=hidden.device)
            scores = layer.row(entered, ends, by, here.layers[layer.index][0])[..., visual]
            kept = torch.stack([checks.keep(pruner, row.nan_to_num(), keep) for row in scores])
            before = torch.arange(visual_start, device=hidden.device).expand(batch, -1)
            after = torch.arange(visual_start + visual_count, length, device=hidden.device).expand(batch, -1)
            stay = torch.cat([before, kept + visual_start, after], dim=1)
            hidden = tokens_at(hidden, stay)
            positions = positions.gather(1, stay)
            by = llama.rotary(llm, positions, hidden.dtype)
        del entered, here
    return LayerRun(llama.norm(llm, hidden), positions, tuple(lengths), kept, scores)
