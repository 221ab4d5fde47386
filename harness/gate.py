"""The regression gate: a fixed subset again, compared pixel count by pixel count with a committed baseline."""

from __future__ import annotations

import json
import tempfile
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pandas as pd
from scipy.stats import wilcoxon

from harness import metrics, records
from pruners.base import UserError

# Points of cIoU by which a pruner at a budget may fall over all splits together, and in one of them. Another processor
# rounds differently, and VisPruner's choice hangs on the last bit, so exact equality would fail on sound code. Such flips go
# both ways; a fall that most images share is no flip, so a smaller one is enough if the paired test finds it.
TOLERANCES = {"tolerance": 3.0, "split_tolerance": 15.0, "paired_tolerance": 1.0}
CHANCE = 0.001  # p below which images fall together; thirteen cells make a false alarm in about one gate of eighty
NAMED = 5  # expressions that a change names
SUBSET: dict[str, Any] = {
    "backbone": "glamm-mini",
    "pruners": "all",
    "budgets": [64],
    "datasets": "all",
    "protocol": "each",
    "limit": 4,
    "seed": 0,
}
KEY = ["pruner", "budget", "seed"]
PAIR = [*KEY, "sample", "expression"]


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
    """A pruner at a budget whose masks changed.

    Attributes:
        before, after: cIoU in percent over all splits together.
        reasons: which tolerances it fell beyond, in words; none if it is within them all.
        fell, rose: expressions whose IoU did.
        of: expressions in all.
        moved: those that lost most; of a pruner that rose, those that gained most.
    """

    pruner: str
    budget: int
    seed: int
    before: float
    after: float
    reasons: tuple[str, ...]
    fell: int
    rose: int
    of: int
    moved: tuple[Moved, ...]

    def __str__(self) -> str:
        reasons = f" ({'; '.join(self.reasons)})" if self.reasons else ""
        return (
            f"{self.pruner} at {self.budget} tokens (seed {self.seed}): cIoU {self.before:.2f} -> {self.after:.2f}{reasons}; "
            f"{self.fell} of {self.of} expressions fell, {self.rose} rose"
        )


@dataclass(frozen=True)
class Comparison:
    """A baseline against a run.

    Attributes:
        cells: pruners at a budget that were compared.
        changes: those whose masks changed, the largest fall first.
        unguarded: those of the run that the baseline does not know.
    """

    cells: int
    changes: tuple[Change, ...]
    unguarded: tuple[str, ...]

    @property
    def worse(self) -> tuple[Change, ...]:
        """Changes beyond a tolerance."""
        return tuple(change for change in self.changes if change.reasons)


def read_baseline(path: Path) -> dict[str, Any]:
    """The committed baseline.

    Raises:
        UserError: it is missing or damaged.
    """
    if not path.is_file():
        raise UserError(
            f"There is no baseline {str(path)!r}; make one with `python -m harness gate --baseline {path} --accept REASON`."
        )
    try:
        content = json.loads(path.read_text())
        pd.DataFrame(content["rows"], columns=[*PAIR, "intersection", "union"])
        if missing := {"subset", "fingerprints", "history"} - content.keys():
            raise KeyError(*sorted(missing))
        return TOLERANCES | content
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"The baseline {str(path)!r} is damaged ({error!r}); restore it from version control.") from error


def measure(subset: dict[str, Any], plugins: tuple[str, ...] = ()) -> tuple[pd.DataFrame, dict[str, str]]:
    """Run the subset; its records, and the fingerprints of the weights and of every split."""
    import backbones
    from harness import data, runner
    from pruners import load_plugin, parse

    for plugin in plugins:
        load_plugin(plugin)
    backbone = backbones.load(subset["backbone"])
    plan = runner.Plan(
        tuple(parse(subset["pruners"])),
        tuple(subset["budgets"]),
        tuple(data.parse_datasets(subset["datasets"])),
        protocol=subset["protocol"],
        limit=subset["limit"],
        seed=subset["seed"],
    )
    splits = runner.prepare(plan, backbone)
    prints = {f"{job.cell.dataset}:{job.cell.split}": job.cell.data for split in splits for job in split.jobs}
    with tempfile.TemporaryDirectory() as folder:
        runner.run(plan, backbone, splits, Path(folder))
        return records.load(folder), {"weights": backbone.fingerprint, **prints}


def _percent(part: pd.DataFrame) -> tuple[float, float]:
    return 100 * metrics.ciou(part["intersection"], part["union"]), 100 * metrics.ciou(
        part["intersection_now"], part["union_now"]
    )


