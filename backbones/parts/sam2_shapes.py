"""SAM2 in the middle of a clip, for costs: a tracker as if frames had been there, of whatever tensors are
made where it is built."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from backbones.parts.sam2 import Frame, Tracker
from backbones.parts.sam2_sizes import MEMORY_WIDTH, PATCH


def blank_frame(model: Any, dtype: torch.dtype) -> Frame:
    """A frame as `encode_frame` returns it, without its content."""
    width, grid = model.config.prompt_encoder_config.hidden_size, model.config.image_size // PATCH
    first, second = (
        torch.empty(1, width // part, factor * grid, factor * grid, dtype=dtype)
        for part, factor in ((8, 4), (4, 2))
    )
    top, place = (torch.empty(1, width, grid, grid, dtype=dtype) for _ in range(2))
    return Frame((first, second), top, place)


def remembering(model: Any, prompts: Tensor, features: int, vectors: int) -> Tracker:
    """A tracker that remembers the features of so many frames, the first one among them, and the vectors of
    so many."""
    tracker, count = Tracker(model, prompts), len(prompts)
    places = (model.config.image_size // PATCH) ** 2

    def flat() -> Tensor:
        return torch.empty(places, count, MEMORY_WIDTH, dtype=torch.bfloat16)

    tracker._first = flat(), torch.empty_like(prompts)
    tracker._place = torch.empty(places, 1, MEMORY_WIDTH, dtype=prompts.dtype)
    tracker._features.extend(flat() for _ in range(features - 1))
    tracker._pointers.extend(torch.empty_like(prompts) for _ in range(vectors - 1))
    return tracker
