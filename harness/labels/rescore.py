"""Recorded masks against other truths: run lengths against run lengths, a few rows at a time."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pandas as pd
from pycocotools import mask as coco_mask

from harness.labels.join import Joined, Key
from harness.progress import stage
from harness.store.answers import answers
from pruners.base import UserError

AT_ONCE = 2_000


@dataclass(frozen=True)
class Rescored:
    """What recorded masks have in common with other truths.

    Attributes:
        joined: what the file of labels says.
        counts: one row per recorded answer to an expression that counts: `run` (place of its folder), `cell`,
            `sample`, `expression`, `clean_intersection`, `clean_union`; None where truths are the run's.
        recounted: answers whose mask was counted against the recorded truth, too.
        differing: those of them whose recorded counts are others.
    """

    joined: Joined
    counts: pd.DataFrame | None = field(repr=False, default=None)
    recounted: int = 0
    differing: int = 0


def rescore(folders: Sequence[Path], joined: Joined, samples: pd.DataFrame) -> Rescored:
    """Count every recorded mask against the truth that the labels give.

    It is counted against the recorded truth as well, which has to give the recorded counts: so the masks are
    those that were scored. (Where a data set has pixels that are ignored, it cannot.)

    Args:
        samples: as `harness.store.records.samples`, of the same runs.

    Raises:
        UserError: a run keeps no masks.
    """
    if not joined.truths:
        return Rescored(joined)
    sizes = {
        (sample, int(expression)): ([int(height), int(width)], truth)
        for sample, expression, height, width, truth in samples[
            ["sample", "expression", "height", "width", "truth"]
        ].itertuples(index=False, name=None)
    }
    parts, recounted, differing = [], 0, 0
    for number, folder in enumerate(folders):
        for frame in _batches(folder, joined.truths):
            keys = list(zip(frame["sample"], frame["expression"], strict=True))
            masks = [
                {"size": sizes[key][0], "counts": mask.encode()}
                for key, mask in zip(keys, frame["mask"], strict=True)
            ]
            found = pd.DataFrame(
                [_counts(mask, joined.truths[key]) for mask, key in zip(masks, keys, strict=True)],
                columns=["clean_intersection", "clean_union"],
                index=frame.index,
            )
            before = pd.DataFrame(
                [_counts(mask, sizes[key][1]) for mask, key in zip(masks, keys, strict=True)],
                columns=["intersection", "union"],
                index=frame.index,
            )
            recounted += len(before)
            differing += int((before != frame[["intersection", "union"]]).any(axis=1).sum())
            parts.append(frame[["cell", "sample", "expression"]].join(found).assign(run=number))
    return Rescored(joined, pd.concat(parts, ignore_index=True), recounted, differing)


def _batches(folder: Path, truths: Mapping[Key, str]) -> Iterator[pd.DataFrame]:
    """Answers to expressions with another truth, with progress."""
    columns = ["cell", "sample", "expression", "mask", "intersection", "union"]
    with stage(f"counting masks of {folder}", unit="answers") as progress:
        for frame in answers(folder, columns, AT_ONCE):
            progress.advance(len(frame))
            wanted = pd.Series(
                [key in truths for key in zip(frame["sample"], frame["expression"], strict=True)],
                index=frame.index,
                dtype=bool,
            )
            frame = frame[wanted]
            if (frame["mask"] == "").any():
                raise UserError(
                    f"The run {str(folder)!r} keeps no masks of "
                    f"{frame[frame['mask'] == '']['sample'].iloc[0]}, "
                    f"so nothing can be scored on other truths; run it again."
                )
            if len(frame):
                yield frame


def _counts(mask: Mapping[str, object], truth: str) -> tuple[int, int]:
    """Pixels in the intersection and in the union of run lengths."""
    other = {"size": mask["size"], "counts": truth.encode()}
    inner = int(coco_mask.area(coco_mask.merge([mask, other], intersect=True)))
    predicted, target = map(int, coco_mask.area([mask, other]))
    return inner, predicted + target - inner
