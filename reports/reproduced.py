"""A printed table beside ours, number by number: difference, interval, band and verdict; as markdown, CSV and
JSON."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from harness import metrics
from harness.cost.roofline import GPUS
from harness.metrics import Metric
from harness.metrics.bootstrap import Estimate
from harness.reproduce.bands import Judged, Ours, Verdict, counted, judge
from harness.reproduce.costs import Cost
from harness.reproduce.estimates import REACHED
from harness.reproduce.estimates import Estimate as Size
from harness.reproduce.needs import Needs, readable_size
from harness.reproduce.numbers import AVERAGE, Number, Row
from harness.reproduce.proof import CAUSES, Proof
from harness.reproduce.spec import Spec
from harness.store.journal import write_text
from pruners.base import UserError
from reports.comparable import COLUMN, LINE
from reports.drawn import rounding_variance
from reports.gather import Runs, gather
from reports.tables import TableRow, tables

FILES = ("reproduced.md", "reproduced.csv", "reproduced.json")
NO_ROW = "this row was not run"


@dataclass(frozen=True)
class Cell:
    """One printed number.

    Attributes:
        column: of the table: a split, a cost, or a metric.
        ours: in the table's unit; None where there is none.
    """

    row: Row
    metric: str
    column: str
    printed: Number
    ours: float | None
    judged: Judged


def cells_of(
    spec: Spec, folders: Sequence[Path], same: Mapping[str, bool], draw: Mapping[str, float]
) -> list[Cell]:
    """Every printed number of the spec's metrics beside that of a run.

    Args:
        same: of a split, whether its images are known to be the printed ones.
        draw: by metric, the draw's share of an image's variance.
    """
    runs = gather([str(folder) for folder in folders])
    found = []
    for name in (name for name in spec.metrics if name in metrics.names()):
        metric = metrics.get(name)
        lines = {
            (line.pruner, line.budget if line.pruner != "none" else None): line
            for table in reversed(tables(runs, metric=name))
            for line in table.lines
        }
        noise = _noise(runs, metric)
        for row, split, printed in spec.cells(name):
            line = lines.get((row.pruner, row.budget if row.pruner != "none" else None))
            column = spec.metrics[name].column or (AVERAGE if split is None else " ".join(split))
            score = None if line is None else line.average if split is None else line.scores.get(split)
            if line is None or score is None:
                found.append(Cell(row, name, column, printed, None, _no_row()))
                continue
            splits = list(line.scores) if split is None else [split]
            ours = _ours(score, line, splits, metric, noise)
            whole = _whole(spec, splits, same)
            judged = judge(
                ours, printed.value, printed.half_unit, whole, draw.get(name, 0.0), spec.band.tolerance
            )
            found.append(Cell(row, name, column, printed, ours.value, judged))
    return found


def of_costs(costs: Sequence[Cost]) -> list[Cell]:
    """Printed costs as cells."""
    return [Cell(one.row, one.metric, one.metric, one.printed, one.ours, one.judged) for one in costs]


def _no_row() -> Judged:
    nothing = math.nan
    return Judged(nothing, nothing, nothing, nothing, {}, "cannot tell", NO_ROW)


def _ours(
    score: Estimate,
    line: TableRow,
    splits: Sequence[tuple[str, str]],
    metric: Metric,
    noise: Mapping[tuple[Any, ...], float],
) -> Ours:
    variance = sum(noise.get((*split, line.pruner, line.budget), 0.0) for split in splits) / len(splits) ** 2
    scale = metric.scale
    images = sum(line.counts[split]["images"] for split in splits)
    ends = (scale * score.value, scale * score.low, scale * score.high)
    return Ours(*ends, images, scale**2 * variance)


def _noise(runs: Runs, metric: Metric) -> dict[tuple[Any, ...], float]:
    """Variance of every row's score by choices that hang on rounding; of a mean over seeds, that of the
    mean."""
    if not metric.of_iou:
        return {}
    keys = [*COLUMN, *LINE, "seed"]
    by_seed = rounding_variance(runs.frame, keys).groupby(level=[*COLUMN, *LINE], observed=True)
    return {key: float(part.mean() / len(part)) for key, part in by_seed if part.notna().all()}  # type: ignore[misc]


def _whole(spec: Spec, splits: Sequence[tuple[str, str]], same: Mapping[str, bool]) -> int | None:
    """The images that a printed number is of, if ours are known to be among them."""
    known = [spec.split(":".join(split)) for split in splits]
    if not all(same.get(":".join(split), False) for split in splits) or None in known:
        return None
    return sum(one.images for one in known if one is not None)


# -- rendering


def _text(value: float | None, digits: int, sign: str = "") -> str:
    return "-" if value is None or math.isnan(value) else f"{value:{sign}.{digits}f}"


def line_of(cell: Cell) -> dict[str, str]:
    """One number as texts."""
    digits = len(cell.printed.text.partition(".")[2]) + 1
    one = cell.judged
    interval = "-" if math.isnan(one.low) else f"{one.low:+.{digits}f} to {one.high:+.{digits}f}"
    return {
        "method": cell.row.method + (" (not seen)" if cell.row.seen == "no" else ""),
        "pruner": cell.row.pruner,
        "budget": "" if cell.row.budget is None else str(cell.row.budget),
        "column": cell.column,
        "ours": _text(cell.ours, digits),
        "printed": cell.printed.text,
        "difference": _text(one.difference, digits, "+"),
        "interval": interval,
        "band": "-" if math.isnan(one.band) else f"±{one.band:.{digits}f}",
        "verdict": one.verdict,
        "why": one.why,
    }


def verdicts(cells: Sequence[Cell]) -> list[Verdict]:
    return [cell.judged.verdict for cell in cells]


def table_markdown(spec: Spec, cells: Sequence[Cell], proof: Proof | None, remarks: Sequence[str]) -> str:
    """The whole page."""
    frame = pd.DataFrame([line_of(cell) for cell in cells])
    reasons = list(dict.fromkeys(why for why in frame["why"] if why))
    shown = frame.drop(columns="why")
    if (shown["method"] == shown["pruner"]).all():
        shown = shown.drop(columns="method")
    align = [
        "right" if name in ("budget", "ours", "printed", "difference", "band") else "left" for name in shown
    ]
    return "\n".join(
        [
            f"# {spec.title}\n",
            f"{counted(verdicts(cells))}\n",
            shown.to_markdown(index=False, disable_numparse=True, colalign=align),
            "",
            *(f"- {one}" for one in (*_legend(spec, proof), *remarks, *spec.notes)),
            *(f"- Cannot tell: {why}." for why in reasons),
            "",
        ]
    )


def _legend(spec: Spec, proof: Proof | None) -> list[str]:
    units = ", ".join(f"{name} in {one.unit}" for name, one in spec.metrics.items())
    found = [
        f"Ours minus printed, {units}. The interval is of the images that were not asked (a point, where all "
        f"were), the band of rounding, the protocol's draw and the spec's tolerance; a number holds if its "
        f"interval lies in the band, and differs if it lies outside.",
        source_line(spec),
    ]
    if proof is not None and proof.draws > 1:
        shares = ", ".join(f"{100 * share:.0f} % ({name})" for name, share in proof.draw.items())
        found.append(
            f"The protocol's draw makes {shares} of what an image adds to the score's variance, measured "
            f"with {proof.draws} seeds."
        )
    if spec.band.tolerance:
        found.append(f"Tolerance {spec.band.tolerance:g}: {spec.band.why}.")
    return found


def source_line(spec: Spec) -> str:
    """Where the numbers are from, and whether they were seen there."""
    seen = "seen there" if spec.source.seen else "not seen there by who wrote this spec"
    note = f"; {spec.source.note}" if spec.source.note else ""
    return f"Printed in {spec.source.title}, {spec.source.where} ({seen}{note})."


def proof_lines(spec: Spec, proof: Proof) -> list[str]:
    """What the sample said of the set-up, and the usual causes where it does not stand."""
    found = []
    for one in proof.cells:
        said = one.judged
        digits = len(one.printed.text.partition(".")[2]) + 1
        of = f"{one.images} of {one.whole}" if one.whole else str(one.images)
        found.append(
            f"proof: {one.row.method} {':'.join(one.split)} {one.metric}: {one.ours.value:.{digits}f} on "
            f"{of} images, printed {one.printed.text}: {said.difference:+.{digits}f} "
            f"({said.low:+.{digits}f} to {said.high:+.{digits}f}), band ±{said.band:.{digits}f}: "
            f"{said.verdict}"
        )
    if not proof.stands:
        found += cause_lines(spec)
    return found


def cause_lines(spec: Spec) -> list[str]:
    """Why a set-up may be wrong, the likeliest first."""
    causes = (*spec.causes, *CAUSES)
    return ["usual causes, the likeliest first:", *(f"  {n}. {one}" for n, one in enumerate(causes, 1))]


def needs_lines(spec: Spec, needs: Needs, size: Size | None) -> list[str]:
    """All that a spec needs, for a person."""
    everything = (*needs.weights, *needs.data)
    rows = [
        {
            "what": one.what,
            "size": readable_size(one.bytes) if one.bytes is not None else "-",
            "here": "wrong" if one.wrong else "no" if one.missing else "yes",
            "where": one.wrong or (one.source if one.place is None else str(one.place)),
        }
        for one in everything
    ]
    table = pd.DataFrame(rows).to_markdown(index=False, disable_numparse=True)
    found = [f"# {spec.title}", source_line(spec), "", table, ""]
    for reason in dict.fromkeys(one.unknown for one in everything if one.unknown):
        names = ", ".join(one.what for one in everything if one.unknown == reason)
        found.append(f"- not wholly known: {names}: {reason}.")
    found += [f"- licence of {one.repository}: {one.licence}." for one in spec.weights if one.licence]
    known = sum(one.bytes or 0 for one in needs.missing)
    unknown = sum(one.bytes is None for one in needs.missing)
    more = f", and {unknown} of a size that is not known" if unknown else ""
    found.append(f"to fetch: {readable_size(known)} in {len(needs.missing) - unknown} files{more}")
    room = "enough for these" if needs.free > known else f"{readable_size(known - needs.free)} too few"
    found.append(f"disk of the hub's cache: {readable_size(needs.free)} left, {room}")
    return [*found, *_size_lines(size)]


def _size_lines(size: Size | None) -> list[str]:
    """GPU memory and hours."""
    if size is None:
        return ["GPU memory and hours: the shapes of this backbone are not known without its files"]
    found = [
        f"GPU memory: {size.memory / 2**30:.1f} GiB ({size.weights / 2**30:.1f} of weights, "
        f"{size.peak / 2**30:.1f} alive beside them in the largest batch, a fifth on top)"
    ]
    if size.has is not None:
        short = "; give a smaller --batch-size" if size.has < size.memory else ""
        found.append(f"this machine's GPU has {size.has / 2**30:.1f} GiB{short}")
    if not size.macs:
        return [*found, "hours: the spec does not say how many images its splits have"]
    where = [size.gpu] if size.gpu is not None else [GPUS["h100"], GPUS["a100"]]
    times = []
    for on in where:
        bound, likely = map(_hours, size.hours(on))
        times.append(
            f"{on.name}: {bound} at its peak rate, which nothing reaches, {likely} at {REACHED:.0%} of it"
        )
    here = "this machine's GPU" if size.gpu is not None else "no GPU of a known data sheet here"
    rows = f"{size.cells} rows of {size.images} images or clips, projected multiply-adds alone"
    return [*found, f"time ({here}; {rows}): {'; '.join(times)}", *(f"- {note}" for note in size.notes)]


def _hours(hours: float) -> str:
    return (
        f"{hours:.1f} h"
        if hours >= 0.95
        else f"{60 * hours:.0f} min"
        if hours >= 1 / 60
        else f"{3600 * hours:.0f} s"
    )


def write(
    spec: Spec, cells: Sequence[Cell], proof: Proof | None, remarks: Sequence[str], folder: Path
) -> list[Path]:
    """Write the page, a line per number, and all of it for programs.

    Raises:
        UserError: the folder cannot be written.
    """
    frame = pd.DataFrame([line_of(cell) | _unrounded(cell) for cell in cells])
    content = {
        "spec": spec.name,
        "title": spec.title,
        "sentence": counted(verdicts(cells)),
        "source": asdict(spec.source),
        "plan": spec.plan.to_json(),
        "draw": {} if proof is None else proof.draw,
        "proof": [] if proof is None else [_of_proof(one) for one in proof.cells],
        "remarks": list(remarks),
        "cells": [_of_cell(cell) for cell in cells],
    }
    texts = (
        table_markdown(spec, cells, proof, remarks),
        frame.to_csv(index=False, lineterminator="\n"),
        json.dumps(_finite(content), indent=2) + "\n",
    )
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, text in zip(FILES, texts, strict=True):
            write_text(folder / name, text)
    except OSError as error:
        raise UserError(
            f"Cannot write to {str(folder)!r} ({error.strerror}); give --out a folder that you may write."
        ) from error
    return [folder / name for name in FILES]


def _unrounded(cell: Cell) -> dict[str, Any]:
    one = cell.judged
    return {
        "metric": cell.metric,
        "ours_value": cell.ours,
        "low": one.low,
        "high": one.high,
        "band_value": one.band,
    }


def _of_cell(cell: Cell) -> dict[str, Any]:
    return {
        "method": cell.row.method,
        "pruner": cell.row.pruner,
        "budget": cell.row.budget,
        "metric": cell.metric,
        "column": cell.column,
        "source": cell.row.source,
        "seen": cell.row.seen,
        "printed": cell.printed.text,
        "ours": cell.ours,
        **asdict(cell.judged),
    }


def _of_proof(one: Any) -> dict[str, Any]:
    return {
        "method": one.row.method,
        "split": ":".join(one.split),
        "metric": one.metric,
        "printed": one.printed.text,
        "images": one.images,
        "whole": one.whole,
        "ours": asdict(one.ours),
        "judged": asdict(one.judged),
    }


def _finite(value: Any) -> Any:
    """Without what JSON cannot say: NaN becomes null."""
    if isinstance(value, dict):
        return {name: _finite(one) for name, one in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(one) for one in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
