"""Records to the numbers of a leaderboard: scores with intervals, differences, and what they rest on."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from harness import metrics
from harness.metrics import Metric
from harness.metrics.bootstrap import Estimate, adjusted
from pruners.base import REFERENT, UserError, nearest
from reports.columns import RANKED
from reports.comparable import BOUND, COLUMN, LABEL, LINE, Group, fitting, groups, medium_of, title
from reports.drawn import Column, Drawn
from reports.gather import Runs

ALPHA = 0.05
RANDOM = "random"
SPLITS = ("val", "testA", "testB", "test")


@dataclass(frozen=True)
class Against:
    """A row minus another row of its budget.

    Attributes:
        other: the other row's pruner.
        average: of the averages.
        columns: of each column.
        q: the average's p-value after control of false discoveries over the table.
    """

    other: str
    average: Estimate
    columns: dict[Column, Estimate]
    q: float = float("nan")

    @property
    def apart(self) -> bool | None:
        """Whether the rows can be told apart; None where there are too few images to say."""
        return None if np.isnan(self.q) else self.q < ALPHA


@dataclass(frozen=True)
class TableRow:
    """A pruner at a budget: one row.

    Attributes:
        scores: the table's metric per column, mean over seeds.
        others: the metrics that are printed beside it, by name, per column.
        counts: per column what the score rests on: all metrics by name, and sums of what they are made of.
        average: mean of all columns of the table, None if the row lacks one.
        seeds: the average of each seed.
        sees_truth: whether the pruner reads the truth masks.
        rounding: share of the kept tokens that another kernel's rounding exchanges, and by how much IoU
            (0..1) moves then, mean over the expressions that were looked at; None if none were.
        against: 'random', 'best' and 'baseline', where there is such a row.
        said: share of the expressions whose answer, written by the model, holds a [SEG]; None if answers are
            forced.
        tokens_llm: tokens that the language model's first layer sees, mean over expressions; None where
            the backbone does not say.
        silent: answers of all seeds that the model wrote without a [SEG]; None if answers are forced.
        schedule: visual tokens of every layer of the language model, `576 x 2, 64 x 30`; empty where nobody
            wrote it down.
        seg_logprob: log-probability of [SEG] at its place, mean over the expressions that have one; None
            where the backbone does not say.
    """

    pruner: str
    budget: int
    control: bool
    stage: str
    scores: dict[Column, Estimate]
    others: dict[str, dict[Column, float]]
    counts: dict[Column, dict[str, Any]]
    average: Estimate | None
    seeds: tuple[float, ...]
    tokens_final: float
    tokens_mean: float
    sees_truth: bool = False
    rounding: tuple[float, float] | None = None
    against: dict[str, Against] = field(default_factory=dict)
    said: float | None = None
    seg_logprob: float | None = None
    schedule: str = ""
    tokens_llm: float | None = None
    silent: int | None = None


@dataclass(frozen=True)
class Table:
    """Rows that are ranked together.

    Attributes:
        lines: by falling budget, methods before controls, each from its best average on.
        bound: the upper bound's row.
        metric: what it ranks by.
        beside: other metrics that it prints.
    """

    title: str
    group: Group
    columns: tuple[Column, ...]
    lines: tuple[TableRow, ...]
    metric: Metric
    beside: tuple[Metric, ...] = ()

    @property
    def bound(self) -> TableRow | None:
        return next((line for line in self.lines if line.pruner == BOUND), None)

    def relative(self, line: TableRow) -> float | None:
        """Percent of the upper bound's average."""
        bound = self.bound
        if bound is None or bound.average is None or line.average is None or not bound.average.value:
            return None
        return 100 * line.average.value / bound.average.value

    def blocks(self) -> list[tuple[str, list[TableRow]]]:
        """Rows below their headings: the upper bound, then one block per budget."""
        found: dict[str, list[TableRow]] = {}
        retain = "Label {}" if self.group.facts["budget_kind"] == LABEL else "Retain {} tokens"
        for line in self.lines:
            heading = (
                f"Upper bound, all {line.budget} tokens"
                if line.pruner == BOUND
                else retain.format(self.size(line.budget))
            )
            found.setdefault(heading, []).append(line)
        return list(found.items())

    def size(self, budget: int) -> str:
        """A budget as a count, and in brackets as the share that was asked for, if it was: `190 (33 %)`."""
        frame = self.group.frame
        asked = sorted(map(str, frame["budget_asked"][frame["budget"] == budget].dropna().unique()))
        shares = dict.fromkeys(f"{share:g} %" for text in asked if (share := _percent(text)) is not None)
        return f"{budget} ({', '.join(shares)})" if shares else str(budget)


def _percent(asked: str) -> float | None:
    """A budget that was asked for as a share, in percent; None if it was a count."""
    return float(asked[:-1]) if asked.endswith("%") else 100 * float(asked) if "." in asked else None


