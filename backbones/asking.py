"""One image, one expression, one mask: what a person asks a backbone, on top of its batched methods."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from backbones.base import Answer, Backbone, Encoding, Picture, Row
from backbones.glamm.conversation import plain_turn
from backbones.parts.image_files import UnreadableImage, check_size, user_image
from pruners import checks, parse
from pruners.base import Pruner, UserError


class Asking:
    """Gives a backbone its `ground`."""

    encode: Any
    grid: tuple[int, int]

    def ground(
        self,
        image: Picture,
        expression: str,
        pruner: str | Pruner = "none",
        budget: int = 64,
        truth: NDArray[np.bool_] | None = None,
    ) -> Answer:
        """Segment what an expression names.

        Args:
            image: (H, W, 3) uint8 RGB, a pillow image, or an image file.
            expression: e.g. "the red star left of the ring".
            pruner: as on the command line, e.g. "litelvlm" or "fastv(layer=3)"; "none" keeps all tokens.
            budget: visual tokens that the language model gets; `none` has none.
            truth: (H, W) bool, for controls that may see it.

        Raises:
            UserError: the image cannot be read, the pruner is unknown, or it cannot end at the budget.
        """
        chosen = one(pruner) if isinstance(pruner, str) else pruner
        backbone: Backbone = self  # type: ignore[assignment]
        return answer(backbone, self.encode([pixels(image)])[0], expression, chosen, budget, truth)


def one(text: str) -> Pruner:
    """The one pruner that a text names.

    Raises:
        UserError: it names none or several.
    """
    found = parse(text)
    if len(found) > 1:
        raise UserError(f"{text!r} names {len(found)} pruners, and one is asked at a time; give one of them.")
    return found[0]


def pixels(image: Picture) -> NDArray[np.uint8]:
    """(H, W, 3) uint8 RGB.

    Raises:
        UserError: the file is no image, or the array is not of that shape and type.
    """
    if isinstance(image, str | Path | Image.Image):
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
    """The answer for an encoded image; arguments and errors are those of `Asking.ground`."""
    patches = backbone.grid[0] * backbone.grid[1]
    budget = patches if pruner.name == "none" else budget
    checks.stated(pruner, budget, patches, backbone.num_layers)
    turns = (plain_turn(expression),)
    fresh = dataclasses.replace(encoding, signals={})  # no pruner gains from what another one had computed
    start = _now(backbone.device)
    masks = truth[None] if truth is not None else None
    views = [backbone.tokens(fresh, turns, expression, masks)]
    selections = checks.select_views(pruner, views, budget, backbone.num_layers)
    row = Row(fresh, turns, pruner, budget, selections, expression)
    (result,) = backbone.ground_rows(
        [row], share=False
    )  # whole, so that no earlier answer shortens this one's time
    if result.error:
        raise UserError(result.error)
    mask = (result.logits[0] > 0).numpy(force=True)
    seconds = _now(backbone.device) - start
    return Answer(
        mask, _kept(result.retained.tolist(), patches), result.tokens_final, result.tokens_mean, seconds
    )


def _kept(indices: Sequence[int], patches: int) -> NDArray[np.bool_]:
    kept = np.zeros(patches, dtype=np.bool_)
    kept[[index for index in indices if index >= 0]] = True
    return kept


def _now(device: str) -> float:
    if device.startswith("cuda"):
        torch.cuda.synchronize(device)
    return perf_counter()
