"""A page per method: where it is from, what it reads, where it can run, its curves, and all of its rows."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pruners.base import REFERENT
from pruners.views import LLM_PATCHES, LLM_TEXT_EMBEDS
from reports import costs, leaderboard
from reports.gather import Runs
from reports.looks import GREY, Look, looks
from reports.site.views import base_name, linked, numbers, positions_of, runs_of, slug
from reports.tables import RANDOM, Table, TableRow

BEHIND_PROJECTOR = {LLM_PATCHES.kind, LLM_TEXT_EMBEDS.kind}
WIDE, HIGH = 520, 250  # of a chart
LEFT, RIGHT, TOP, BOTTOM = 46, 14, 12, 34
STAGES = {
    "tower": "on the vision tower's output, before the language model",
    "layer": "inside the language model",
    "both": "on the vision tower's output and inside the language model",
}


def methods(
    runs: Runs, tables: Sequence[Table], names: Sequence[str], facts: Sequence[Mapping[str, Any]]
) -> list[dict[str, Any]]:
    """What the page of each method prints, in the order in which they stand in the tables."""
    found = list(dict.fromkeys(base_name(line.pruner) for table in tables for line in table.lines))
    return [_method(name, runs, tables, names, facts) for name in found]


def _method(
    name: str,
    runs: Runs,
    tables: Sequence[Table],
    names: Sequence[str],
    facts: Sequence[Mapping[str, Any]],
) -> dict[str, Any]:
    told = [
        (names[place], spec, one, run)
        for place, run in enumerate(facts)
        for spec, one in run["methods"].items()
        if one["name"] == name
    ]
    first = next((one for _, _, one, _ in told if one["reference"]), told[0][2])
    needs = sorted({need for _, _, one, _ in told for need in one["needs"]})
    rows = []
    charts: list[dict[str, Any]] = []
    for table in tables:
        lines = [line for line in table.lines if base_name(line.pruner) == name]
        if not lines:
            continue
        prices = costs.costs_of(runs.costs, table)
        rows += [_row(line, table, prices, names) for line in lines]
        charts += _charts(name, table, prices)
    return {
        "name": name,
        "slug": slug(name),
        "kind": first["kind"],
        "reference": linked(first["reference"] or "not recorded by these runs"),
        "stage": STAGES.get(first["stage"], first["stage"]),
        "needs": needs or ["the patches alone"],
        "deployable": _deployable(first["stage"], needs),
        "draws": "yes, each row is the mean of its seeds" if first["stochastic"] else "no",
        "variants": [
            {
                "run": run,
                "spec": spec,
                "parameters": ", ".join(f"{key}={value}" for key, value in one["parameters"]),
                "source": one["source"] or "not recorded",
                "own": one["own"],
                "by": whole["by"],
                "address": linked(" ".join(part for part in (whole["url"], whole["licence"]) if part)),
                "passed": one["conformance"].get("passed", []),
            }
            for run, spec, one, whole in told
        ],
        "rows": rows,
        "heads": list(dict.fromkeys(head for row in rows for head in row["costs"])),
        "charts": charts,
    }


def _deployable(stage: str, needs: Sequence[str]) -> str:
    """Where a method can run, as follows from where it acts and what it reads."""
    if REFERENT.kind in needs:
        return "nowhere: it reads the truth masks, and shows what a choice could reach"
    if stage != "tower":
        return (
            "where the language model's layers can be changed: tokens leave the sequence, and its cache, "
            "while it runs"
        )
    if set(needs) <= BEHIND_PROJECTOR:
        return (
            "anywhere that takes embeddings: it needs nothing but features behind the projector and "
            "the text's embeddings"
        )
    return "where the vision tower can be read: it chooses before the language model, which stays as it is"


def _row(
    line: TableRow, table: Table, prices: dict[tuple[str, int], dict[str, Any]], names: Sequence[str]
) -> dict[str, Any]:
    score = table.metric
    relative = table.relative(line)
    return {
        "name": line.pruner,
        "table": table.title,
        "budget": line.budget,
        "positions": positions_of(line, table),
        "answers": table.group.facts["answers"],
        "metric": score.title,
        "score": leaderboard.shown(line.average.value if line.average else None, score),
        "between": leaderboard.between(line.average, score),
        "relative": "-" if relative is None else f"{relative:.1f}",
        "tokens": f"{line.tokens_final:g}",
        "costs": costs.cost_row(line, prices),
        "runs": [names[place] for place in runs_of(line)],
    }


@dataclass(frozen=True)
class _Curve:
    """One line of a chart: budget, value, and the ends of its interval."""

    name: str
    points: list[tuple[float, float, float | None, float | None]]


def _charts(
    name: str, table: Table, prices: dict[tuple[str, int], dict[str, Any]]
) -> Iterator[dict[str, Any]]:
    """Accuracy against budget, and what it costs at each budget."""
    score = table.metric
    wanted: dict[str, list[TableRow]] = {}
    for line in table.lines:
        if line.average and base_name(line.pruner) in (name, RANDOM):
            wanted.setdefault(line.pruner, []).append(line)
    curves = [_Curve(pruner, sorted(_scored(lines, table))) for pruner, lines in wanted.items()]
    bound = numbers(table.bound.average, score)[0] if table.bound and table.bound.average else None
    if any(base_name(curve.name) == name for curve in curves):
        title = f"{score.title} in {score.unit_word} against budget"
        yield _chart(table, title, name, curves, bound)
    timed = costs.of_one_machine(prices)
    for price in costs.PRICES:
        found: dict[str, list[tuple[float, float, float | None, float | None]]] = {}
        for line, point in costs.priced(table, timed, price):
            if base_name(line.pruner) == name:
                spread = (point.cheap, point.dear) if point.cheap != point.dear else (None, None)
                found.setdefault(line.pruner, []).append((line.budget, point.cost, *spread))
        full = [point.cost for line, point in costs.priced(table, timed, price) if line is table.bound]
        priced = [_Curve(pruner, sorted(points)) for pruner, points in found.items()]
        if priced:
            yield _chart(table, f"{price.label} against budget", name, priced, full[0] if full else None)


def _scored(
    lines: Sequence[TableRow], table: Table
) -> Iterator[tuple[float, float, float | None, float | None]]:
    for line in lines:
        value, low, high = numbers(line.average, table.metric)
        if value is not None:
            yield line.budget, value, low, high


def _chart(
    table: Table, title: str, name: str, curves: Sequence[_Curve], bound: float | None
) -> dict[str, Any]:
    """A chart's parts in pixels."""
    from matplotlib.ticker import MaxNLocator

    spots = [point for curve in curves for point in curve.points]
    budgets = sorted({point[0] for point in spots})
    ends = [end for point in spots for end in point[1:] if end is not None] + ([bound] if bound else [])
    low, high = min(ends), max(ends)
    room = (high - low or abs(high) or 1) * 0.08
    low, high = low - room, high + room
    ticks = [tick for tick in MaxNLocator(4).tick_values(low, high) if low <= tick <= high]

    def across(budget: float) -> float:
        first, last = budgets[0], budgets[-1]
        part = (budget - first) / (last - first) if last > first else 0.5
        return round(LEFT + 14 + part * (WIDE - LEFT - RIGHT - 28), 1)

    def down(value: float) -> float:
        return round(TOP + (high - value) / (high - low) * (HIGH - TOP - BOTTOM), 1)

    drawn = looks([curve.name for curve in curves], [RANDOM])
    beside = {one.name: Look(GREY, 0, 1, True) for one in curves if base_name(one.name) != name}
    lines = []
    for curve in curves:
        marks = [
            {
                "x": across(budget),
                "y": down(value),
                "low": None if cheap is None else down(cheap),
                "high": None if dear is None else down(dear),
                "told": f"{curve.name} at {budget:g}: {value:.4g}"
                + ("" if cheap is None or dear is None else f" ({cheap:.4g} to {dear:.4g})"),
            }
            for budget, value, cheap, dear in curve.points
        ]
        path = "M" + "L".join(f"{mark['x']} {mark['y']}" for mark in marks)
        mine = base_name(curve.name) == name
        lines.append(
            {
                "name": curve.name,
                "path": path,
                "marks": marks,
                "look": (drawn | beside)[curve.name],
                "mine": mine,
            }
        )
    return {
        "title": title,
        "table": table.title,
        "wide": WIDE,
        "high": HIGH,
        "left": LEFT,
        "right": WIDE - RIGHT,
        "bottom": HIGH - BOTTOM,
        "budgets": [(f"{budget:g}", across(budget)) for budget in budgets],
        "grid": [(f"{tick:.4g}", down(tick)) for tick in ticks],
        "bound": None if bound is None else down(bound),
        "lines": lines,
    }