def compare(before: pd.DataFrame, after: pd.DataFrame, tolerances: dict[str, Any]) -> Comparison:
    """The same expressions before and after, pruner by pruner.

    Args:
        before, after: columns PAIR, intersection, union.
        tolerances: with the keys of TOLERANCES.

    Raises:
        UserError: the run lacks expressions that the baseline has.
    """
    both = before.merge(after[[*PAIR, "intersection", "union"]], on=PAIR, how="left", suffixes=("", "_now"))
    lost = both[both["intersection_now"].isna()]
    if len(lost):
        first = lost.iloc[0]
        raise UserError(
            f"The baseline has {len(lost)} results that this run lacks, first {first['pruner']} on {first['sample']}; "
            "data or pruners changed, so accept a new baseline with --accept REASON."
        )
    was, now = metrics.iou(both["intersection"], both["union"]), metrics.iou(both["intersection_now"], both["union_now"])
    both = both.assign(was=100 * was, now=100 * now, change=100 * (now - was))
    both["column"] = both["sample"].str.rsplit(":", n=1).str[0]
    both["image"] = records.images(both["sample"])
    parts = [part for _, part in both.groupby(KEY, sort=False)]
    changes = [_change(part, tolerances) for part in parts if (part["change"] != 0).any()]
    known, run = (set(frame[["pruner", "budget"]].itertuples(index=False, name=None)) for frame in (before, after))
    unguarded = tuple(f"{pruner} at {budget}" for pruner, budget in sorted(run - known))
    return Comparison(len(parts), tuple(sorted(changes, key=lambda change: change.after - change.before)), unguarded)


def _change(part: pd.DataFrame, tolerances: dict[str, Any]) -> Change:
    """What happened to one pruner at a budget."""
    old, new = _percent(part)
    reasons = [f"more than {tolerances['tolerance']:g} points"] if new < old - tolerances["tolerance"] else []
    for name, rows in part.groupby("column", sort=False):
        a, b = _percent(rows)
        if b < a - tolerances["split_tolerance"]:
            reasons.append(f"{name} {a:.2f} -> {b:.2f}")
    images = part.groupby("image")["change"].mean()
    if images.mean() < -tolerances["paired_tolerance"]:
        p = float(wilcoxon(images, alternative="less").pvalue)
        if p < CHANCE:
            reasons.append(f"images fell by {-images.mean():.2f} points on average and together, p = {p:.1g}")
    fell, rose = int((part["change"] < 0).sum()), int((part["change"] > 0).sum())
    first = part.iloc[0]
    most = part.sort_values("change", ascending=new <= old or bool(reasons), kind="stable").head(NAMED)
    moved = tuple(
        Moved(sample, int(expression), float(a), float(b))
        for sample, expression, a, b in zip(most["sample"], most["expression"], most["was"], most["now"], strict=True)
        if a != b
    )
    pruner, budget, seed = first["pruner"], int(first["budget"]), int(first["seed"])
    return Change(pruner, budget, seed, old, new, tuple(reasons), fell, rose, len(part), moved)


def check(path: Path, plugins: tuple[str, ...] = ()) -> tuple[Comparison, dict[str, Any]]:
    """Measure the baseline's subset again and compare.

    Raises:
        UserError: no usable baseline, or one of other weights or data.
    """
    baseline = read_baseline(path)
    before = pd.DataFrame(baseline["rows"], columns=[*PAIR, "intersection", "union"])
    after, prints = measure(baseline["subset"], plugins)
    changed = [name for name, value in baseline["fingerprints"].items() if prints.get(name) != value]
    if changed:
        raise UserError(
            f"The baseline {str(path)!r} was made with other {', '.join(changed)}; accept a new one with --accept REASON."
        )
    return compare(before, after, baseline), baseline


def accept(path: Path, reason: str, plugins: tuple[str, ...] = (), subset: dict[str, Any] | None = None) -> None:
    """Measure and store a new baseline with the reason for it; earlier reasons are kept.

    Args:
        subset: what to run, with the keys of SUBSET; by default what the file has, or SUBSET.
    """
    if not reason.strip():
        raise UserError("A new baseline needs a reason; write --accept 'why the numbers may change'.")
    fresh: dict[str, Any] = {"subset": SUBSET, **TOLERANCES, "history": []}
    old = read_baseline(path) if path.exists() else fresh
    chosen = subset or old["subset"]
    frame, prints = measure(chosen, plugins)
    content = {
        "subset": chosen,
        **{name: old[name] for name in TOLERANCES},
        "fingerprints": prints,
        "history": [*old["history"], {"time": datetime.now(UTC).isoformat(timespec="seconds"), "reason": reason}],
    }
    head = json.dumps(content, indent=1)[:-2]
    rows = ",\n".join(json.dumps(row) for row in frame[[*PAIR, "intersection", "union"]].values.tolist())
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f'{head},\n "rows": [\n{rows}\n]}}\n')
