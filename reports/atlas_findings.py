"""What an atlas says, in one sentence each, and how its numbers are written."""

from __future__ import annotations

from typing import Any

import numpy as np

from harness.diagnosis.atlas import Atlas
from harness.diagnosis.difficulty import CONTROL, HALVES
from harness.diagnosis.factors import FACTORS, Factor
from harness.metrics.bootstrap import FEWEST
from reports.tables import ALPHA

POINTS = 100.0


def points(value: float, sign: bool = False) -> str:
    """A share of one in points."""
    return "-" if np.isnan(value) else f"{POINTS * value:{'+' if sign else ''}.1f}"


def limits(row: Any, name: str, sign: bool = False) -> str:
    """A value with its interval, of a row with `name`, `name low` and `name high`."""
    value, low, high = (row[f"{name}{end}"] for end in ("", " low", " high"))
    told = points(value, sign)
    return told if np.isnan(low) else f"{told} ({points(low, sign)} to {points(high, sign)})"


def line_name(row: Any) -> str:
    """A row of the run in words."""
    return f"{row['pruner']} at {row['budget']}"


def mark(q: float) -> str:
    """What stands behind a number that is beyond chance."""
    return " *" if q < ALPHA else ""


def findings(found: Atlas) -> dict[str, str]:
    """One sentence each, by factor and by what else is looked at."""
    told = {factor.name: _factor_sentence(found, factor) for factor in FACTORS}
    told["explained"] = _coverage_sentence(found)
    told["boundary"] = _boundary_sentence(found)
    told["difficulty"] = _split_sentence(found)
    return told


def _factor_sentence(found: Atlas, factor: Factor) -> str:
    table = found.contrasts[found.contrasts["factor"] == factor.name]
    if factor.name in found.unknown or table.empty:
        why = "it does not vary"
        if factor.name == "crop":
            why = "the vision tower sees all of every image here, or the run does not say what it sees"
        return f"Whether a loss depends on the {factor.title.split(',')[0]} is not asked: {why}."
    sure = table[table["q"] < ALPHA]
    first, last = sure[sure["difference"] < 0], sure[sure["difference"] > 0]
    rest = len(table) - len(sure)
    shown = sure if len(sure) else table
    most = shown.iloc[int(shown["difference"].abs().to_numpy().argmax())]
    told = (
        f"{line_name(most)}: {points(most['first'])} against {points(most['last'])} points, difference "
        f"{limits(most, 'difference', True)}"
    )
    if not len(sure):
        return (
            f"Whether {factor.low} lose more or less than {factor.high} cannot be told: of {len(table)} rows "
            f"on {found.images} {found.things} none differs beyond chance (the largest difference is {told})."
        )
    more, fewer = (first, last) if len(first) >= len(last) else (last, first)
    one, other = (factor.low, factor.high) if more is first else (factor.high, factor.low)
    return (
        f"{one.capitalize()} lose more than {other} beyond chance in {len(more)} of {len(table)} rows, less "
        f"in {len(fewer)}, and {rest} cannot be told (most, {told})."
    )


def _coverage_sentence(found: Atlas) -> str:
    table = found.explained.dropna(subset=["alone R2"])
    if table.empty:
        return (
            "How much of a loss coverage explains cannot be told: too few expressions, or it does not vary."
        )
    sure = table[(table["alone q"] < ALPHA) & (table["alone r"] < 0)]
    beside = table[(table["partial q"] < ALPHA) & (table["partial r"] < 0)]
    shares = table["alone R2"].to_numpy()
    least, most = table.iloc[int(shares.argmin())], table.iloc[int(shares.argmax())]
    between = (
        f"between {POINTS * least['alone R2']:.0f} % ({line_name(least)}) and {share(most, 'alone')} "
        f"({line_name(most)}) of the differences in loss between a row's expressions, median "
        f"{POINTS * table['alone R2'].median():.0f} %"
    )
    if sure.empty:
        return (
            f"Whether coverage of the referent explains a loss cannot be told: on {found.images} "
            f"{found.things} no row of {len(table)} has a correlation beyond chance (R^2 lies {between})."
        )
    return (
        f"Coverage of the referent explains {between}; less coverage goes with more loss beyond chance in "
        f"{len(sure)} of {len(table)} rows, and in {len(beside)} where all other factors are held fixed."
    )


def share(row: Any, name: str) -> str:
    """A squared correlation with its interval."""
    value, low, high = (row[f"{name} R2{end}"] for end in ("", " low", " high"))
    if np.isnan(value):
        return "-"
    return f"{POINTS * value:.0f} %" + (
        "" if np.isnan(low) else f" ({POINTS * low:.0f} to {POINTS * high:.0f})"
    )


def _boundary_sentence(found: Atlas) -> str:
    table = found.lines
    more, less = (
        table[(table["boundary more q"] < ALPHA) & (sign * table["boundary more"] > 0)] for sign in (1, -1)
    )
    low, high = table["boundary more"].min(), table["boundary more"].max()
    told = (
        f"boundary IoU loses {points(low, True)} to {points(high, True)} points more than {found.score} does"
    )
    if table["boundary more q"].isna().all():
        return (
            f"Whether boundary IoU loses more or less than {found.score} cannot be told from {found.images} "
            f"{found.things} ({told})."
        )
    if not len(more) and not len(less):
        return f"No row's boundary IoU loses more or less than its {found.score} beyond chance ({told})."
    return (
        f"Of {len(table)} rows {len(more)} lose more in boundary IoU than in {found.score} beyond chance and "
        f"{len(less)} less ({told})."
    )


def _split_sentence(found: Atlas) -> str:
    split = found.split
    if split is None:
        return (
            f"Hard and easy expressions are not told apart: `{CONTROL}` is not in the run; add it to "
            "--pruners."
        )
    told = []
    for row in split.counts.to_dict("records"):
        budget, board = row["budget"], split.board[split.board["budget"] == row["budget"]]
        hard, easy = (row[f"{name} expressions"] for name in HALVES)
        head = f"at {budget} tokens {hard} of {hard + easy} expressions are hard"
        ranked = board.dropna(subset=["hard rank", "easy rank"])
        if len(ranked) < 2:
            told.append(f"{head}, and there is nothing to rank on both halves")
            continue
        places = (ranked["hard rank"] - ranked["easy rank"]).abs().to_numpy()
        moved = ranked.iloc[int(places.argmax())]
        pairs = int((split.swaps["budget"] == budget).sum())
        end = (
            f"{pairs} pair{'s swap' if pairs > 1 else ' swaps'} places beyond chance"
            if pairs
            else "no two of them swap places beyond chance"
        )
        if min(row[f"{name} images"] for name in HALVES) < FEWEST:
            end = f"whether two of them swap places cannot be told from so few {found.things}"
        told.append(
            f"{head}; ranks of {len(ranked)} rows on hard and easy ones agree with Kendall's tau "
            f"{row['tau']:.2f}, {moved['pruner']} moves most ({moved['hard rank']:.0f}. on hard, "
            f"{moved['easy rank']:.0f}. on easy ones), and {end}"
        )
    text = "; ".join(told)
    return f"{text[0].upper()}{text[1:]}."
