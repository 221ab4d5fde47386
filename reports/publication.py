"""Published numbers beside ours: only on the backbone and the splits that they were printed for."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from reports.gather import Runs
from reports.tables import Column, Line, Table

FOLDER = Path(__file__).parent / "published"
BACKBONES = {"glamm": "refcoco"}  # backbone: table that holds its numbers
METRIC = "ciou"  # of the printed numbers
PROTOCOL = "glamm"


@dataclass(frozen=True)
class Beside:
    """A row with its published twin.

    Attributes:
        method: name in the publication.
        cells: per column our score and the printed one, both in percent.
    """

    line: Line
    method: str
    cells: dict[Column, tuple[float, float]]
    source: str


def read(name: str) -> pd.DataFrame:
    """A published table, numbers as printed."""
    return pd.read_csv(FOLDER / f"{name}.csv")


def beside(table: Table) -> list[Beside]:
    """The rows that have a published twin: same backbone, pruner with its default parameters, budget and
    split."""
    name = BACKBONES.get(table.group.facts["backbone"])
    if name is None or table.metric.name != METRIC:
        return []
    rows = {(row["pruner"], row["budget"]): row for row in read(name).to_dict("records")}
    found = []
    for line in table.lines:
        twin = rows.get((line.pruner, line.budget))
        if twin is not None:
            cells = {
                column: (table.metric.scale * score.value, float(twin[" ".join(column)]))
                for column, score in line.scores.items()
                if " ".join(column) in twin
            }
            if cells:
                found.append(Beside(line, str(twin["method"]), cells, str(twin["source"])))
    return found


def markdown(table: Table, runs: Runs) -> list[str]:
    """The differences as a table with what to know of them, as blocks of lines; none without a published
    twin."""
    twins = beside(table)
    if not twins:
        return []
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
        *(f"- {note}" for note in notes(table, runs)),
        "",
    ]


def notes(table: Table, runs: Runs) -> list[str]:
    """What to know before reading a difference."""
    twins = beside(table)
    found = [
        f"{table.metric.title} of this run in {table.metric.unit_word}, in brackets what it is above (+) or below (-) the "
        "printed number."
    ]
    found += [f"Printed in: {source}." for source in dict.fromkeys(twin.source for twin in twins)]
    if table.group.facts["protocol"] != PROTOCOL:
        found.append(
            f"This run asked with the protocol {table.group.facts['protocol']}, the publication with that of GLaMM."
        )
    limits = {
        run.info.get("plan", {}).get("limit")
        for place, run in enumerate(runs.runs)
        if place in set(table.group.frame["run"])
    }
    if any(limits):
        found.append(
            f"This run saw only the first {max(limit or 0 for limit in limits)} images of each split."
        )
    return found
