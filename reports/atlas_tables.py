"""The tables of an atlas as texts, the same in markdown and on the page."""

from __future__ import annotations

from typing import Any

import numpy as np

from harness.diagnosis.atlas import Atlas
from harness.diagnosis.difficulty import HALVES
from harness.diagnosis.factors import Factor
from harness.metrics.bootstrap import DRAWS, FEWEST
from reports.atlas_findings import limits, mark, points, share


def size(row: Any) -> str:
    """A budget, and what it counts where that is not the tokens of the last layer."""
    kind = row["budget_kind"]
    return str(row["budget"]) if kind in ("final", None) or kind != kind else f"{row['budget']} ({kind})"


def span(factor: Factor, low: float, high: float, first: bool) -> str:
    """What a bin holds, as its heading."""
    one, other = (f"{factor.scale * value:.3g}" for value in (low, high))
    if one == other:
        return one
    return f"{one} to {other}" if first else f"> {one} to {other}"


def rows_table(found: Atlas) -> list[dict[str, str]]:
    """Every row's score and loss, by region and by boundary; '*' marks what is beyond chance."""
    return [
        {
            "method": row["pruner"],
            "budget": size(row),
            found.score: points(row["iou"]),
            "loss": limits(row, "loss"),
            "boundary IoU": points(row["boundary"]),
            "its loss": limits(row, "boundary loss"),
            "more than loss": limits(row, "boundary more", True) + mark(row["boundary more q"]),
        }
        for row in found.lines.to_dict("records")
    ]


def bins_table(found: Atlas, factor: Factor) -> list[dict[str, str]]:
    """Mean loss of every row in every bin, and the last against the first."""
    bins = found.bins[found.bins["factor"] == factor.name]
    heads = bin_heads(found, factor)
    contrasts = found.contrasts[found.contrasts["factor"] == factor.name].set_index("line")
    rows = []
    for line, part in bins.groupby("line", sort=True):
        facts: Any = found.lines.loc[line]
        row = {"method": str(facts["pruner"]), "budget": size(facts)}
        row |= dict.fromkeys(heads.values(), "-")
        for one in part.to_dict("records"):
            few = "" if factor.name != "coverage" else f", n {one['expressions']}"
            row[heads[one["bin"]]] = limits(one, "loss") + few
        row["last - first"] = "-"
        if line in contrasts.index:
            last: Any = contrasts.loc[line]
            row["last - first"] = limits(last, "difference", True) + mark(last["q"])
        rows.append(row)
    return rows


def bin_heads(found: Atlas, factor: Factor) -> dict[int, str]:
    """The heading of each bin: what it holds, and of how many expressions (of coverage they differ by
    row)."""
    bins = found.bins[found.bins["factor"] == factor.name].drop_duplicates("bin").sort_values("bin")
    heads = {}
    for one in bins.to_dict("records"):
        counted = "" if factor.name == "coverage" else f", n {one['expressions']}"
        heads[one["bin"]] = span(factor, one["from"], one["to"], one["bin"] == 0) + counted
    return heads


def coverage_table(found: Atlas) -> list[dict[str, str]]:
    """R^2 of coverage for the loss."""
    return [
        {
            "method": row["pruner"],
            "budget": str(row["budget"]),
            "coverage %": points(row["coverage"]),
            "R^2 alone": share(row, "alone") + mark(row["alone q"]),
            "correlation": "-" if np.isnan(row["alone r"]) else f"{row['alone r']:+.2f}",
            "partial R^2": share(row, "partial") + mark(row["partial q"]),
        }
        for row in found.explained.to_dict("records")
    ]


def difficulty_table(found: Atlas) -> list[dict[str, str]]:
    """The board of each half, by rank on hard expressions."""
    if found.split is None:
        return []
    board = found.split.board.sort_values(["budget", "hard rank"], ascending=[False, True], kind="stable")
    rows = []
    for row in board.to_dict("records"):
        ranks = [row[f"{name} rank"] for name in HALVES]
        told = {
            f"rank, {name}": "-" if rank != rank else f"{rank:.0f}"
            for name, rank in zip(HALVES, ranks, strict=True)
        }
        change = ranks[1] - ranks[0]
        rows.append(
            {"method": row["pruner"], "budget": str(row["budget"])}
            | {f"g{found.score}, {name}": limits(row, name) for name in HALVES}
            | told
            | {"places": "-" if change != change else f"{change:+.0f}"}
        )
    return rows


def swaps_table(found: Atlas) -> list[dict[str, str]]:
    """Pairs of which one is better on hard and the other on easy expressions."""
    if found.split is None:
        return []
    return [
        {
            "better on hard": row["hard better"],
            "better on easy": row["easy better"],
            "budget": str(row["budget"]),
            "on hard": points(row["hard difference"], True),
            "on easy": points(row["easy difference"], True),
        }
        for row in found.split.swaps.to_dict("records")
    ]


def how(found: Atlas) -> list[str]:
    """What the numbers rest on."""
    return [
        "All data sets and splits of the run are taken together, and every expression weighs the same; of a "
        "pruner that draws, the mean over its seeds.",
        "Bins hold about equally many expressions (fewer bins where one value is frequent); n is their "
        "number.",
        f"Brackets are 95 % intervals from {DRAWS} draws of {found.things} with replacement, the same for "
        f"all rows, corrected for few; none where a mean rests on fewer than {FEWEST} {found.things}.",
        "'*' marks what is significant at a false-discovery rate of 5 %: over all rows of a factor for 'last "
        "- first', over both columns for R^2, over all rows for boundaries, over all pairs and both halves "
        "for swaps.",
        "R^2: share of the variance of a row's loss over its expressions that a straight line from coverage "
        "explains; partial: of what the other factors leave (area as its logarithm, expressions with all "
        "factors known). Its interval is that of the correlation, squared, and begins at 0 where that holds "
        "0. None of this says what causes what.",
        "Boundary IoU as Cheng et al. (CVPR 2021) define it, within 2 % of the diagonal, on the recorded "
        "masks; pixels that a data set ignores are not recorded and count as background.",
    ]
