"""The regression gate: a fixed subset again, compared expression by expression with a committed baseline."""

from __future__ import annotations

import base64
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from harness.engine.ranks import Place
from harness.engine.rounding import shaken
from harness.gate import baseline as files
from harness.gate.baseline import PAIR, PIXELS, read_baseline
from harness.gate.comparison import TOLERANCES, Comparison, compare, rounding
from harness.plan import Plan, load_plugins
from harness.store import records
from pruners.base import UserError

if TYPE_CHECKING:
    from backbones.base import Backbone

SUBSET = Plan(budgets=("64", "192"), limit=4, device="cpu")  # where everyone can repeat it
# Noise that stands for rounding when a baseline is accepted. Another attention kernel moves the last hidden
# state by 2.6e-7 of its norm (float32, eager against SDPA); twice that also finds near ties that it happens
# to leave alone.
RELATIVE = 5e-7
DRAWS, MORE_DRAWS = 3, 16  # of all pruners, and of those whose choice hangs on rounding

__all__ = [
    "PAIR",
    "SUBSET",
    "Comparison",
    "accept",
    "check",
    "compare",
    "plan_of",
    "read_baseline",
    "run_subset",
]


@dataclass(frozen=True)
class GateRun:
    """What the subset gave.

    Attributes:
        frame: its records.
        prints: fingerprints of the weights and of every split.
        costs: own multiply-adds of every (pruner, budget); empty for a backbone whose costs are not known.
        patches: visual tokens of an image; of clips, which have as many views as they have windows, at least
            those of the one that has most.
    """

    frame: pd.DataFrame
    prints: dict[str, str]
    costs: dict[tuple[str, int], int]
    patches: int


def plan_of(subset: Mapping[str, Any]) -> Plan:
    """The plan that a baseline names; before plans it named one backbone, and counts."""
    named = dict(subset)
    if "backbone" in named:
        named["backbones"] = named.pop("backbone")
    return Plan.from_json({"device": SUBSET.device} | named)


def run_subset(plan: Plan, backbone: Backbone | None = None) -> GateRun:
    """Run the subset.

    Args:
        backbone: instead of the one that the plan names.

    Raises:
        UserError: samples failed.
    """
    from harness import cost, data
    from harness.cost import kinds
    from harness.engine import runner

    load_plugins([plan])
    backbone = backbone or plan.load(Place())
    splits = runner.prepare(plan, backbone)
    prints = {":".join(split.name): data.fingerprint(split.samples) for split in splits}
    costs: dict[tuple[str, int], int] = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        runner.run(plan, backbone, splits, folder)
        if failed := records.failures(folder):
            first, reason = next(iter(failed.items()))
            raise UserError(
                f"{len(failed)} samples of the gate's subset failed, first {first} ({reason}); mend that "
                f"first."
            )
        if kinds.kind(None, backbone, 1) != "off":
            kinds.write_costs("projected", plan, splits, backbone, folder)
            table = cost.load_costs(folder)
            keys = zip(table["pruner"], table["budget"], strict=True)
            costs = {
                (str(a), int(b)): int(macs) for (a, b), macs in zip(keys, table["macs.pruner"], strict=True)
            }
        frame, patches = records.load_records(folder), backbone.grid[0] * backbone.grid[1]
        if backbone.medium == "video":
            frame, patches = _of_one_length(frame)
        return GateRun(frame, {"weights": backbone.fingerprint, **prints}, costs, patches)


def _of_one_length(frame: pd.DataFrame) -> tuple[pd.DataFrame, int]:
    """Records whose bitmaps of kept tokens are filled up to the longest one, and its bits."""
    bitmaps = [base64.b64decode(text) for text in frame["kept"]]
    size = max(map(len, bitmaps), default=0)
    return frame.assign(kept=[base64.b64encode(one.ljust(size, b"\0")).decode() for one in bitmaps]), 8 * size


def check(path: Path, plugins: tuple[str, ...] = ()) -> Comparison:
    """Measure the baseline's subset again and compare.

    Raises:
        UserError: no usable baseline, or one of other weights or data.
    """
    baseline = read_baseline(path)
    run = run_subset(replace(plan_of(baseline["subset"]), plugins=plugins))
    changed = [name for name, value in baseline["fingerprints"].items() if run.prints.get(name) != value]
    if changed:
        raise UserError(
            f"The baseline {str(path)!r} was made with other {', '.join(changed)}; accept a new one with "
            f"--accept REASON."
        )
    return compare(files.frame(baseline), run.frame, baseline, run.costs)


def accept(path: Path, reason: str, plugins: tuple[str, ...] = (), subset: Plan | None = None) -> None:
    """Measure and store a new baseline with the reason for it; earlier reasons are kept.

    Args:
        subset: what to run; by default what the file has, or SUBSET.
    """
    if not reason.strip():
        raise UserError("A new baseline needs a reason; write --accept 'why the numbers may change'.")
    before, history = files.accepted(path)
    chosen = subset or (plan_of(before) if before else SUBSET)
    plan = replace(chosen, plugins=plugins)
    load_plugins([plan])
    backbone = plan.load(Place())
    run = run_subset(plan, backbone)
    noisy = [run_subset(plan, shaken(backbone, draw, RELATIVE)).frame for draw in range(DRAWS)]
    worst = rounding(run.frame, noisy, run.patches)
    if unsteady := sorted({name[0] for name, cell in worst.items() if cell["tokens"]}):
        some = replace(plan, pruners=tuple(unsteady))
        noisy += [
            run_subset(some, shaken(backbone, draw, RELATIVE)).frame for draw in range(DRAWS, MORE_DRAWS)
        ]
        worst = rounding(run.frame, noisy, run.patches)
    files.write_baseline(
        path,
        {
            "format": files.FORMAT,
            "subset": replace(chosen, plugins=()).to_json(),
            "tolerances": TOLERANCES,
            "fingerprints": run.prints,
            "history": [
                *history,
                {"time": datetime.now(UTC).isoformat(timespec="seconds"), "reason": reason},
            ],
            "patches": run.patches,
            "noise": {"relative": RELATIVE, "draws": [DRAWS, MORE_DRAWS]},
            "cells": files.baseline_cells(run.frame, run.costs, worst),
            "rows": run.frame[[*PAIR, *PIXELS]].values.tolist(),
        },
    )
