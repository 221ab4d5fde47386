"""What the pages of a board print: tables as rows of text, with what the scripts filter and sort by."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from harness.bundle.content import MARKS
from harness.metrics import Metric
from harness.metrics.bootstrap import Estimate
from reports import comparable, costs, figures, leaderboard
from reports.columns import THINGS
from reports.comparable import BOUND, KEPT, WORDS
from reports.gather import Runs
from reports.tables import Table, TableRow

AVERAGE = "Avg."
ADDRESS = re.compile(r"https?://[\w.-]+(?:/[^\s<>\"'),;]*)?")
OWN = "its own"  # positions of a method that has a rule


def slug(name: str) -> str:
    """A name as a file of its own: letters that files take, and a digest where others were lost."""
    plain = re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")[:60]
    return plain if plain == name else f"{plain or 'x'}-{hashlib.sha256(name.encode()).hexdigest()[:6]}"


def base_name(pruner: str) -> str:
    """A method's name without its parameters, its positions and the mark of its source."""
    return pruner.removesuffix(KEPT).partition("(")[0].partition(" #")[0]


def linked(text: str) -> list[tuple[str, bool]]:
    """A text in parts, each with whether it is an address of the web."""
    parts, place = [], 0
    for found in ADDRESS.finditer(text):
        parts += [(text[place : found.start()], False), (found[0], True)]
        place = found.end()
    return [part for part in [*parts, (text[place:], False)] if part[0]]


def numbers(one: Estimate | None, metric: Metric) -> list[float | None]:
    """A score with the ends of its interval, in the metric's unit."""
    if one is None:
        return [None, None, None]
    return [
        None if np.isnan(value) else round(float(metric.scale * value), 4)
        for value in (one.value, one.low, one.high)
    ]


def positions_of(line: TableRow, table: Table) -> str:
    """How a row's kept tokens are numbered."""
    frame = table.group.frame
    mine = frame[(frame["pruner"] == line.pruner) & (frame["budget"] == line.budget)]
    if bool(mine["own_positions"].astype(bool).all()):
        return OWN
    return str(mine["positions"].iloc[0])


def runs_of(line: TableRow) -> list[int]:
    """The places of the runs that a row rests on."""
    return sorted({int(place) for counts in line.counts.values() for place in counts["run"]})


def board(runs: Runs, tables: Sequence[Table], names: Sequence[str]) -> dict[str, Any]:
    """The index: every table, and what can be chosen among them."""
    drawn = figures.looks_of(list(tables))
    shown = [_table(number, table, runs, names, drawn) for number, table in enumerate(tables, 1)]
    rows = [row for one in shown for block in one["blocks"] for row in block["rows"]]
    return {
        "tables": shown,
        "rows": len(rows),
        "choices": {
            "backbone": list(dict.fromkeys(one["backbone"] for one in shown)),
            "data": list(dict.fromkeys(name for one in shown for name in one["columns"])),
            "budget": sorted({row["budget"] for row in rows if not row["bound"]}),
            "positions": list(dict.fromkeys(row["positions"] for row in rows if not row["bound"])),
            "answers": list(dict.fromkeys(one["answers"] for one in shown)),
        },
    }


def _table(
    number: int, table: Table, runs: Runs, names: Sequence[str], drawn: Mapping[str, Any]
) -> dict[str, Any]:
    facts, prices = table.group.facts, costs.costs_of(runs.costs, table)
    cost_heads: list[str] = []
    blocks = []
    for heading, lines in table.blocks():
        rows = [_row(line, table, prices, names, drawn) for line in lines]
        ranked = [row for row in rows if row["ranks"]]
        for place, row in enumerate(ranked, 1):
            row["rank"] = place
        for row in rows:
            cost_heads += [head for head in row["costs"] if head not in cost_heads]
        blocks.append({"heading": heading, "rows": rows})
    return {
        "id": f"t{number}",
        "title": table.title,
        "backbone": facts["backbone"],
        "answers": facts["answers"],
        "columns": [" ".join(column) for column in table.columns],
        "metric": table.metric.title,
        "unit": table.metric.unit_word,
        "higher": table.metric.higher_is_better,
        "facts": [(WORDS[name][0], facts[name]) for name in WORDS if facts.get(name)],
        "warnings": leaderboard.warnings(table, runs),
        "rests": _rests(table),
        "costs": cost_heads,
        "blocks": blocks,
    }


def _rests(table: Table) -> str:
    """What data the table rests on, split by split."""
    frame, (_, things) = table.group.frame, THINGS[table.metric.medium]
    parts = []
    for dataset, split in table.columns:
        mine = frame[(frame["dataset"] == dataset) & (frame["split"] == split)]
        asked = mine.drop_duplicates(["sample", "expression"])
        parts.append(f"{dataset} {split}: {asked['cluster'].nunique()} {things}, {len(asked)} expressions")
    return "; ".join(parts)


