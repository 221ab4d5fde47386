"""Several expressions of an image or a clip in one pass: their turns branch off behind the visual tokens,
each attending to those and to itself.

Positions and attention are those of the same turn in a sequence of its own.
"""

from __future__ import annotations

from collections.abc import Container
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from backbones.parts import llama


@dataclass(frozen=True)
class Branches:
    """Tokenised turns of a batch: E branches per image, padded on the right.

    Attributes:
        prefix: (P,) ids before the visual tokens.
        lead: (C,) ids behind them that all branches begin with.
        ids: (B, E, S) ids after those.
        read: (B, E, R) positions whose states are read, -1 if there are fewer.
        labels: (B, E, R) what comes there next.
        target: (B, E, R) number of the object whose [SEG] comes there next, -1 if none does.
    """

    prefix: Tensor
    lead: Tensor
    ids: Tensor
    read: Tensor
    labels: Tensor
    target: Tensor


def attend_causally(query: Tensor, key: Tensor, value: Tensor, rows: int = 160) -> Tensor:
    """Causal attention (B, H, L, d) -> (B, H, L, d).

    In half precision a band of rows at a time over the keys up to its end, in plain products, which are
    faster than torch's fused attention where d is small.
    """
    if query.dtype == torch.float32:
        return F.scaled_dot_product_attention(query, key, value, is_causal=True)
    length, scale = query.shape[2], query.shape[-1] ** -0.5
    bias = query.new_full((length, length), -torch.inf).triu(1)
    bands = []
    for start in range(0, length, rows):
        end = min(start + rows, length)
        scores = (query[:, :, start:end] * scale) @ key[:, :, :end].transpose(-1, -2)
        bands.append((scores + bias[start:end, :end]).softmax(-1).to(value.dtype) @ value[:, :, :end])
    return torch.cat(bands, dim=2)


def attend_branches(
    query: Tensor, context: tuple[Tensor, Tensor], own: tuple[Tensor, Tensor], bias: Tensor
) -> tuple[Tensor, Tensor]:
    """Attention of branches on what they share and on themselves.

    Args:
        query: (B, H, E, R, d).
        context: keys and values (B, H, C, d) of the shared context, all of it seen.
        own: keys and values (B, H, E, S, d) of the branches.
        bias: (..., R, S) added to the logits of a branch on itself.

    Returns:
        (B, H, E, R, d), and the attention (B, H, E, R, C) on the context.
    """
    query = query * query.shape[-1] ** -0.5
    shared = (query.flatten(2, 3) @ context[0].transpose(-1, -2)).unflatten(2, query.shape[2:4])
    inside = query @ own[0].transpose(-1, -2) + bias.to(query.dtype)
    share = torch.cat([shared, inside], dim=-1).softmax(-1).to(query.dtype)
    on_context, on_own = share.split([shared.shape[-1], inside.shape[-1]], dim=-1)
    mixed = (on_context.flatten(2, 3) @ context[1]).unflatten(2, query.shape[2:4]) + on_own @ own[1]
    return mixed, on_context


def run_branches(
    llm: Any, visual: Tensor, branches: Branches, looking: Container[int], naming: int
) -> tuple[Tensor, list[Tensor], Tensor, Tensor]:
    """The language model over a shared image and its branches, as far as the read positions need it.

    Args:
        visual: (B, N, width) projected visual tokens.
        looking: layers whose attention is asked for.
        naming: layer whose output is asked for.

    Returns:
        hidden states (B, E, R, width) at the read positions behind the last norm; for every layer of
        `looking` the attention (B, H, E, R, N) of the read positions on the visual tokens; the hidden states
        (B, E, R, width) behind layer `naming`, and there those (B, N, width) of the visual tokens.
    """
    device = visual.device
    batch, count, length = branches.ids.shape
    start, n = len(branches.prefix), visual.shape[1]
    context = start + n + len(branches.lead)
    prefix, lead = (
        llama.embed_ids(llm, ids).expand(batch, -1, -1) for ids in (branches.prefix, branches.lead)
    )
    shared = torch.cat([prefix, visual.to(prefix.dtype), lead], dim=1)
    own = llama.embed_ids(llm, branches.ids).flatten(1, 2)  # (B, E*S, width)
    places = torch.arange(length, device=device)
    read = branches.read.clamp(min=0)  # (B, E, R)
    flat = (read + length * torch.arange(count, device=device)[:, None]).flatten(1)  # (B, E*R)
    bias = torch.zeros(length, length, device=device).masked_fill(places > places[:, None], -torch.inf)
    read_bias = bias[read][:, None]  # (B, 1, E, R, S)
    at = read[:, None, :, :, None]  # (B, 1, E, R, 1)
    dtype = torch.get_autocast_dtype(device.type) if torch.is_autocast_enabled(device.type) else own.dtype
    by_c = llama.rotary(llm, torch.arange(context, device=device)[None], dtype)
    by_o = llama.rotary(llm, (context + places).repeat(count)[None], dtype)
    looks, halfway, tokens = [], own, visual
    every = llama.layers(llm)
    for number, layer in enumerate(every):
        last = number == len(every) - 1
        q_c, k_c, v_c = layer.project(shared, by_c)
        q_o, k_o, v_o = (part.unflatten(2, (count, length)) for part in layer.project(own, by_o))
        if last:
            q_o = q_o.gather(3, at.expand(-1, q_o.shape[1], -1, -1, q_o.shape[-1]))
            own = llama.tokens_at(own, flat)
        mixed, share = attend_branches(q_o, (k_c, v_c), (k_o, v_o), read_bias if last else bias)
        own = layer.finish(own, mixed.flatten(2, 3).transpose(1, 2).flatten(2))
        if number in looking:
            seen = share[..., start : start + n]
            looks.append(seen if last else seen.gather(3, at.expand(-1, seen.shape[1], -1, -1, n)))
        if number == naming:
            halfway = llama.tokens_at(own, flat)
        if not last:
            shared = layer.finish(shared, attend_causally(q_c, k_c, v_c).transpose(1, 2).flatten(2))
        if number == naming:
            tokens = shared[:, start : start + n]
    shape = (count, branches.read.shape[-1])
    return llama.norm(llm, own).unflatten(1, shape), looks, halfway.unflatten(1, shape), tokens
