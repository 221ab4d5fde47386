"""Published numbers beside ours: only on the backbone and the splits that they were printed for."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import pandas as pd

from harness.plan import Plan
from reports.columns import THINGS
from reports.gather import Runs
from reports.tables import Column, Table, TableRow

FOLDER = Path(__file__).parent / "published"


@dataclass(frozen=True)
class Printed:
    """How a table prints one metric.

    Attributes:
        unit: of its numbers.
        column: of the CSV, where the table is of one split; empty where columns are named by data set and
            split.
    """

    unit: str
    column: str = ""


@dataclass(frozen=True)
class Published:
    """A published table: an entry of published/tables.toml.

    Attributes:
        file: name of its CSV.
        backbone, protocol: that its numbers belong to.
        metrics: names of metrics, or of cost columns, that it prints.
        plan: computes them here.
        shapes: the backbone whose numbers alone project its costs; empty where there is none.
        pending: what is not there yet, so that nothing stands beside it; empty of a table that is in use.
        answers: "forced" or "generated", as they were when its numbers were made.
    """

    file: str
    backbone: str
    protocol: str
    metrics: Mapping[str, Printed]
    plan: Plan
    shapes: str = ""
    pending: str = ""
    answers: str = "forced"

    def column(self, metric: str, split: Column) -> str:
        """The CSV's column of a split's numbers."""
        named = self.metrics[metric].column
        if not named:
            return " ".join(split)
        return named if self.plan.datasets == ":".join(split) else ""


@dataclass(frozen=True)
class Beside:
    """A row with its published twin.

    Attributes:
        method: name in the publication.
        cells: per column our score and the printed one, both in percent.
        published: where the twin is from.
    """

    line: TableRow
    method: str
    cells: dict[Column, tuple[float, float]]
    source: str
    published: Published


@cache
def published_tables() -> tuple[Published, ...]:
    """All published tables, numbers that cannot be computed yet included.

    Raises:
        UserError: a plan that is none.
    """
    entries = tomllib.loads((FOLDER / "tables.toml").read_text(encoding="utf-8"))["table"]
    found = []
    for entry in entries:
        fixed = {"backbones": [entry["backbone"]], "protocol": entry["protocol"], "limit": 0}
        plan = Plan.from_json(fixed | entry["plan"])
        printed = {name: Printed(**how) for name, how in entry["metrics"].items()}
        found.append(Published(**entry | {"plan": plan, "metrics": printed}))
    return tuple(found)


def published_of(backbone: str, metric: str) -> list[Published]:
    """The tables in use that print a metric of a backbone, or of what its shapes alone project."""
    return [
        table
        for table in published_tables()
        if not table.pending and backbone in (table.backbone, table.shapes) and metric in table.metrics
    ]


@cache
def read_published(name: str) -> pd.DataFrame:
    """A published table, numbers as printed."""
    return pd.read_csv(FOLDER / f"{name}.csv")


def beside(table: Table) -> list[Beside]:
    """The rows that have a published twin: same backbone, protocol, answers, pruner with its default
    parameters, budget and split."""
    metric, found, facts = table.metric.name, [], table.group.facts
    for published in published_of(facts["backbone"], metric):
        if (facts["protocol"], facts["answers"]) != (published.protocol, published.answers):
            continue
        for line in table.lines:
            twin = twin_of(published, line)
            cells = {
                split: (table.metric.scale * score.value, float(twin[column]))
                for split, score in line.scores.items()
                if (column := published.column(metric, split)) in twin
            }
            if cells:
                found.append(Beside(line, str(twin["method"]), cells, str(twin["source"]), published))
    return found


def twin_of(published: Published, line: TableRow) -> dict[Any, Any]:
    """The published row of a pruner at a budget, or at any where the publication names none; empty without
    one."""
    rows = read_published(published.file)
    same = (rows["pruner"] == line.pruner) & ((rows["budget"] == line.budget) | rows["budget"].isna())
    return next(iter(rows[same].to_dict("records")), {})


def published_markdown(table: Table, runs: Runs) -> list[str]:
    """The differences as a table with what to know of them, as blocks of lines; none without a published
    twin."""
    twins = beside(table)
    if not twins:
        return [f"{sentence}\n" for sentence in asked_otherwise(table)]
    if table.metric.medium == "video":  # `reports.papers` has them in the form of papers
        return [*(f"- {note}" for note in published_notes(table, runs)), ""]
    rows = []
    for twin in twins:
        row = {"method": twin.line.pruner, "budget": str(twin.line.budget), "published as": twin.method}
        for column in table.columns:
            ours, theirs = twin.cells.get(column, (None, None))
            row[" ".join(column)] = (
                "-" if ours is None or theirs is None else f"{ours:.1f} ({ours - theirs:+.1f})"
            )
        rows.append(row)
    shown = pd.DataFrame(rows).to_markdown(index=False, disable_numparse=True)
    return [
        "## Published numbers beside ours\n",
        f"{shown}\n",
        *(f"- {note}" for note in published_notes(table, runs)),
        "",
    ]


def asked_otherwise(table: Table) -> list[str]:
    """Why none of the numbers that are published of a backbone stands beside a table that asked it in another
    way."""
    facts = table.group.facts
    others = [
        f"protocol {one.protocol} and {one.answers} answers"
        for one in published_of(facts["backbone"], table.metric.name)
        if (one.protocol, one.answers) != (facts["protocol"], facts["answers"])
    ]
    return [
        f"Published numbers of {facts['backbone']} were made with {how}, and stand beside no row of this "
        f"table (protocol {facts['protocol']}, {facts['answers']} answers): they do not compare."
        for how in dict.fromkeys(others)
    ]


def published_notes(table: Table, runs: Runs) -> list[str]:
    """What to know before reading a difference."""
    twins = beside(table)
    found = [
        f"{table.metric.title} of this run in {table.metric.unit_word}, in brackets what it is above (+) "
        f"or below (-) the "
        "printed number."
    ]
    found += [f"Printed in: {source}." for source in dict.fromkeys(twin.source for twin in twins)]
    limits = {
        run.info.get("plan", {}).get("limit")
        for place, run in enumerate(runs.runs)
        if place in set(table.group.frame["run"])
    }
    if any(limits):
        found.append(
            f"This run saw only the first {max(limit or 0 for limit in limits)} "
            f"{THINGS[table.metric.medium][1]} of each split."
        )
    return found
