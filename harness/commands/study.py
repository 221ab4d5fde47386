"""`study`: what positions, or answers, do to every method at every budget; what placements of a budget
cost; why the rows of a run lose; how few tokens would be enough."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from harness.commands.options import (
    Axis,
    BatchSize,
    Data,
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
    StudiedDatasets,
    StudiedRun,
    StudyOut,
    TextTokens,
    Threads,
    check_out,
    import_plugins,
    one_backbone,
)
from harness.commands.tables import Export, export_to

if TYPE_CHECKING:
    from harness.plan import Plan

PLACEMENTS, ATLAS, LADDER = "placements", "atlas", "ladder"
# backbone and budgets, where none are given
USUAL: tuple[str, str] = ("glamm-mini", "64,128,192")
PLACED: tuple[str, str] = ("videoglamm-3.8b", "576,196,81")
# what the ladder looks at where nothing is asked: its rows take minutes
CLIMBED: tuple[str, int] = ("refshapes:val", 12)
# options that mean something in every study, in those that run all methods both ways, and in the others
ALWAYS = {"axis", "out", "plugin", "export", "debug"}
CLIMBS = {"budgets", "backbones", "datasets", "limit", "seed", "data", "device", "dtype", "batch_size"}
CLIMBS |= {"threads"}
PAIRED = CLIMBS | {"pruners", "protocol"}
MEANT = {
    PLACEMENTS: {"budgets", "backbones", "frames", "text_tokens", "gpu"},
    ATLAS: {"run", "threads"},
    LADDER: CLIMBS | {"run"},
}


def study(
    context: typer.Context,
    axis: Axis,
    pruners: Pruners = "all",
    budgets: StudiedBudgets = "",
    backbones: StudiedBackbones = "",
    datasets: StudiedDatasets = "",
    protocol: Protocol = None,
    limit: Limit = None,
    seed: Seed = 0,
    data: Data = None,
    run: StudiedRun = None,
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
    placements nothing runs: --frames, --text-tokens and --gpu are theirs. An atlas reads --run, a ladder runs
    one backbone."""
    from harness.commands.header import begin
    from harness.ranges import check_numbers

    check_numbers(frames=frames, text_tokens=text_tokens, limit=limit, seed=seed)
    with begin(f"the study {axis}", threads):
        from harness.commands.sweep import evaluate
        from harness.plan import Plan
        from pruners.base import UserError, nearest
        from reports.sheets import study_sheet
        from reports.study import AXES, markdown, write_study
        from reports.study import study as compare

    check_out(out)
    known = (*AXES, PLACEMENTS, ATLAS, LADDER)
    if axis not in known:
        raise UserError(f"There is no study {axis!r}; there are {', '.join(known)}.{nearest(axis, known)}")
    _check_given(context, axis)
    command = shlex.join(["python", "-m", "harness", *sys.argv[1:]])
    if axis == ATLAS:
        _atlas(run, out, command, export)
        return
    usual = PLACED if axis == PLACEMENTS else USUAL
    backbones = backbones or usual[0]
    if axis == LADDER:
        import_plugins(plugin)
        limit = CLIMBED[1] if limit is None else limit
        asked = Plan(
            budgets=budgets or "64",  # type: ignore[arg-type]
            backbones=one_backbone(backbones),  # type: ignore[arg-type]
            datasets=datasets or CLIMBED[0],
            limit=limit,
            seed=seed,
            data=str(data) if data else None,
            device=device,
            dtype=dtype,
            batch_size=batch_size,
        )
        _ladder(asked, bool(budgets), run, out, command, export)
        return
    datasets, budgets = datasets or "all", budgets or usual[1]
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

    for one in context.command.params:
        name = str(one.name)
        if name in ALWAYS or name in MEANT.get(axis, PAIRED) or not given(context, name):
            continue
        others = [study for study, meant in MEANT.items() if name in meant]
        others = [*(["positions", "answers"] if name in PAIRED else []), *others]
        raise UserError(
            f"{one.opts[0]} belongs to the study of {' and '.join(others)}; leave it out of {axis}."
        )


def _atlas(run: Path | None, out: Path | None, command: str, export: Path | None) -> None:
    """Measure the losses of a recorded run."""
    from pruners.base import UserError

    if run is None:
        raise UserError(
            f"The study {ATLAS} is of a recorded run; give its folder, e.g. --run results/runs/<id>."
        )
    from harness.diagnosis.atlas import atlas
    from reports.atlas import FOLDER, atlas_sheet, findings, write_atlas

    found = atlas(run)
    written = write_atlas(found, out or run / FOLDER, command)
    print("\n\n".join(findings(found).values()), "\n\natlas: " + "\n       ".join(map(str, written)), sep="")
    export_to(export, atlas_sheet(found))


def _ladder(
    plan: Plan, asked: bool, run: Path | None, out: Path | None, command: str, export: Path | None
) -> None:
    """Run the ladder's rungs on one backbone.

    Args:
        asked: whether the plan's budgets were given.
    """
    from backbones.device import told
    from harness.diagnosis import budgets, ladder
    from harness.engine.budgets import tokens_of
    from harness.engine.ranks import Place
    from harness.progress import stage
    from reports.ladder import ladder_sheet, rungs_table, sentence, write_ladder

    pairs = plan.pairs()
    with stage(f"loading {plan.backbones[0]}"):
        model = plan.load(Place())
    print(told(plan.device, model.device), file=sys.stderr)
    methods = budgets.of_run(run, model.fingerprint, model.name) if run is not None else None
    patches = model.grid[0] * model.grid[1]
    counts = (
        [tokens_of(text, patches) for text in plan.budgets]
        if asked
        else [count for count in ladder.COUNTS if count < patches]
    )
    found = ladder.measure_ladder(model, pairs, plan.limit or 0, counts, plan.seed, plan.data)
    needs = budgets.of_ladder(found)
    folder = out or Path("results") / f"study-{LADDER}" / model.name
    written = write_ladder(found, needs, methods, folder, command)
    print(
        rungs_table(needs),
        sentence(found, needs),
        "ladder: " + "\n        ".join(map(str, written)),
        sep="\n\n",
    )
    export_to(export, ladder_sheet(found, needs))


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
