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

# cIoU points by which a pruner at a budget may fall. Another processor rounds differently, and VisPruner's choice hangs
# on the last bit, so exact equality would fail on sound code.
TOLERANCE = 2.0
SUBSET: dict[str, Any] = {
    "backbone": "glamm-mini",
    "pruners": "all",
    "budgets": [64],
    "datasets": "all",
    "protocol": "each",
    "limit": 3,
    "seed": 0,
}
KEY = ["pruner", "budget", "seed"]
PAIR = [*KEY, "sample", "expression"]


@dataclass(frozen=True)
class Drop:
    """A pruner at a budget whose score fell, and the expressions that lost most."""

    pruner: str
    budget: int
    seed: int
    before: float
    after: float
    worst: tuple[str, ...]

    def __str__(self) -> str:
        where = "; ".join(self.worst)
        return (
            f"{self.pruner} at {self.budget} tokens (seed {self.seed}): cIoU {self.before:.2f} -> {self.after:.2f}; "
            f"lost most on {where}"
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
        return content  # type: ignore[no-any-return]
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"The baseline {str(path)!r} is damaged ({error!r}); restore it from version control.") from error


def measure(subset: dict[str, Any], plugins: tuple[str, ...] = ()) -> pd.DataFrame:
    """Run the subset and return its records."""
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
    with tempfile.TemporaryDirectory() as folder:
        return records.load(runner.run(plan, backbone, runner.prepare(plan, backbone), Path(folder)))


def compare(before: pd.DataFrame, after: pd.DataFrame, tolerance: float) -> list[Drop]:
    """Pruners whose cIoU over the common expressions fell by more than `tolerance` points.

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
    drops = []
    for _, part in both.groupby(KEY, sort=False):
        pruner, budget, seed = part[KEY].iloc[0]
        old = 100 * metrics.ciou(part["intersection"], part["union"])
        new = 100 * metrics.ciou(part["intersection_now"].astype(int), part["union_now"].astype(int))
        if new < old - tolerance:
            change = part["intersection_now"] / part["union_now"].clip(lower=1) - part["intersection"] / part["union"].clip(
                lower=1
            )
            worst = part.loc[change.nsmallest(3).index]
            names = tuple(f"{row.sample} expression {row.expression}" for row in worst.itertuples())
            drops.append(Drop(str(pruner), int(budget), int(seed), old, new, names))
    return drops


def check(path: Path, plugins: tuple[str, ...] = ()) -> tuple[list[Drop], dict[str, Any]]:
    """Measure the baseline's subset again and compare."""
    baseline = read_baseline(path)
    before = pd.DataFrame(baseline["rows"], columns=[*PAIR, "intersection", "union"])
    return compare(before, measure(baseline["subset"], plugins), baseline["tolerance"]), baseline


def accept(path: Path, reason: str, plugins: tuple[str, ...] = (), subset: dict[str, Any] | None = None) -> None:
    """Measure and store a new baseline with the reason for it; earlier reasons are kept."""
    if not reason.strip():
        raise UserError("A new baseline needs a reason; write --accept 'why the numbers may change'.")
    old: dict[str, Any] = {"subset": SUBSET, "tolerance": TOLERANCE, "history": []}
    if path.exists():
        old = read_baseline(path)
    chosen = subset or old["subset"]
    frame = measure(chosen, plugins)
    history = [*old["history"], {"time": datetime.now(UTC).isoformat(timespec="seconds"), "reason": reason}]
    content = {"subset": chosen, "tolerance": old["tolerance"], "history": history}
    head = json.dumps(content, indent=1)[:-2]
    rows = ",\n".join(json.dumps(row) for row in frame[[*PAIR, "intersection", "union"]].values.tolist())
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f'{head},\n "rows": [\n{rows}\n]}}\n')
