"""The regression gate: a fixed subset again, compared expression by expression with a committed baseline."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

import backbones
from harness.engine.rounding import shaken
from harness.gate import baseline as files
from harness.gate.baseline import PAIR, PIXELS
from harness.gate.baseline import read as read_baseline
from harness.gate.comparison import TOLERANCES, Comparison, compare, rounding
from harness.store import records
from pruners.base import UserError

if TYPE_CHECKING:
    from backbones.base import Backbone

SUBSET: dict[str, Any] = {
    "backbone": "glamm-mini",
    "pruners": "all",
    "budgets": [64, 192],
    "datasets": "all",
    "protocol": "each",
    "limit": 4,
    "seed": 0,
}
# Noise that stands for rounding when a baseline is accepted. Another attention kernel moves the last hidden
# state by 2.6e-7 of its norm (float32, eager against SDPA); twice that also finds near ties that it happens
# to leave alone.
RELATIVE = 5e-7
DRAWS, MORE_DRAWS = 3, 16  # of all pruners, and of those whose choice hangs on rounding

__all__ = ["PAIR", "SUBSET", "Comparison", "accept", "check", "compare", "measure", "read_baseline"]


@dataclass(frozen=True)
class Run:
    """What the subset gave.

    Attributes:
        frame: its records.
        prints: fingerprints of the weights and of every split.
        costs: own multiply-adds of every (pruner, budget); empty for a backbone whose costs are not known.
        patches: visual tokens of an image.
    """

    frame: pd.DataFrame
    prints: dict[str, str]
    costs: dict[tuple[str, int], int]
    patches: int


def measure(subset: dict[str, Any], plugins: tuple[str, ...] = (), backbone: Backbone | None = None) -> Run:
    """Run the subset.

    Args:
        backbone: instead of the one that the subset names.

    Raises:
        UserError: samples failed.
    """
    from harness import cost, data
    from harness.cost import kinds as asked
    from harness.engine import runner
    from pruners import load_plugin, parse

    for plugin in plugins:
        load_plugin(plugin)
    backbone = backbone or backbones.load(subset["backbone"])
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
    costs: dict[tuple[str, int], int] = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        runner.run(plan, backbone, splits, folder)
        if failed := records.failures(folder):
            first, reason = next(iter(failed.items()))
            raise UserError(
                f"{len(failed)} samples of the gate's subset failed, first {first} ({reason}); mend that first."
            )
        if asked.kind(None, backbone, 1) != "off":
            asked.write("projected", plan, splits, backbone, folder)
            table = cost.load(folder)
            keys = zip(table["pruner"], table["budget"], strict=True)
            costs = {
                (str(a), int(b)): int(macs) for (a, b), macs in zip(keys, table["macs.pruner"], strict=True)
            }
        return Run(
            records.load(folder),
            {"weights": backbone.fingerprint, **prints},
            costs,
            backbone.grid[0] * backbone.grid[1],
        )


def check(path: Path, plugins: tuple[str, ...] = ()) -> Comparison:
    """Measure the baseline's subset again and compare.

    Raises:
        UserError: no usable baseline, or one of other weights or data.
    """
    baseline = read_baseline(path)
    run = measure(baseline["subset"], plugins)
    changed = [name for name, value in baseline["fingerprints"].items() if run.prints.get(name) != value]
    if changed:
        raise UserError(
            f"The baseline {str(path)!r} was made with other {', '.join(changed)}; accept a new one with --accept REASON."
        )
    return compare(files.frame(baseline), run.frame, baseline, run.costs)


def accept(
    path: Path, reason: str, plugins: tuple[str, ...] = (), subset: dict[str, Any] | None = None
) -> None:
    """Measure and store a new baseline with the reason for it; earlier reasons are kept.

    Args:
        subset: what to run, with the keys of SUBSET; by default what the file has, or SUBSET.
    """
    if not reason.strip():
        raise UserError("A new baseline needs a reason; write --accept 'why the numbers may change'.")
    from pruners import load_plugin

    for plugin in plugins:
        load_plugin(plugin)
    before, history = files.accepted(path)
    chosen = subset or before or SUBSET
    backbone = backbones.load(chosen["backbone"])
    run = measure(chosen, plugins, backbone)
    noisy = [measure(chosen, plugins, shaken(backbone, draw, RELATIVE)).frame for draw in range(DRAWS)]
    worst = rounding(run.frame, noisy, run.patches)
    if unsteady := sorted({name[0] for name, cell in worst.items() if cell["tokens"]}):
        some = chosen | {"pruners": ",".join(unsteady)}
        noisy += [
            measure(some, plugins, shaken(backbone, draw, RELATIVE)).frame
            for draw in range(DRAWS, MORE_DRAWS)
        ]
        worst = rounding(run.frame, noisy, run.patches)
    files.write(
        path,
        {
            "format": files.FORMAT,
            "subset": chosen,
            "tolerances": TOLERANCES,
            "fingerprints": run.prints,
            "history": [
                *history,
                {"time": datetime.now(UTC).isoformat(timespec="seconds"), "reason": reason},
            ],
            "patches": run.patches,
            "noise": {"relative": RELATIVE, "draws": [DRAWS, MORE_DRAWS]},
            "cells": files.cells(run.frame, run.costs, worst),
            "rows": run.frame[[*PAIR, *PIXELS]].values.tolist(),
        },
    )
