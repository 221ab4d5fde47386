"""Whether loaded parts look trained.

A checkpoint can hold every tensor and still have a head that nobody trained: where it was saved before its
parts were loaded, or after they were made anew. All masks are noise then, and no shape tells. A layer as it
is made shows it by its numbers: torch draws a linear layer's weights from +-1 / sqrt(inputs), which training
leaves within its first steps; transformers sets its biases to 0, and norms are ones and zeros.
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn

ROUNDING = 1.01  # weights of half precision may lie this much beyond the edge


def untrained(parts: Mapping[str, nn.Module]) -> list[str]:
    """Names of the parts of which every layer is as it was made.

    Other layers than linear ones and norms are not looked at.
    """
    return [name for name, part in parts.items() if _as_made(part)]


def _as_made(part: nn.Module) -> bool:
    found = [_fresh(layer) for layer in part.modules() if isinstance(layer, nn.Linear | nn.LayerNorm)]
    return bool(found) and all(found)


def _fresh(layer: nn.Linear | nn.LayerNorm) -> bool:
    bias = layer.bias
    if isinstance(layer, nn.LayerNorm):
        return bool((layer.weight == 1).all()) and _zero(bias)
    edge = ROUNDING * layer.in_features**-0.5
    return _zero(bias) or all(_largest(one) <= edge for one in (layer.weight, bias) if one is not None)


def _zero(bias: Tensor | None) -> bool:
    return bias is not None and not bool(bias.any())


def _largest(values: Tensor) -> float:
    return float(values.detach().abs().max())
