"""Attention itself, as every model here computes it: eager, torch's fused kernels, or the flash_attn
package's.

Order of operations and precision are those of the released models in transformers, so that fused or not,
digits stay theirs.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F


def implementation(config: Any) -> str:
    """ "eager", "sdpa" or "flash_attention_2": what a transformers configuration was built with."""
    return str(config._attn_implementation)


def for_queries(keys: Tensor, heads: int) -> Tensor:
    """Keys or values (B, H', K, d), each repeated for the query heads that look at it: (B, `heads`, K, d)."""
    return keys if keys.shape[1] == heads else keys.repeat_interleave(heads // keys.shape[1], dim=1)


def attend(
    kind: str,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    scale: float,
    causal: bool,
    window: int | None = None,
) -> Tensor:
    """What L queries gather from K keys.

    Args:
        kind: as `implementation` says.
        query: (B, H, L, d).
        key, value: (B, H', K, d) with H a multiple of H'.
        causal: the queries are the last L of the K tokens and look at none behind themselves.
        window: of a causal query, the most keys that it looks at, its own the last of them; None for all.

    Returns:
        (B, L, H * d).
    """
    length, heads = query.shape[2], query.shape[1]
    if window is not None and causal:  # no query looks at what every window has left behind
        first = max(0, int(key.shape[2] - length - window + 1))
        key, value = key[:, :, first:], value[:, :, first:]
        window = window if key.shape[2] > window else None
    if kind == "flash_attention_2":
        from flash_attn import flash_attn_func

        how = {} if window is None else {"window_size": (window - 1, 0)}
        mixed = flash_attn_func(
            *(x.transpose(1, 2) for x in (query, key, value)), softmax_scale=scale, causal=causal, **how
        )
        return mixed.flatten(2)  # type: ignore[no-any-return]
    key, value = for_queries(key, heads), for_queries(value, heads)
    past = key.shape[2] - length
    # torch's own causal mask stands at the upper left, which is right without earlier tokens alone
    alone = kind == "sdpa" and bool(past == 0) and window is None
    blocked = _unseen(query, past, window) if causal and not alone and bool(length > 1) else None
    if kind == "sdpa":
        own = causal and blocked is None and bool(length > 1)
        mixed = F.scaled_dot_product_attention(
            query, key, value, attn_mask=blocked, scale=scale, is_causal=own
        )
    else:
        logits = query @ key.transpose(-1, -2) * scale
        if blocked is not None:
            logits = logits + blocked
        mixed = logits.softmax(-1, dtype=torch.float32).to(query.dtype) @ value
    return mixed.transpose(1, 2).flatten(2)


def _unseen(query: Tensor, past: int, window: int | None) -> Tensor:
    """(1, 1, L, past + L): what is added to logits so that no query looks at a later token, or at one that
    its window has left behind."""
    length = query.shape[2]
    every = torch.ones(length, past + length, dtype=torch.bool, device=query.device)
    blocked = every.triu(past + 1)
    if window is not None:
        blocked |= every.tril(past - window)
    return torch.zeros_like(blocked, dtype=query.dtype).masked_fill(blocked, torch.finfo(query.dtype).min)[
        None, None
    ]
