"""Two runs of the gate's subset, cell by cell: what fell further, or became other, than rounding explains.

Sound code may differ in rounding and in nothing else. What rounding cannot change is compared exactly: token counts, and the
kept tokens of every pruner whose choice does not hang on rounding. A score may fall by a small tolerance and four standard
errors of what rounding does to it, which is little more than the tolerance for most pruners, and wide for VisPruner, whose
choice hangs on the last bit.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from scipy.stats import wilcoxon

from harness import metrics, records
from harness.baseline import KEY, PAIR, PIXELS, TOKENS, Damaged, check_counts
from harness.stability import moved_tokens
from pruners.base import UserError

if TYPE_CHECKING:
    from numpy.typing import NDArray

# Points that a mean IoU or a cIoU may fall beyond what rounding explains: over all splits, in one, and where images fall together
# (that a method keeps 0.2 points less in all images is no rounding either); share by which a cost may rise.
TOLERANCES = {"points": 0.5, "split_points": 1.0, "paired_points": 0.2, "macs": 0.05}
ERRORS = 4.0  # standard errors of rounding
CHANCE = 0.001  # p below which images fall together
LOST = 50.0  # points of IoU: an expression that falls by more has another object, or none
MARGIN = 2  # times as many kept tokens may move as moved when rounding was measured; none where none did
NAMED = 5  # expressions that a change names
STEADY = {"tokens": 0, "points": 0.0, "lost": 0.0}  # rounding of a cell of which nothing is known


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
            f"{self.pruner} at {self.budget} tokens (seed {self.seed}): cIoU {self.before:.2f} -> {self.after:.2f}, "
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
    """

    cells: int
    changes: tuple[Change, ...]
    unguarded: tuple[str, ...]

    @property
    def worse(self) -> tuple[Change, ...]:
        """Changes that no rounding explains."""
        return tuple(change for change in self.changes if change.reasons)


def _paired(before: pd.DataFrame, after: pd.DataFrame) -> pd.DataFrame:
    """Rows of both side by side, those of `after` with `_now`; IoU in percent as was, now and change; split and image.

    Raises:
        UserError: a row of either is there twice or holds no counts, or the run has not the baseline's rows.
    """
    try:
        check_counts(before, "the baseline")
        check_counts(after, "the run")
    except Damaged as error:
        raise UserError(f"These numbers cannot be compared: {error}.") from error
    known = before[KEY].drop_duplicates()
    both = before.merge(after.merge(known, on=KEY), on=PAIR, how="outer", suffixes=("", "_now"), indicator="side")
    for side, what, where in (("left_only", "baseline", "this run lacks"), ("right_only", "run", "the baseline lacks")):
        if len(odd := both[both["side"] == side]):
            first = odd.iloc[0]
            whole = _names(known, after) if side == "left_only" else ""
            raise UserError(
                f"The {what} has {len(odd)} results that {where}, first {first['pruner']} on {first['sample']}{whole}; "
                "data or pruners changed, so mend that or accept a new baseline with --accept REASON."
            )
    both = before[PAIR].merge(both, on=PAIR, how="left")
    was, now = (100 * metrics.iou(both[f"intersection{end}"], both[f"union{end}"]) for end in ("", "_now"))
    images = records.images(both["sample"])
    return both.assign(was=was, now=now, change=now - was, split=both["sample"].str.rsplit(":", n=1).str[0], image=images)


def _names(known: pd.DataFrame, after: pd.DataFrame) -> str:
    """The cells of which a run has nothing at all, in words."""
    there = set(after[KEY].itertuples(index=False, name=None))
    gone = [cell for cell in known[KEY].itertuples(index=False, name=None) if cell not in there]
    return f" (nothing of {', '.join(f'{pruner} at {budget}' for pruner, budget, _ in gone)})" if gone else ""


def compare(
    before: pd.DataFrame, after: pd.DataFrame, baseline: dict[str, Any], costs: dict[tuple[str, int], int] | None = None
) -> Comparison:
    """The same expressions before and after, cell by cell.

    Args:
        before, after: columns PAIR, intersection, union; kept, tokens_final and tokens_mean are compared where both have them.
        baseline: with its tolerances and its cells (both may be missing: TOLERANCES, and nothing hangs on rounding).
        costs: own multiply-adds of (pruner, budget) now; None compares none.

    Raises:
        UserError: one of both lacks results that the other has, has one twice, or counts that cannot be.
    """
    both = _paired(before, after)
    limits = TOLERANCES | baseline.get("tolerances", {})
    known = {tuple(cell[name] for name in KEY): cell for cell in baseline.get("cells", ())}
    changes, cells = [], both.groupby(KEY, sort=False)
    for _, part in cells:
        first = part.iloc[0]
        pruner, budget, seed = str(first["pruner"]), int(first["budget"]), int(first["seed"])
        cell = known.get((pruner, budget, seed), {})
        usual = cell.get("rounding", STEADY)
        exact = list(_exact(part, usual, baseline.get("patches", 0)))
        bad, fine = _cost(cell.get("macs"), None if costs is None else costs.get((pruner, budget)), limits["macs"])
        falls = list(_falls(part, usual, limits))
        counts = any((part[column] != part[f"{column}_now"]).any() for column in PIXELS)
        if falls or exact or bad or fine or counts:
            changes.append(_change(part, tuple(falls + exact + bad), tuple(fine)))
    run = set(after[KEY].itertuples(index=False, name=None))
    new = sorted({(pruner, budget) for pruner, budget, _ in run - set(before[KEY].itertuples(index=False, name=None))})
    changes.sort(key=lambda change: min(change.after - change.before, change.mean_after - change.mean_before))
    return Comparison(len(cells), tuple(changes), tuple(f"{pruner} at {budget}" for pruner, budget in new))


