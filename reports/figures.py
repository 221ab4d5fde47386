"""Figures for papers and slides: accuracy against budget, accuracy against cost, and where the time goes; SVG
and PNG."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from reports import costs
from reports.gather import Runs
from reports.style import COLOURS, GREY, STYLE, save
from reports.tables import BOUND, Table, TableRow

MARKERS = "osD^vPX*hp"
PRICES = {costs.MACS: ("multiply-adds, G", costs.GIGA), "prefill_ms": ("prefill, ms", 1.0)}


def slug(title: str) -> str:
    """A title as a file name."""
    return re.sub(r"[^a-z0-9]+", "-", title.lower()).strip("-")


def palette(tables: list[Table]) -> dict[str, str]:
    """One colour per pruner, the same in every figure and on the page."""
    methods = sorted({line.pruner for table in tables for line in table.lines if line.pruner != BOUND})
    return {name: COLOURS[place % len(COLOURS)] for place, name in enumerate(methods)} | {BOUND: GREY}


def draw_figures(runs: Runs, tables: list[Table], folder: Path) -> list[Path]:
    """Write all figures of all tables; the same numbers give the same bytes."""
    import matplotlib

    folder.mkdir(parents=True, exist_ok=True)
    written = []
    colours = palette(tables)
    with matplotlib.rc_context(STYLE):
        for number, table in enumerate(tables, 1):
            facts = table.group.facts
            stem = slug(f"{facts['backbone']} {facts['protocol']}") + (
                f"-{number}" if len(tables) > 1 else ""
            )
            for name, figure in _figures(runs, table, colours):
                written += save(figure, folder / f"{stem}-{name}")
    return written


def _figures(runs: Runs, table: Table, colours: dict[str, str]) -> Iterator[tuple[str, Any]]:
    if any(line.average for line in table.lines):
        yield "budget", _budget(table, colours)
    measured = costs.of_one_machine(costs.costs_of(runs.costs, table))
    for price, (label, unit) in PRICES.items():
        points = {
            key: record[price] / unit for key, record in measured.items() if costs.known(record.get(price))
        }
        if points:
            yield price.partition("_")[0], _pareto(table, points, label, colours)
    if any(costs.stages(record) for record in measured.values()):
        yield "stages", _stages(measured)


def _figure(table: Table, label: str) -> tuple[Any, Any]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7.2, 4.4))
    axes = figure.subplots()
    axes.set_title(table.title, loc="left", fontsize=9)
    axes.set_xlabel(label)
    axes.set_ylabel(f"Avg. {table.metric.title}, {table.metric.unit}")
    return figure, axes


def _error(line: TableRow, scale: float) -> np.ndarray[Any, Any] | None:
    one = line.average
    if one is None or np.isnan(one.low):
        return None
    return scale * np.array([[one.value - one.low], [one.high - one.value]])


def _budget(table: Table, colours: dict[str, str]) -> Any:
    figure, axes = _figure(table, "visual tokens (budget)")
    scale = table.metric.scale
    budgets = sorted({line.budget for line in table.lines if line.pruner != BOUND})
    names = list(dict.fromkeys(line.pruner for line in table.lines if line.pruner != BOUND))
    for place, name in enumerate(names):
        lines = sorted((x for x in table.lines if x.pruner == name and x.average), key=lambda x: x.budget)
        shift = 0.16 * (place / max(len(names) - 1, 1) - 0.5)  # side by side, so that intervals can be read
        xs = [budgets.index(line.budget) + shift for line in lines]
        ys = [scale * line.average.value for line in lines if line.average]
        style = {
            "color": colours[name],
            "marker": MARKERS[place % len(MARKERS)],
            "markersize": 4,
            "linewidth": 1.2,
        }
        axes.plot(xs, ys, linestyle="--" if lines and lines[0].control else "-", label=name, **style)
        for x, y, line in zip(xs, ys, lines, strict=True):
            if (error := _error(line, scale)) is not None:
                axes.errorbar([x], [y], yerr=error, color=colours[name], elinewidth=0.8, alpha=0.55)
    if table.bound and table.bound.average:
        axes.axhline(
            scale * table.bound.average.value, color=GREY, linewidth=1, linestyle=":", label="all tokens"
        )
    axes.set_xticks(range(len(budgets)), [str(budget) for budget in budgets])
    axes.set_ylim(bottom=0)
    axes.legend(loc="center left", bbox_to_anchor=(1.01, 0.5))
    return figure


def _pareto(table: Table, points: dict[tuple[str, int], float], label: str, colours: dict[str, str]) -> Any:
    figure, axes = _figure(table, f"{label} (larger marks: larger budgets)")
    scale = table.metric.scale
    budgets = sorted({line.budget for line in table.lines})
    here = [
        (points[key], scale * line.average.value, line)
        for line in table.lines
        if line.average and (key := (line.pruner, line.budget)) in points
    ]
    seen: set[str] = set()
    for x, y, line in here:
        name = "" if line.pruner in seen else line.pruner
        seen.add(line.pruner)
        size = 3 + 1.5 * budgets.index(line.budget)
        style = {
            "fmt": "D" if line.control else "o",
            "color": colours[line.pruner],
            "markersize": size,
            "elinewidth": 0.6,
        }
        axes.errorbar([x], [y], yerr=_error(line, scale), label=name, **style)
    front = pareto([(x, y) for x, y, line in here if not line.sees_truth], table.metric.higher_is_better)
    axes.plot(*zip(*front, strict=True), color=GREY, linewidth=0.9, linestyle=":", label="not beaten")
    axes.set_ylim(bottom=0)
    axes.legend(loc="center left", bbox_to_anchor=(1.01, 0.5))
    return figure


def pareto(points: list[tuple[float, float]], higher_is_better: bool = True) -> list[tuple[float, float]]:
    """The points that no other beats at the same or a lower price, by rising price."""
    front: list[tuple[float, float]] = []
    sign = 1 if higher_is_better else -1
    for x, y in sorted(points, key=lambda point: (point[0], -sign * point[1])):
        if not front or sign * y > sign * front[-1][1]:
            front.append((x, y))
    return front


def _stages(measured: dict[tuple[str, int], dict[str, Any]]) -> Any:
    from matplotlib.figure import Figure

    rows = {key: costs.stages(record) for key, record in measured.items()}
    names = list(dict.fromkeys(name for row in rows.values() for name in row))
    figure = Figure(figsize=(7.2, 0.9 + 0.22 * len(rows)))
    axes = figure.subplots()
    left = np.zeros(len(rows))
    for place, name in enumerate(names):
        widths = np.array([row.get(name, 0.0) for row in rows.values()])
        axes.barh(
            range(len(rows)),
            widths,
            left=left,
            color=COLOURS[place % len(COLOURS)],
            label=name.replace("_", " "),
        )
        left += widths
    axes.set_yticks(range(len(rows)), [f"{pruner} {budget}" for pruner, budget in rows], fontsize=7)
    axes.invert_yaxis()
    axes.set_xlabel("median ms per image")
    axes.legend(loc="center left", bbox_to_anchor=(1.01, 0.5))
    return figure
