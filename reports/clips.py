"""What the page shows of a clip: some of its frames, and in each every answer's mask, kept patches, J and
F."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from backbones.parts.clips import BETWEEN
from harness.metrics.video import CURVES, frames_of
from harness.store.records import kept_tokens
from harness.store.run_folder import frame_picture, shown_frames
from reports.kept import lit

POINTS = 200  # of a curve at least, where a clip has as many frames


def scores(row: Mapping[Any, Any], names: tuple[str, str] = ("j", "f")) -> tuple[float, float] | None:
    """J and F of a record, 0..1; None where nobody measured them."""
    first, second = (row.get(name) for name in names)
    known = first is not None and second is not None and first == first and second == second
    return (float(first), float(second)) if known else None  # type: ignore[arg-type]


def pictured(image: str, frames: int) -> list[tuple[int, str]]:
    """(frame, picture below the run folder) of those that a run keeps pictures of, whether they are there or
    not.

    >>> pictured("images/a.jpg", 2)
    [(0, 'images/a.jpg'), (1, 'images/a@1.jpg')]
    """
    return [
        (frame, frame_picture(Path(image), frame).as_posix() if frame else image)
        for frame in shown_frames(frames)
    ]


def points(frames: int, pictures: Sequence[int]) -> list[int]:
    """Frames at which curves are drawn: all of a short clip, evenly spread ones of a long one, and those that
    have a picture."""
    return sorted({*shown_frames(frames, POINTS), *pictures})


def nearest_view(shown: Sequence[int], frame: int) -> int:
    """The frame, of those that the model saw, that is nearest in time; of two the earlier one.

    >>> nearest_view((0, 4, 8), 6), nearest_view((0, 4, 8), 7)
    (4, 8)
    """
    return min(shown, key=lambda one: (abs(one - frame), one))


def kept_near(kept: NDArray[np.bool_], shown: Sequence[int], frame: int, regions: int) -> NDArray[np.bool_]:
    """(R * N,) bool: the patches that are kept of the frame that the model saw nearest to one, region after
    region; what is seen several times keeps what any of its views keeps.

    Args:
        kept: (V * N,) bool, view after view.
        shown: number of the frame that each view shows.
        regions: R views of one frame.
    """
    of_views = kept.reshape(len(shown), -1)[np.array(shown) == nearest_view(shown, frame)]
    found: NDArray[np.bool_] = of_views.reshape(-1, regions, of_views.shape[1]).any(axis=0).ravel()
    return found


def clip_answer(
    row: Mapping[Any, Any], regions: int, pictures: Sequence[int], drawn: Sequence[int]
) -> dict[str, Any]:
    """What the page shows of one answer about a clip.

    Args:
        row: of the records.
        regions: views of one frame; 0 where the run does not say what they cover.
        pictures: frames that are shown.
        drawn: frames of the curves.

    Returns:
        `masks` and `keeps` of every frame that is shown: run lengths, and the bitmap of the bright patches of
        the view that is nearest in time; `seen`, the frame that this view shows; `j` and `f` at the curves'
        frames, and `means`, J&F, J and F, in percent; `matched`, whether these are of another expression's
        mask; `patches` of all views, and `told`, its tokens in words. `keeps` and `seen` are None where the
        run does not say which frames the model saw, scores where the truth is not known.
    """
    masks = str(row["mask"]).split(BETWEEN)
    rows, columns = (int(side) for side in str(row["grid"]).split("x"))
    kept = kept_tokens(str(row["kept"]), int(row["views"]) * rows * columns)
    shown = [int(one) for one in str(row.get("shown") or "").split()]
    seen, keeps = None, None
    if shown:
        seen = [nearest_view(shown, frame) for frame in pictures]
        keeps = [packed(kept_near(lit(kept), shown, frame, max(1, regions))) for frame in pictures]
    j, f = _curves(row, drawn)
    mean = scores(row)
    return {
        "masks": [masks[frame] for frame in pictures],
        "keeps": keeps,
        "seen": seen,
        "j": j,
        "f": f,
        "means": mean and [round(100 * one, 1) for one in (sum(mean) / 2, *mean)],
        "matched": mean is not None and mean != (scores(row, ("j_fixed", "f_fixed")) or mean),
        "patches": int(kept.sum()),
        "told": f"{int(row['tokens_final']):,} tokens of {row['views']} views"
        + (f", {int(kept.sum()):,} patches" if kept.any() else ""),
    }


def packed(kept: NDArray[np.bool_]) -> str:
    """A bitmap as the page reads it."""
    return base64.b64encode(np.packbits(kept).tobytes()).decode()


def _curves(row: Mapping[Any, Any], drawn: Sequence[int]) -> tuple[list[float] | None, list[float] | None]:
    curves = row.get("curves")
    if not isinstance(curves, dict) or not all(name in curves for name in CURVES):
        return None, None
    j, f = ((100 * one[list(drawn)]).round(1).tolist() for one in frames_of(curves))
    return j, f
