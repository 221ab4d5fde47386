"""The decoder layers at few fixed lengths, which is what compilers want: sequences are filled up on the right
to a multiple, where causal attention does not look, and cut back behind the last layer."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import LlamaModel

from backbones.parts import llama

MULTIPLE = 64


class StaticLoop:
    """All layers of a model over whole sequences, nothing cut on the way.

    Args:
        multiple: lengths are filled up to it.
        compiled: what makes one layer's function faster, as `torch.compile` does; layers differ in weights
            alone, so one compilation serves them all.
    """

    def __init__(
        self,
        llm: LlamaModel,
        multiple: int = MULTIPLE,
        compiled: Callable[[Callable[..., Any]], Callable[..., Any]] = lambda function: function,
    ) -> None:
        self._llm, self._multiple, self._layers = llm, multiple, llama.layers(llm)
        self._one = compiled(_one)

    @torch.no_grad()
    def __call__(self, hidden: Tensor) -> Tensor:
        """(B, L, width) behind the final norm, of embeddings (B, L, width)."""
        length = hidden.shape[1]
        filled = F.pad(hidden, (0, 0, 0, -length % self._multiple))
        places = torch.arange(filled.shape[1], device=hidden.device)
        cos, sin = llama.rotary(self._llm, places.expand(len(hidden), -1), hidden.dtype)
        for layer in self._layers:
            filled = self._one(layer, filled, cos, sin)
        return llama.norm(self._llm, filled[:, :length])


def _one(layer: llama.Layer, hidden: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    return layer(hidden, (cos, sin))
