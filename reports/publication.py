"""Published numbers beside ours: only on the backbone and the splits that they were printed for."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import pandas as pd

from harness.reproduce.spec import Spec as Published
from harness.reproduce.spec import read_spec
from pruners.errors import UserError, nearest
from reports.columns import THINGS
from reports.gather import Runs
from reports.tables import Column, Table, TableRow

FOLDER = Path(__file__).parent / "published"


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
def specs() -> tuple[Published, ...]:
    """All published tables of this package, by their names.

    Raises:
        UserError: a spec that is none.
    """
    return tuple(read_spec(path) for path in sorted(FOLDER.glob("*.toml")))


def spec(name: str) -> Published:
    """A published table by its name, or from a file of one's own.

    Args:
        name: as `reproduce` lists it, or a path that ends with .toml.

    Raises:
        UserError: there is none of that name, or the file is no spec.
    """
    if name.endswith(".toml"):
        return read_spec(Path(name))
    known = [path.stem for path in sorted(FOLDER.glob("*.toml"))]
    if name not in known:
        raise UserError(
            f"There is no published table {name!r}; there are {', '.join(known)}, or give the path of a "
            f"spec, ./mine.toml.{nearest(name, known)}"
        )
    return read_spec(FOLDER / f"{name}.toml")


def published_tables() -> tuple[Published, ...]:
    """The published tables whose numbers stand beside leaderboards, those that cannot be computed yet
    included.

    Raises:
        UserError: a spec that is none.
    """
    return tuple(table for table in specs() if table.beside)


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
        if place in table.group.frame["run"].unique()
    }
    if any(limits):
        found.append(
            f"This run saw only the first {max(limit or 0 for limit in limits)} "
            f"{THINGS[table.metric.medium][1]} of each split."
        )
    return found
