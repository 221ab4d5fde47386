"""One clip, one expression, a mask in every frame: what a person asks of a backbone that sees clips."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from backbones.base import Backbone, ClipEncoding
from backbones.image_answer import as_pixels, ask, clock, kept_bitmap, one_pruner
from backbones.parts.clip_files import read_clip
from backbones.parts.clips import BETWEEN, Clip, Frames, decoded
from pruners.base import Pruner
from pruners.errors import UserError

# a folder of frames, a video file, or (H, W, 3) arrays
Film = Clip | str | Path | Sequence[NDArray[np.uint8]]


@dataclass(frozen=True)
class ClipAnswer:
    """What one expression got in a clip.

    Attributes:
        runs: of every frame, its mask's run lengths (`backbones.parts.clips.run_lengths`).
        size: height and width of the frames.
        shown: number of the frame that each of V views shows.
        kept: (V * N,) bool, as of `Answer`.
        tokens_final: visual tokens of all views in the language model's last layer.
        tokens_mean: their mean over its layers.
        seconds: to choose the tokens and to ground all frames, the clip being encoded.
    """

    runs: tuple[str, ...]
    size: tuple[int, int]
    shown: tuple[int, ...]
    kept: NDArray[np.bool_]
    tokens_final: int
    tokens_mean: float
    seconds: float

    def mask(self, frame: int) -> NDArray[np.bool_]:
        """(H, W) bool."""
        return decoded(self.runs[frame], *self.size)[0]

    @property
    def masks(self) -> NDArray[np.bool_]:
        """(T, H, W) bool."""
        return decoded(BETWEEN.join(self.runs), *self.size)


def ground_clip(
    backbone: Backbone,
    clip: Film,
    expression: str,
    pruner: str | Pruner = "none",
    budget: int = 64,
    truth: NDArray[np.bool_] | None = None,
) -> ClipAnswer:
    """Segment what an expression names in every frame of a clip.

    Args:
        clip: a folder of frames, a video file, a list of (H, W, 3) uint8 arrays, or a `Clip`.
        expression: e.g. "the dog running left".
        pruner, budget: as of `Backbone.ground`; the budget is that of every view.
        truth: (T, H, W) bool, for controls that may see it.

    Raises:
        UserError: the backbone sees images alone, the clip cannot be read, or as `Backbone.ground`.
    """
    chosen = one_pruner(pruner) if isinstance(pruner, str) else pruner
    return answer_clip(backbone, encode_clip(backbone, as_clip(clip)), expression, chosen, budget, truth)


def as_clip(clip: Film) -> Clip:
    """The clip that is meant.

    Raises:
        UserError: it cannot be read, or the arrays are no frames of one size.
    """
    if isinstance(clip, Clip):
        return clip
    if isinstance(clip, str | Path):
        return read_clip(clip)
    frames = [as_pixels(frame) for frame in clip]
    if not frames:
        raise UserError("The clip has no frame; give at least one.")
    if len(sizes := {frame.shape for frame in frames}) > 1:
        told = " and ".join(f"{width}x{height} px" for height, width, _ in sorted(sizes))
        raise UserError(f"The frames of the clip differ in size ({told}); scale them to one.")
    return Frames.of(frames)


def encode_clip(backbone: Backbone, clip: Clip) -> ClipEncoding:
    """What the towers say of a clip.

    Raises:
        UserError: a frame cannot be read, or the backbone sees images alone.
    """
    (found,) = backbone.encode_pixels([backbone.preprocess_clip(clip)])
    if not isinstance(found, ClipEncoding):
        raise UserError(f"{backbone.name} encodes a clip as {type(found).__name__}, not as a ClipEncoding.")
    return found


def answer_clip(
    backbone: Backbone,
    encoding: ClipEncoding,
    expression: str,
    pruner: Pruner,
    budget: int,
    truth: NDArray[np.bool_] | None = None,
) -> ClipAnswer:
    """The answer for an encoded clip; arguments and errors are those of `ground_clip`."""
    seen = truth[list(encoding.shown)][:, None] if truth is not None else None
    result, start = ask(backbone, encoding, expression, pruner, budget, seen)
    assert result.runs is not None, "a backbone that sees clips gives run lengths"
    patches = len(encoding.shown) * backbone.grid[0] * backbone.grid[1]
    return ClipAnswer(
        result.runs[0],
        encoding.original,
        encoding.shown,
        kept_bitmap(result.retained.tolist(), patches),
        result.tokens_final,
        result.tokens_mean,
        clock(backbone.device) - start,
    )
