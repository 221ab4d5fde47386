"""One HTML file that holds the whole report, but for the samples of larger runs, which lie beside it; it asks
nothing of a network and opens from a folder."""

from __future__ import annotations

import base64
import itertools
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from harness import metrics
from harness.metrics.bootstrap import Estimate
from reports import (
    comparable,
    costs,
    diagnosis,
    figures,
    gallery,
    leaderboard,
    looks,
    pareto,
    publication,
    samples,
    style,
)
from reports.gallery import address, jpeg, pictures, shots_of
from reports.gather import Runs
from reports.tables import Against, Table, TableRow

FOLDER = Path(__file__).parent / "web"
STYLES = ("style.css", "samples.css")
SCRIPTS = (
    *("common.js", "address.js", "table.js", "charts.js", "masks.js", "clips.js"),
    *("parts.js", "opened.js", "samples.js", "start.js"),
)
FIRST = ("method", "budget", "Avg.", "Rel. %", "95 %", "not apart from")  # columns of the page's tables
SIZE = 1_500_000  # bytes of the page, unless its tables alone have more
ANSWERS = 500_000  # bytes of those that are chosen for it
NO_PICTURES = {"images": [], "items": [], "answers": {}, "picks": [], "of": 0, "clips": 0}


@dataclass(frozen=True)
class Page:
    """A page and what it reads from the folder beside it.

    Attributes:
        parts, pictures: as `reports.samples.write_beside` takes them; empty where the page holds them.
    """

    text: str
    parts: dict[str, str]
    pictures: tuple[bytes, ...]


def page(runs: Runs, tables: list[Table]) -> Page:
    """The page of the tables; the same numbers give the same text.

    It holds all samples where they fit into SIZE bytes; else they lie beside it.
    """
    draw = _renderer(runs, tables)
    shots, images = shots_of(runs), dict[str, int]()
    room = SIZE - len(draw(NO_PICTURES, samples.Samples(), True).encode())
    found = pictures(runs, tables, shots, images, max(0, min(ANSWERS, room)))
    room -= len(json.dumps(found))
    few = len(images)
    browsed = samples.collect(runs, tables, shots, images)
    sizes = {f"{run}/{name}": size for (run, _), part in shots.items() for _, name, size in part}
    bytes_of = sum(sizes[one] for one in images)
    if bytes_of <= gallery.BYTES and 4 * bytes_of // 3 + browsed.size <= room:
        inside = found | {"images": [address(runs, one) for one in images]}
        return Page(draw(inside, browsed, False), {}, ())
    beside = found | {"images": [samples.picture_of(number) for number in range(few)]}
    return Page(draw(beside, browsed, True), browsed.parts, tuple(jpeg(runs, one) for one in images))


def _renderer(runs: Runs, tables: list[Table]) -> Callable[[dict[str, Any], samples.Samples, bool], str]:
    """What makes the page's text of the pictures, the samples, and whether these lie beside it."""
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
    }
    shown = {
        "title": headline([table.title for table in tables]),
        "notes": [
            *leaderboard.warning(runs),
            *comparable.why([table.group for table in tables], runs.facts),
            *runs.notes,
        ],
        "tables": [_view(table, runs, drawn) for table in tables],
        "diagnoses": [_diagnosis(run.folder, run.diagnosis) for run in runs.runs if run.diagnosis],
        "footer": leaderboard.footer(runs, tables),
        "style": "\n".join(map(_source, STYLES)),
        "scripts": [_source(name) for name in SCRIPTS],
    }
    template = environment.get_template("report.html")

    def draw(found: dict[str, Any], browsed: samples.Samples, beside: bool) -> str:
        held = data | {"pictures": found, "samples": browsed.index(beside)}
        # jinja's tojson escapes <, >, & and '
        return template.render(**shown, data=held, beside=beside, parts={} if beside else browsed.parts)

    return draw


def headline(titles: Sequence[str]) -> str:
    """What a page is of: what its tables' titles begin with alike, or all of them.

    Example:
        >>> headline(["glamm-mini, protocol each, data a", "glamm-mini, protocol each, data b"])
        'glamm-mini, protocol each'
    """
    several = list(dict.fromkeys(titles))
    words = [title.split(", ") for title in several]
    equal = itertools.takewhile(lambda column: len(set(column)) == 1, zip(*words, strict=False))
    alike = [column[0] for column in equal]
    while ", ".join(alike).count("(") != ", ".join(alike).count(")"):  # a comma amid parameters
        alike.pop()
    return ", ".join(alike) or " · ".join(several)


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
    sizes = {budget: table.size(budget) for budget in {line.budget for line in table.lines}}
    blocks = []
    heads: list[str] = []
    place = 0
    for heading, lines in table.blocks():
        rows = []
        for line in lines:
            cells = leaderboard.leaderboard_row(line, table) | costs.cost_row(line, prices)
            cells["budget"] = sizes[line.budget]
            heads = heads or [*FIRST, *(head for head in cells if head not in FIRST)]
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
    lines = samples.lines_of(table)
    plotted = {price.key: _plotted(table, timed, price) for price in costs.PRICES}
    return {
        "title": table.title,
        "facts": table.group.facts,
        "columns": [" ".join(column) for column in table.columns],
        "metric": {
            "title": table.metric.title,
            "unit": table.metric.unit_word,
            "medium": table.metric.medium,
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
