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


def tokens_at(hidden: Tensor, read: Tensor) -> Tensor:
    """(B, R, width): the tokens `read` (B, R) of (B, L, width)."""
    return hidden.gather(1, read[..., None].expand(-1, -1, hidden.shape[-1]))


def _heads(attention: Any, projected: Tensor) -> Tensor:
    """(B, L, H * d) -> (B, H, L, d)."""
    return projected.unflatten(-1, (-1, attention.head_dim)).transpose(1, 2)  # type: ignore[no-any-return]


def _for_queries(keys: Tensor, heads: int) -> Tensor:
    """Keys or values (B, H', K, d), each repeated for the query heads that look at it: (B, `heads`, K, d)."""
    return keys if keys.shape[1] == heads else keys.repeat_interleave(heads // keys.shape[1], dim=1)


def _rotate(llm: LlamaModel, states: Tensor, positions: Tensor) -> Tensor:
    """Queries or keys (B, H, L, d) turned to their `positions` (B, L)."""
    return apply_rotary_pos_emb(states, states, *llm.rotary_emb(states, positions))[0]  # type: ignore[no-any-return]


def _attention_rows(llm: LlamaModel, index: int, hidden: Tensor, read: Tensor, positions: Tensor, keys: Tensor) -> Tensor:
    """(B, H, R, K): probabilities of the tokens `read` (B, R) over the keys (B, H', K, d) up to themselves.

    In plain products: torch's fused CPU attention rounds a lone query differently from place to place in the batch.
    """
    attention = llm.layers[index].self_attn
    normed = llm.layers[index].input_layernorm(tokens_at(hidden, read))
    query = _rotate(llm, _heads(attention, attention.q_proj(normed)), positions.gather(1, read))
    keys = _for_queries(keys, query.shape[1])
    behind = torch.arange(keys.shape[2], device=hidden.device) > (read + keys.shape[2] - hidden.shape[1])[..., None]
    logits = (query @ keys.transpose(-1, -2) * attention.scaling).masked_fill(behind[:, None], -torch.inf)
    return logits.to(torch.promote_types(logits.dtype, torch.float32)).softmax(-1).to(hidden.dtype)


def attention_row(llm: LlamaModel, index: int, hidden: Tensor, last: Tensor, positions: Tensor, keys: Tensor) -> Tensor:
    """(B, H, K): probabilities of one token per row over the keys up to itself in layer `index`.

    Args:
        hidden: (B, L, width) input of that layer; its tokens are the last L of the keys.
        last: (B,) the token, a position in `hidden`; what stands behind it is fill.
        positions: (B, L) position ids.
        keys: (B, H', K, d) rotated keys of all tokens.
    """
    scores = _attention_rows(llm, index, hidden, last[:, None], positions, keys)[:, :, 0]
    gather = getattr(llm, "gather_heads", None)  # where every process of a team has some of the heads
    return gather(scores) if gather else scores


def layer_at(llm: LlamaModel, index: int, hidden: Tensor, positions: Tensor, cache: Any, read: Tensor) -> Tensor:
    """(B, R, width): output of layer `index` at the tokens `read`; of the others only keys and values are computed.

    Args:
        hidden: (B, L, width) input of the layer.
        positions: (B, L) position ids.
        cache: takes the new keys and values, and answers with those of all tokens up to these.
        read: (B, R) positions in `hidden`; R may be 0, where later rows need the keys and values alone.
    """
    layer = llm.layers[index]
    attention = layer.self_attn
    normed = layer.input_layernorm(hidden)
    key = _rotate(llm, _heads(attention, attention.k_proj(normed)), positions)
    keys, values = cache.update(key, _heads(attention, attention.v_proj(normed)), index)
    states = tokens_at(hidden, read)
    if not read.shape[1]:
        return states
    scores = _attention_rows(llm, index, hidden, read, positions, keys)
    mixed = scores @ _for_queries(values, scores.shape[1])
    states = states + attention.o_proj(mixed.transpose(1, 2).flatten(2))
    return states + layer.mlp(layer.post_attention_layernorm(states))  # type: ignore[no-any-return]


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
                scores = attention_row(llm, index, before_layer, ends, positions, read.seen)[..., visual]
                kept = torch.stack([pruner.keep(row, keep) for row in scores])
                before = torch.arange(visual_start, device=hidden.device).expand(batch, -1)
                after = torch.arange(visual_start + visual_count, length, device=hidden.device).expand(batch, -1)
                stay = torch.cat([before, kept + visual_start, after], dim=1)
                hidden = tokens_at(hidden, stay)
                positions = positions.gather(1, stay)
                rotary = llm.rotary_emb(hidden, positions)
    return LayerRun(llm.norm(hidden), positions, tuple(lengths), kept, scores)
