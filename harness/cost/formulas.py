"""Closed forms: what a language model costs by the formulas of the literature, from the tokens that each
layer really saw.

Every function takes `lengths`, the sequence length n of each decoder layer, and a `Shape`. MAC = one
multiply-add. d is the width, m the inner width of the feed-forward part.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from backbones.costs import Shape

GIB = 2**30


def paper_flops(lengths: Sequence[int], shape: Shape) -> int:
    """LiteLVLM's instrumented counter: 4nd^2 + 2n^2 d + 3ndm per layer; MACs, although printed as FLOPs."""
    d, m = shape.width, shape.inner
    return sum(4 * n * d * d + 2 * n * n * d + 3 * n * d * m for n in lengths)


def paper_activation(lengths: Sequence[int], shape: Shape, element: int = 2) -> int:
    """LiteLVLM's "storing activation": n(2d + m) elements per layer, summed over layers; bytes. Not a
    peak."""
    return sum(n * (2 * shape.width + shape.inner) * element for n in lengths)


def fastv_flops(lengths: Sequence[int], shape: Shape) -> int:
    """FastV's formula: 4nd^2 + 2n^2 d + 2ndm per layer, a feed-forward part of two matrices where Llama has
    three."""
    d, m = shape.width, shape.inner
    return sum(4 * n * d * d + 2 * n * n * d + 2 * n * d * m for n in lengths)


def visual_flops(lengths: Sequence[int], shape: Shape, text: int) -> int:
    """PyramidDrop's and SparseVLM's convention: 4nd^2 + 2n^2 d + 3ndm with n the visual tokens alone."""
    return paper_flops([n - text for n in lengths], shape)


def stored_activation(lengths: Sequence[int], shape: Shape, element: int = 2) -> int:
    """LLM-Viewer's `store_act`: what every operator of prefill writes, the n x n maps twice, keys and values
    not; bytes.

    Per layer (9d + 2m)n elements (query, output, down, attention's result, two norms, two sums, the
    activation; gate and up) and 2n^2 per head.
    """
    per_token = 9 * shape.width + 2 * shape.inner
    return sum((n * per_token + 2 * n * n * shape.heads) * element for n in lengths)


def layer_macs(new: int, keys: int, shape: Shape) -> int:
    """What one decoder layer executes for `new` tokens that look at `keys` (the whole new x keys map, no
    causal half)."""
    return new * shape.layer_weights + 2 * new * keys * shape.heads * shape.head_width


def language_model_macs(lengths: Sequence[int], shape: Shape) -> int:
    """What the decoder layers execute: projections with shared keys as they are, the whole n x n map (no
    causal half)."""
    return sum(layer_macs(n, n, shape) for n in lengths)


def row_macs(tokens: int, shape: Shape) -> int:
    """What a layer-stage pruner computes: one query and its row over the keys that are there anyway."""
    return (shape.width + tokens) * shape.heads * shape.head_width


def head_macs(tokens: int, shape: Shape) -> int:
    """lm_head at every position."""
    return tokens * shape.width * shape.vocabulary


PRESETS: dict[str, Callable[[Sequence[int], Shape, int], int]] = {
    "flops_paper": lambda lengths, shape, text: paper_flops(lengths, shape),
    "activation_paper": lambda lengths, shape, text: paper_activation(lengths, shape),
    "flops_fastv": lambda lengths, shape, text: fastv_flops(lengths, shape),
    "flops_visual": visual_flops,
    "activation_llm_viewer": lambda lengths, shape, text: stored_activation(lengths, shape),
}
