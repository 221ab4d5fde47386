"""`study`: what positions, or answers, do to every method at every budget; what placements of a budget
cost."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path

import typer

from harness.commands.options import (
    Axis,
    BatchSize,
    Data,
    Datasets,
    Debug,
    Device,
    Dtype,
    Frames,
    Gpu,
    Limit,
    Plugins,
    Protocol,
    Pruners,
    Seed,
    StudiedBackbones,
    StudiedBudgets,
    StudyOut,
    TextTokens,
    Threads,
    check_out,
    import_plugins,
    one_backbone,
)
from harness.commands.tables import Export, export_to

PLACEMENTS = "placements"
# backbone and budgets, where none are given
USUAL: tuple[str, str] = ("glamm-mini", "64,128,192")
PLACED: tuple[str, str] = ("videoglamm-3.8b", "576,196,81")


def study(
    context: typer.Context,
    axis: Axis,
    pruners: Pruners = "all",
    budgets: StudiedBudgets = "",
    backbones: StudiedBackbones = "",
    datasets: Datasets = "all",
    protocol: Protocol = None,
    limit: Limit = None,
    seed: Seed = 0,
    data: Data = None,
    device: Device = "auto",
    dtype: Dtype = "float32",
    batch_size: BatchSize = 16,
    frames: Frames = None,
    text_tokens: TextTokens = None,
    threads: Threads = None,
    gpu: Gpu = "h100",
    out: StudyOut = None,
    plugin: Plugins = [],  # noqa: B006
    export: Export = None,
    debug: Debug = False,
) -> None:
    """Run all methods both ways and compare them in pairs: a sentence, a table and a figure per backbone. Of
    placements nothing runs: --frames, --text-tokens and --gpu are theirs."""
    from harness.commands.header import begin

    with begin(f"the study {axis}", threads):
        from harness.commands.sweep import evaluate
        from harness.plan import Plan
        from harness.ranges import check_numbers
        from pruners.base import UserError, nearest
        from reports.sheets import study_sheet
        from reports.study import AXES, markdown, write_study
        from reports.study import study as compare

    check_numbers(frames=frames, text_tokens=text_tokens)
    check_out(out)
    known = (*AXES, PLACEMENTS)
    if axis not in known:
        raise UserError(f"There is no study {axis!r}; there are {', '.join(known)}.{nearest(axis, known)}")
    _check_given(context, axis)
    usual = PLACED if axis == PLACEMENTS else USUAL
    backbones, budgets = backbones or usual[0], budgets or usual[1]
    command = shlex.join(["python", "-m", "harness", *sys.argv[1:]])
    if axis == PLACEMENTS:
        import_plugins(plugin)
        _placements(backbones, budgets, frames, text_tokens, gpu, out, command, export)
        return
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
    sheets = []
    for text in plan.backbones:
        name = text.partition("(")[0].strip()
        folder = base / name if len(plan.backbones) > 1 else base
        result = evaluate(plan.on(text), folder / "run")
        found = compare(result.folders, axis)
        written = write_study(found, folder, command)
        print(f"{markdown(found)}\n\n{found.sentence}\n\nstudy: " + "\n       ".join(map(str, written)))
        sheets.append(study_sheet(found))
    export_to(export, *sheets)


def _check_given(context: typer.Context, axis: str) -> None:
    """Raise UserError if an option was given that has no meaning in this study."""
    from harness.commands.settings import given
    from pruners.errors import UserError

    of_shapes = {"frames", "text_tokens", "gpu"}
    shared = {"axis", "budgets", "backbones", "out", "plugin", "export", "debug"}
    for one in context.command.params:
        meant = one.name in shared or (one.name in of_shapes) == (axis == PLACEMENTS)
        if not meant and given(context, str(one.name)):
            others = PLACEMENTS if one.name in of_shapes else "positions and answers"
            raise UserError(f"{one.opts[0]} belongs to the study of {others}; leave it out of {axis}.")


def _placements(
    backbone: str,
    budgets: str,
    frames: int | None,
    text: int | None,
    gpu: str,
    out: Path | None,
    command: str,
    export: Path | None,
) -> None:
    """Project every placement at every budget."""
    import backbones
    from harness.cost.placements import compare
    from harness.cost.roofline import gpu as sheet
    from harness.plan import Plan
    from reports import placements, sheets

    plan = Plan(budgets=budgets, backbones=one_backbone(backbone))  # type: ignore[arg-type]
    settings = backbones.one(plan.backbones[0])
    found = compare(settings, plan.budgets, frames, text, sheet(gpu))
    written = placements.write(found, out or Path("results") / f"study-{PLACEMENTS}", command)
    said = placements.markdown(found), placements.sentence(found)
    print("\n\n".join(said), "\n\nstudy: " + "\n       ".join(map(str, written)), sep="")
    export_to(export, sheets.placements_sheet(found))
