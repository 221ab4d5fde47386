"""Hard and easy expressions: those that a smaller image already loses, and the rest.

`downsample` keeps a coarser grid of the whole image, as any resize does. What it loses needs tokens at the
right place; on the rest a method shows little of its own. The halves are chosen by its score, which falls and
rises with them by choice, so it has no rank in either.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import combinations
from typing import Any

import numpy as np
import pandas as pd
from scipy.stats import kendalltau

from harness.diagnosis.association import drawn_again, one_of
from harness.metrics.bootstrap import Resampled, adjusted

CONTROL = "downsample"
HALVES = ("hard", "easy")
LEVEL = 0.05  # of the false-discovery rate


@dataclass(frozen=True)
class Split:
    """The board of each half.

    Attributes:
        share: an expression is hard if `downsample` keeps less than this of its full score.
        board: per budget and method the means of `hard` and `easy` with limits, and the ranks; NaN for
            `downsample`.
        counts: per budget the expressions and images of each half, and `tau`, Kendall's rank correlation of
            the halves.
        swaps: pairs of methods of which one is better on hard and the other on easy expressions, beyond
            chance on both sides.
        empty: expressions without a full score, of which nothing can be kept.
    """

    share: float
    board: pd.DataFrame
    counts: pd.DataFrame
    swaps: pd.DataFrame
    empty: int


def split_by_difficulty(
    answers: pd.DataFrame, expressions: pd.DataFrame, lines: pd.DataFrame, share: float
) -> Split | None:
    """Split the expressions at every budget that `downsample` was run at; None if it was not.

    Args:
        answers, expressions, lines: as `harness.diagnosis.atlas.Atlas` has them.
    """
    controls = lines.index[lines["pruner"] == CONTROL]
    if not len(controls):
        return None
    full = expressions["full"]
    boards, counts, swaps = [], [], []
    for control in controls:
        budget = int(lines["budget"][control])
        of_control = answers[answers["line"] == control].set_index("place")["iou"]
        of_full = full.loc[of_control.index]
        scored = of_full > 0
        easy = (of_control >= share * of_full)[scored]
        here = lines.index[lines["budget"] == budget]
        part = answers[answers["line"].isin(here) & answers["place"].isin(easy.index)]
        part = part.assign(
            half=easy.loc[part["place"]].astype(int).to_numpy(),
            image=expressions["image"].to_numpy()[part["place"]],
        )
        board, pairs = _board(part, lines.loc[here])
        ranked = board[board["hard rank"].notna()]
        tau = kendalltau(ranked["hard rank"], ranked["easy rank"]).statistic if len(ranked) > 1 else np.nan
        own = part[part["line"] == control]
        halves = [own[own["half"] == k] for k in range(2)]
        counted: dict[str, Any] = {"budget": budget}
        for name, half in zip(HALVES, halves, strict=True):
            counted |= {f"{name} expressions": len(half), f"{name} images": half["image"].nunique()}
        counts.append(counted | {"tau": float(tau)})
        boards.append(board)
        swaps.append(pairs)
    asked = full[expressions["asked"]]
    return Split(
        share,
        pd.concat(boards, ignore_index=True),
        pd.DataFrame(counts),
        pd.concat(swaps, ignore_index=True),
        int((asked <= 0).sum()),
    )


def _board(part: pd.DataFrame, lines: pd.DataFrame) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Means and ranks of both halves, and the pairs that swap."""
    places = {line: k for k, line in enumerate(lines.index)}
    columns = 2 * part["line"].map(places).to_numpy() + part["half"].to_numpy()
    drawn = drawn_again(part["iou"].to_numpy(), columns, part["image"].to_numpy(), 2 * len(lines))
    there = [bool(part["half"].eq(k).any()) for k in range(2)]
    rows: list[dict[str, Any]] = []
    for line, k in places.items():
        row: dict[str, Any] = lines.loc[line, ["pruner", "budget", "kind"]].to_dict()
        for half, name in enumerate(HALVES):
            if there[half]:
                found = one_of(drawn, {2 * k + half: 1.0})
                row |= {name: found.value, f"{name} low": found.low, f"{name} high": found.high}
            else:
                row |= {name: np.nan, f"{name} low": np.nan, f"{name} high": np.nan}
        rows.append(row)
    board = pd.DataFrame(rows)
    ranked = board["pruner"] != CONTROL
    for name in HALVES:
        board[f"{name} rank"] = board[name].where(ranked).rank(ascending=False, method="min")
    return board, _swaps(board, drawn, there)


def _swaps(board: pd.DataFrame, drawn: Resampled, there: list[bool]) -> pd.DataFrame:
    names = ["budget", "hard better", "easy better", "hard difference", "easy difference", "q"]
    if not all(there):
        return pd.DataFrame(columns=names)
    pairs = list(combinations(board.index[board["pruner"] != CONTROL], 2))
    tests = [[one_of(drawn, {2 * a + half: 1.0, 2 * b + half: -1.0}) for half in range(2)] for a, b in pairs]
    if not tests:
        return pd.DataFrame(columns=names)
    qs = adjusted([one.p for both in tests for one in both]).reshape(-1, 2)
    rows = []
    for (a, b), (hard, easy), (first, second) in zip(pairs, tests, qs, strict=True):
        if max(first, second) < LEVEL and hard.value * easy.value < 0:
            up, down, sign = (a, b, 1) if hard.value > 0 else (b, a, -1)
            rows.append(
                {
                    "budget": int(board["budget"].iloc[0]),
                    "hard better": board["pruner"][up],
                    "easy better": board["pruner"][down],
                    "hard difference": sign * hard.value,
                    "easy difference": sign * easy.value,
                    "q": float(max(first, second)),
                }
            )
    return pd.DataFrame(rows, columns=names)
