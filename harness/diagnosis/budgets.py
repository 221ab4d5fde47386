"""The least budget of every expression, and what it would save to give each its own."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from harness.diagnosis.association import drawn_again, of_sums, one_of
from harness.diagnosis.ladder import ALL, ENOUGH, RUNGS, Ladder
from harness.metrics.bootstrap import Estimate, per_image
from harness.store import records
from pruners.base import UserError

BOUND = "none"
ITEM = ["sample", "expression"]
# every expression gets the fewest tokens with one of these shares of its full IoU: budgets of one's own, from
# the cheapest to the dearest
SHARES = tuple(np.linspace(0, 1, 41).tolist())
FEWEST_COUNTS = 4  # all tokens among them, below which a line between counts says nothing of a fixed budget


@dataclass(frozen=True)
class Budgets:
    """What the rungs of a ladder, or the methods of a run, need.

    Attributes:
        curves: per rung and count the mean IoU with limits, and the mean of the tokens that were kept.
        least: per expression and rung the fewest `tokens` with at least ENOUGH of the full IoU, and the `iou`
            there; all tokens and `reached` False where no smaller count has it.
        table: per rung the mean of `least` with limits and its median, the share that `reached`; and the mean
            tokens of one budget for all (`fixed`) and of budgets of one's own (`own`) at which the mean IoU
            is ENOUGH of the mean full IoU, with the `saving` and its limits. IoU above the full one counts as
            the full one there.
        expressions, images: with a full IoU above 0.
        empty: expressions of which nothing can be kept.
    """

    curves: pd.DataFrame
    least: pd.DataFrame
    table: pd.DataFrame
    expressions: int
    images: int
    empty: int


def budgets_of(rows: pd.DataFrame, full: pd.DataFrame, patches: int, rungs: Sequence[str]) -> Budgets:
    """Least budgets and savings.

    Args:
        rows: one per expression, rung and count: `sample`, `expression`, `image`, `rung`, `count`, `tokens`,
            `iou`; every rung with every count that it has for every expression.
        full: one per expression: `sample`, `expression`, `image`, `full`.
        patches: all tokens.
    """
    known = full[full["full"] > 0]
    index = pd.MultiIndex.from_frame(known[ITEM])
    images = known["image"].to_numpy()
    curves: list[dict[str, Any]] = []
    table: list[dict[str, Any]] = []
    least: list[pd.DataFrame] = []
    for rung in rungs:
        part = rows[rows["rung"] == rung]
        iou, tokens = (
            part.pivot_table(index=ITEM, columns="count", values=name, sort=True).reindex(index)
            for name in ("iou", "tokens")
        )
        counts = [*map(int, iou.columns), patches]
        scores = np.column_stack([iou.to_numpy(), known["full"]])
        prices = np.column_stack([tokens.to_numpy(), np.full(len(known), patches)]).astype(np.float64)
        whole = known["full"].to_numpy()[:, None]
        # what lies above the full IoU is luck, which a budget of one's own would pick
        kept, row = np.minimum(scores, whole), np.arange(len(known))
        # (E, S) the first count with each of SHARES of the full IoU
        first = np.stack([(kept >= share * whole - 1e-12).argmax(1) for share in SHARES], axis=1)
        enough = (kept >= ENOUGH * whole - 1e-12).argmax(1)
        own, at, reached = prices[row, enough], kept[row, enough], enough < len(counts) - 1
        least.append(known[[*ITEM, "image"]].assign(rung=rung, tokens=own, iou=at, reached=reached))
        curves += _curve(rung, counts, scores, prices, images)
        numbers = kept[row[:, None], first], prices[row[:, None], first], kept, prices
        sums = per_image(np.column_stack([np.ones(len(row)), whole, *numbers]), images)
        saving, price, least_price = of_sums(sums, _saving), *map(float, _both(sums.sum(0)))
        if len(counts) < FEWEST_COUNTS:
            saving = Estimate(np.nan, np.nan, np.nan, np.nan, saving.images)
            price = least_price = np.nan
        mean = one_of(drawn_again(own, np.zeros(len(own), dtype=np.int64), images, 1), {0: 1.0})
        table.append(
            {
                "rung": rung,
                "least": mean.value,
                "least low": mean.low,
                "least high": mean.high,
                "median": float(np.median(own)),
                "reached": float(reached.mean()),
                "fixed": price,
                "own": least_price,
                "saving": saving.value,
                "saving low": saving.low,
                "saving high": saving.high,
            }
        )
    return Budgets(
        pd.DataFrame(curves),
        pd.concat(least, ignore_index=True),
        pd.DataFrame(table),
        len(known),
        int(known["image"].nunique()),
        int((full["full"] <= 0).sum()),
    )


def _curve(
    rung: str,
    counts: Sequence[int],
    scores: NDArray[np.float64],
    prices: NDArray[np.float64],
    images: NDArray[Any],
) -> list[dict[str, Any]]:
    width = len(counts)
    columns = np.tile(np.arange(width), len(scores))
    part = drawn_again(scores.ravel(), columns, np.repeat(images, width), width)
    found = []
    for place, count in enumerate(counts):
        one = one_of(part, {place: 1.0})
        limits = {"iou": one.value, "iou low": one.low, "iou high": one.high}
        found.append({"rung": rung, "count": count, "tokens": float(prices[:, place].mean()), **limits})
    return found


def _both(sums: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Mean tokens of one budget for all, and of budgets of one's own, at ENOUGH of the mean full IoU.

    Args:
        sums: (..., 2 + 2 S + 2 C) of ones, full IoU, IoU and tokens with each of S SHARES, and at each of C
            counts.
    """
    means = sums[..., 1:] / np.maximum(sums[..., :1], 1e-300)
    wanted, width = ENOUGH * means[..., 0], len(SHARES)
    own, tokens = means[..., 1 : 1 + width], means[..., 1 + width : 1 + 2 * width]
    scores, prices = np.split(means[..., 1 + 2 * width :], 2, axis=-1)
    return _needed(wanted, scores, prices), _needed(wanted, own, tokens)


