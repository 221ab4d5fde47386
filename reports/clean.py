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
from typing import Any

import numpy as np
import pandas as pd

from harness import metrics
from harness.labels import Rescored
from harness.metrics import Metric
from harness.metrics.bootstrap import Estimate, adjusted
from harness.store.tables import plain
from pruners.base import REFERENT, UserError
from reports.columns import RANKED
from reports.comparable import BOUND, COLUMN, LINE, groups, medium_of, title
from reports.drawn import Column, Drawn
from reports.gather import Runs
from reports.tables import ALPHA, column_rank, measured_by

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
    frame = plain(frame[there]).reset_index(drop=True)
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
        (str(pruner), int(budget), REFERENT.kind in str(needs).split())
        for pruner, budget, needs in frame.drop_duplicates(LINE)[[*LINE, "needs"]].itertuples(
            index=False, name=None
        )
        if all(drawn.weights(str(pruner) + MARKS[board], int(budget), columns) for board in parts)
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
