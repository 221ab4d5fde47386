"""Selections as the official code makes them: whole attention maps for one row of them, Python loops, one
token at a time.

Written from the methods' descriptions, for the bench to compare with. Each takes what a vision tower leaves
behind and returns (indices, features): what `Selection.indices` holds and what goes to the projector. N
patches, C channels, H heads.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from pruners.base import CLS, POOLED

Chosen = tuple[Tensor, Tensor]
MIDDLE = 8  # the ninth layer


@dataclass(frozen=True)
class Tower:
    """What a vision tower has computed when a selection begins.

    Attributes:
        hidden: (N+1, C) penultimate layer's output, class token first.
        queries, keys, values: (N+1, C) projections of the last layer (-1), the one before (-2) and a middle
            one (MIDDLE).
        projected: (N, P) patches in the space shared with text.
        text: (M, P) text embeddings.
        llm: (N, D) patches behind the projector.
        heads: H.
    """

    hidden: Tensor
    queries: dict[int, Tensor]
    keys: dict[int, Tensor]
    values: dict[int, Tensor]
    projected: Tensor
    text: Tensor
    llm: Tensor
    heads: int
    grid: tuple[int, int] = field(default=(24, 24))

    def map(self, layer: int) -> Tensor:
        """(H, N+1, N+1) attention of a layer, as `output_attentions` gives it."""
        query, key = (split_heads(x[layer], self.heads) for x in (self.queries, self.keys))
        return (query @ key.transpose(1, 2) * query.shape[-1] ** -0.5).softmax(-1)


def split_heads(x: Tensor, heads: int) -> Tensor:
    """(n, C) -> (H, n, C / H)."""
    return x.unflatten(-1, (heads, -1)).transpose(0, 1)


def ranked(score: Tensor) -> Tensor:
    """Positions by falling score, the lowest first among equals."""
    return score.sort(descending=True, stable=True).indices


def visionzip(tower: Tower, budget: int) -> Chosen:
    """Dominant tokens by summed class attention, the others merged into evenly spaced targets by a one-hot
    product."""
    contextual = budget * 10 // 64
    dominant = budget - contextual
    attention, hidden = tower.map(-2), tower.hidden
    best = ranked(attention[:, 0, 1:].sum(0))[: dominant - 1] + 1
    chosen = torch.cat([best.new_zeros(1), best])
    mask = torch.ones(len(hidden), dtype=torch.bool)
    mask[chosen] = False
    front = hidden[~mask]
    metric = split_heads(tower.keys[-2], tower.heads).mean(0)[mask]
    metric = metric / metric.norm(dim=-1, keepdim=True)
    left = hidden[mask]
    step = max(1, len(left) // contextual)
    targets = torch.arange(0, len(left), step)[:contextual]
    others = torch.tensor([k for k in range(len(left)) if k not in set(targets.tolist())])
    assign = (metric[others] @ metric[targets].T).argmax(1)
    one_hot = torch.zeros(len(others), contextual, dtype=hidden.dtype).scatter_(1, assign[:, None], 1)
    counts = one_hot.sum(0).clamp(min=1)[:, None]
    merged = left[targets] + (one_hot.T @ left[others]) / counts
    patches = torch.arange(-1, len(hidden) - 1)
    kept = torch.cat([patches[~mask], patches[mask][targets]])
    kept[0] = CLS
    return kept, torch.cat([front, merged])


def prumerge(tower: Tower, budget: int) -> Chosen:
    """One whole map over the full width for its first row; then token by token, lists built anew for each."""
    query, key = tower.queries[-1], tower.keys[-1]
    attention = (query @ key.T * key.shape[1] ** -0.5).softmax(-1)
    score, keys, features = attention[0, 1:], key[1:], tower.hidden[1:]
    kept = ranked(score)[: budget - 1]
    unit = F.normalize(keys, dim=-1)
    found = []
    for one in kept:
        rest = torch.cat([features[:one], features[one + 1 :]])
        rest_unit = torch.cat([unit[:one], unit[one + 1 :]])
        rest_score = torch.cat([score[:one], score[one + 1 :]])
        near = ranked(rest_unit @ unit[one])[:32]
        found.append(features[one] + (rest[near] * rest_score[near][:, None]).sum(0))
    mask = torch.ones(len(features), dtype=torch.bool)
    mask[kept] = False
    extra = (features[mask] * score[mask][:, None]).sum(0)
    return torch.cat([kept, kept.new_tensor([POOLED])]), torch.stack([*found, extra])


def vispruner(tower: Tower, budget: int) -> Chosen:
    """Half by mean class attention; then rounds of even against odd, similarities computed anew in each."""
    attention, features = tower.map(-2), tower.hidden[1:]
    important = int(budget * 0.5)
    diverse = budget - important
    rank = ranked(attention.mean(0)[0, 1:])
    left = rank[important:]
    unit = features / features.norm(dim=-1, keepdim=True)
    while True:
        drop = min(8, len(left) - diverse)
        if drop <= 0:
            break
        normed = unit[left]
        a, b = normed[::2], normed[1::2]
        closest = (a @ b.T).max(-1).values
        order = ranked(closest)[drop:]
        left = torch.cat([left[::2][order], left[1::2]])
    mask = torch.zeros(len(features), dtype=torch.bool)
    mask[rank[:important]] = True
    mask[left] = True
    return mask.nonzero()[:, 0], features[mask]


def trim(tower: Tower, budget: int) -> Chosen:
    """Lowest similarity to the text; the mean of all others behind them, in a buffer as long as the image."""
    features = tower.hidden[1:]
    share = (-(tower.text @ tower.projected.T)).softmax(-1).mean(0)
    best = ranked(share)[: budget - 1]
    mask = torch.zeros(len(features), dtype=torch.bool)
    mask[best] = True
    buffer = torch.zeros_like(features)
    buffer[: budget - 1] = features[mask]
    buffer[budget - 1] = features[~mask].mean(0)
    return torch.cat([mask.nonzero()[:, 0], torch.tensor([POOLED])]), buffer[:budget]


def litelvlm(tower: Tower, budget: int) -> Chosen:
    """Context rank of every token, then the least similar patches of every question; done again for every
    prompt."""
    features, text = tower.hidden[1:], tower.text
    chosen = torch.empty(0, dtype=torch.long)
    for _ in range(len(text)):
        query, keys, values = tower.queries[-1][:1], tower.keys[-1][1:], tower.values[-1][1:]
        logits = (F.normalize(query, dim=-1) @ F.normalize(keys, dim=-1).T) / keys.shape[1] ** 0.5
        weight = logits.softmax(-1)[0]
        rank = ranked((weight[:, None] * values).norm(dim=-1))
        similarity = tower.projected @ text.T
        low: set[int] = set()
        for column in similarity.T:
            low |= set(column.sort(stable=True).indices[: budget // len(text)].tolist())
        fill = [int(one) for one in rank if int(one) not in low][: budget - len(low)]
        chosen = torch.tensor(fill + sorted(low))
    return chosen, features[chosen]


def divprune(tower: Tower, budget: int) -> Chosen:
    """Farthest from all chosen ones; the rows of those are gathered and searched anew for every choice."""
    unit = tower.llm / tower.llm.norm(dim=1, keepdim=True)
    distance = 1.0 - unit @ unit.T
    chosen = torch.empty(budget, dtype=torch.long)
    for k in range(budget):
        if k == 0:
            near = torch.topk(distance, 2, dim=0, largest=False).values[1]
        else:
            near = distance.index_select(0, chosen[:k]).min(dim=0).values
        chosen[k] = near.argmax()
    kept = chosen.sort().values
    return kept, tower.hidden[1:][kept]


def cdpruner(tower: Tower, budget: int) -> Chosen:
    """The whole kernel, then greedy search with one row of a factor per choice, in buffers as the released
    code has them."""
    features, n = tower.hidden[1:], len(tower.llm)
    unit = tower.llm / tower.llm.norm(dim=-1, keepdim=True)
    similarity = unit @ unit.T
    patches = tower.projected / tower.projected.norm(dim=-1, keepdim=True)
    text = tower.text / tower.text.norm(dim=-1, keepdim=True)
    relevance = (-(patches @ text.T)).mean(dim=-1)
    low, high = relevance.min(), relevance.max()
    relevance = (relevance - low + 1e-6) / (high - low)
    kernel = relevance[:, None] * similarity * relevance[None]
    factor = torch.zeros(budget, n, dtype=kernel.dtype)
    left = kernel.diagonal().clone()
    chosen = torch.empty(budget, dtype=torch.long)
    for k in range(budget):
        one = left.argmax()
        chosen[k] = one
        row = kernel[one] - torch.einsum("t,tn->n", factor[:k, one], factor[:k])
        factor[k] = row / left[one].sqrt()
        left -= factor[k].square()
        left[one] = -float("inf")
    kept = chosen.sort().values
    return kept, features[kept]


def hiprune(tower: Tower, budget: int) -> Chosen:
    """Two whole maps, their means over heads and over rows; neighbours in a list, then what is left."""
    features, columns = tower.hidden[1:], tower.grid[1]
    n = len(features)
    middle, deep = (tower.map(layer).mean(0).mean(0)[1:] for layer in (MIDDLE, -2))
    anchors = ranked(middle)[: round(budget * 0.1 / 5)]
    around = torch.cat([anchors, anchors - 1, anchors + 1, anchors - columns, anchors + columns])
    around = around.clamp(0, n - 1).unique()
    deep = deep.clone()
    deep[around] -= 1
    mask = torch.zeros(n, dtype=torch.bool)
    mask[around] = True
    mask[ranked(deep)[: budget - len(around)]] = True
    return mask.nonzero()[:, 0], features[mask]


def holov(tower: Tower, budget: int) -> Chosen:
    """Crop by crop, twice: once for the scores, once for the choice."""
    features, crops = tower.hidden[1:], 16
    attention = tower.map(-2).mean(0)[0, 1:]
    base, longer = divmod(len(features), crops)
    sizes = [base + (k < longer) for k in range(crops)]
    places = torch.arange(len(features)).split(sizes)
    scores = []
    for place in places:
        part, weight, size = tower.llm[place], attention[place], len(place)
        unit = part / (part.norm(dim=1, keepdim=True) + 1e-6)
        similarity = unit @ unit.T * (1 - torch.eye(size, dtype=unit.dtype))
        mean = similarity.sum(1, keepdim=True) / (size - 1)
        variance = (similarity - mean).pow(2).sum(1) / (size - 1)
        scaled = 1000 * weight
        ratio = scaled.abs().mean() / (variance.abs().mean() + 1e-6)
        scores.append((scaled + 0.09 * variance * ratio).mean())
    share = torch.stack(scores)
    share = share / (share.sum() + 1e-6)
    room = (share * budget).floor().long()
    for crop in ranked(share)[: budget - int(room.sum())]:
        room[crop] += 1
    chosen = []
    for place, count in zip(places, room.tolist(), strict=True):
        chosen.append(place if count >= len(place) else place[ranked(attention[place])[:count]])
    kept = torch.cat(chosen)
    return kept, features[kept]


def fastervlm(tower: Tower, budget: int) -> Chosen:
    """The class token's row of a whole map, mean over heads."""
    features = tower.hidden[1:]
    mask = torch.zeros(len(features), dtype=torch.bool)
    mask[ranked(tower.map(-2)[:, 0, 1:].mean(0))[:budget]] = True
    return mask.nonzero()[:, 0], features[mask]


