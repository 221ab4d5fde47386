"""`diagnose`: whether a backbone has what similarity-based pruners rest on."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from harness.commands.options import (
    Checkpoint,
    Data,
    Datasets,
    Debug,
    Device,
    DiagnosedClip,
    DiagnosedLimit,
    DiagnosedRun,
    DiagnosisOut,
    Dtype,
    LabBudgets,
    LabPruners,
    OneBackbone,
    Plugins,
    SamDims,
    Threads,
    check_out,
    import_plugins,
    one_backbone,
)
from harness.commands.tables import Export, export_to

if TYPE_CHECKING:
    from harness.plan import Plan

IMAGES = 24  # per split, if nothing else is asked


def diagnose(
    context: typer.Context,
    backbone: OneBackbone = "glamm-mini",
    datasets: Datasets = "all",
    data: Data = None,
    limit: DiagnosedLimit = IMAGES,
    pruners: LabPruners = "all",
    budgets: LabBudgets = "64,128,192",
    run: DiagnosedRun = None,
    out: DiagnosisOut = None,
    plugin: Plugins = [],  # noqa: B006
    checkpoint: Checkpoint = None,
    clip: DiagnosedClip = None,
    sam_dims: SamDims = None,
    device: Device = "auto",
    dtype: Dtype = "float32",
    threads: Threads = None,
    export: Export = None,
    debug: Debug = False,
) -> None:
    """Measure whether the referent's tokens look less like the text than others do, and what pruners keep of
    them; with --clip alone on CLIP without a language model."""
    from dataclasses import replace

    from harness.commands.header import begin
    from harness.progress import stage
    from harness.ranges import check_numbers

    check_numbers(limit=limit)
    lab = _is_lab(context, clip, checkpoint)
    with begin(f"a diagnosis of {f'CLIP alone, {clip},' if lab else backbone} on device {device}", threads):
        from backbones.device import told
        from harness.diagnosis import similarities as diagnosing
        from harness.engine.ranks import Place
        from harness.plan import Plan, with_settings
        from reports.diagnosis import FOLDER, verdict, write_diagnosis

    check_out(out)
    import_plugins(plugin)
    if lab:
        plan = Plan(
            pruners=pruners,  # type: ignore[arg-type]
            budgets=budgets,  # type: ignore[arg-type]
            datasets=datasets,
            data=str(data) if data else None,
            limit=limit,
            device=device,
            dtype=dtype,
        )
        _laboratory(plan, str(clip), out, export)
        return
    texts = with_settings([one_backbone(backbone)], checkpoint=checkpoint, clip=clip, sam_dims=sam_dims)
    plan = Plan(
        backbones=texts,
        datasets=datasets,
        data=str(data) if data else None,
        limit=limit,
        device=device,
        dtype=dtype,
    )
    pairs = plan.pairs()
    with stage(f"loading {texts[0]}"):
        model = plan.load(Place())
    kept = diagnosing.kept(run, model) if run is not None else None
    found = replace(diagnosing.measure_similarities(model, pairs, plan.limit or 0, plan.data), kept=kept)
    page = write_diagnosis(
        found, out or (run / FOLDER if run else Path("results") / "diagnosis" / model.name)
    )
    print(told(device, model.device), file=sys.stderr)
    print(verdict(found))
    if run is not None and out is None:
        print(f"`python -m harness report {run}` puts it into the run's report.")
    if run is None:
        print(
            "What pruners keep of the referents was not looked at; add --run and the folder of a run of "
            "this backbone."
        )
    print(f"diagnosis: {page}")
    if export is not None:
        from reports.sheets import diagnosis_sheet

        export_to(export, diagnosis_sheet(found))


def _is_lab(context: typer.Context, clip: str | None, checkpoint: Path | None) -> bool:
    """Whether CLIP alone is asked for.

    Raises:
        UserError: an option was given that has no meaning then, or has one only then.
    """
    from harness.commands.settings import given
    from pruners.errors import UserError

    lab = clip is not None and checkpoint is None and not given(context, "backbone")
    others = ("run", "sam_dims") if lab else ("pruners", "budgets")
    for name in others:
        if given(context, name):
            option = f"--{name.replace('_', '-')}"
            raise UserError(
                f"{option} has no meaning for CLIP alone; leave it out, or give --checkpoint DIR, too."
                if lab
                else f"{option} belongs to the laboratory on CLIP alone; give --clip DIR and neither "
                f"--backbone nor --checkpoint, or leave it out."
            )
    return lab


def _laboratory(plan: Plan, clip: str, out: Path | None, export: Path | None) -> None:
    """Measure on CLIP alone."""
    from backbones.clip_alone import load_tower
    from backbones.device import told
    from harness.diagnosis.laboratory import measure_laboratory
    from harness.engine.ranks import Place
    from harness.progress import stage
    from reports.clip_lab import board, findings, lab_sheet, speed, write_laboratory

    pruners, pairs = plan.chosen(), plan.pairs()
    with stage(f"loading CLIP from {clip}"):
        tower = load_tower(clip, Place().device(plan.device), plan.dtype)
    found = measure_laboratory(tower, pairs, plan.limit or 0, pruners, plan.budgets, plan.data)
    page = write_laboratory(found, out or Path("results") / "diagnosis" / tower.name)
    print(told(plan.device, tower.device), file=sys.stderr)
    print(board(found), *findings(found), speed(found), sep="\n\n")
    if found.left_out:
        print(f"\nLeft out, as they need more than CLIP: {', '.join(found.left_out)}.")
    if found.bad:
        print(f"\n{len(found.bad)} images could not be read; {page.name} says why")
    print(f"\nlaboratory: {page}")
    if export is not None:
        export_to(export, lab_sheet(found))