def _row(
    line: TableRow,
    table: Table,
    prices: dict[tuple[str, int], dict[str, Any]],
    names: Sequence[str],
    drawn: Mapping[str, Any],
) -> dict[str, Any]:
    score = table.metric
    scores = {AVERAGE: numbers(line.average, score)}
    scores |= {" ".join(column): numbers(line.scores.get(column), score) for column in table.columns}
    relative = table.relative(line)
    return {
        "name": line.pruner,
        "method": slug(base_name(line.pruner)),
        "seeds": len(line.seeds),
        "budget": line.budget,
        "bound": line.pruner == BOUND,
        "control": line.control,
        "truth": line.sees_truth,
        "ranks": not line.control and not line.sees_truth and line.average is not None,
        "rank": None,
        "positions": positions_of(line, table),
        "look": drawn[line.pruner],
        "scores": scores,
        "relative": "-" if relative is None else f"{relative:.1f}",
        "close": [word for word in leaderboard.marks(line).split(", ") if word],
        "tokens": f"{line.tokens_final:g}",
        "mean": f"{line.tokens_mean:.4g}",
        "costs": costs.cost_row(line, prices),
        "runs": [names[place] for place in runs_of(line)],
    }


def notes(runs: Runs, tables: Sequence[Table], names: Sequence[str]) -> list[str]:
    """What a reader has to know before comparing, with runs as the site names them."""
    told = [
        *leaderboard.warning(runs),
        *comparable.why([table.group for table in tables], runs.facts),
        *runs.notes,
    ]
    for run, name in zip(runs.runs, names, strict=True):
        told = [note.replace(repr(str(run.folder)), f"run {name}") for note in told]
    return told


def run_facts(name: str, facts: Mapping[str, Any]) -> dict[str, Any]:
    """A run in words."""
    machine, code = facts["environment"], facts["code"]
    plans = [
        " ".join(f"--{key.replace('_', '-')} {_said(value)}" for key, value in plan.items() if _asked(value))
        for plan in facts["plans"]
    ]
    failed = sum(facts["failed"].values())
    cost = facts["costs"].get("header", {}).get("costs", "none")
    setting = next(iter(facts["cells"].values()))["setting"]
    told = {
        "Run": facts["run"],
        "Made": facts["time"] or "not recorded",
        "By": facts["by"] or "not said",
        "Source": " ".join(part for part in (facts["url"], facts["licence"]) if part) or "this project's",
        "Backbone": f"{setting['backbone']}, weights {setting['fingerprint']}",
        "Commit": f"{code['commit'] or 'unknown'}{' with local changes' if code['dirty'] else ''}",
        "Code that evaluates": ", ".join(
            dict.fromkeys(c["setting"]["code"] for c in facts["cells"].values())
        ),
        "Data": ", ".join(
            dict.fromkeys(f"{c['dataset']} {c['split']} {c['data']}" for c in facts["cells"].values())
        ),
        "Samples": ", ".join(f"{split} {count}" for split, count in facts["samples"].items())
        + (f"; {failed} failed" if failed else "; none failed"),
        "Device": ", ".join(
            dict.fromkeys(one for one in (setting["device"], machine["device"], machine["processor"]) if one)
        ),
        "Threads": str(machine["threads"] or "not recorded"),
        "Python": f"{machine['python'] or 'not recorded'} on {machine['system'] or 'an unknown system'}",
        "Packages": ", ".join(f"{key} {value}" for key, value in machine["packages"].items())
        or "not recorded",
        "Costs": cost,
    }
    for number, plan in enumerate(plans, 1):
        told["Plan" + (f" {number}" if len(plans) > 1 else "")] = plan or "not recorded"
    if facts["continued"]:
        told["Continued after a change of"] = ", ".join(map(str, facts["continued"]))
    return {
        "slug": name,
        "facts": [(key, linked(str(value))) for key, value in told.items()],
        "marks": [(mark, MARKS[mark]) for mark in facts["marks"] if mark in MARKS],
        "finished": facts["finished"],
        "backbone": setting["backbone"],
        "splits": list(facts["samples"]),
        "methods": [
            {
                "name": key,
                "slug": slug(base_name(key)),
                "source": one["source"],
                "own": one["own"],
                "passed": len(one["conformance"].get("passed", [])),
            }
            for key, one in facts["methods"].items()
        ],
    }


def _asked(value: Any) -> bool:
    """Whether a plan's value is one that a command would give."""
    return value not in (None, "", [])


def _said(value: Any) -> str:
    return ",".join(map(str, value)) if isinstance(value, list) else str(value)


def full(runs: Runs, tables: Sequence[Table]) -> list[dict[str, Any]]:
    """All columns of a run's tables as text, and what each means."""
    found = []
    for table in tables:
        prices = costs.costs_of(runs.costs, table)
        heads: list[str] = []
        blocks = []
        for heading, lines in table.blocks():
            rows = []
            for line in lines:
                cells = leaderboard.leaderboard_row(line, table) | costs.cost_row(line, prices)
                heads += [head for head in cells if head not in heads]
                rows.append({"method": slug(base_name(line.pruner)), "cells": cells})
            blocks.append({"heading": heading, "rows": rows})
        found.append(
            {
                "title": table.title,
                "metric": table.metric.title,
                "warnings": leaderboard.warnings(table, runs),
                "heads": heads,
                "blocks": blocks,
                "explained": costs.explain_costs(runs.costs),
            }
        )
    return found
