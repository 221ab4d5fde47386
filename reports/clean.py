"""Recorded answers on clean labels: the board beside those of before, and which differences survive.

Every number is drawn again on the same draws of images: of all expressions, of those that count, and of these
with other truths. A pair of methods is apart by the rule of the leaderboard: the difference's p-value, after
control of false discoveries over all pairs of the table, is below 0.05.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from harness import metrics
from harness.labels import Labels, Rescored
from harness.metrics import Metric
from harness.metrics.bootstrap import LEVEL, Estimate, adjusted
from pruners.base import REFERENT, UserError
from reports import export
from reports.columns import RANKED
from reports.comparable import BOUND, COLUMN, LINE, groups, medium_of, title
from reports.drawn import Column, Drawn
from reports.gather import Runs
from reports.leaderboard import between, shown, signed, warning
from reports.tables import ALPHA, column_rank, measured_by

FILE, BOARD, PAIRS = "clean.md", "clean.csv", "clean-pairs.csv"
ALL, SAME, CLEAN = "all expressions", "same expressions, old truths", "clean"
MARKS = {ALL: "", SAME: "\n1", CLEAN: "\n2"}  # behind a method's name in the draws, where no name has it
ANSWER = ["run", "cell", "sample", "expression"]
STILL, TURNED, LOST, NEW, NEVER, FEW = (
    "still apart",
    "changed sides",
    "no longer apart",
    "newly apart",
    "not apart",
    "too few images",
)
MOST_LISTED = 30
LEGEND = {
    STILL: "apart on all expressions and on the clean ones, with the same method ahead",
    TURNED: "apart on both, with the other method ahead",
    LOST: "apart on all expressions, and not on the clean ones",
    NEW: "apart on the clean ones alone",
    NEVER: "apart on neither",
    FEW: "too few images for an interval",
}


@dataclass(frozen=True)
class CleanRow:
    """A method at a budget.

    Attributes:
        scores: by board.
        ranks: by board, among the methods and controls of its budget that do not see the truth.
        beside: gIoU by board, in 0..1, where the table ranks by another metric of images.
        moved: clean minus all.
        relabelled: clean minus the same expressions with the old truths; None where truths are the same.
    """

    pruner: str
    budget: int
    sees_truth: bool
    scores: dict[str, Estimate]
    ranks: dict[str, int]
    beside: dict[str, float]
    moved: Estimate
    relabelled: Estimate | None


@dataclass(frozen=True)
class Pair:
    """Two methods at one budget.

    Attributes:
        differences: first minus second, by board.
        apart: by board whether they can be told apart; None where nobody knows.
        moved: what the difference became, clean minus all.
        verdict: one of LEGEND.
    """

    first: str
    second: str
    budget: int
    differences: dict[str, Estimate]
    apart: dict[str, bool | None]
    moved: Estimate
    verdict: str


@dataclass(frozen=True)
class CleanTable:
    """Rows that may be ranked together.

    Attributes:
        counts: expressions and images by board.
    """

    title: str
    metric: Metric
    columns: tuple[Column, ...]
    boards: tuple[str, ...]
    rows: tuple[CleanRow, ...]
    pairs: tuple[Pair, ...]
    counts: dict[str, tuple[int, int]] = field(default_factory=dict)

    @property
    def verdicts(self) -> Counter[str]:
        return Counter(pair.verdict for pair in self.pairs)


def clean_tables(runs: Runs, found: Rescored, metric: str | None = None) -> list[CleanTable]:
    """All tables of the runs on the splits that the labels speak of.

    Args:
        metric: as in `reports.tables.tables`.

    Raises:
        UserError: there is no such metric, it was not measured, or it needs other counts than pixels and the
            labels have truths of their own.
    """
    frame = _marked(runs.frame, found)
    media = set(medium_of(frame))
    named = [metric] if metric else [name for medium, name in RANKED.items() if medium in media]
    tables = []
    for score in map(metrics.get, named):
        if found.counts is not None and not set(score.columns) <= {"intersection", "union"}:
            raise UserError(
                f"--metric {score.name} is made of {', '.join(score.columns)}, which other truths do not "
                f"give; "
                f"take ciou, giou or p@0.5 to p@0.9."
            )
        parted = groups(measured_by(score, frame))
        tables += [
            _table(group.frame, title(group, parted), score, found.counts is not None)
            for group in parted
            if group.frame["clean"].any()
        ]
    return tables


def _marked(frame: pd.DataFrame, found: Rescored) -> pd.DataFrame:
    """Records of the splits that the labels speak of, with `clean`, whether they count, and counts by other
    truths."""
    there = pd.MultiIndex.from_frame(frame[COLUMN]).isin(found.joined.columns)
    frame = frame[there].reset_index(drop=True)
    keys = pd.MultiIndex.from_frame(frame[["sample", "expression"]])
    frame["clean"] = keys.isin(list(found.joined.kept))
    if found.counts is not None:
        frame = frame.merge(found.counts, on=ANSWER, how="left", validate="one_to_one")
    return frame


def _table(frame: pd.DataFrame, heading: str, score: Metric, redrawn: bool) -> CleanTable:
    parts = {ALL: frame, SAME: frame[frame["clean"]]}
    if redrawn:
        parts[CLEAN] = parts[SAME].assign(
            intersection=parts[SAME]["clean_intersection"].astype(np.int64),
            union=parts[SAME]["clean_union"].astype(np.int64),
        )
    else:
        parts[CLEAN] = parts.pop(SAME)
    columns = tuple(
        sorted(parts[CLEAN][COLUMN].drop_duplicates().itertuples(index=False, name=None), key=column_rank)
    )
    parts = {
        board: part[pd.MultiIndex.from_frame(part[COLUMN]).isin(columns)] for board, part in parts.items()
    }
    stacked = [part.assign(pruner=part["pruner"] + MARKS[board]) for board, part in parts.items()]
    drawn = Drawn(pd.concat(stacked, ignore_index=True), columns, score)
    lines = [
        (str(pruner), int(budget), REFERENT.kind in str(rows["needs"].iloc[0]).split())
        for (pruner, budget), rows in frame.groupby(LINE, sort=False)
        if all(drawn.weights(pruner + MARKS[board], budget, columns) for board in parts)
    ]
    rows = [_row(line, parts, drawn, columns) for line in lines]
    rows = sorted(_ranked(rows, score), key=lambda row: _order(row, score))
    pairs = _pairs([row for row in rows if row.pruner != BOUND and not row.sees_truth], parts, drawn, columns)
    counts = {
        board: (len(part.drop_duplicates(["sample", "expression"])), part["cluster"].nunique())
        for board, part in parts.items()
    }
    return CleanTable(heading, score, columns, tuple(parts), tuple(rows), tuple(pairs), counts)


def _order(row: CleanRow, score: Metric) -> tuple[Any, ...]:
    return row.pruner != BOUND, -row.budget, score.rank(row.scores[CLEAN].value), row.pruner


def _minus(drawn: Drawn, columns: Sequence[Column], plus: list[tuple[str, int, int]]) -> Estimate:
    """Sum of rows, each with its sign: (name in the draws, budget, sign)."""
    parts = [
        [sign * weight for weight in drawn.weights(name, budget, columns) or ()]
        for name, budget, sign in plus
    ]
    return drawn.estimate([np.sum(weights, axis=0) for weights in zip(*parts, strict=True)])


def _row(
    line: tuple[str, int, bool], parts: dict[str, pd.DataFrame], drawn: Drawn, columns: tuple[Column, ...]
) -> CleanRow:
    pruner, budget, sees = line
    scores = {board: _minus(drawn, columns, [(pruner + MARKS[board], budget, 1)]) for board in parts}
    giou = metrics.get("giou")
    beside = {}
    if drawn.metric.of_iou and drawn.metric.name != giou.name:
        for board, part in parts.items():
            mine = part[(part["pruner"] == pruner) & (part["budget"] == budget)]
            means = [
                np.mean([giou.value(one) for _, one in rows.groupby("seed")])
                for _, rows in mine.groupby(COLUMN)
            ]
            beside[board] = float(np.mean(means))

    def change(board: str) -> Estimate:
        return _minus(
            drawn, columns, [(pruner + MARKS[CLEAN], budget, 1), (pruner + MARKS[board], budget, -1)]
        )

    return CleanRow(
        pruner, budget, sees, scores, {}, beside, change(ALL), change(SAME) if SAME in parts else None
    )


def _ranked(rows: Sequence[CleanRow], score: Metric) -> list[CleanRow]:
    """The rows with their ranks."""
    for budget in {row.budget for row in rows}:
        mine = [row for row in rows if row.budget == budget and row.pruner != BOUND and not row.sees_truth]
        for board in mine[0].scores if mine else ():
            order = sorted(mine, key=lambda row: score.rank(row.scores[board].value))
            for place, row in enumerate(order, start=1):
                row.ranks[board] = place
    return list(rows)


def _pairs(
    rows: Sequence[CleanRow], parts: dict[str, pd.DataFrame], drawn: Drawn, columns: tuple[Column, ...]
) -> list[Pair]:
    """Every two methods of a budget on every board."""
    both = [(one, other) for one, other in combinations(rows, 2) if one.budget == other.budget]
    made: dict[str, list[Estimate]] = {
        board: [
            _minus(
                drawn,
                columns,
                [(one.pruner + MARKS[board], one.budget, 1), (other.pruner + MARKS[board], one.budget, -1)],
            )
            for one, other in both
        ]
        for board in parts
    }
    qs = {board: adjusted([one.p for one in found]) for board, found in made.items()}
    pairs = []
    for place, (one, other) in enumerate(both):
        differences = {board: found[place] for board, found in made.items()}
        apart = {
            board: None if np.isnan(found[place]) else bool(found[place] < ALPHA)
            for board, found in qs.items()
        }
        moved = _minus(
            drawn,
            columns,
            [
                (name + MARKS[board], one.budget, sign * side)
                for board, side in ((CLEAN, 1), (ALL, -1))
                for name, sign in ((one.pruner, 1), (other.pruner, -1))
            ],
        )
        verdict = _verdict(differences[ALL], apart[ALL], differences[CLEAN], apart[CLEAN])
        pairs.append(Pair(one.pruner, other.pruner, one.budget, differences, apart, moved, verdict))
    return pairs


def _verdict(before: Estimate, was: bool | None, after: Estimate, stays: bool | None) -> str:
    if was is None or stays is None:
        return FEW
    if was and stays:
        return STILL if (before.value > 0) == (after.value > 0) else TURNED
    return LOST if was else NEW if stays else NEVER


# -- text


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
        f"expressions of "
        f"{columns}: {counts}."
    ]
    for what, some in joined.examples.items():
        more = joined.found[what] - len(some)
        notes.append(f"{what}: {'; '.join(some)}{f' and {more} more' if more else ''}.")
    if joined.unused:
        more = joined.unused - len(joined.lost)
        notes.append(
            f"{joined.unused} labels have no expression in the run: {'; '.join(joined.lost)}"
            f"{f' and {more} more' if more else ''}."
        )
    if found.counts is not None:
        notes.append(
            f"{found.recounted} recorded masks were counted against the new truths. Against the recorded "
            f"ones, "
            + (
                "all of them give the recorded counts."
                if not found.differing
                else f"{found.recounted - found.differing} give the recorded counts and {found.differing} others: "
                f"the data set has pixels that are ignored, and other truths have none."
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
        for verdict in (TURNED, LOST, NEW):
            parts += _listed(table, verdict)
    scores = ", ".join(dict.fromkeys(table.metric.title for table in tables))
    columns = ", ".join(":".join(column) for column in found.joined.columns)
    legend = [
        f"Scores are {scores} over {columns}, the mean of these columns; splits that the labels do not speak of "
        f"are left out of all boards.",
        f"Intervals are {LEVEL:.0%} ones from images drawn again, the same draws for all boards and "
        f"methods, so "
        f"changes are paired. Apart: p below {ALPHA} after control of false discoveries over all pairs of "
        f"a board.",
        *(f"{verdict}: {meaning}." for verdict, meaning in LEGEND.items()),
        "Ranks are those within a budget, of what does not see the truth. A method that sees the truth "
        "chose its "
        "tokens by the recorded one.",
        f"All rows are in {BOARD}, all pairs in {PAIRS}; the run's own records and reports are as they were.",
    ]
    return "\n\n".join([*parts, "## How to read it", "\n".join(f"- {line}" for line in legend)]) + "\n"


def screen(labels: Labels, found: Rescored, tables: Sequence[CleanTable]) -> str:
    """What a command prints: what was joined, the boards, and what survives."""
    parts = ["\n".join(account(labels, found))]
    for table in tables:
        parts += [table.title, board_markdown(table), finding(table)]
    return "\n\n".join(parts) + "\n"


def board_markdown(table: CleanTable) -> str:
    """The boards side by side."""
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
        if row.relabelled is not None:
            cells["by the truths alone"] = signed(row.relabelled, table.metric)
        ranks = [row.ranks.get(board) for board in (ALL, CLEAN)]
        cells["rank"] = (
            "-" if None in ranks else f"{ranks[0]} to {ranks[1]}" if ranks[0] != ranks[1] else f"{ranks[0]}"
        )
        if row.beside:
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
            export.write_text(out / name, text)
    except OSError as error:
        raise UserError(
            f"Cannot write to {str(out)!r} ({error.strerror}); give --out a folder that you may write."
        ) from error
    return tables, [out / name for name in texts]
