"""Whether the first answers without pruning are better than noise."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

IMAGES = 20
# mean IoU of masks that a head of random numbers gives: 0.06 to 0.08 is what users of LISA report, 0.14 what
# glamm-mini has on RefShapes; sound models have 0.35 and more
NOISE = 0.15


class NoiseWatch:
    """Looks at rows as they come, until it has seen enough images."""

    def __init__(self) -> None:
        self._ious: dict[str, list[float]] = {}
        self._over = False

    def look(self, rows: Iterable[Mapping[str, Any]]) -> str:
        """A sentence, once, if the first images' mean IoU is no better than noise; else empty.

        Rows of other pruners than `none`, and of expressions whose truth the model does not see, do not
        count.
        """
        if self._over:
            return ""
        for row in rows:
            if row["status"] == "ok" and row["pruner"] == "none" and row["coverage"] is not None:
                self._ious.setdefault(row["sample"], []).append(row["iou"])
        if len(self._ious) < IMAGES:
            return ""
        self._over = True
        found = [iou for ious in self._ious.values() for iou in ious]
        mean = sum(found) / len(found)
        if mean > NOISE:
            return ""
        return (
            f"without pruning, the mean IoU of the first {len(self._ious)} images is {mean:.2f}, as of masks "
            f"at random; see that the checkpoint holds its trained parts"
        )
