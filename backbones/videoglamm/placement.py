"""What becomes of a view's tokens in each placement of the budget (`budgets`): pools, cells, and what a
pruner sees of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from backbones.parts.contexts import Context
from backbones.videoglamm.budgets import CELLS, POOL, VIDEO_POOL, square_side
from pruners.base import CLS, Need, Selection


def pooled(tokens: Tensor, cells: int) -> Tensor:
    """(..., K, width) tokens of a square, row by row -> (..., cells * cells, width): averages over cells."""
    side = square_side(tokens.shape[-2])
    flat = tokens.reshape(-1, side, side, tokens.shape[-1]).permute(0, 3, 1, 2)
    found = F.adaptive_avg_pool2d(flat, cells).flatten(2).transpose(1, 2)
    return found.reshape(*tokens.shape[:-2], cells * cells, tokens.shape[-1])


def members(cells: Tensor, side: int) -> Tensor:
    """The patches of cells of a grid of `side` x `side`, cell by cell; marks stay as they are.

    Example:
        >>> members(torch.tensor([1, -2]), 24).tolist()
        [2, 3, 26, 27, -2]
    """
    each = side // POOL
    inside = torch.arange(each, device=cells.device)
    offsets = (inside[:, None] * side + inside).flatten()
    real = cells >= 0
    first = cells // POOL * each * side + cells % POOL * each
    found = torch.where(real[:, None], first[:, None] + offsets, cells[:, None])
    once = torch.arange(len(offsets), device=cells.device) == 0
    return found[real[:, None] | once]


# -- a pruner's view of the pooled cells

# of what stands for a token alone, a cell has the mean of its patches; what it gets of attention is the sum
# over its patches as keys, and what it gives is their mean as queries
UNPOOLED = ("cls_query", "text_embeds", "llm_text_embeds")


def over_cells(states: Tensor, side: int, total: bool = False) -> Tensor:
    """(..., N, C) -> (..., cells, C) means, or sums, of the patches of every cell."""
    each = side // POOL
    parts = states.unflatten(-2, (POOL, each, POOL, each))
    found = parts.sum((-4, -2)) if total else parts.mean((-4, -2))
    return found.flatten(-3, -2)


def beside_class(states: Tensor, side: int, total: bool = False) -> Tensor:
    """The same with a class token in front, which stays as it is."""
    return torch.cat([states[..., :1, :], over_cells(states[..., 1:, :], side, total)], dim=-2)


def keys_together(rows: Tensor, side: int) -> Tensor:
    """(..., N+1) shares of attention -> (..., cells+1), each the sum of its patches'."""
    return beside_class(rows[..., None], side, total=True)[..., 0]


def of_cells(need: Need, of_patches: Callable[[Need], Tensor], side: int) -> Tensor:
    """A signal of the cells.

    Args:
        of_patches: a signal of all patches, as `Need` has it. For `received_attention` the class token's
            attention of the same layer is asked for, too: the mean over the rows of a map of cells is not
            that of a map of patches.
    """
    found = of_patches(need)
    if need.kind in UNPOOLED:
        return found
    if need.kind in ("projected_patches", "llm_patches"):
        return over_cells(found, side)
    if need.kind == "referent":
        return over_cells(found[:, None], side)[:, 0]
    if need.kind == "cls_attention":
        return keys_together(found, side)
    if need.kind == "attention":
        return beside_class(keys_together(found, side), side)
    if need.kind == "received_attention":
        cls_row = of_patches(Need("cls_attention", need.layer))
        patches = found * found.shape[-1] - cls_row  # sums over the patches' rows
        rows = (cls_row + patches / (side // POOL) ** 2) / (CELLS + 1)
        return keys_together(rows, side)
    return beside_class(found, side)


# -- what the language model gets of a view


def place(
    placement: str, projected: Tensor, indices: Tensor, merged: Tensor | None, own_class: Tensor | None
) -> Tensor:
    """(T, width) tokens of one view.

    Args:
        projected: (N, width) what the projector makes of its tokens: of all patches, or of postpool the
            cells.
        indices: (T,) what was chosen of them, or CLS or POOLED.
        merged: (T, width) the same for tokens that the method merged; None where it merges nothing.
        own_class: (width,) the class token projected; needed where it is chosen.
    """
    tokens = merged
    if tokens is None:
        tokens = projected.index_select(0, indices.clamp(min=0))
        if own_class is not None:
            tokens = torch.where((indices == CLS)[:, None], own_class, tokens)
    return pooled(tokens, POOL) if placement == "grid" else tokens


def context_of(
    placement: str,
    chosen: Sequence[Selection],
    views: int,
    each: int,
    kept: bool = False,
    device: str | None = None,
) -> Context:
    """A window's tokens, numbered through from view to view, and the video encoder's behind them.

    Args:
        chosen: of every view; empty where nothing chooses in front of the language model.
        each: tokens of a whole view in the language model.
        kept: whether they keep the position ids of the whole sequence.
    """
    tail = views * VIDEO_POOL**2
    if not chosen or placement == "grid":
        return Context(torch.arange(views * each, device=device), views=views, tail=tail)
    numbers = [
        torch.where(one.indices < 0, one.indices, one.indices + view * each)
        for view, one in enumerate(chosen)
    ]
    if not kept:
        return Context(torch.cat(numbers), views=views, tail=tail)
    places = [one.standing(each) + view * each for view, one in enumerate(chosen)]
    return Context(torch.cat(numbers), torch.cat(places), views * each, views, tail)
