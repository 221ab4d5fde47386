"""Records to the numbers of a leaderboard: scores with intervals, differences, and what they rest on."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pandas as pd

from harness import metrics
from pruners.base import REFERENT, UserError, nearest
from pruners.registry import get, names
from reports.comparable import COLUMN, LINE, Group, groups, title
from reports.gather import Runs
from reports.statistics import Estimate, Resampled, adjusted, estimate, resample

Column = tuple[str, str]
ALPHA = 0.05
RANDOM, BOUND = "random", "none"
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
class Line:
    """A pruner at a budget: one row.

    Attributes:
        scores: cIoU per column, mean over seeds.
        counts: per column what the score rests on.
        average: mean of all columns of the table, None if the row lacks one.
        seeds: the average of each seed.
        against: 'random', 'best' and 'baseline', where there is such a row.
    """

    pruner: str
    budget: int
    control: bool
    stage: str
    scores: dict[Column, Estimate]
    giou: dict[Column, float]
    counts: dict[Column, dict[str, Any]]
    average: Estimate | None
    seeds: tuple[float, ...]
    tokens_final: float
    tokens_mean: float
    against: dict[str, Against] = field(default_factory=dict)

    @property
    def sees_truth(self) -> bool:
        name = self.pruner.partition("(")[0]
        return name in names() and REFERENT in get(name).needs


@dataclass(frozen=True)
class Table:
    """Rows that are ranked together.

    Attributes:
        lines: by falling budget, methods before controls, each by falling average.
        bound: the upper bound's row.
    """

    title: str
    group: Group
    columns: tuple[Column, ...]
    lines: tuple[Line, ...]

    @property
    def bound(self) -> Line | None:
        return next((line for line in self.lines if line.pruner == BOUND), None)

    def relative(self, line: Line) -> float | None:
        """Percent of the upper bound's average."""
        bound = self.bound
        if bound is None or bound.average is None or line.average is None or not bound.average.value:
            return None
        return 100 * line.average.value / bound.average.value

    def blocks(self) -> list[tuple[str, list[Line]]]:
        """Rows below their headings: the upper bound, then one block per budget."""
        found: dict[str, list[Line]] = {}
        for line in self.lines:
            heading = f"Upper bound, all {line.budget} tokens" if line.pruner == BOUND else f"Retain {line.budget} tokens"
            found.setdefault(heading, []).append(line)
        return list(found.items())


def column_rank(column: Column) -> tuple[int, str, int]:
    """As in the published tables: plain, +, g; val, testA, testB, test."""
    dataset, split = column
    family = 2 if dataset.endswith("g") else 1 if dataset.endswith("+") else 0
    return (family, dataset, SPLITS.index(split) if split in SPLITS else len(SPLITS))


def tables(runs: Runs, baseline: str | None = None) -> list[Table]:
    """All tables of the runs.

    Args:
        baseline: a pruner, as in the records, that every row is compared with.

    Raises:
        UserError: no row has the baseline's name.
    """
    parted = groups(runs.frame)
    known = sorted(set(runs.frame["pruner"]))
    if baseline is not None and baseline not in known:
        raise UserError(f"--baseline {baseline!r} has no row; there are {', '.join(known)}.{nearest(baseline, known)}")
    return [_table(group, title(group, parted), baseline) for group in parted]


def _table(group: Group, heading: str, baseline: str | None) -> Table:
    frame = group.frame
    columns = tuple(sorted(dict.fromkeys(frame[COLUMN].itertuples(index=False, name=None)), key=column_rank))
    parts = {column: _Part(frame[(frame["dataset"] == column[0]) & (frame["split"] == column[1])], column) for column in columns}
    rows = {key: part for key, part in frame.groupby(LINE, sort=False)}
    lines = [_line(key, part, parts) for key, part in rows.items()]  # type: ignore[arg-type]
    lines.sort(key=lambda line: (line.pruner != BOUND, -line.budget, line.control, -_mean(line), line.pruner))
    lines = _compared(lines, parts, baseline)
    return Table(heading, group, columns, tuple(lines))


def _mean(line: Line) -> float:
    return line.average.value if line.average else float(np.mean([score.value for score in line.scores.values()]))


