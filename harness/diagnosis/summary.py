"""What a diagnosis is: from numbers per expression, and from the records of a run."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import combinations
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.stats import rankdata

from harness.metrics.bootstrap import Estimate, correlation, mean
from harness.store import records

# a patch is the referent's if the truth covers at least this share of it, and no border if it covers none
INSIDE = 0.5
BINS = 10
MAIN = "[EOS] of the question"
SIMILARITIES = {
    MAIN: "cosine of a projected patch and the text embedding of the whole question, as pruners read it",
    "the same, dot product": "without normalisation, as litelvlm and trim rank",
    "[EOS] of the expression": "cosine with the text embedding of the expression alone",
    "[CLS]": "cosine with the projected class token of the image",
}


@dataclass(frozen=True)
class Kept:
    """What the pruners of a run kept.

    Attributes:
        run: the run folder.
        table: one row per (pruner, budget): coverage and its correlation with IoU, both with limits, IoU,
            expressions.
        overlap: per budget the mean Jaccard index of what two pruners keep.
        places: per (pruner, budget) the share of expressions for which each patch is kept, (rows, columns);
            those that keep all patches or none are left out.
    """

    run: str
    table: pd.DataFrame
    overlap: dict[int, pd.DataFrame]
    places: dict[tuple[str, int], NDArray[np.float64]]


@dataclass(frozen=True)
class Diagnosis:
    """All that was measured on one backbone.

    Attributes:
        rows: one row per expression; columns `image`, `expression`, `auroc <similarity>`, `rank <similarity>
            <bin>`, `pearson`, `spearman`, `start <layer>`, `tokens`.
        left_out: expressions whose referent fills no patch.
        layers: of the text tower.
    """

    backbone: str
    fingerprint: str
    datasets: tuple[str, ...]
    limit: int
    rows: pd.DataFrame
    left_out: int
    layers: int
    kept: Kept | None = None

    def mean(self, column: str) -> Estimate:
        """A column's mean over images."""
        return mean(self.rows[column], self.rows["image"])

    @property
    def reversal(self) -> bool | None:
        """Whether the referent's tokens look less like the text than others; None if the interval holds both
        answers."""
        auroc = self.mean(f"auroc {MAIN}")
        if not auroc.low <= auroc.high or auroc.low <= 0.5 <= auroc.high:
            return None
        return auroc.high < 0.5


def auroc(scores: NDArray[np.float64], positive: NDArray[np.bool_]) -> float:
    """Chance that a positive scores above a negative, ties half; NaN if either is absent."""
    many = int(positive.sum())
    if many in (0, len(positive)):
        return float("nan")
    ranks = rankdata(scores)
    return float((ranks[positive].sum() - many * (many + 1) / 2) / (many * (len(positive) - many)))


def rank_histogram(scores: NDArray[np.float64], positive: NDArray[np.bool_]) -> NDArray[np.float64]:
    """(BINS,) share of the positives in each tenth of all ranks, the lowest scores first."""
    place = (rankdata(scores) - 0.5) / len(scores)
    return np.histogram(place[positive], bins=BINS, range=(0, 1))[0] / positive.sum()


def summarise(frame: pd.DataFrame, grid: tuple[int, int], run: str) -> Kept:
    """Coverage, overlap and places from records."""
    patches = grid[0] * grid[1]
    frame = frame.assign(image=records.media(frame))
    seeds = frame.groupby(["pruner", "budget"])["seed"].transform("min")
    # of a pruner that draws, one seed stands for it where expressions are paired
    first = frame[frame["seed"] == seeds]
    bitmaps: dict[tuple[str, int], pd.Series[Any]] = {}
    places, lines = {}, []
    for _, part in frame.groupby(["pruner", "budget"], sort=True):
        pruner, budget = _cell(part)
        cover, corr = (
            mean(part["coverage"], part["image"]),
            correlation(part["coverage"], part["iou"], part["image"]),
        )
        lines.append(
            {
                "pruner": pruner,
                "budget": budget,
                **{
                    f"coverage{end}": value
                    for end, value in zip(("", " low", " high"), _limits(cover), strict=True)
                },
                **{
                    f"correlation{end}": value
                    for end, value in zip(("", " low", " high"), _limits(corr), strict=True)
                },
                "gIoU": part["iou"].mean(),
                "expressions": len(part[["sample", "expression"]].drop_duplicates()),
            }
        )
        bits = np.stack([records.kept_tokens(text, patches) for text in part["kept"]])
        if not bits.all() and bits.any():
            places[pruner, budget] = bits.mean(0).reshape(grid)
    for _, part in first.groupby(["pruner", "budget"], sort=True):
        bits = np.stack([records.kept_tokens(text, patches) for text in part["kept"]])
        if bits.any() and not bits.all():  # pooled tokens are no patches, and `none` keeps all
            index = pd.MultiIndex.from_frame(part[["sample", "expression"]])
            bitmaps[_cell(part)] = pd.Series(list(bits), index=index)
    table = pd.DataFrame(lines).sort_values(
        ["budget", "coverage"], ascending=[False, False], ignore_index=True
    )
    budgets = sorted({budget for _, budget in bitmaps}, reverse=True)
    overlap = {
        budget: _overlap({name: held for (name, size), held in bitmaps.items() if size == budget})
        for budget in budgets
    }
    return Kept(run, table, overlap, places)


def _cell(part: pd.DataFrame) -> tuple[str, int]:
    return str(part["pruner"].iloc[0]), int(part["budget"].iloc[0])


def _limits(found: Estimate) -> tuple[float, float, float]:
    return found.value, found.low, found.high


def jaccard(a: NDArray[np.bool_], b: NDArray[np.bool_]) -> NDArray[np.float64]:
    """(n,) shared over joined elements of every pair of rows of two (n, N) bitmaps; 1 where both are
    empty."""
    joined = (a | b).sum(1)
    return np.where(joined == 0, 1.0, (a & b).sum(1) / np.maximum(joined, 1))


def _overlap(held: dict[str, pd.Series[Any]]) -> pd.DataFrame:
    """Mean Jaccard index over the expressions that two pruners share."""
    table = pd.DataFrame(np.eye(len(held)), index=list(held), columns=list(held))
    for one, other in combinations(held, 2):
        both = held[one].index.intersection(held[other].index)
        if len(both):
            mean = jaccard(
                np.stack(held[one].loc[both].tolist()), np.stack(held[other].loc[both].tolist())
            ).mean()
            table.loc[one, other] = table.loc[other, one] = mean
        else:
            table.loc[one, other] = table.loc[other, one] = np.nan
    return table
