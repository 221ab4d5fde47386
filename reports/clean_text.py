"""Boards on clean labels as text and files: clean.md, clean.csv, clean-pairs.csv."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from harness.labels import Labels, Rescored
from harness.metrics.bootstrap import LEVEL, Estimate
from harness.store.journal import write_text
from pruners.base import UserError
from reports import export
from reports.clean import ALL, CLEAN, FEW, LEGEND, LOST, NEW, SAME, STILL, TURNED, CleanTable, clean_tables
from reports.comparable import BOUND
from reports.gather import Runs
from reports.leaderboard import between, shown, signed, warning
from reports.tables import ALPHA

FILE, BOARD, PAIRS = "clean.md", "clean.csv", "clean-pairs.csv"
MOST_LISTED = 30


def finding(table: CleanTable) -> str:
    """What the clean labels do to a table, in one sentence."""
    held, told = table.verdicts, table.counts
    before = held[STILL] + held[TURNED] + held[LOST]
    (every, _), (left, images) = told[ALL], told[CLEAN]
    sizes = f"{left} of {every} expressions ({images} images)"
    if held[FEW]:
        return f"On {sizes} nothing can be told: {images} images are too few for intervals."
    if not table.pairs:
        return f"On {sizes} there are no two methods at one budget to compare."
    sure = sum(pair.verdict == LOST and _excludes_zero(pair.moved) for pair in table.pairs)
    lost = f"{held[LOST]} no longer" + (
        f" (in {sure} of them the difference itself changed by more than chance, in the others fewer "
        f"expressions tell less)"
        if held[LOST]
        else ""
    )
    return (
        f"Of {len(table.pairs)} pairs of methods at one budget, {before} are apart in {table.metric.title} "
        f"on all "
        f"expressions; on {sizes}{' with the new truths' if SAME in table.boards else ''} {held[STILL]} of "
        f"them "
        f"still are, {held[TURNED]} changed sides, {lost}; {held[NEW]} are newly apart. {_leaders(table)}"
    )


def _excludes_zero(one: Estimate) -> bool:
    return not np.isnan(one.low) and (one.low > 0 or one.high < 0)


def _leaders(table: CleanTable) -> str:
    """Which method is ahead at every budget, before and after."""
    texts = []
    for budget in sorted({row.budget for row in table.rows if row.ranks}, reverse=True):
        first = {
            board: next(
                row.pruner for row in table.rows if row.budget == budget and row.ranks.get(board) == 1
            )
            for board in (ALL, CLEAN)
        }
        stays = first[ALL] == first[CLEAN]
        texts.append(
            f"{first[ALL]} stays ahead at {budget}"
            if stays
            else f"at {budget} {first[CLEAN]} is ahead of {first[ALL]}"
        )
    return (
        f"{'; '.join(texts)}.".replace("at ", "At ", 1)
        if texts and texts[0].startswith("at ")
        else f"{'; '.join(texts)}."
    )


def account(labels: Labels, found: Rescored) -> list[str]:
    """What became of the expressions and of the labels, as sentences."""
    joined = found.joined
    columns = ", ".join(":".join(column) for column in joined.columns)
    every = sum(joined.found.values())
    counts = ", ".join(f"{count} {what}" for what, count in joined.found.most_common())
    notes = [
        f"{labels.name} ({labels.count} labels in `{labels.path.name}`): {labels.rule}. Of {every} "
        f"answered expressions of {columns}: {counts}."
    ]
    for what, some in joined.examples.items():
        more = joined.found[what] - len(some)
        notes.append(f"{what}: {'; '.join(some)}{f' and {more} more' if more else ''}.")
    if joined.unused:
        more = joined.unused - len(joined.lost)
        notes.append(
            f"{joined.unused} labels have no expression that the run answered: {'; '.join(joined.lost)}"
            f"{f' and {more} more' if more else ''}."
        )
    if found.counts is not None:
        notes.append(
            f"{found.recounted} recorded masks were counted against the new truths. Against the recorded "
            f"ones, "
            + (
                "all of them give the recorded counts."
                if not found.differing
                else f"{found.recounted - found.differing} give the recorded counts and {found.differing} "
                f"others: the data set has pixels that are ignored, and other truths have none."
            )
        )
    if labels.licence:
        notes.append(f"Licence of the labels: {labels.licence}.")
    return notes


def clean_markdown(labels: Labels, runs: Runs, found: Rescored, tables: Sequence[CleanTable]) -> str:
    """The text of clean.md."""
    parts = ["# Clean labels", *(f"- {note}" for note in account(labels, found))]
    parts[1:] = ["\n".join(parts[1:])]
    parts += [f"**{note}**" for note in (*warning(runs), *runs.notes)]
    for table in tables:
        parts += [f"## {table.title}", f"**{finding(table)}**", board_markdown(table)]
        for verdict in (TURNED, LOST, NEW, STILL):
            parts += _listed(table, verdict)
    scores = ", ".join(dict.fromkeys(table.metric.title for table in tables))
    columns = ", ".join(":".join(column) for column in found.joined.columns)
    legend = [
        f"Scores are {scores} over {columns}, the mean of these columns; splits that the labels do not "
        f"speak of are left out of all boards.",
        f"Intervals are {LEVEL:.0%} ones from images drawn again, the same draws for all boards and "
        f"methods, so "
        f"changes are paired. Apart: p below {ALPHA} after control of false discoveries over all pairs of "
        f"a board.",
        *(f"{verdict}: {meaning}." for verdict, meaning in LEGEND.items()),
        "Ranks are those within a budget, of what does not see the truth. A method that sees the truth "
        "chose its tokens by the recorded one.",
        f"All rows are in {BOARD}, all pairs in {PAIRS}; the run's own records and reports are as they were.",
    ]
    return "\n\n".join([*parts, "## How to read it", "\n".join(f"- {line}" for line in legend)]) + "\n"


def screen(labels: Labels, found: Rescored, tables: Sequence[CleanTable]) -> str:
    """What a command prints: what was joined, the boards, and what survives."""
    parts = ["\n".join(account(labels, found))]
    for table in tables:
        parts += [table.title, board_markdown(table, brief=True), finding(table)]
    return "\n\n".join(parts) + "\n"


def board_markdown(table: CleanTable, brief: bool = False) -> str:
    """The boards side by side; of a brief one, what tells whether the rows stay in their places."""
    lines: list[dict[str, str]] = []
    heading = None
    for row in table.rows:
        here = (
            f"**Upper bound, all {row.budget} tokens**"
            if row.pruner == BOUND
            else f"**Retain {row.budget} tokens**"
        )
        if here != heading:
            lines.append({"method": here})
            heading = here
        cells = {"method": row.pruner}
        for board in table.boards:
            cells[board] = shown(row.scores[board].value, table.metric)
        cells |= {
            "95 %": between(row.scores[CLEAN], table.metric),
            "clean minus all": signed(row.moved, table.metric),
        }
        if row.relabelled is not None and not brief:
            cells["by the truths alone"] = signed(row.relabelled, table.metric)
        ranks = [row.ranks.get(board) for board in (ALL, CLEAN)]
        cells["rank"] = (
            "-" if None in ranks else f"{ranks[0]} to {ranks[1]}" if ranks[0] != ranks[1] else f"{ranks[0]}"
        )
        if row.beside and not brief:
            cells["gIoU, all and clean"] = " / ".join(
                f"{100 * row.beside[board]:.1f}" for board in (ALL, CLEAN)
            )
        lines.append(cells)
    frame = pd.DataFrame(lines).fillna("")
    align = ["left" if name == "method" else "right" for name in frame.columns]
    return str(frame.to_markdown(index=False, disable_numparse=True, colalign=align))


def _listed(table: CleanTable, verdict: str) -> list[str]:
    """The pairs of one verdict."""
    pairs = [pair for pair in table.pairs if pair.verdict == verdict]
    if not pairs:
        return []
    lines = [
        {"budget": str(pair.budget), "difference": f"{pair.first} minus {pair.second}"}
        | {board: signed(pair.differences[board], table.metric) for board in table.boards}
        | {"clean minus all": signed(pair.moved, table.metric)}
        for pair in pairs[:MOST_LISTED]
    ]
    more = len(pairs) - MOST_LISTED
    return [
        f"### {verdict.capitalize()}",
        str(pd.DataFrame(lines).to_markdown(index=False, disable_numparse=True)),
        *([f"{more} more are in {PAIRS}."] if more > 0 else []),
    ]


def board_frame(tables: Sequence[CleanTable]) -> pd.DataFrame:
    """One row per method, budget and board, in no unit (0..1 of a share)."""
    rows = []
    for table in tables:
        for row in table.rows:
            for board in table.boards:
                one = row.scores[board]
                expressions, images = table.counts[board]
                rows.append(
                    {"table": table.title, "metric": table.metric.name}
                    | {"pruner": row.pruner, "budget": row.budget, "board": board}
                    | {"value": one.value, "low": one.low, "high": one.high, "giou": row.beside.get(board)}
                    | {"rank": row.ranks.get(board), "expressions": expressions, "images": images}
                )
    frame = pd.DataFrame(rows)
    return frame.astype({"rank": "Int64", "giou": "float64"})


def pairs_frame(tables: Sequence[CleanTable]) -> pd.DataFrame:
    """One row per pair of methods: first minus second on every board, in no unit."""
    rows: list[dict[str, Any]] = []
    for table in tables:
        for pair in table.pairs:
            named: dict[str, Any] = {"table": table.title, "metric": table.metric.name, "budget": pair.budget}
            named |= {"first": pair.first, "second": pair.second, "verdict": pair.verdict}
            for board in table.boards:
                one = pair.differences[board]
                named |= {
                    f"{board}{end}": value
                    for end, value in (("", one.value), (" low", one.low), (" high", one.high), (" p", one.p))
                }
                named[f"{board} apart"] = pair.apart[board]
            named |= {"moved": pair.moved.value, "moved low": pair.moved.low, "moved high": pair.moved.high}
            rows.append(named)
    return pd.DataFrame(rows)


def clean_sheet(labels: Labels, found: Rescored, tables: Sequence[CleanTable]) -> export.Sheet:
    """The boards for a file of another format."""
    columns = {
        "table": export.Column("what its rows share"),
        "metric": export.Column("name of the metric of value, low and high"),
        "pruner": export.Column("method"),
        "budget": export.Column("visual tokens that were asked for", "tokens"),
        "board": export.Column("which expressions, with which truths"),
        "value": export.Column("score", "0..1"),
        "low": export.Column("lower end of the 95 % interval", "0..1"),
        "high": export.Column("upper end of the 95 % interval", "0..1"),
        "giou": export.Column("gIoU beside it, where another metric ranks", "0..1"),
        "rank": export.Column("within its budget, of what does not see the truth"),
        "expressions": export.Column("that the board rests on"),
        "images": export.Column("that the board rests on"),
    }
    notes = [*account(labels, found), *map(finding, tables)]
    return export.Sheet(f"Clean labels: {labels.name}", board_frame(tables), columns, notes)


def write_clean(
    labels: Labels, runs: Runs, found: Rescored, out: Path, metric: str | None = None
) -> tuple[list[CleanTable], list[Path]]:
    """Write clean.md, clean.csv and clean-pairs.csv; the tables, and the files.

    Raises:
        UserError: as `clean_tables`, or the folder cannot be written.
    """
    tables = clean_tables(runs, found, metric)
    texts = {
        FILE: clean_markdown(labels, runs, found, tables),
        BOARD: export.csv(board_frame(tables)),
        PAIRS: export.csv(pairs_frame(tables)),
    }
    try:
        out.mkdir(parents=True, exist_ok=True)
        for name, text in texts.items():
            write_text(out / name, text)
    except OSError as error:
        raise UserError(
            f"Cannot write to {str(out)!r} ({error.strerror}); give --out a folder that you may write."
        ) from error
    return tables, [out / name for name in texts]