def _falls(part: pd.DataFrame, rounding: dict[str, float], limits: dict[str, float]) -> Iterator[str]:
    """What fell further than rounding explains, over all splits and in every one."""
    splits = ((name, rows, "split_points") for name, rows in part.groupby("split", sort=False))
    scopes = [("all splits", part, "points"), *splits]
    for scope, rows, limit in scopes:
        for what, weights in (("mean IoU", np.ones(len(rows))), ("cIoU", rows["union"].to_numpy(dtype=float))):
            old, new = _scores(rows)[what]
            error = rounding["points"] * _concentration(weights, rows["image"])
            if new < old - limits[limit] - ERRORS * error:
                explained = f", rounding explains {ERRORS * error:.2f}" if error else ""
                count = f"{len(rows)} expressions of {rows['image'].nunique()} images"
                yield f"{scope}: {what} {old:.2f} -> {new:.2f} over {count}{explained}"
    images = part.groupby("image")["change"].mean()
    if images.median() < -limits["paired_points"]:  # rounding leaves most images alone, and may do harm where it does not
        p = float(wilcoxon(images, alternative="less").pvalue)
        if p < CHANCE:
            fell = int((images < 0).sum())
            yield f"{fell} of {len(images)} images fell together, by {-images.mean():.2f} points on average, p = {p:.1g}"
    lost, usual = int((part["change"] < -LOST).sum()), rounding["lost"]
    if lost > usual + ERRORS * usual**0.5 + 1:
        yield f"{lost} of {len(part)} expressions lost more than {LOST:g} points, by rounding {usual:g} do"


def _scores(rows: pd.DataFrame) -> dict[str, tuple[float, float]]:
    """Both scores in percent, before and after."""
    counts = [(rows[f"intersection{end}"], rows[f"union{end}"]) for end in ("", "_now")]
    before, after = (100 * metrics.ciou(*pair) for pair in counts)
    return {"mean IoU": (float(rows["was"].mean()), float(rows["now"].mean())), "cIoU": (before, after)}


def _concentration(weights: NDArray[np.float64], images: pd.Series[str]) -> float:
    """Root of the sum of squares of the images' shares in a weighted mean: 1 / sqrt(n) for n equal ones."""
    shares = pd.Series(weights, index=images.index).groupby(images).sum() / max(weights.sum(), 1.0)
    return float(np.sqrt((shares**2).sum()))


def _exact(part: pd.DataFrame, rounding: dict[str, float], patches: int) -> Iterator[str]:
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
                f"kept tokens changed for {(moved > 0).sum()} of {len(part)} expressions, {moved.sum()} in all{usual}; "
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
    (old_mean, new_mean), (old, new) = _scores(part).values()
    fell, rose = int((part["change"] < 0).sum()), int((part["change"] > 0).sum())
    first = part.iloc[0]
    most = part.sort_values("change", ascending=new_mean <= old_mean or bool(reasons), kind="stable").head(NAMED)
    moved = tuple(
        Moved(sample, int(expression), float(a), float(b))
        for sample, expression, a, b in zip(most["sample"], most["expression"], most["was"], most["now"], strict=True)
        if a != b
    )
    name = first["pruner"], int(first["budget"]), int(first["seed"])
    return Change(*name, old, new, old_mean, new_mean, reasons, notes, fell, rose, len(part), moved)


def rounding(frame: pd.DataFrame, noisy: Sequence[pd.DataFrame], patches: int) -> dict[tuple[Any, ...], dict[str, float]]:
    """What rounding alone changes in every cell.

    Args:
        frame: records of the subset.
        noisy: records of the same with features that differ in rounding.

    Returns:
        Per (pruner, budget, seed): `tokens`, most kept tokens that moved in a draw, over all expressions; `points`, root mean
        square over images and draws of what the mean IoU of an image changed; `lost`, expressions per draw that changed by more
        than LOST points, in either direction, halved.
    """
    found: dict[tuple[Any, ...], dict[str, float]] = {}
    draws = [_paired(frame, other) for other in noisy]
    for name in frame[KEY].drop_duplicates().itertuples(index=False, name=None):
        parts = [draw[(draw[KEY] == list(name)).all(axis=1)] for draw in draws]
        squares = np.concatenate([part.groupby("image")["change"].mean() ** 2 for part in parts])
        found[name] = {
            "tokens": max(int(moved_tokens(part["kept"], part["kept_now"], patches).sum()) for part in parts),
            "points": round(float(np.sqrt(squares.mean())), 4),
            "lost": round(float(np.mean([(part["change"].abs() > LOST).sum() / 2 for part in parts])), 4),
        }
    return found