def _needed(
    wanted: NDArray[np.float64], scores: NDArray[np.float64], prices: NDArray[np.float64]
) -> NDArray[np.float64]:
    """(...) price at which (..., n) scores first reach what is wanted, on straight lines between them."""
    reached = scores >= wanted[..., None] - 1e-12
    at = np.where(reached.any(-1), reached.argmax(-1), scores.shape[-1] - 1)[..., None]
    before = np.maximum(at - 1, 0)
    low, high = np.take_along_axis(scores, before, -1), np.take_along_axis(scores, at, -1)
    rise = np.where(high > low, high - low, 1.0)
    part = np.where(high > low, (wanted[..., None] - low) / rise, 1.0).clip(0, 1)
    cheap, dear = np.take_along_axis(prices, before, -1), np.take_along_axis(prices, at, -1)
    found: NDArray[np.float64] = np.where(at > 0, cheap + part * (dear - cheap), dear)[..., 0]
    return found


def _saving(sums: NDArray[np.float64]) -> NDArray[np.float64]:
    """Share of the tokens of one budget for all that own budgets save at the same mean IoU."""
    fixed, own = _both(sums)
    found: NDArray[np.float64] = np.where(fixed > 0, 1 - own / np.where(fixed > 0, fixed, 1.0), np.nan)
    return found


def of_ladder(found: Ladder) -> Budgets:
    """What the ladder's rungs need."""
    return budgets_of(found.rows[found.rows["rung"] != ALL], found.full, found.counts[-1], tuple(RUNGS))


def of_run(run: str | Path, fingerprint: str, backbone: str) -> Budgets:
    """What the methods of a recorded run need: their least budgets among those that the run has. Tokens are
    means over the language model's layers, as recorded.

    Raises:
        UserError: there are no records, they are another backbone's, or they lack the unpruned row or a
            method.
    """
    frame = records.load_records(run)
    held = sorted({f"{name} {mark}" for name, mark in frame[["backbone", "fingerprint"]].to_numpy()})
    if held != [f"{backbone} {fingerprint}"]:
        raise UserError(
            f"The run {str(run)!r} holds records of {', '.join(held) or 'nothing'}, not of {backbone} "
            f"{fingerprint}; give --run a run of this backbone alone."
        )
    bound, pruned = frame[frame["pruner"] == BOUND], frame[frame["pruner"] != BOUND]
    if bound.empty or pruned.empty:
        lacking = f"row of `{BOUND}`" if bound.empty else "method"
        raise UserError(
            f"The run {str(run)!r} has no {lacking}, so no budget is the least; run its command again with "
            "--pruners all."
        )
    image = pd.Series(records.media(bound).to_numpy(), index=pd.MultiIndex.from_frame(bound[ITEM]))
    full = bound.groupby(ITEM)["iou"].mean().rename("full").reset_index()
    full["image"] = image[~image.index.duplicated()].reindex(pd.MultiIndex.from_frame(full[ITEM])).to_numpy()
    rows = pruned.groupby([*ITEM, "pruner", "budget"])[["iou", "tokens_mean"]].mean().reset_index()
    rows = rows.rename(columns={"pruner": "rung", "budget": "count", "tokens_mean": "tokens"})
    whole = rows.groupby(["rung", "count"])["iou"].transform("size") == len(full)
    rows = rows[whole]
    if rows.empty:
        raise UserError(
            f"No method of the run {str(run)!r} answered all expressions; give its command again to finish "
            "it."
        )
    patches = int(bound["tokens_final"].max())
    names = sorted(rows["rung"].unique())
    found = budgets_of(rows, full, patches, names)
    table = found.table.sort_values(["least", "rung"], ignore_index=True)
    return Budgets(found.curves, found.least, table, found.expressions, found.images, found.empty)
