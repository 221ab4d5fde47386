"""One HTML file that holds the whole report: it asks nothing of a network and opens from a folder."""

from __future__ import annotations

import base64
from pathlib import Path
from typing import Any

import numpy as np

from harness import metrics
from harness.metrics.bootstrap import Estimate
from reports import comparable, costs, diagnosis, figures, leaderboard, looks, pareto, publication, style
from reports.gallery import pictures
from reports.gather import Runs
from reports.tables import Against, Table, TableRow

FOLDER = Path(__file__).parent / "web"
SCRIPTS = ("common.js", "table.js", "charts.js", "masks.js", "clips.js", "start.js")


def html(runs: Runs, tables: list[Table]) -> str:
    """The page of the tables; the same numbers give the same text."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(FOLDER),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.policies["json.dumps_kwargs"] = {"sort_keys": False}  # stages and costs keep their order
    drawn = figures.looks_of(tables)
    data = {
        "tables": [_table(table, runs) for table in tables],
        "runs": [{"name": run.name, "folder": run.folder.name} for run in runs.runs],
        "colours": {name: look.colour for name, look in drawn.items()},
        "looks": {name: look.shown for name, look in drawn.items()},
        "palette": looks.COLOURS,
        "paint": {
            "mask": style.MASK,
            "truth": style.TRUTH,
            "edge": style.EDGE,
            "dim": style.DIM,
            "cover": style.COVER,
        },
        "pictures": pictures(runs, tables),
    }
    return environment.get_template("report.html").render(
        title=" · ".join(dict.fromkeys(table.title for table in tables)),
        notes=[
            *leaderboard.warning(runs),
            *comparable.why([table.group for table in tables], runs.facts),
            *runs.notes,
        ],
        tables=[_view(table, runs, drawn) for table in tables],
        diagnoses=[_diagnosis(run.folder, run.diagnosis) for run in runs.runs if run.diagnosis],
        footer=leaderboard.footer(runs, tables),
        data=data,  # jinja's tojson escapes <, >, & and '
        style=_source("style.css"),
        scripts=[_source(name) for name in SCRIPTS],
    )


def _diagnosis(folder: Path, told: dict[str, Any]) -> dict[str, Any]:
    """The verdict, and every figure with its caption, as an address that holds it."""
    drawn = []
    for name, caption in told["figures"].items():
        file = folder / diagnosis.FOLDER / f"{name}.svg"
        if not file.is_file() or file.is_symlink():
            continue
        content = base64.b64encode(file.read_bytes()).decode()
        drawn.append({"address": f"data:image/svg+xml;base64,{content}", "caption": caption})
    return {"backbone": told["backbone"], "verdict": told["verdict"], "figures": drawn}


def _source(name: str) -> str:
    return (FOLDER / name).read_text(encoding="utf-8")


def _view(table: Table, runs: Runs, drawn: dict[str, looks.Look]) -> dict[str, Any]:
    """What the template prints: the table as text, readable without scripts."""
    prices = costs.costs_of(runs.costs, table)
    named = {" ".join(column): column for column in table.columns}
    blocks = []
    heads: list[str] = []
    place = 0
    for heading, lines in table.blocks():
        rows = []
        for line in lines:
            cells = leaderboard.leaderboard_row(line, table) | costs.cost_row(line, prices)
            heads = heads or list(cells)
            rows.append(
                {
                    "line": place,
                    "cells": cells,
                    "control": line.control,
                    "look": drawn[line.pruner],
                    "of": line,
                }
            )
            place += 1
        blocks.append({"heading": heading, "rows": rows})
    return {
        "title": table.title,
        "warnings": leaderboard.warnings(table, runs),
        "heads": heads,
        "named": named,
        "blocks": blocks,
        "budgets": sorted({line.budget for line in table.lines}, reverse=True),
        "best": {line.budget: line.against["best"].other for line in table.lines if "best" in line.against},
        "published": publication.published_notes(table, runs) if publication.beside(table) else [],
        "twins": publication.beside(table),
        "columns": table.columns,
        "metric": table.metric,
    }


def _table(table: Table, runs: Runs) -> dict[str, Any]:
    """What the scripts read: every number with what it rests on."""
    prices = costs.costs_of(runs.costs, table)
    timed = costs.of_one_machine(prices)  # what charts draw
    twins = {(twin.line.pruner, twin.line.budget): twin for twin in publication.beside(table)}
    lines = [line for _, block in table.blocks() for line in block]
    plotted = {price.key: _plotted(table, timed, price) for price in costs.PRICES}
    return {
        "title": table.title,
        "facts": table.group.facts,
        "columns": [" ".join(column) for column in table.columns],
        "metric": {
            "title": table.metric.title,
            "unit": table.metric.unit_word,
            "points": table.metric.points,
            "higher": table.metric.higher_is_better,
        },
        "details": _details(table),
        "prices": {price.key: price.label for price in costs.PRICES},
        "lines": [
            _line(
                line,
                table,
                prices.get((line.pruner, line.budget), {}),
                timed.get((line.pruner, line.budget), {}),
                twins,
            )
            | {"prices": {key: points[id(line)] for key, points in plotted.items() if id(line) in points}}
            for line in lines
        ],
    }


def _plotted(
    table: Table, prices: dict[tuple[str, int], dict[str, Any]], price: costs.Price
) -> dict[int, dict[str, Any]]:
    """By row (its id), a cost, the ends of its interval, and how the row stands (`reports.pareto`)."""
    points = costs.priced(table, prices, price)
    ranked = [(line, point) for line, point in points if line.average and not line.sees_truth]
    stand = pareto.standings([point for _, point in ranked])
    how = {id(line): one for (line, _), one in zip(ranked, stand, strict=True)}
    return {
        id(line): {
            "cost": [_number(value) for value in (point.cost, point.cheap, point.dear)],
            "standing": how.get(id(line)),
        }
        for line, point in points
    }


def _line(
    line: TableRow,
    table: Table,
    price: dict[str, Any],
    timed: dict[str, Any],
    twins: dict[tuple[str, int], Any],
) -> dict[str, Any]:
    twin = twins.get((line.pruner, line.budget))
    scale = table.metric.scale
    return {
        "pruner": line.pruner,
        "budget": line.budget,
        "control": line.control,
        "truth": line.sees_truth,
        "bound": line is table.bound,
        "stage": line.stage,
        "seeds": [_number(scale * seed) for seed in line.seeds],
        "average": _estimate(line.average, scale),
        "relative": _number(table.relative(line)),
        "tokens": line.tokens_final,
        "layers": _number(line.tokens_mean),
        "scores": [_estimate(line.scores.get(column), scale) for column in table.columns],
        "counts": [_counts(line.counts.get(column)) for column in table.columns],
        "against": {kind: _against(one, table) for kind, one in line.against.items()},
        "published": [list(twin.cells[column]) if column in twin.cells else None for column in table.columns]
        if twin
        else None,
        "costs": {
            key: value for key, value in costs.cost_row(line, {(line.pruner, line.budget): price}).items()
        }
        if price
        else {},
        "stages": {name: _number(value) for name, value in costs.stages(timed).items()},
    }


def _details(table: Table) -> list[dict[str, str]]:
    """The metrics that the record behind a number tells besides: key of the counts, label and unit."""
    held = {name for line in table.lines for counts in line.counts.values() for name in counts}
    return [
        {"key": name, "label": one.title, "unit": "" if one.unit == "%" else f" {one.unit}"}
        for name in metrics.names()
        if name in held and (one := metrics.get(name)).name != table.metric.name
    ]


def _counts(counts: dict[str, Any] | None) -> dict[str, Any] | None:
    """Sums as they are, scores in the unit of their metric."""
    if counts is None:
        return None
    known = set(metrics.names())
    scales = {key: metrics.get(key).scale if key in known else 1.0 for key in counts}
    return {
        key: _number(scales[key] * value) if isinstance(value, float) else value
        for key, value in counts.items()
    }


def _against(one: Against, table: Table) -> dict[str, Any]:
    scale = table.metric.scale
    return {
        "other": one.other,
        "average": _estimate(one.average, scale),
        "q": _number(one.q),
        "columns": [_estimate(one.columns.get(column), scale) for column in table.columns],
    }


def _estimate(one: Estimate | None, scale: float) -> list[float | None] | None:
    """Value and ends of the interval in the metric's unit, and p."""
    if one is None:
        return None
    return [*(_number(scale * end) for end in (one.value, one.low, one.high)), _number(one.p)]


def _number(value: float | None) -> float | None:
    """Four digits are enough to read; JSON has no NaN."""
    return None if value is None or np.isnan(value) else float(f"{value:.5g}")