class _Part:
    """One column: sums per image of every (pruner, budget, seed), drawn again together."""

    def __init__(self, rows: pd.DataFrame, column: Column) -> None:
        keys = [*LINE, "seed"]
        sums = rows.groupby(["sample", *keys])[["intersection", "union"]].sum().unstack(keys, fill_value=0)
        inner, outer = sums["intersection"], sums["union"][sums["intersection"].columns]
        self.places = list(inner.columns)
        self.resampled: Resampled = resample(
            inner.to_numpy(dtype=np.float64), outer.to_numpy(dtype=np.float64), zlib.crc32(" ".join(column).encode())
        )
        self.rows = {key: part for key, part in rows.groupby(LINE, sort=False)}

    def weight(self, pruner: str, budget: int) -> np.ndarray[Any, np.dtype[np.float64]] | None:
        """Mean over the seeds of a row; None if it is not here."""
        mine = np.array([place[:2] == (pruner, budget) for place in self.places], dtype=np.float64)
        return mine / mine.sum() if mine.any() else None

    def counts(self, pruner: str, budget: int) -> dict[str, Any]:
        rows = self.rows[(pruner, budget)]
        scores = [metrics.scores(part["intersection"], part["union"]) for _, part in rows.groupby("seed")]
        facts: dict[str, Any] = {name: float(np.mean([one[name] for one in scores])) for name in scores[0]}
        return facts | {
            "intersection": int(rows["intersection"].sum()),
            "union": int(rows["union"].sum()),
            "images": int(rows["sample"].nunique()),
            "expressions": int(len(rows) / len(scores)),
            "data": str(rows["data"].iloc[0]),
            "cells": list(dict.fromkeys(rows["cell"])),
            "run": sorted(set(rows["run"])),
        }


def _line(key: tuple[str, int], rows: pd.DataFrame, parts: dict[Column, _Part]) -> Line:
    pruner, budget = key
    weights = {column: weight for column, part in parts.items() if (weight := part.weight(*key)) is not None}
    counts = {column: parts[column].counts(*key) for column in weights}
    here = [parts[column].resampled for column in weights]
    average = None
    if len(weights) == len(parts):
        average = estimate(here, [weight / len(parts) for weight in weights.values()])
    seeds = [
        float(np.mean([metrics.ciou(part["intersection"], part["union"]) for _, part in one.groupby(COLUMN)]))
        for _, one in rows.groupby("seed")
    ]
    name = pruner.partition("(")[0]
    return Line(
        pruner=pruner,
        budget=int(budget),
        control=name in names() and get(name).kind == "control",
        stage=str(rows["stage"].iloc[0]),
        scores={column: estimate([parts[column].resampled], [weight]) for column, weight in weights.items()},
        giou={column: counts[column]["giou"] for column in weights},
        counts=counts,
        average=average,
        seeds=tuple(seeds),
        tokens_final=float(rows["tokens_final"].mean()),
        tokens_mean=float(rows["tokens_mean"].mean()),
    )


def _compared(lines: Sequence[Line], parts: dict[Column, _Part], baseline: str | None) -> list[Line]:
    """Every row against the rows of its budget that matter, and what is left of it over the whole table."""
    best: dict[int, str] = {}
    for line in sorted(lines, key=_mean, reverse=True):
        if line.average and line.pruner != BOUND and not line.sees_truth:
            best.setdefault(line.budget, line.pruner)
    others: dict[str, Callable[[Line], str | None]] = {
        "random": lambda line: RANDOM,
        "best": lambda line: best.get(line.budget),
        "baseline": lambda line: baseline,
    }
    found = list(lines)
    for kind, other in others.items():
        made = [_against(line, name, parts) if (name := other(line)) else None for line in lines]
        qs = adjusted([one.average.p if one else np.nan for one in made])
        for place, (one, q) in enumerate(zip(made, qs, strict=True)):
            if one:
                found[place] = replace(found[place], against=found[place].against | {kind: replace(one, q=float(q))})
    return found


def _against(line: Line, other: str, parts: dict[Column, _Part]) -> Against | None:
    """None for the other row itself, the upper bound, and rows that do not share all columns."""
    if line.pruner in (other, BOUND) or line.average is None:
        return None
    budget = line.budget if other != BOUND else None
    weights = {}
    for column, part in parts.items():
        mine = part.weight(line.pruner, line.budget)
        theirs = part.weight(other, budget if budget is not None else _only_budget(part, other))
        if mine is None or theirs is None:
            return None
        weights[column] = mine - theirs
    here = [part.resampled for part in parts.values()]
    return Against(
        other,
        estimate(here, [weight / len(parts) for weight in weights.values()]),
        {column: estimate([parts[column].resampled], [weight]) for column, weight in weights.items()},
    )


def _only_budget(part: _Part, pruner: str) -> int:
    return next((int(place[1]) for place in part.places if place[0] == pruner), -1)
