"""Figures for papers and slides: accuracy against budget, accuracy against cost, cost against budget, and
where the time goes; SVG and PNG."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from reports import costs
from reports.costs import PRICES, Price, priced
from reports.gather import Runs
from reports.looks import COLOURS, DASHES, GREY, MARKS, Look, looks
from reports.pareto import Point, Standing, front, standings
from reports.style import STYLE, save
from reports.table_text import slug
from reports.tables import BOUND, Table, TableRow

WIDE, HIGH = 7.6, 4.8  # inches of a figure, the names beside it included
AXES = (0.09, 0.11, 0.63, 0.8)  # left, bottom, width and height of what is drawn, in parts of it
LETTER, LINE = 7, 0.036  # of the names: points, and their distance in parts of the axes' height
FEW = 6  # methods whose intervals can be told apart at one budget
SHADES = {Standing.FRONT: 1.0, Standing.CLOSE: 0.75, Standing.BEATEN: 0.3}
SIZES = (4.0, 9.0)  # of marks at the smallest and the largest budget, in points
Priced = tuple[TableRow, Point]
KEY = "solid: none beats it beyond noise · paler: beaten within the accuracy's intervals · pale: beaten"


def looks_of(tables: Sequence[Table]) -> dict[str, Look]:
    """The look of every method of the tables."""
    lines = [line for table in tables for line in table.lines]
    return looks([line.pruner for line in lines], [line.pruner for line in lines if line.control])


def draw_figures(runs: Runs, tables: list[Table], folder: Path) -> list[Path]:
    """Write all figures of all tables; the same numbers give the same bytes."""
    import matplotlib

    folder.mkdir(parents=True, exist_ok=True)
    written = []
    drawn = looks_of(tables)
    with matplotlib.rc_context(STYLE):
        for number, table in enumerate(tables, 1):
            facts = table.group.facts
            stem = slug(f"{facts['backbone']} {facts['protocol']}") + (
                f"-{number}" if len(tables) > 1 else ""
            )
            for name, figure in _figures(runs, table, drawn):
                written += save(figure, folder / f"{stem}-{name}")
    return written


def _figures(runs: Runs, table: Table, drawn: dict[str, Look]) -> Iterator[tuple[str, Any]]:
    if any(line.average for line in table.lines):
        yield "budget", budget_figure(table, drawn)
    measured = costs.of_one_machine(costs.costs_of(runs.costs, table))
    for price in PRICES:
        if points := priced(table, measured, price):
            if any(line.average for line, _ in points):
                yield price.key, pareto_figure(table, points, price, drawn)
            if len({line.budget for line, _ in points if line.pruner != BOUND}) > 1:
                yield f"{price.key}-by-budget", cost_figure(table, points, price, drawn)
    if any(costs.stages(record) for record in measured.values()):
        yield "stages", _stages(measured)


def _figure(table: Table, across: str, up: str) -> tuple[Any, Any]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(WIDE, HIGH))
    axes = figure.add_axes(AXES)
    axes.set_title(table.title, loc="left", fontsize=9)
    axes.set_xlabel(across)
    axes.set_ylabel(up)
    return figure, axes


def _score_label(table: Table) -> str:
    return f"Avg. {table.metric.title}, {table.metric.unit}"


def line_of(look: Look, size: float = 4.5, width: float = 1.2) -> dict[str, Any]:
    """A look as what matplotlib takes of a line with marks."""
    from matplotlib.path import Path as Outline

    corners = [(x, -y) for x, y in MARKS[look.mark]]
    dash = DASHES[look.dash]
    return {
        "color": look.colour,
        "marker": Outline([*corners, corners[0]], closed=True),
        "markersize": 1.15 * size * max(abs(one) for corner in corners for one in corner),
        "markerfacecolor": "white" if look.hollow else look.colour,
        "markeredgecolor": look.colour if look.hollow else "white",
        "markeredgewidth": 1.1 if look.hollow else 0.5,
        "linewidth": width,
        "linestyle": (0, dash) if dash else "-",
    }


def _error(line: TableRow, scale: float) -> np.ndarray[Any, Any] | None:
    one = line.average
    if one is None or np.isnan(one.low):
        return None
    return scale * np.array([[one.value - one.low], [one.high - one.value]])


def spread_out(places: Sequence[float], gap: float, low: float, high: float) -> list[float]:
    """Places moved as little as need be until neighbours are `gap` apart, in the same order, between low and
    high if there is room."""
    order = sorted(range(len(places)), key=lambda k: places[k])
    if not order:
        return []
    gap = min(gap, (high - low) / max(1, len(order) - 1))
    found = [0.0] * len(places)
    least = low
    for k in order:
        least = found[k] = max(places[k], least)
        least += gap
    most = high
    for k in reversed(order):
        most = found[k] = min(found[k], most)
        most -= gap
    return found


def _name_lines(axes: Any, ends: dict[str, tuple[float, float]], drawn: dict[str, Look]) -> None:
    """The names of the lines beside the axes, each at the height where its line ends, with a thread to there.

    Args:
        ends: x and y of every line's last mark.
    """
    if not ends:  # a run of the upper bound alone
        return
    inside = axes.transData.transform(list(ends.values()))
    points = axes.transAxes.inverted().transform(inside)
    heights = spread_out([float(y) for _, y in points], LINE, 0.0, 1.0)
    for (name, (x, y)), height in zip(ends.items(), heights, strict=True):
        axes.annotate(
            "",
            (x, y),
            (1.035, height),
            textcoords="axes fraction",
            arrowprops={"arrowstyle": "-", "color": drawn[name].colour, "linewidth": 0.4, "alpha": 0.6},
            annotation_clip=False,
        )
        axes.plot(
            [1.04, 1.075, 1.11],
            [height] * 3,
            transform=axes.transAxes,
            clip_on=False,
            markevery=[1],
            **line_of(drawn[name], 3.5, 1.0),
        )
        axes.text(1.125, height, name, transform=axes.transAxes, fontsize=LETTER, va="center")


def _budgets_axis(axes: Any, budgets: Sequence[int]) -> None:
    """Logarithmic, with ticks at the run's budgets and nowhere else."""
    from matplotlib.ticker import FixedLocator, NullLocator

    axes.set_xscale("log", base=2)
    axes.xaxis.set_major_locator(FixedLocator(list(budgets)))
    axes.xaxis.set_minor_locator(NullLocator())
    close = any(b < 1.15 * a for a, b in pairwise(budgets))
    axes.set_xticklabels([str(budget) for budget in budgets], rotation=60 if close else 0)
    axes.set_xlim(budgets[0] / 1.12, budgets[-1] * 1.06)


