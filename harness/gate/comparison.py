"""Two runs of the gate's subset, cell by cell: what fell further, or became other, than rounding explains.

Sound code may differ in rounding and in nothing else. What rounding cannot change is compared exactly: token
counts, and the kept tokens of every pruner whose choice does not hang on rounding. A score may fall by a
small tolerance and half as much again as the worst that rounding did to it, which is little more than the
tolerance for most pruners, and wide for VisPruner, whose choice hangs on the last bit. No distribution is
assumed: which of two objects a mask covers may hang on one image's rounding.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from harness.engine.rounding import moved_tokens
from harness.gate.baseline import KEY, METRIC, PAIR, PIXELS, TOKENS, Damaged, check_counts
from harness.store import records
from pruners.base import UserError

# What may fall beyond what rounding explains: points of mean IoU and cIoU over all splits and in one, percent
# of the expressions that are unharmed; and the share by which a cost may rise.
TOLERANCES = {"points": 0.5, "split_points": 1.0, "unharmed": 10.0, "macs": 0.05}
FALL = 0.2  # points of IoU: an expression that falls by more is harmed
LOST = 50.0  # points of IoU: an expression that falls by more has another object, or none
MARGIN = 1.5  # times the worst that rounding did when it was measured is what it explains
EVERYWHERE, ANYWHERE = "all splits", "one split"
TOTAL, MEAN = METRIC.title, "mean IoU"  # names of the two scores: over all rows, and mean of the rows' own
NAMED = 5  # expressions that a change names
STEADY: dict[str, Any] = {"tokens": 0, "lost": 0, "falls": {}}  # rounding of a cell of which nothing is known


@dataclass(frozen=True)
class Moved:
    """An expression whose mask changed; IoU in percent."""

    sample: str
    expression: int
    before: float
    after: float

    def __str__(self) -> str:
        return f"{self.sample} expression {self.expression}: IoU {self.before:.1f} -> {self.after:.1f}"


@dataclass(frozen=True)
class Change:
    """A pruner at a budget of which anything changed.

    Attributes:
        before, after: cIoU in percent over all splits together.
        mean_before, mean_after: mean IoU in percent, in which small objects count as much as large ones.
        reasons: what no rounding explains, in words; none if all is within the tolerances.
        notes: what else changed, in words.
        fell, rose: expressions whose IoU did.
        of: expressions in all.
        moved: those that lost most; of a pruner that rose, those that gained most.
    """

    pruner: str
    budget: int
    seed: int
    before: float
    after: float
    mean_before: float
    mean_after: float
    reasons: tuple[str, ...]
    notes: tuple[str, ...]
    fell: int
    rose: int
    of: int
    moved: tuple[Moved, ...]

    def __str__(self) -> str:
        return (
            f"{self.pruner} at {self.budget} tokens (seed {self.seed}): cIoU {self.before:.2f} -> "
            f"{self.after:.2f}, "
            f"mean IoU {self.mean_before:.2f} -> {self.mean_after:.2f}; "
            f"{self.fell} of {self.of} expressions fell, {self.rose} rose"
        )


@dataclass(frozen=True)
class Comparison:
    """A baseline against a run.

    Attributes:
        cells: pruners at a budget that were compared.
        changes: those of which anything changed, the largest fall first.
        unguarded: those of the run that the baseline does not know.
        all_cells: every one that was compared, in the baseline's order.
    """

    cells: int
    changes: tuple[Change, ...]
    unguarded: tuple[str, ...]
    all_cells: tuple[Change, ...] = ()

    @property
    def worse(self) -> tuple[Change, ...]:
        """Changes that no rounding explains."""
        return tuple(change for change in self.changes if change.reasons)


def _paired(before: pd.DataFrame, after: pd.DataFrame) -> pd.DataFrame:
    """Rows of both side by side, those of `after` with `_now`; IoU in percent as was, now and change; split
    and image.

    Raises:
        UserError: a row of either is there twice or holds no counts, or the run has not the baseline's rows.
    """
    try:
        check_counts(before, "the baseline")
        check_counts(after, "the run")
    except Damaged as error:
        raise UserError(f"These numbers cannot be compared: {error}.") from error
    known = before[KEY].drop_duplicates()
    both = before.merge(
        after.merge(known, on=KEY), on=PAIR, how="outer", suffixes=("", "_now"), indicator="side"
    )
    for side, what, where in (
        ("left_only", "baseline", "this run lacks"),
        ("right_only", "run", "the baseline lacks"),
    ):
        if len(odd := both[both["side"] == side]):
            first = odd.iloc[0]
            whole = _names(known, after) if side == "left_only" else ""
            raise UserError(
                f"The {what} has {len(odd)} results that {where}, first {first['pruner']} on "
                f"{first['sample']}{whole}; "
                "data or pruners changed, so mend that or accept a new baseline with --accept REASON."
            )
    both = before[PAIR].merge(both, on=PAIR, how="left")
    was, now = (METRIC.scale * METRIC.each(_counted(both, end)) for end in ("", "_now"))
    images = records.images(both["sample"])
    return both.assign(
        was=was, now=now, change=now - was, split=both["sample"].str.rsplit(":", n=1).str[0], image=images
    )


def _counted(both: pd.DataFrame, end: str) -> dict[str, pd.Series[Any]]:
    """What the metric is made of, on the side whose columns have this end."""
    return {name: both[f"{name}{end}"] for name in PIXELS}


def _total(rows: pd.DataFrame) -> tuple[float, float]:
    """The metric over all rows before and after, in its unit."""
    before, after = (METRIC.scale * METRIC.value(_counted(rows, end)) for end in ("", "_now"))
    return before, after


def _names(known: pd.DataFrame, after: pd.DataFrame) -> str:
    """The cells of which a run has nothing at all, in words."""
    there = set(after[KEY].itertuples(index=False, name=None))
    gone = [cell for cell in known[KEY].itertuples(index=False, name=None) if cell not in there]
    return f" (nothing of {', '.join(f'{pruner} at {budget}' for pruner, budget, _ in gone)})" if gone else ""


def compare(
    before: pd.DataFrame,
    after: pd.DataFrame,
    baseline: dict[str, Any],
    costs: dict[tuple[str, int], int] | None = None,
) -> Comparison:
    """The same expressions before and after, cell by cell.

    Args:
        before, after: columns PAIR, intersection, union; kept, tokens_final and tokens_mean are compared
            where both have them.
        baseline: with its tolerances and its cells (both may be missing: TOLERANCES, and nothing hangs on
            rounding).
        costs: own multiply-adds of (pruner, budget) now; None compares none.

    Raises:
        UserError: one of both lacks results that the other has, has one twice, or counts that cannot be.
    """
    both = _paired(before, after)
    limits = TOLERANCES | baseline.get("tolerances", {})
    known = {tuple(cell[name] for name in KEY): cell for cell in baseline.get("cells", ())}
    changes, every, cells = [], [], both.groupby(KEY, sort=False)
    for _, part in cells:
        first = part.iloc[0]
        pruner, budget, seed = str(first["pruner"]), int(first["budget"]), int(first["seed"])
        cell = known.get((pruner, budget, seed), {})
        usual = cell.get("rounding", STEADY)
        exact = list(_exact(part, usual, baseline.get("patches", 0)))
        bad, fine = _cost(
            cell.get("macs"), None if costs is None else costs.get((pruner, budget)), limits["macs"]
        )
        falls = list(_falls(part, usual, limits))
        counts = any((part[column] != part[f"{column}_now"]).any() for column in PIXELS)
        every.append(_change(part, tuple(falls + exact + bad), tuple(fine)))
        if falls or exact or bad or fine or counts:
            changes.append(every[-1])
    run = set(after[KEY].itertuples(index=False, name=None))
    new = sorted(
        {(pruner, budget) for pruner, budget, _ in run - set(before[KEY].itertuples(index=False, name=None))}
    )
    changes.sort(key=lambda change: min(change.after - change.before, change.mean_after - change.mean_before))
    names = tuple(f"{pruner} at {budget}" for pruner, budget in new)
    return Comparison(len(cells), tuple(changes), names, tuple(every))


def _scores(part: pd.DataFrame) -> Iterator[tuple[str, str, float, float, pd.DataFrame]]:
    """Scope, score, its value before and after (percent), and the rows it rests on, over all splits and in
    every one."""
    for scope, rows in ((EVERYWHERE, part), *part.groupby("split", sort=False)):
        before, after = _total(rows)
        yield str(scope), TOTAL, before, after, rows
        yield str(scope), MEAN, float(rows["was"].mean()), float(rows["now"].mean()), rows
        yield str(scope), "unharmed", 100.0, 100 * float((rows["change"] >= -FALL).mean()), rows


def _falls(part: pd.DataFrame, rounding: dict[str, Any], limits: dict[str, float]) -> Iterator[str]:
    """What fell further than rounding explains; an image that it hits may lie in any split."""
    for scope, what, old, new, rows in _scores(part):
        usual, points = (EVERYWHERE, "points") if scope == EVERYWHERE else (ANYWHERE, "split_points")
        explained = MARGIN * rounding["falls"].get(usual, {}).get(what, 0.0)
        if new < old - limits["unharmed" if what == "unharmed" else points] - explained:
            count = f"{len(rows)} expressions of {rows['image'].nunique()} images"
            yield f"{scope}: {what} {old:.2f} -> {new:.2f} over {count}, rounding explains {explained:.2f}"
    lost = int((part["change"] < -LOST).sum())
    if lost > MARGIN * rounding["lost"] + 1:
        yield (
            f"{lost} of {len(part)} expressions lost more than {LOST:g} points, by rounding at most "
            f"{rounding['lost']:g} did"
        )


def _exact(part: pd.DataFrame, rounding: dict[str, Any], patches: int) -> Iterator[str]:
    """What rounding cannot change, and changed."""
    for column in TOKENS:
        if f"{column}_now" not in part:
            continue
        other = part[~np.isclose(part[column], part[f"{column}_now"], rtol=1e-9, atol=0)]
        if len(other):
            first = other.iloc[0]
            yield (
                f"{column} changed for {len(other)} of {len(part)} expressions, first on {first['sample']} "
                f"({first[column]:g} -> {first[f'{column}_now']:g})"
            )
    if "kept_now" in part and patches:
        moved = moved_tokens(part["kept"], part["kept_now"], patches)
        if moved.sum() > MARGIN * rounding["tokens"]:
            first = part[moved > 0].iloc[0]
            usual = f", by rounding {rounding['tokens']:g} move" if rounding["tokens"] else ""
            yield (
                f"kept tokens changed for {(moved > 0).sum()} of {len(part)} expressions, {moved.sum()} in "
                f"all{usual}; "
                f"first on {first['sample']} expression {first['expression']}"
            )


def _cost(before: int | None, after: int | None, share: float) -> tuple[list[str], list[str]]:
    """A reason if the pruner's own multiply-adds rose beyond the share, a note if they fell so."""
    if before is None or after is None or abs(after - before) <= share * before:
        return [], []
    said = [f"the pruner's own multiply-adds {before:,} -> {after:,}"]
    return (said, []) if after > before else ([], said)


