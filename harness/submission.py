"""The answers of a run as the servers of the competitions, or DAVIS' evaluator, take them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from backbones.parts.clips import BETWEEN
from harness.data.registry import load_samples
from harness.data.sample import Annotation, DamagedSegmentation, DataError, Sample, content, rasterise
from harness.data.video import archive, davis
from harness.data.video.archive import Answer, name_of
from harness.store import records
from pruners.base import UserError
from pruners.errors import reason

KNOWN = (*archive.TOPS, davis.NAME)


def write(run: Path, data: Path | None, out: Path, dataset: str = "", cell: str = "") -> str:
    """Write and check what a run answered.

    Args:
        run: its folder.
        data: data folder, for the names of the frames.
        out: zip file; of Ref-DAVIS-17 a folder.
        dataset: `dataset:split`, where the run has several that can be submitted.
        cell: `pruner@budget` or the beginning of a cell's id, where the run has several.

    Returns:
        What was written, in a sentence.

    Raises:
        UserError: it is not clear what is meant, answers are missing, or the data are not the run's.
    """
    rows, described = records.load_records(run), records.samples(run)
    name, split = _pair(run, rows, dataset)
    rows = chosen(rows[(rows["dataset"] == name) & (rows["split"] == split)], cell)
    samples = load_samples(name, split, data, "video")
    _check_content(samples, described)
    found = answers(rows, samples)
    empty = int((rows["seg_said"] == 0).sum())
    if name == davis.NAME:
        count = archive.write_davis_results(found, samples, out)
    else:
        archive.write_submission(found, name, out)
        count = archive.validate_submission(out, name, split, data)
    return (
        f"{out}: {count} pictures of {len(samples)} videos and {len(rows)} expressions of {name}:{split}, "
        f"{empty} of them answered without [SEG]"
    )


def _pair(run: Path, rows: pd.DataFrame, wanted: str) -> tuple[str, str]:
    held = sorted(
        {(one, two) for one, two in zip(rows["dataset"], rows["split"], strict=True) if one in KNOWN}
    )
    names = [":".join(pair) for pair in held]
    found = [pair for pair, name in zip(held, names, strict=True) if wanted in ("", pair[0], name)]
    if len(found) != 1:
        raise UserError(
            f"'{run}' has answers to {', '.join(names) or 'no video that can be submitted'}"
            + (f"; say which with --datasets {names[0]}." if names else f", which are {', '.join(KNOWN)}.")
        )
    return found[0]


def chosen(rows: pd.DataFrame, wanted: str) -> pd.DataFrame:
    """The rows of one cell.

    Raises:
        UserError: several are meant, or none.
    """
    cells = {
        str(key): f"{of['pruner'].iloc[0]}@{of['budget'].iloc[0]}"
        for key, of in rows.groupby("cell", sort=False)
    }
    found = [key for key, name in cells.items() if not wanted or name == wanted or key.startswith(wanted)]
    if len(found) != 1:
        told = ", ".join(f"{name} ({key})" for key, name in cells.items())
        raise UserError(
            f"{len(found)} of the run's cells are meant, and one is due; say which with --cell: {told}."
        )
    return rows[rows["cell"] == found[0]]


def _check_content(samples: Sequence[Sample], described: pd.DataFrame) -> None:
    """The data on disk must be those that were answered."""
    then = {row.sample: row for row in described.itertuples()}
    for sample in samples:
        row = then.get(sample.id)
        if row is not None and (
            (row.height, row.width) != (sample.height, sample.width)
            or (isinstance(row.content, str) and row.content != content(sample))
        ):
            raise UserError(
                f"{sample.id} is not what the run answered: expressions, frames or sizes differ; name the "
                f"data folder of the run with --data."
            )


def answers(rows: pd.DataFrame, samples: Sequence[Sample]) -> Iterator[Answer]:
    """The answers of one cell's records, clip after clip in the order of the expressions.

    Args:
        rows: as `harness.store.records.load_records` has them; `mask` of a clip is the run lengths of its
            frames, joined by a blank, or empty where the model wrote no [SEG] (`seg_said` 0).

    Raises:
        UserError: an answer is missing, or none that fits its clip.
    """
    held = {(row.sample, row.expression): row for row in rows.itertuples()}
    due = [(sample.id, one.id) for sample in samples for one in sample.expressions]
    if lost := [key for key in due if key not in held]:
        raise UserError(
            f"{len(lost)} of {len(due)} expressions have no answer, the first is expression {lost[0][1]} of "
            f"{lost[0][0]}; a submission needs all: give the run's command again without --limit."
        )
    for sample in samples:
        for one in sample.expressions:
            row = held[sample.id, one.id]
            yield Answer(
                name_of(sample),
                one.id,
                [path.stem for path in sample.frames],
                _masks(sample, one.id, str(row.mask), bool(row.seg_said == 0)),
            )


def _masks(sample: Sample, expression: int, runs: str, silent: bool) -> Iterator[NDArray[np.bool_]]:
    size = [sample.height, sample.width]
    parts = runs.split(BETWEEN)
    if not runs and silent:
        yield from (np.zeros(size, dtype=bool) for _ in sample.frames)
        return
    where = f"The answer to expression {expression} of {sample.id}"
    if len(parts) != len(sample.frames):
        raise DataError(f"{where} has {len(parts)} masks for {len(sample.frames)} frames; make the run anew.")
    for counts in parts:
        try:
            yield rasterise(Annotation(expression, {"size": size, "counts": counts}), *size) > 0
        except DamagedSegmentation as error:
            raise DataError(f"{where} is no mask: {reason(error)}; make the run anew.") from None