def column_rank(column: Column) -> tuple[int, str, int]:
    """As in the published tables: plain, +, g; val, testA, testB, test."""
    dataset, split = column
    family = 2 if dataset.endswith("g") else 1 if dataset.endswith("+") else 0
    return (family, dataset, SPLITS.index(split) if split in SPLITS else len(SPLITS))


def tables(runs: Runs, baseline: str | None = None, metric: str | None = None) -> list[Table]:
    """All tables of the runs.

    Args:
        baseline: a pruner, as in the records, that every row is compared with.
        metric: what is ranked by; without, what is usual of a medium (`reports.columns.RANKED`), tables of
            images first.

    Raises:
        UserError: no row has the baseline's name, there is no such metric, or the runs did not measure it.
    """
    media = set(medium_of(runs.frame).unique())
    named = [metric] if metric else [name for medium, name in RANKED.items() if medium in media]
    frames = [(score, measured_by(score, runs.frame)) for score in map(metrics.get, named)]
    known = sorted({str(name) for _, frame in frames for name in frame["pruner"].unique()})
    if baseline is not None and baseline not in known:
        raise UserError(
            f"--against {baseline!r} has no row; there are {', '.join(known)}.{nearest(baseline, known)}"
        )
    found = []
    for score, frame in frames:
        parted = groups(frame)
        found += [_table(group, title(group, parted), baseline, score) for group in parted]
    return found


def measured_by(score: Metric, frame: pd.DataFrame) -> pd.DataFrame:
    """The records that a metric ranks.

    Raises:
        UserError: there are none, or it was not measured in all of them.
    """
    part = frame[fitting(frame, score)]
    if part.empty and score.medium not in set(medium_of(frame).unique()):
        raise UserError(f"--metric {score.name} is measured on {score.medium}s alone, which no run here has.")
    if part.empty:
        raise UserError(
            f"--metric {score.name} is measured on {', '.join(score.datasets)} alone, which no run here has."
        )
    if lost := [column for column in score.columns if column not in frame]:
        raise UserError(
            f"--metric {score.name} is made of {', '.join(lost)}, which no run here measured; run again "
            f"where the metric is installed or given with --plugin."
        )
    if part[list(score.columns)].isna().any(axis=None):
        raise UserError(
            f"--metric {score.name} was not measured in all of these runs; report those alone that did."
        )
    return part


def measured(frame: pd.DataFrame) -> list[Metric]:
    """All metrics that are made of what every record of their medium and data sets holds."""
    found = []
    for one in metrics.made_of(frame.columns):
        values = frame[fitting(frame, one)][list(one.columns)]
        if len(values) and values.notna().all(axis=None):
            found.append(one)
    return found


# of a record, besides what metrics are made of, for one row of a table
READ = (
    *("seed", "cluster", "data", "cell", "run", "kind", "stage", "schedule", "needs"),
    *("tokens_final", "tokens_mean", "tokens_llm", "views"),
    *("rounding_iou", "rounding_tokens", "seg_said", "seg_logprob"),
)


def _table(group: Group, heading: str, baseline: str | None, score: Metric) -> Table:
    frame = group.frame
    named = frame[COLUMN].drop_duplicates().itertuples(index=False, name=None)
    columns = tuple(sorted(named, key=column_rank))
    drawn = Drawn(frame, columns, score)
    known = measured(frame)
    beside = tuple(one for one in known if one.shown and one.name != score.name)
    # parts of a frame cost by its columns, and most have texts that no table reads
    read = dict.fromkeys([*LINE, *COLUMN, *READ, *(name for one in known for name in one.columns)])
    by_line = frame[list(read)].groupby(LINE, sort=False, observed=True)
    lines = [_line(key, rows, drawn, known, beside) for key, rows in by_line]  # type: ignore[arg-type]
    lines.sort(
        key=lambda line: (
            line.pruner != BOUND,
            -line.budget,
            line.control,
            score.rank(_mean(line)),
            line.pruner,
        )
    )
    lines = _compared(lines, drawn, baseline)
    return Table(heading, group, columns, tuple(lines), score, beside)


def _mean(line: TableRow) -> float:
    return (
        line.average.value
        if line.average
        else float(np.mean([score.value for score in line.scores.values()]))
    )


def columns_of(rows: pd.DataFrame, known: Sequence[Metric]) -> dict[str, NDArray[Any]]:
    """What metrics are made of as plain arrays, of which single rows and sums cost less."""
    return {name: rows[name].to_numpy() for one in known for name in one.columns}


