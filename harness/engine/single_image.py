"""One image and one expression under many pruners: what `python -m harness try` shows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from backbones.base import Backbone
from backbones.image_answer import Answer, answer, as_pixels
from backbones.parts.geometry import Region
from harness import metrics
from harness.engine.cells import impossible
from harness.engine.served import served
from pruners import checks
from pruners.base import REFERENT, Pruner, UserError

# split, scene, family and expression that are shown without an image: one that glamm-mini gets right with all
# tokens and not with every choice of them
BUILT_IN = ("val", 1, "refshapesg", 2)


@dataclass(frozen=True)
class Attempt:
    """One pruner's answer.

    Attributes:
        iou: with the truth, in 0..1; None where it is not known.
    """

    name: str
    answer: Answer
    iou: float | None


@dataclass(frozen=True)
class Attempts:
    """All answers about one expression.

    Attributes:
        image: (H, W, 3) uint8.
        truth: (H, W) bool, where it is known.
        regions: what every view of the backbone covers of the image.
        left_out: pruners that see the truth, where it is not known.
        lacking: why the backbone cannot serve other pruners, a sentence each.
        unlike: why the model was not trained for this image; None if it was, or nobody knows.
    """

    image: NDArray[np.uint8]
    expression: str
    truth: NDArray[np.bool_] | None
    answers: tuple[Attempt, ...]
    regions: tuple[Region, ...]
    left_out: tuple[str, ...] = ()
    lacking: tuple[str, ...] = ()
    unlike: str | None = None


@dataclass(frozen=True)
class Subject:
    """What is asked about.

    Attributes:
        image: (H, W, 3) uint8.
        truth: (H, W) bool, where it is known.
        others: further expressions of the built-in scene; of an own image none.
    """

    image: NDArray[np.uint8]
    expression: str
    truth: NDArray[np.bool_] | None = None
    others: tuple[str, ...] = ()


def built_in_subject(expression: str | None = None) -> Subject:
    """A RefShapes scene and one of its expressions with its truth; with words that nobody said of it the
    truth is not known."""
    from harness.data.refshapes.writer import scene

    split, index, family, number = BUILT_IN
    painted = scene(split, index)
    said = {text: target for every in painted.expressions.values() for target, text in every}
    text = painted.expressions[family][number][1] if expression is None else expression
    truth = painted.objects[said[text]].mask if text in said else None
    return Subject(painted.image, text, truth, tuple(one for one in said if one != text))


def built_in(expression: str | None = None) -> tuple[NDArray[np.uint8], str, NDArray[np.bool_] | None]:
    """Image, expression and truth of `built_in_subject`."""
    found = built_in_subject(expression)
    return found.image, found.expression, found.truth


def subject(image: str | None, expression: str | None) -> Subject:
    """What the command line's two words mean: image and expression, an expression about the built-in scene,
    or nothing.

    Raises:
        UserError: an image without an expression, or one that cannot be read.
    """
    if image is None:
        return built_in_subject()
    if expression is None:
        if Path(image).suffix or Path(image).exists():
            raise UserError(
                f'What is to be found in {image!r}? Add an expression: try {image} "the red star left of '
                f'the ring".'
            )
        return built_in_subject(image)
    if not expression.strip():
        raise UserError('The expression is empty; write e.g. "the red star left of the ring".')
    return Subject(as_pixels(image), expression)


def askable(
    backbone: Backbone, pruners: Sequence[Pruner], budget: int, truth_known: bool
) -> tuple[list[Pruner], tuple[str, ...], tuple[str, ...]]:
    """The pruners that can be asked, those that only the truth could tell what to keep, and why the backbone
    cannot serve others, a sentence each.

    Raises:
        UserError: none can be asked.
    """
    able, lacking = served(pruners, backbone)
    refused = impossible(able, [budget], backbone.grid, backbone.num_layers, backbone.stated)
    able = [pruner for pruner in able if (pruner.unseeded().spec(), budget) not in refused]
    if not able:
        raise next(iter(refused.values()))
    lacking |= {name: str(why) for (name, _), why in refused.items()}
    blind = [pruner for pruner in able if truth_known or REFERENT not in pruner.needs]
    if not blind:
        raise UserError(
            f"{able[0].spec()} sees the truth, which nobody knows here; add another pruner, e.g. --pruners "
            f"all."
        )
    left_out = tuple(pruner.spec() for pruner in able if pruner not in blind)
    return blind, left_out, tuple(lacking.values())


def ask_pruners(
    backbone: Backbone,
    image: NDArray[np.uint8],
    expression: str,
    pruners: Sequence[Pruner],
    budget: int,
    truth: NDArray[np.bool_] | None = None,
    unlike: str | None = None,
) -> Attempts:
    """Ground the expression under every pruner from one encoding.

    Every pruner runs twice and the second run's time counts, so that none pays for what all of them share:
    the text embedding, buffers, kernels.

    Args:
        unlike: what the family says of the image, as `backbones.registry.Family.unlike`.

    Raises:
        UserError: a pruner cannot end at the budget, or none of them can be asked here.
    """
    blind, left_out, lacking = askable(backbone, pruners, budget, truth is not None)
    encoding = backbone.encode([image])[0]
    found = []
    for pruner in blind:
        checks.watch(pruner)
        for _ in range(2):
            given = answer(backbone, encoding, expression, pruner, budget, truth)
        iou = None
        if truth is not None:
            counts = metrics.counts(given.mask, truth.astype(np.uint8))
            iou = float(metrics.iou([counts[0]], [counts[1]])[0])
        found.append(Attempt(pruner.spec(), given, iou))
    regions = backbone.regions(*image.shape[:2])
    return Attempts(image, expression, truth, tuple(found), regions, left_out, lacking, unlike)
