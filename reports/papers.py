"""Results on clips as papers print them: one table of a data set, with J, F and their mean beside each other,
and what was printed beside ours."""

from __future__ import annotations

from typing import Any

import pandas as pd

from harness import metrics
from reports.columns import LLM, RANKED
from reports.publication import published_of, twin_of
from reports.tables import BOUND, Column, Table, TableRow

FORM = ("j", "f", "j&f")
OWN = "j&f_fixed"
BUDGET = "K"


def clip_markdown(table: Table) -> list[str]:
    """A table for each data set and split, as blocks of lines; none of images, or of a table that ranks by
    another metric."""
    if table.metric.name != RANKED["video"]:
        return []
    return [block for column in table.columns for block in _of_column(table, column)]


def _of_column(table: Table, column: Column) -> list[str]:
    lines = [line for line in table.lines if column in line.scores]
    frame = pd.DataFrame([_row(table, line, column) for line in lines]).fillna("-")
    align = ["left" if name == "method" else "right" for name in frame.columns]
    return [
        f"## {' '.join(column)} as papers print it\n",
        f"{frame.to_markdown(index=False, disable_numparse=True, colalign=align)}\n",
    ]


def _row(table: Table, line: TableRow, column: Column) -> dict[str, Any]:
    """One line: tokens, and each score in percent; in brackets what it is above (+) or below (-) a printed
    one."""
    bound, counts = table.bound, line.counts[column]
    row: dict[str, Any] = {"method": line.pruner, BUDGET: "all" if line.pruner == BOUND else str(line.budget)}
    row[LLM] = "-" if line.tokens_llm is None else f"{line.tokens_llm:.0f}"
    for name in FORM:
        one, value = metrics.get(name), counts.get(name)
        if value is None:
            continue
        ours, theirs = one.scale * value, _printed(table, line, column, name)
        row[one.title] = f"{ours:.1f}" if theirs is None else f"{ours:.1f} ({ours - theirs:+.1f})"
    if bound is not None and column in bound.counts and (whole := bound.counts[column][FORM[-1]]):
        row["Rel. %"] = f"{100 * counts[FORM[-1]] / whole:.1f}"
    if OWN in counts:
        own = metrics.get(OWN)
        row[own.title] = f"{own.scale * counts[OWN]:.1f}"
    return row


def _printed(table: Table, line: TableRow, column: Column, name: str) -> float | None:
    """What a publication printed of the same backbone, protocol, answers, pruner, budget and split."""
    facts = table.group.facts
    for published in published_of(facts["backbone"], name):
        if (facts["protocol"], facts["answers"]) != (published.protocol, published.answers):
            continue
        twin, named = twin_of(published, line), published.column(name, column)
        if named and named in twin:
            return float(twin[named])
    return None
