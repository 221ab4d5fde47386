"""Seeded random visual tokens, with every signal that a pruner may declare: what conformance is tested on."""

from __future__ import annotations

import zlib
from functools import lru_cache

import torch
from torch import Tensor
from torch.nn import functional as F

from pruners.base import PROJECTED_PATCHES, REFERENT, TEXT_EMBEDS, Need, View
from pruners.views import (
    LLM_ATTENTION,
    LLM_ATTENTION_AHEAD,
    LLM_INPUTS,
    LLM_KEYS,
    LLM_PATCHES,
    LLM_ROTARY,
    LLM_TEXT_EMBEDS,
    LLM_VALUES,
    LayerView,
    Query,
)

HEADS, KEY_HEADS, WIDTH, SHARED, DEPTH = 4, 2, 32, 12, 24
BEFORE, BEHIND = 5, 35  # text tokens on both sides of the image
ANSWER = 6  # of those behind it, the forced answer's


def smooth(rows: int, columns: int, channels: int, generator: torch.Generator) -> Tensor:
    """(rows * columns, channels) spatially smooth noise, so that neighbours are alike as in a real tower."""
    coarse = torch.randn(1, channels, 5, 5, generator=generator, dtype=torch.float64)
    fine = torch.randn(channels, rows, columns, generator=generator, dtype=torch.float64)
    field = F.interpolate(coarse, (rows, columns), mode="bilinear", align_corners=True)[0] + 0.3 * fine
    return field.flatten(1).T.contiguous()


def make_tokens(
    grid: tuple[int, int] = (24, 24),
    *,
    seed: int = 0,
    texts: int = 1,
    dtype: torch.dtype = torch.float64,
    sample: str = "",
) -> View:
    """Seeded tokens; the same seed gives the same values in every precision up to rounding."""
    features, drawn = _drawn(grid, seed, texts)
    signals = {need: signal.clone() for need, signal in drawn.items()}
    patches = grid[0] * grid[1]

    def answer(need: Need) -> Tensor:
        if need not in signals:  # maps, which are large and read by few; layers by their share of the depth
            shape = {
                "attention": (HEADS, patches + 1, patches + 1),
                "received_attention": (HEADS, patches + 1),
                "cls_attention": (HEADS, patches + 1),
                "hidden": (patches + 1, WIDTH),
            }[need.kind]
            signals[need] = _map(seed + 100 * need.index(DEPTH), shape, need.kind != "hidden").clone()
        return signals[need].to(dtype)

    features = features.to(dtype, copy=True)
    return View(features[1:], features[0], grid, HEADS, answer, sample)


# What is drawn is kept, since one conformance asks for the same tokens dozens of times, and handed out as
# copies: a method that writes into what it was lent must not be able to change the next one's tokens.


@lru_cache(maxsize=8)
def _drawn(grid: tuple[int, int], seed: int, texts: int) -> tuple[Tensor, dict[Need, Tensor]]:
    """Features with the class token's, and the signals that are small, in float64."""
    generator = torch.Generator().manual_seed(seed)
    rows, columns = grid
    patches = rows * columns

    def noise(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    signals: dict[Need, Tensor] = {}
    features = torch.cat([noise(1, WIDTH), smooth(rows, columns, WIDTH, generator)])
    for layer in (-1, -2, -3):
        keys = torch.cat([noise(1, WIDTH), smooth(rows, columns, WIDTH, generator)])
        query = noise(WIDTH)
        logits = torch.einsum("hd,nhd->hn", query.view(HEADS, -1), keys.view(patches + 1, HEADS, -1))
        signals[Need("keys", layer)] = keys
        signals[Need("values", layer)] = noise(patches + 1, WIDTH)
        signals[Need("cls_query", layer)] = query
        signals[Need("cls_attention", layer)] = (logits * (WIDTH // HEADS) ** -0.5).softmax(-1)
        signals[Need("hidden", layer)] = noise(patches + 1, WIDTH)
        signals[Need("received_attention", layer)] = noise(HEADS, patches + 1).softmax(-1)
    signals[PROJECTED_PATCHES] = smooth(rows, columns, SHARED, generator)
    signals[TEXT_EMBEDS] = noise(texts, SHARED)
    ys, xs = torch.arange(patches) // columns, torch.arange(patches) % columns
    distance = ((ys - rows / 3) ** 2 + (xs - columns / 2) ** 2).sqrt()
    signals[REFERENT] = (1.5 + rows / 8 - distance).clamp(0, 1)
    signals[LLM_PATCHES], signals[LLM_TEXT_EMBEDS] = noise(patches, 2 * WIDTH), noise(7 * texts, 2 * WIDTH)
    return features, signals


@lru_cache(maxsize=4)  # of 10 MB at most
def _map(seed: int, shape: tuple[int, ...], softmax: bool) -> Tensor:
    drawn = torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return drawn.softmax(-1) if softmax else drawn


@lru_cache(maxsize=64)
def _noise(name: str, shape: tuple[int, ...]) -> Tensor:
    draw = torch.Generator().manual_seed(zlib.crc32(name.encode()))
    return torch.randn(*shape, generator=draw, dtype=torch.float64)


def make_layer_view(
    indices: int | Tensor,
    *,
    layer: int = 2,
    number: int = 0,
    seed: int = 0,
    dtype: torch.dtype = torch.float64,
    sample: str = "",
    blank: bool = False,
    grid: tuple[int, int] = (24, 24),
) -> LayerView:
    """A seeded sequence at a cut; `blank` makes every signal zeros, and attention even.

    Args:
        indices: how many visual tokens there are, or the patch of each.
    """
    patches = torch.arange(indices) if isinstance(indices, int) else indices
    count = len(patches)
    length = BEFORE + count + BEHIND

    def noise(name: str, *shape: int) -> Tensor:
        if blank:
            return torch.zeros(*shape, dtype=torch.float64)
        return _noise(f"{seed} {layer} {number} {name}", shape).clone()

    def answer(query: Query) -> Tensor:
        name = f"{query.need.kind} {query.rotary}"
        if query.need in (LLM_ATTENTION, LLM_ATTENTION_AHEAD):
            places = {"last": torch.tensor([length - 1]), "text": torch.arange(length - BEHIND, length)}
            rows = places[query.of] if isinstance(query.of, str) else query.of
            queries, keys = noise(f"{name} q", HEADS, length, 8), noise(f"{name} k", HEADS, length, 8)
            logits = queries[:, rows] @ keys.transpose(1, 2)
            logits = logits.masked_fill(torch.arange(length) > rows[:, None], -torch.inf)
            return (logits.softmax(-1) if query.softmax else logits).to(dtype)
        if query.need == LLM_INPUTS and query.of == "visual":  # all that entered, whatever was cut since
            return noise(name, grid[0] * grid[1], WIDTH).to(dtype)
        tokens = BEHIND if query.of == "text" else count
        if query.need == LLM_ROTARY:
            first = length - BEHIND if query.of == "text" else BEFORE
            angles = torch.arange(first, first + tokens)[:, None] * 10000 ** (-torch.arange(4) / 4)
            return torch.cat([angles.cos(), angles.sin()], dim=1).to(dtype)
        shape: tuple[int, ...] = (tokens, WIDTH)
        if query.need in (LLM_KEYS, LLM_VALUES):
            shape = (KEY_HEADS, tokens, WIDTH // HEADS)
        return noise(f"{name} {query.of}", *shape).to(dtype)

    places, asked = torch.arange(length), length - ANSWER
    return LayerView(
        layer, number, patches, places, BEFORE, WIDTH, dtype, answer, sample, asked=asked, grid=grid
    )
