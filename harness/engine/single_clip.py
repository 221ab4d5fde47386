"""One clip and one expression under many pruners: what `python -m harness try` shows of a video backbone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from backbones.base import Backbone
from backbones.clip_answer import ClipAnswer, answer_clip, encode_clip
from backbones.parts.clip_files import read_clip
from backbones.parts.clips import Clip, Frames
from backbones.parts.geometry import Region
from backbones.registry import Family
from harness.engine.single_image import askable
from harness.metrics.boundary import clip_counts
from harness.metrics.video import over_frames
from harness.store.run_folder import shown_frames
from pruners import checks
from pruners.base import Pruner, UserError

# data set and expression of the clip that is shown without an argument: the first one, by its motion
BUILT_IN = "refclips-davis"
BY_MOTION = "_full_video"
LOOKED_AT = 5  # frames by which a clip is judged


@dataclass(frozen=True)
class ClipAttempt:
    """One pruner's answer.

    Attributes:
        j, f: (T,) with the truth, of every frame in 0..1; None where it is not known.
    """

    name: str
    answer: ClipAnswer
    j: NDArray[np.float64] | None = None
    f: NDArray[np.float64] | None = None


@dataclass(frozen=True)
class ClipAttempts:
    """All answers about one expression; `truth` is (T, H, W) bool where it is known, the rest as of
    `harness.engine.single_image.Attempts`."""

    clip: Clip
    expression: str
    truth: NDArray[np.bool_] | None
    answers: tuple[ClipAttempt, ...]
    regions: tuple[Region, ...]
    left_out: tuple[str, ...] = ()
    lacking: tuple[str, ...] = ()
    unlike: str | None = None


@dataclass(frozen=True)
class ClipSubject:
    """What is asked about; `truth` is (T, H, W) bool, else as `harness.engine.single_image.Subject`."""

    clip: Clip
    expression: str
    truth: NDArray[np.bool_] | None = None
    others: tuple[str, ...] = ()


def built_in_clip_subject(expression: str | None = None) -> ClipSubject:
    """A RefClips clip and one of its expressions with its truth; with words that nobody said of it the truth
    is not known."""
    from harness.data.refclips.writer import videos

    _, video = next(videos(BUILT_IN))
    clip, said = Frames.of(list(video.frames)), {one.text: one.objects for one in video.said}
    text = expression
    if text is None:
        text = next(one.text for one in video.said if one.file.endswith(BY_MOTION))
    truth = np.isin(video.ids, said[text]) if text in said else None
    return ClipSubject(clip, text, truth, tuple(one for one in said if one != text))


def built_in_clip(expression: str | None = None) -> tuple[Clip, str, NDArray[np.bool_] | None]:
    """Clip, expression and truth of `built_in_clip_subject`."""
    found = built_in_clip_subject(expression)
    return found.clip, found.expression, found.truth


def clip_subject(clip: str | None, expression: str | None) -> ClipSubject:
    """What the command line's two words mean: clip and expression, an expression about the built-in clip, or
    nothing.

    Raises:
        UserError: a clip without an expression, or one that cannot be read.
    """
    if clip is None:
        return built_in_clip_subject()
    if expression is None:
        if Path(clip).suffix or Path(clip).exists():
            raise UserError(
                f'What is to be found in {clip!r}? Add an expression: try {clip} "the dog running left".'
            )
        return built_in_clip_subject(clip)
    if not expression.strip():
        raise UserError('The expression is empty; write e.g. "the dog running left".')
    return ClipSubject(read_clip(clip), expression)


def unlike_clip(family: Family, clip: Clip) -> str | None:
    """What the family says of a clip: what it says of a frame if none of LOOKED_AT evenly spread ones is of
    its kind, since objects come and go.

    Raises:
        UserError: a frame cannot be read.
    """
    told = [family.unlike(clip.frame(number)) for number in shown_frames(len(clip), LOOKED_AT)]
    return told[0] if all(told) else None


def ask_of_clip(
    backbone: Backbone,
    clip: Clip,
    expression: str,
    pruners: Sequence[Pruner],
    budget: int,
    truth: NDArray[np.bool_] | None = None,
    unlike: str | None = None,
) -> ClipAttempts:
    """Ground the expression in all frames under every pruner, from one encoding.

    The first pruner runs twice and its second run counts, so that it does not pay for what all of them share.

    Args:
        budget: visual tokens of every view.
        truth: (T, H, W) bool.
        unlike: what the family says of the clip.

    Raises:
        UserError: a pruner cannot end at the budget, or none of them can be asked here.
    """
    blind, left_out, lacking = askable(backbone, pruners, budget, truth is not None)
    encoding = encode_clip(backbone, clip)
    found = []
    for number, pruner in enumerate(blind):
        checks.watch(pruner)
        for _ in range(1 if number else 2):
            given = answer_clip(backbone, encoding, expression, pruner, budget, truth)
        scores = (None, None) if truth is None else scored(given, truth)
        found.append(ClipAttempt(pruner.spec(), given, *scores))
    regions = backbone.regions(clip.height, clip.width)
    return ClipAttempts(clip, expression, truth, tuple(found), regions, left_out, lacking, unlike)


def scored(answer: ClipAnswer, truth: NDArray[np.bool_]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """J and F of every frame, (T,) each in 0..1; one frame is decoded at a time."""
    counts = [
        clip_counts(answer.mask(frame)[None, None], target[None, None])[0, 0, 0]
        for frame, target in enumerate(truth)
    ]
    return over_frames(np.stack(counts))