def scope(tower: Tower, budget: int) -> Chosen:
    """The gain of every patch over the whole matrix, anew for every choice."""
    features = tower.hidden[1:]
    saliency = tower.map(-2).sum(0)[0, 1:]
    unit = features / features.norm(dim=1, keepdim=True)
    cosine = unit @ unit.T
    covered = torch.zeros(len(features), dtype=cosine.dtype)
    mask = torch.zeros(len(features), dtype=torch.bool)
    for _ in range(budget):
        gain = (cosine - covered[:, None]).clamp(min=0).sum(0)
        score = gain * saliency**1.0
        score[mask] = -float("inf")
        one = score.argmax()
        mask[one] = True
        covered = torch.maximum(covered, cosine[:, one])
    return mask.nonzero()[:, 0], features[mask]


OFFICIAL: dict[str, Callable[[Tower, int], Chosen]] = {
    "cdpruner": cdpruner,
    "divprune": divprune,
    "fastervlm": fastervlm,
    "hiprune": hiprune,
    "holov": holov,
    "litelvlm": litelvlm,
    "prumerge": prumerge,
    "scope": scope,
    "trim": trim,
    "visionzip": visionzip,
    "vispruner": vispruner,
}


def fastv_row(
    layer: Any, hidden: Tensor, keys: Tensor, rotary: tuple[Tensor, Tensor], visual: slice
) -> Tensor:
    """(n,) what the last token pays to visual tokens, from the whole eager map and its mean over heads.

    Args:
        hidden: (1, L, width) input of the layer.
        keys: (1, H, L, head width) its rotated keys, which the layer has in either case.
    """
    from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

    attention, length = layer.self_attn, hidden.shape[1]
    query = (
        attention.q_proj(layer.input_layernorm(hidden))
        .unflatten(-1, (-1, attention.head_dim))
        .transpose(1, 2)
    )
    query, _ = apply_rotary_pos_emb(query, query, *rotary)
    logits = query @ keys.transpose(-1, -2) * attention.scaling
    logits = logits + torch.full((length, length), torch.finfo(logits.dtype).min, dtype=logits.dtype).triu(1)
    weights = logits.to(torch.promote_types(logits.dtype, torch.float32)).softmax(-1).to(hidden.dtype)
    return weights.mean(1)[0, -1, visual]
