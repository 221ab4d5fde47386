"""`python -m tests.bench.costs`: what measuring costs costs, and whether its shortcuts change a figure.

First the phase as a run has it, glamm-mini and all pruners at three budgets: seconds, and how wide the 95 %
intervals of the speed-ups are. Then a few rows in whole passes beside passes without the stages that all rows
share, in rounds of both, for every number of threads: milliseconds of processor time. How threads wait is the
environment's business (`GOMP_SPINCOUNT`).
"""

from __future__ import annotations

import argparse
import os
import random
import statistics
import tempfile
import time
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

import torch

import backbones
from harness.cost import cost_samples, measure
from harness.cost.lines import lines_of
from harness.cost.store import BASELINE, by_pass
from harness.engine import runner
from harness.plan import Plan
from pruners import parse
from reports.costs import MEDIAN_ERROR

ROWS = (("none", 576), ("visionzip", 64), ("visionzip", 192), ("litelvlm", 64), ("fastv", 128))
BUDGETS = (64, 128, 192)


def widths(folder: Path) -> dict[str, list[float]]:
    """Half the 95 % interval of every row's speed-up, in percent, from the ratios of its rounds."""
    passes, found = by_pass(cost_samples(folder)), defaultdict(list)
    unpruned = passes.xs(BASELINE, level="pruner").groupby("round").median()
    for (pruner, _), mine in passes.groupby(level=["pruner", "budget"]):
        for name, stage in (("prefill", "span"), ("whole pass", "whole")):
            ratios = unpruned[stage] / mine.groupby("round")[stage].median()
            low, middle, high = ratios.quantile([0.05, 0.5, 0.95])
            if pruner != BASELINE:
                half = MEDIAN_ERROR / len(ratios) ** 0.5 * (high - low) / 2
                found[name].append(100 * half / middle)
    return found


def phase(plan: runner.Plan, splits: Sequence[runner.Split], backbone: backbones.base.Backbone) -> None:
    """Measure as a run does, and print what it took."""
    with tempfile.TemporaryDirectory() as place:
        wall, busy = time.perf_counter(), time.process_time()
        measure.measure_costs(plan, splits, backbone, Path(place))
        wall, busy = time.perf_counter() - wall, time.process_time() - busy
        print(f"measuring: {wall:.1f} s, {busy:.1f} s of processors, {measure.ROUNDS} rounds")
        for name, found in widths(Path(place)).items():
            print(
                f"speed-up {name}: 95 % interval +-{statistics.median(found):.1f} % of it in the median row, "
                f"+-{max(found):.1f} % in the widest"
            )


def compare(
    staged: measure.Staged, inputs: measure.Inputs, lines: Sequence[measure.Line], rounds: int
) -> None:
    """Print medians of passes that were whole and of passes without the fixed stages."""
    common = measure.Common.of(staged, inputs)
    spent: dict[tuple[str, int, bool], list[dict[str, float]]] = defaultdict(list)
    for number in range(rounds + 1):  # the first one warms up
        turns = [(line, left_out) for line in lines for left_out in (None, common)]
        for line, left_out in random.Random(number).sample(turns, len(turns)):
            found = measure.clock(staged, inputs, line, left_out)
            if number:
                spent[line.name, line.budget, left_out is None].append(found)
    for line in lines:
        whole, own = (spent[line.name, line.budget, of] for of in (True, False))
        totals = [one["total"] for one in whole]
        fixed = [sum(one[stage] for stage in staged.fixed) for one in whole]
        low, high = (statistics.quantiles(totals, n=20)[k] for k in (0, -1))
        before, apart = (statistics.median(one["prefill"] for one in passes) for passes in (whole, own))
        together = statistics.median(fixed) + statistics.median(one["total"] for one in own)
        print(
            f"{line.name} at {line.budget}: whole {statistics.median(totals):.1f} ms ({low:.1f} to "
            f"{high:.1f}), put together {together:.1f}; prefill in whole passes {before:.2f}, apart "
            f"{apart:.2f}"
        )


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench.costs", description=__doc__)
    parser.add_argument("--rounds", type=int, default=25, help="of the comparison (default %(default)s)")
    parser.add_argument("--threads", type=int, nargs="+", default=[1])
    parser.add_argument("--compare-only", action="store_true", help="leave the phase out")
    asked = parser.parse_args()
    backbone = backbones.load("glamm-mini")
    chosen = Plan("all", BUDGETS).chosen()
    plan = runner.Plan(tuple(chosen), BUDGETS, (("refshapes", "val"),), None, 1, 0)
    splits = runner.prepare(plan, backbone)
    if not asked.compare_only:
        phase(plan, splits, backbone)
    staged = measure.staged_of(backbone)
    inputs = measure.typical(plan, splits, backbone, staged).inputs
    methods = ",".join(dict.fromkeys(name for name, _ in ROWS))
    lines = lines_of(parse(methods), BUDGETS, 0, backbone.grid, backbone.num_layers)
    lines = [line for line in lines if (line.name, line.budget) in ROWS]
    for threads in asked.threads:
        torch.set_num_threads(threads)
        print(f"{threads} thread(s), GOMP_SPINCOUNT {os.environ.get('GOMP_SPINCOUNT', 'not set')}:")
        compare(staged, inputs, lines, asked.rounds)


if __name__ == "__main__":
    main()