def _counts(rows: pd.DataFrame, known: Sequence[Metric]) -> dict[str, Any]:
    """What the score of one row in one column rests on."""
    known = [one for one in known if one.fits(str(rows["dataset"].iloc[0]))]
    seeds = [columns_of(part, known) for _, part in rows.groupby("seed")]
    facts: dict[str, Any] = {one.name: float(np.mean([one.value(part) for part in seeds])) for one in known}
    sums: dict[str, Any] = {
        name: np.asarray(rows[name]).sum().item() for one in known for name in one.columns
    }
    # a metric may have the name of a column, whose sum says no more than its mean
    return (
        sums
        | facts
        | {
            "images": int(rows["cluster"].nunique()),
            "expressions": int(len(rows) / len(seeds)),
            "data": str(rows["data"].iloc[0]),
            "cells": rows["cell"].unique().tolist(),
            "run": sorted(rows["run"].unique().tolist()),
        }
    )


def _line(
    key: tuple[str, int],
    rows: pd.DataFrame,
    drawn: Drawn,
    known: Sequence[Metric],
    beside: Sequence[Metric],
) -> TableRow:
    pruner, budget = key
    by_column = rows.groupby(COLUMN, sort=False, observed=True)
    counts = {column: _counts(part, known) for column, part in by_column}
    scores = {
        column: drawn.estimate(weights)
        for column in drawn.columns
        if (weights := drawn.weights(*key, [column])) is not None
    }
    whole = drawn.weights(*key, drawn.columns)
    seeds = [
        float(
            np.mean(
                [
                    drawn.metric.value(columns_of(part, [drawn.metric]))
                    for _, part in one.groupby(COLUMN, observed=True)
                ]
            )
        )
        for _, one in rows.groupby("seed")
    ]
    return TableRow(
        pruner=pruner,
        budget=int(budget),
        control=rows["kind"].iloc[0] == "control",
        stage=str(rows["stage"].iloc[0]),
        scores=scores,
        others={
            one.name: {column: counts[column][one.name] for column in scores if one.fits(column[0])}
            for one in beside
        },
        counts={column: counts[column] for column in scores},
        average=None if whole is None else drawn.estimate(whole),
        seeds=tuple(seeds),
        # as budgets count them: of a view, which is an image, or a frame of a clip
        tokens_final=float((rows["tokens_final"] / rows["views"]).mean()),
        tokens_mean=float((rows["tokens_mean"] / rows["views"]).mean()),
        rounding=_hanging(rows),
        said=_mean_of(rows["seg_said"]),
        seg_logprob=_mean_of(rows["seg_logprob"]),
        schedule=str(rows["schedule"].iloc[0] or ""),
        tokens_llm=_mean_of(rows["tokens_llm"]),
        silent=None if rows["seg_said"].isna().all() else int((rows["seg_said"] == 0).sum()),
        sees_truth=REFERENT.kind in str(rows["needs"].iloc[0]).split(),
    )


def _mean_of(values: pd.Series[float]) -> float | None:
    """The mean of what there is; None if there is nothing."""
    return None if values.isna().all() else float(values.mean())


def _hanging(rows: pd.DataFrame) -> tuple[float, float] | None:
    probed = rows[rows["rounding_iou"].notna()]
    if probed.empty:
        return None
    moved = probed["rounding_tokens"] / probed["tokens_final"].clip(lower=1)  # a method may end at none
    return float(moved.mean()), float(probed["rounding_iou"].abs().mean())


def _compared(lines: Sequence[TableRow], drawn: Drawn, baseline: str | None) -> list[TableRow]:
    """Every row against the rows of its budget that matter, and what is left of it over the whole table."""
    best: dict[int, str] = {}
    for line in sorted(lines, key=lambda line: drawn.metric.rank(_mean(line))):
        if line.average and line.pruner != BOUND and not line.sees_truth:
            best.setdefault(line.budget, line.pruner)
    others: dict[str, Callable[[TableRow], str | None]] = {
        "random": lambda line: RANDOM,
        "best": lambda line: best.get(line.budget),
        "baseline": lambda line: baseline,
    }
    found = list(lines)
    for kind, other in others.items():
        made = [_against(line, name, drawn) if (name := other(line)) else None for line in lines]
        qs = adjusted([one.average.p if one else np.nan for one in made])
        for place, (one, q) in enumerate(zip(made, qs, strict=True)):
            if one:
                found[place] = replace(
                    found[place], against=found[place].against | {kind: replace(one, q=float(q))}
                )
    return found


def _against(line: TableRow, other: str, drawn: Drawn) -> Against | None:
    """None for the other row itself, the upper bound, and rows that do not share all columns."""
    if line.pruner in (other, BOUND) or line.average is None:
        return None

    def minus(columns: Sequence[Column]) -> Estimate | None:
        mine = drawn.weights(line.pruner, line.budget, columns)
        theirs = drawn.weights(other, drawn.budget(other) if other == BOUND else line.budget, columns)
        return (
            None
            if mine is None or theirs is None
            else drawn.estimate([a - b for a, b in zip(mine, theirs, strict=True)])
        )

    average = minus(drawn.columns)
    if average is None:
        return None
    return Against(
        other, average, {column: one for column in drawn.columns if (one := minus([column])) is not None}
    )
