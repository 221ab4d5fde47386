"""Random visual tokens for tests, with every signal that a pruner may declare."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from pruners.base import PROJECTED_PATCHES, REFERENT, TEXT_EMBEDS, Need, VisualTokens

HEADS, WIDTH, SHARED = 4, 32, 12


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
) -> VisualTokens:
    """Seeded tokens; the same seed gives the same values in every precision up to rounding."""
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
    signals[PROJECTED_PATCHES] = smooth(rows, columns, SHARED, generator)
    signals[TEXT_EMBEDS] = noise(texts, SHARED)
    ys, xs = torch.arange(patches) // columns, torch.arange(patches) % columns
    distance = ((ys - rows / 3) ** 2 + (xs - columns / 2) ** 2).sqrt()
    signals[REFERENT] = (1.5 + rows / 8 - distance).clamp(0, 1)
    signals = {need: value.to(dtype) for need, value in signals.items()}
    features = features.to(dtype)
    return VisualTokens(features[1:], features[0], grid, HEADS, signals.__getitem__, sample)


def attention_row(patches: int, *, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    """(H, patches) attention of a last token, as a layer-stage pruner gets it."""
    generator = torch.Generator().manual_seed(seed)
    return (
        torch.randn(HEADS, patches + 40, generator=generator, dtype=torch.float64)
        .softmax(-1)[:, :patches]
        .to(dtype)
    )
