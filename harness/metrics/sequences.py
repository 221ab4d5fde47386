"""Statistics over the frames of objects, as the official evaluation of DAVIS prints them beside the means.

Mean, recall and decay of an object are numbers of its curve (J or F of every frame); those of a data set are
means over objects, whatever sequence they are in.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import astuple, dataclass

import numpy as np
from numpy.typing import ArrayLike

REACHED = 0.5
QUARTERS = 4


@dataclass(frozen=True)
class Statistics:
    """Of one curve, or means over several.

    Attributes:
        mean: in 0..1.
        recall: share of the frames above 0.5.
        decay: mean of the first quarter minus mean of the last one; what a tracker loses.
    """

    mean: float
    recall: float
    decay: float


def statistics(curve: ArrayLike) -> Statistics:
    """Of J or F of an object's frames.

    Neighbouring quarters share a frame, and of fewer than four frames all quarters may; that is the official
    rule. The official code keeps frame numbers in 8 bits, so its decay of more than 256 frames is another.

    Args:
        curve: (T,) in 0..1, T >= 1.

    Raises:
        ValueError: it is empty, or no curve.
    """
    frames = np.asarray(curve, dtype=np.float64)
    if frames.ndim != 1 or not len(frames):
        raise ValueError(f"expected numbers of one frame or more, got an array {frames.shape}")
    # 1e-10, so that half a frame counts as a whole one
    ends = (np.round(np.linspace(1, len(frames), QUARTERS + 1) + 1e-10) - 1).astype(int)
    first, last = frames[ends[0] : ends[1] + 1], frames[ends[-2] : ends[-1] + 1]
    return Statistics(
        float(frames.mean()), float((frames > REACHED).mean()), float(first.mean() - last.mean())
    )


def over_objects(objects: Iterable[Statistics]) -> Statistics:
    """Means over objects.

    Raises:
        ValueError: there are none.
    """
    table = np.array([astuple(one) for one in objects])
    if not len(table):
        raise ValueError("expected one object or more")
    return Statistics(*(float(column.mean()) for column in np.ascontiguousarray(table.T)))