def _budgets(table: Table) -> list[int]:
    return sorted({line.budget for line in table.lines if line.pruner != BOUND})


def _curves(lines: Sequence[TableRow]) -> dict[str, list[TableRow]]:
    """The rows of every pruned method, by rising budget."""
    found: dict[str, list[TableRow]] = {}
    for line in sorted(lines, key=lambda one: one.budget):
        if line.pruner != BOUND:
            found.setdefault(line.pruner, []).append(line)
    return found


def budget_figure(table: Table, drawn: dict[str, Look]) -> Any:
    """Accuracy against budget: every mark stands at its budget.

    Intervals are drawn of a few methods; of many, which would cover each other, their median width.
    """
    figure, axes = _figure(table, "visual tokens (budget), logarithmic", _score_label(table))
    scale, budgets = table.metric.scale, _budgets(table)
    curves = _curves([line for line in table.lines if line.average])
    ends = {}
    if budgets:
        _budgets_axis(axes, budgets)
    for name, lines in curves.items():
        ys = [scale * line.average.value for line in lines if line.average]
        axes.plot([line.budget for line in lines], ys, label=name, **line_of(drawn[name]))
        ends[name] = (float(lines[-1].budget), ys[-1])
        for line, y in zip(lines, ys, strict=True):
            if len(curves) <= FEW and (error := _error(line, scale)) is not None:
                style = {"fmt": "none", "ecolor": drawn[name].colour, "elinewidth": 0.9, "alpha": 0.6}
                axes.errorbar([line.budget], [y], yerr=error, **style)
    if table.bound and table.bound.average:
        value = scale * table.bound.average.value
        axes.axhline(value, color=GREY, linewidth=1, linestyle=":")
        axes.text(
            0.01,
            value,
            f"all {table.bound.budget} tokens",
            transform=axes.get_yaxis_transform(),
            fontsize=LETTER,
            color=GREY,
            va="bottom",
        )
    axes.set_ylim(bottom=0)
    _interval_width(
        axes,
        [
            error
            for lines in curves.values()
            for line in lines
            if len(curves) > FEW and (error := _error(line, scale)) is not None
        ],
    )
    _name_lines(axes, ends, drawn)
    return figure


def _interval_width(axes: Any, errors: Sequence[np.ndarray[Any, Any]]) -> None:
    """A bar as long as the median of intervals."""
    if not errors:
        return
    half = float(np.median([error.sum() / 2 for error in errors]))
    low, high = axes.get_ylim()
    middle = low + 0.05 * (high - low) + half
    axes.errorbar(
        [0.03],
        [middle],
        yerr=half,
        transform=axes.get_yaxis_transform(),
        fmt="none",
        ecolor=GREY,
        elinewidth=1.2,
        capsize=3,
    )
    axes.text(
        0.05,
        middle,
        f"95 % interval, median ±{half:.1f}",
        transform=axes.get_yaxis_transform(),
        fontsize=LETTER,
        color=GREY,
        va="center",
    )


