"""A short loop over Llama's decoder layers that can drop visual tokens on the way.

Layers run with whatever attention they were built with; the one attention row that a layer-stage pruner reads is computed
beside them from the rotated queries and keys.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import LlamaModel
from transformers.cache_utils import Cache
from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

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


class _Keys:
    """Stands in for one layer's cache and remembers the rotated keys, so that a pruner's row needs no second projection."""

    def __init__(self, cache: Cache | None) -> None:
        self.cache = cache
        self.seen = torch.empty(0)

    def update(self, keys: Tensor, values: Tensor, index: int) -> tuple[Tensor, Tensor]:
        """The layer's keys (B, H_kv, L, head width) and values, stored too where there is a cache."""
        self.seen = keys
        return self.cache.update(keys, values, index) if self.cache is not None else (keys, values)


def last_row_attention(
    llm: LlamaModel, index: int, final: Tensor, keys: Tensor, rotary: tuple[Tensor, Tensor], visual: slice, last: Tensor
) -> Tensor:
    """(B, H, n): probabilities of the last token over all keys up to itself in layer `index`, cut to the visual span.

    Args:
        final: (B, width) input of that layer at the last token.
        keys: (B, H_kv, L, head width) rotated keys of that layer.
        last: (B,) position of each row's last token; what stands behind it is fill.
    """
    layer = llm.layers[index]
    attention, rows = layer.self_attn, torch.arange(len(final), device=final.device)
    query = attention.q_proj(layer.input_layernorm(final)[:, None]).unflatten(-1, (-1, attention.head_dim)).transpose(1, 2)
    cos, sin = (part.expand(len(final), -1, -1)[rows, last][:, None] for part in rotary)
    query, _ = apply_rotary_pos_emb(query, query, cos, sin)
    grouped = query.unflatten(1, (keys.shape[1], -1)).flatten(2, 3)  # query heads that share keys stand together
    logits = (grouped @ keys.transpose(-1, -2)).flatten(1, 2) * attention.scaling
    fill = torch.arange(keys.shape[2], device=keys.device) > last[:, None]
    logits = logits.masked_fill(fill[:, None], -torch.inf)
    return logits.to(torch.promote_types(logits.dtype, torch.float32)).softmax(-1)[..., visual].to(final.dtype)


def causal_mask(llm: LlamaModel, hidden: Tensor, past: int) -> Tensor | None:
    """Additive mask where attention is not causal by itself: eager, and SDPA for several tokens behind a cache."""
    length = hidden.shape[1]
    kind = llm.config._attn_implementation
    if kind == "flash_attention_2" or (kind == "sdpa" and (past == 0 or length == 1)):
        return None
    blocked = torch.ones(length, past + length, dtype=torch.bool, device=hidden.device).triu(past + 1)
    return torch.zeros_like(blocked, dtype=hidden.dtype).masked_fill(blocked, torch.finfo(hidden.dtype).min)[None, None]


def run_layers(
    llm: LlamaModel,
    hidden: Tensor,
    *,
    visual_start: int = 0,
    visual_count: int = 0,
    pruner: LayerPruner | None = None,
    keep: int = 0,
    cache: Cache | None = None,
    first_position: int = 0,
    last: Tensor | None = None,
    stage: Stage = nullcontext,
) -> LayerRun:
    """Run the language model on embeddings.

    Args:
        hidden: (B, L, width) input embeddings.
        visual_start, visual_count: the visual span.
        pruner: cuts the span to `keep` tokens before its layer; kept tokens keep their position ids (FastV).
        cache: keys and values are appended to it; layers behind the cut store fewer.
        first_position: position id of the first token, for decoding steps.
        last: (B,) position of each row's last token, if fill stands behind it.
        stage: "pruner" is entered around what the pruner costs.
    """
    batch, length = hidden.shape[:2]
    positions = torch.arange(first_position, first_position + length, device=hidden.device).expand(batch, -1)
    rotary = llm.rotary_emb(hidden, positions)
    lengths: list[int] = []
    kept = scores = None
    for index, layer in enumerate(llm.layers):
        past = cache.get_seq_length(index) if cache is not None else 0
        lengths.append(hidden.shape[1])
        read = _Keys(cache) if pruner is not None and index == pruner.layer - 1 else None
        before_layer = hidden
        hidden = layer(
            hidden,
            attention_mask=causal_mask(llm, hidden, past),
            position_embeddings=rotary,
            past_key_values=cache if read is None else read,
            use_cache=cache is not None,
        )
        if pruner is not None and read is not None:
            with stage("pruner"):
                visual = slice(visual_start, visual_start + visual_count)
                ends = last if last is not None else torch.full((batch,), length - 1, device=hidden.device)
                final = before_layer[torch.arange(batch, device=hidden.device), ends]
                scores = last_row_attention(llm, index, final, read.seen, rotary, visual, ends)
                kept = torch.stack([pruner.keep(row, keep) for row in scores])
                before = torch.arange(visual_start, device=hidden.device).expand(batch, -1)
                after = torch.arange(visual_start + visual_count, length, device=hidden.device).expand(batch, -1)
                stay = torch.cat([before, kept + visual_start, after], dim=1)
                hidden = hidden.gather(1, stay[..., None].expand(-1, -1, hidden.shape[-1]))
                positions = positions.gather(1, stay)
                rotary = llm.rotary_emb(hidden, positions)
    return LayerRun(llm.norm(hidden), positions, tuple(lengths), kept, scores)
