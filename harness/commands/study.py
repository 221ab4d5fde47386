"""`study`: what positions, or answers, do to every method at every budget."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import Annotated

import typer

from harness.commands.options import (
    Backbones,
    BatchSize,
    Budgets,
    Data,
    Datasets,
    Debug,
    Device,
    Dtype,
    Limit,
    Out,
    Plugins,
    Protocol,
    Pruners,
    Seed,
)

Axis = Annotated[
    str,
    typer.Argument(
        metavar="AXIS",
        help="positions: kept tokens numbered anew, or with their position ids; answers: forced or generated",
    ),
]


def study(
    axis: Axis,
    pruners: Pruners = "all",
    budgets: Budgets = "64,128,192",
    backbones: Backbones = "glamm-mini",
    datasets: Datasets = "all",
    protocol: Protocol = None,
    limit: Limit = None,
    seed: Seed = 0,
    data: Data = None,
    device: Device = "cpu",
    dtype: Dtype = "float32",
    batch_size: BatchSize = 16,
    out: Out = None,
    plugin: Plugins = [],  # noqa: B006
    debug: Debug = False,
) -> None:
    """Run all methods both ways and compare them in pairs: a sentence, a table and a figure per backbone."""
    from harness.commands.sweep import evaluate
    from harness.plan import Plan
    from pruners.base import UserError, nearest
    from reports.study import AXES, markdown, write_study
    from reports.study import study as compare

    if axis not in AXES:
        raise UserError(f"There is no study {axis!r}; there are {', '.join(AXES)}.{nearest(axis, AXES)}")
    both = {axis: AXES[axis][0]}
    plan = Plan(
        pruners=pruners,  # type: ignore[arg-type]
        budgets=budgets,  # type: ignore[arg-type]
        backbones=backbones,  # type: ignore[arg-type]
        datasets=datasets,
        protocol=protocol,
        limit=limit,
        seed=seed,
        data=str(data) if data else None,
        device=device,
        dtype=dtype,
        batch_size=batch_size,
        costs="off",
        plugins=tuple(plugin),
        **both,  # type: ignore[arg-type]
    )
    base = out or Path("results") / f"study-{axis}"
    command = shlex.join(["python", "-m", "harness", *sys.argv[1:]])
    for text in plan.backbones:
        name = text.partition("(")[0].strip()
        folder = base / name if len(plan.backbones) > 1 else base
        result = evaluate(plan.on(text), folder / "run")
        found = compare(result.folders, axis)
        written = write_study(found, folder, command)
        print(f"{markdown(found)}\n\n{found.sentence}\n\nstudy: " + "\n       ".join(map(str, written)))
