"""The regression gate: a fixed subset again, compared pixel count by pixel count with a committed baseline."""

from __future__ import annotations

import json
import tempfile
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pandas as pd

from harness import metrics
from pruners.base import UserError

# cIoU points by which a pruner at a budget may fall over all splits together, and in one of them. Another processor
# rounds differently, and VisPruner's choice hangs on the last bit, so exact equality would fail on sound code.
TOLERANCE, SPLIT_TOLERANCE = 3.0, 15.0
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
class Drop:
    """A pruner at a budget whose score fell.

    Attributes:
        before, after: cIoU in percent over all splits together.
        splits: splits that fell by more than their tolerance.
        worst: the expressions that lost most.
    """

    pruner: str
    budget: int
    seed: int
    before: float
    after: float
    splits: tuple[str, ...]
    worst: tuple[str, ...]

    def __str__(self) -> str:
        splits = f" ({', '.join(self.splits)})" if self.splits else ""
        return (
            f"{self.pruner} at {self.budget} tokens (seed {self.seed}): cIoU {self.before:.2f} -> {self.after:.2f}{splits}; "
            f"lost most on {'; '.join(self.worst)}"
        )


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
        if missing := {"subset", "tolerance", "split_tolerance", "fingerprints", "history"} - content.keys():
            raise KeyError(*sorted(missing))
        return content  # type: ignore[no-any-return]
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"The baseline {str(path)!r} is damaged ({error!r}); restore it from version control.") from error


def measure(subset: dict[str, Any], plugins: tuple[str, ...] = ()) -> tuple[pd.DataFrame, dict[str, str]]:
    """Run the subset; its records, and the fingerprints of the weights and of every split."""
    import backbones
    from harness import data, records, runner
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


def compare(before: pd.DataFrame, after: pd.DataFrame, tolerance: float, split_tolerance: float) -> list[Drop]:
    """Pruners whose cIoU over the same expressions fell by more than a tolerance, in points.

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
    both["column"] = both["sample"].str.rsplit(":", n=1).str[0]
    drops = []
    for _, part in both.groupby(KEY, sort=False):
        old, new = _percent(part)
        columns = {str(column): _percent(rows) for column, rows in part.groupby("column", sort=False)}
        fell = tuple(f"{name} {a:.2f} -> {b:.2f}" for name, (a, b) in columns.items() if b < a - split_tolerance)
        if new < old - tolerance or fell:
            was = metrics.iou(part["intersection"], part["union"])
            now = metrics.iou(part["intersection_now"], part["union_now"])
            worst = part.assign(change=now - was).nsmallest(3, "change")
            names = tuple(f"{row.sample} expression {row.expression}" for row in worst.itertuples())
            first = part.iloc[0]
            drops.append(Drop(first["pruner"], int(first["budget"]), int(first["seed"]), old, new, fell, names))
    return drops


def check(path: Path, plugins: tuple[str, ...] = ()) -> tuple[list[Drop], dict[str, Any]]:
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
    return compare(before, after, baseline["tolerance"], baseline["split_tolerance"]), baseline


def accept(path: Path, reason: str, plugins: tuple[str, ...] = (), subset: dict[str, Any] | None = None) -> None:
    """Measure and store a new baseline with the reason for it; earlier reasons are kept.

    Args:
        subset: what to run, with the keys of SUBSET; by default what the file has, or SUBSET.
    """
    if not reason.strip():
        raise UserError("A new baseline needs a reason; write --accept 'why the numbers may change'.")
    fresh: dict[str, Any] = {"subset": SUBSET, "tolerance": TOLERANCE, "split_tolerance": SPLIT_TOLERANCE, "history": []}
    old = read_baseline(path) if path.exists() else fresh
    chosen = subset or old["subset"]
    frame, prints = measure(chosen, plugins)
    content = {
        "subset": chosen,
        "tolerance": old["tolerance"],
        "split_tolerance": old["split_tolerance"],
        "fingerprints": prints,
        "history": [*old["history"], {"time": datetime.now(UTC).isoformat(timespec="seconds"), "reason": reason}],
    }
    head = json.dumps(content, indent=1)[:-2]
    rows = ",\n".join(json.dumps(row) for row in frame[[*PAIR, "intersection", "union"]].values.tolist())
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f'{head},\n "rows": [\n{rows}\n]}}\n')
