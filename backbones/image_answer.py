"""One image, one expression, one mask: what a person asks of a backbone. Of clips see `clip_answer`."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter

import numpy as np
import torch
from numpy.typing import NDArray
from PIL.Image import Image

from backbones.base import Backbone, Encoding, Grounded, Picture, Row
from backbones.parts.image_files import UnreadableImage, check_size, user_image
from pruners import checks
from pruners.base import Pruner
from pruners.errors import UserError
from pruners.registry import parse


@dataclass(frozen=True)
class Answer:
    """What one expression got.

    Attributes:
        mask: (H, W) bool at the image's size.
        kept: (V * N,) bool, view after view in raster order, the patches that the language model's last layer
            still sees; a token that a method merged stands for the patch at its centre, and class or mean
            tokens for none.
        tokens_final: visual tokens in the language model's last layer.
        tokens_mean: their mean over its layers.
        seconds: to choose the tokens and to ground, the image being encoded.
    """

    mask: NDArray[np.bool_]
    kept: NDArray[np.bool_]
    tokens_final: int
    tokens_mean: float
    seconds: float


def one_pruner(text: str) -> Pruner:
    """The one pruner that a text names.

    Raises:
        UserError: it names none or several.
    """
    found = parse(text)
    if len(found) > 1:
        raise UserError(f"{text!r} names {len(found)} pruners, and one is asked at a time; give one of them.")
    return found[0]


def as_pixels(image: Picture) -> NDArray[np.uint8]:
    """(H, W, 3) uint8 RGB.

    Raises:
        UserError: the file is no image, or the array is not of that shape and type.
    """
    if isinstance(image, str | Path | Image):
        return user_image(image)
    if not isinstance(image, np.ndarray) or image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
        what = f"{image.dtype} {image.shape}" if isinstance(image, np.ndarray) else type(image).__name__
        raise UserError(
            f"An image is a (height, width, 3) array of uint8, a pillow image or a file's name, not {what}."
        )
    try:
        check_size(*image.shape[:2])
    except UnreadableImage as error:
        raise UserError(f"The image cannot be used ({error}).") from error
    return image


def answer(
    backbone: Backbone,
    encoding: Encoding,
    expression: str,
    pruner: Pruner,
    budget: int,
    truth: NDArray[np.bool_] | None = None,
) -> Answer:
    """The answer for an encoded image; arguments and errors are those of `Backbone.ground`."""
    seen = truth[None] if truth is not None else None
    result, start = ask(backbone, encoding, expression, pruner, budget, seen)
    mask = (result.logits[0] > 0).numpy(force=True)
    seconds = clock(backbone.device) - start
    patches = len(backbone.regions(*encoding.original)) * backbone.grid[0] * backbone.grid[1]
    return Answer(
        mask,
        kept_bitmap(result.retained.tolist(), patches),
        result.tokens_final,
        result.tokens_mean,
        seconds,
    )


def ask(
    backbone: Backbone,
    encoding: Encoding,
    expression: str,
    pruner: Pruner,
    budget: int,
    truth: NDArray[np.bool_] | None = None,
) -> tuple[Grounded, float]:
    """What a model says to one expression about an encoded medium, and when the choice of tokens began.

    Args:
        truth: as `Backbone.views` takes masks.

    Raises:
        UserError: as `Backbone.ground`.
    """
    if lacking := backbone.lacks(pruner):
        raise UserError(lacking)
    patches = backbone.grid[0] * backbone.grid[1]
    budget = patches if pruner.name == "none" else budget
    backbone.stated(pruner, budget, patches, backbone.num_layers)
    turns = (backbone.turn(expression),)
    fresh = dataclasses.replace(encoding, signals={})  # no pruner gains from what another one had computed
    start = clock(backbone.device)
    views = backbone.views(fresh, turns, expression, truth)
    selections = checks.select_views(pruner, views, budget, backbone.num_layers)
    row = Row(fresh, turns, pruner, budget, selections, expression)
    # whole, so that no earlier answer shortens this one's time
    (result,) = backbone.ground_rows([row], share=False)
    if result.error:
        raise UserError(result.error)
    return result, start


def kept_bitmap(indices: Sequence[int], patches: int) -> NDArray[np.bool_]:
    """(patches,) bool of numbers of patches; what is none (index < 0) is not in it."""
    kept = np.zeros(patches, dtype=np.bool_)
    kept[[index for index in indices if index >= 0]] = True
    return kept


def clock(device: str) -> float:
    """Seconds, once all that a device was asked for is done."""
    if device.startswith("cuda"):
        torch.cuda.synchronize(device)
    return perf_counter()