def _mark_size(budget: int, budgets: Sequence[int]) -> float:
    """By the rank of a budget."""
    small, large = SIZES
    return small + (large - small) * budgets.index(budget) / max(1, len(budgets) - 1)


def pareto_figure(table: Table, points: Sequence[Priced], price: Price, drawn: dict[str, Look]) -> Any:
    """Accuracy against cost, and the line through what no other row beats (`reports.pareto`)."""
    figure, axes = _figure(table, f"{price.label} (larger marks: larger budgets)", _score_label(table))
    scored = [(line, point) for line, point in points if line.average]
    ranked = [point for line, point in scored if not line.sees_truth]
    how = dict(zip(map(id, ranked), standings(ranked), strict=True))
    budgets = sorted({line.budget for line, _ in scored})
    scale = table.metric.scale
    ends: dict[str, tuple[float, float]] = {}
    for line, point in scored:
        y = scale * line.average.value if line.average else math.nan
        style = line_of(drawn[line.pruner], _mark_size(line.budget, budgets)) | {"linestyle": "none"}
        axes.plot([point.cost], [y], alpha=SHADES[how.get(id(point), Standing.CLOSE)], zorder=3, **style)
        if point.dear > point.cheap:
            axes.hlines(y, point.cheap, point.dear, color=drawn[line.pruner].colour, linewidth=0.7, alpha=0.4)
        if line.pruner not in ends or y > ends[line.pruner][1]:
            ends[line.pruner] = (point.cost, y)
    if best := front(ranked):
        sign = 1 if table.metric.higher_is_better else -1
        axes.plot(
            [one.cost for one in best],
            [sign * one.score for one in best],
            color=GREY,
            linewidth=0.9,
            linestyle=":",
            zorder=1,
        )
    axes.set_ylim(bottom=0)
    axes.set_xlim(left=0.93 * min(point.cheap for _, point in scored))
    axes.text(0, -0.14, KEY, transform=axes.transAxes, fontsize=LETTER - 0.5, color=GREY)
    errors = [error for line, _ in scored if (error := _error(line, scale)) is not None]
    _interval_width(axes, errors)
    _name_lines(axes, ends, drawn)
    return figure


def cost_figure(table: Table, points: Sequence[Priced], price: Price, drawn: dict[str, Look]) -> Any:
    """Cost against budget, a line for every method, with the spread of its rounds where they were timed."""
    figure, axes = _figure(table, "visual tokens (budget), logarithmic", price.label)
    lines = [line for line, _ in points if line.pruner != BOUND]
    _budgets_axis(axes, sorted({line.budget for line in lines}))
    ends = {}
    for name, mine in _curves(lines).items():
        here = [next(point for line, point in points if line is one) for one in mine]
        budgets = [line.budget for line in mine]
        axes.plot(budgets, [one.cost for one in here], label=name, **line_of(drawn[name]))
        spread = {"color": drawn[name].colour, "linewidth": 0.7, "alpha": 0.4}
        axes.vlines(budgets, [one.cheap for one in here], [one.dear for one in here], **spread)
        ends[name] = (float(budgets[-1]), here[-1].cost)
    if bound := next((one for one in points if one[0].pruner == BOUND), None):
        axes.axhline(bound[1].cost, color=GREY, linewidth=1, linestyle=":")
        axes.text(
            0.01,
            bound[1].cost,
            f"all {bound[0].budget} tokens",
            fontsize=LETTER,
            color=GREY,
            va="bottom",
            transform=axes.get_yaxis_transform(),
        )
    axes.set_ylim(bottom=0)
    _name_lines(axes, ends, drawn)
    return figure


def _stages(measured: dict[tuple[str, int], dict[str, Any]]) -> Any:
    from matplotlib.figure import Figure

    rows = {key: costs.stages(record) for key, record in measured.items()}
    names = list(dict.fromkeys(name for row in rows.values() for name in row))
    figure = Figure(figsize=(7.2, 0.9 + 0.22 * len(rows)))
    axes = figure.subplots()
    left = np.zeros(len(rows))
    for place, name in enumerate(names):
        widths = np.array([row.get(name, 0.0) for row in rows.values()])
        colour = COLOURS[place % len(COLOURS)]
        axes.barh(range(len(rows)), widths, left=left, color=colour, label=name.replace("_", " "))
        left += widths
    axes.set_yticks(range(len(rows)), [f"{pruner} {budget}" for pruner, budget in rows], fontsize=7)
    axes.invert_yaxis()
    axes.set_xlabel("median ms per image")
    axes.legend(loc="center left", bbox_to_anchor=(1.01, 0.5))
    return figure
