"""Printed costs: what shapes alone project, over the conversations that a table may have been made with, and
what a run here measured."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import backbones
from harness import cost
from harness.cost import projection
from harness.cost.formulas import GIB, PRESETS
from harness.cost.lines import lines_of
from harness.engine.served import served
from harness.reproduce.bands import Judged, Ours, judge
from harness.reproduce.numbers import Number, Row
from harness.reproduce.spec import Spec
from pruners.errors import UserError, nearest

UNITS = {"T": 1e12, "G": 1e9, "GiB": float(GIB), "ms": 1.0}
LENGTH = "length of the conversation"
NOT_MEASURED = "not measured here; it needs the weights, the data and a GPU"


@dataclass(frozen=True)
class Cost:
    """A printed cost and ours.

    Attributes:
        ours: in the table's unit; None where it was not measured.
    """

    row: Row
    metric: str
    printed: Number
    ours: float | None
    judged: Judged


def is_cost(metric: str) -> bool:
    """Whether a name is that of a cost column, and not of a metric."""
    from harness import metrics

    return metric not in metrics.names()


def check_metrics(spec: Spec) -> None:
    """See that all that a spec prints can be computed here, in its units.

    Raises:
        UserError: a metric is not known, has another unit, or the spec is pending.
    """
    from harness import metrics

    if spec.pending:
        raise UserError(f"The table {spec.name} cannot be run yet: {spec.pending}.")
    known = [*metrics.names(), *cost.EXPLAIN]
    for name, one in spec.metrics.items():
        where = f"The spec {str(spec.path)!r} prints {name!r}"
        if name not in known:
            raise UserError(
                f"{where}, which is no metric and no cost; there are {', '.join(known)}."
                f"{nearest(name, known)}"
            )
        units = list(UNITS) if is_cost(name) else [metrics.get(name).unit]
        if one.unit not in units:
            raise UserError(f"{where} in {one.unit!r}, and ours is in {' or '.join(map(repr, units))}.")


def judge_costs(spec: Spec, folder: Path | None) -> list[Cost]:
    """Every printed cost against ours.

    Args:
        folder: of a run that measured costs; None where none did.

    Raises:
        UserError: nothing projects what the spec prints.
    """
    names = [name for name in spec.metrics if is_cost(name)]
    if not names:
        return []
    projected, measured = _projected(spec), _measured(folder)
    found = []
    for name in names:
        unit, why = UNITS[spec.metrics[name].unit], spec.metrics[name].incomparable
        for row, _, printed in spec.cells(name):
            key = (row.pruner, row.budget)
            values = projected.get(key, {}).get(name)
            if values is None:
                figure = measured.get(key, {}).get(name)
                measured_here = None if figure is None else figure / unit
                found.append(_untold(row, name, printed, measured_here, why or NOT_MEASURED))
                continue
            value, low, high = (figure / unit for figure in values)
            judged = judge(
                Ours(value, value, value, 1),
                printed.value,
                printed.half_unit,
                1,
                tolerance=spec.band.tolerance,
                more={LENGTH: max(value - low, high - value)},
            )
            found.append(Cost(row, name, printed, value, judged))
    return found


def _untold(row: Row, metric: str, printed: Number, ours: float | None, why: str) -> Cost:
    """A time, which no print of another machine can be held against."""
    difference = math.nan if ours is None else ours - printed.value
    return Cost(
        row, metric, printed, ours, Judged(difference, math.nan, math.nan, math.nan, {}, "cannot tell", why)
    )


def _projected(spec: Spec) -> dict[tuple[str, int | None], dict[str, tuple[float, float, float]]]:
    """By row and preset: the usual conversation's figure, and those of the shortest and the longest one."""
    if not any(name in PRESETS for name in spec.metrics):
        return {}
    if not spec.shapes:
        raise UserError(f"The spec {str(spec.path)!r} prints costs by shapes and names no 'shapes'.")
    settings = backbones.one(spec.shapes)
    model = settings.shapes()
    if model is None:
        raise UserError(f"The shapes of {settings.name} are not known.")
    prompt = model.prompt()
    able, _ = served(spec.plan.chosen(), settings)
    lines = lines_of(able, spec.plan.budgets, 0, model.grid, model.shape.layers, settings.stated)
    rows = projection.project(model, lines, prompt).cells.to_dict("records")
    texts = (prompt.text, *(spec.band.text_tokens or (prompt.text, prompt.text)))
    found: dict[tuple[str, int | None], dict[str, tuple[float, float, float]]] = {}
    for row in rows:
        of_row: dict[str, Any] = {}
        for name, preset in PRESETS.items():
            figures = []
            for text in texts:  # every layer sees so many tokens more
                lengths = [length + text - prompt.text for length in row["lengths"]]
                figures.append(float(preset(lengths, model.shape, text)))
            of_row[name] = (figures[0], min(figures), max(figures))
        found[str(row["pruner"]), int(row["budget"])] = of_row
    return found


def _measured(folder: Path | None) -> dict[tuple[str, int | None], dict[str, float]]:
    """By row: medians of what a run measured."""
    if folder is None:
        return {}
    table = cost.load_costs(folder)
    return {
        (str(row["pruner"]), int(row["budget"])): {
            str(name): float(value)
            for name, value in row.items()
            if isinstance(value, int | float) and value == value
        }
        for row in table.to_dict("records")
    }