def _change(part: pd.DataFrame, reasons: tuple[str, ...], notes: tuple[str, ...]) -> Change:
    """What happened to one pruner at a budget."""
    old, new = _total(part)
    old_mean, new_mean = float(part["was"].mean()), float(part["now"].mean())
    fell, rose = int((part["change"] < 0).sum()), int((part["change"] > 0).sum())
    first = part.iloc[0]
    most = part.sort_values("change", ascending=new_mean <= old_mean or bool(reasons), kind="stable").head(
        NAMED
    )
    moved = tuple(
        Moved(sample, int(expression), float(a), float(b))
        for sample, expression, a, b in zip(
            most["sample"], most["expression"], most["was"], most["now"], strict=True
        )
        if a != b
    )
    name = first["pruner"], int(first["budget"]), int(first["seed"])
    return Change(*name, old, new, old_mean, new_mean, reasons, notes, fell, rose, len(part), moved)


def rounding(
    frame: pd.DataFrame, noisy: Sequence[pd.DataFrame], patches: int
) -> dict[tuple[Any, ...], dict[str, Any]]:
    """The worst that rounding alone did to every cell.

    Args:
        frame: records of the subset.
        noisy: records of the same, or of some of its cells, with features that differ in rounding.

    Returns:
        Per (pruner, budget, seed): `tokens`, most kept tokens that moved in a draw, over all expressions;
        `lost`, most expressions that lost more than LOST points in one; `falls`, most points that each score
        fell in one draw, over all splits and in any split, where it fell.
    """
    found: dict[tuple[Any, ...], dict[str, Any]] = {}
    for other in noisy:
        there = frame.merge(other[KEY].drop_duplicates(), on=KEY)
        for _, part in _paired(there, other).groupby(KEY, sort=False):
            first = part.iloc[0]
            worst = found.setdefault(
                tuple(first[name] for name in KEY), {"tokens": 0, "lost": 0, "falls": {}}
            )
            moved = moved_tokens(part["kept"], part["kept_now"], patches)
            worst["tokens"] = max(worst["tokens"], int(moved.sum()))
            worst["lost"] = max(worst["lost"], int((part["change"] < -LOST).sum()))
            for scope, what, old, new, _ in _scores(part):
                if new < old:
                    scores = worst["falls"].setdefault(EVERYWHERE if scope == EVERYWHERE else ANYWHERE, {})
                    scores[what] = max(scores.get(what, 0.0), round(old - new, 4))
    return found
