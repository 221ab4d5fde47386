"""`diagnose`: whether a backbone has what similarity-based pruners rest on."""

from __future__ import annotations

import sys
from pathlib import Path

from harness.commands.options import (
    Checkpoint,
    Clip,
    Data,
    Datasets,
    Debug,
    Device,
    DiagnosedLimit,
    DiagnosedRun,
    DiagnosisOut,
    Dtype,
    OneBackbone,
    Plugins,
    SamDims,
    Threads,
    check_out,
    import_plugins,
    one_backbone,
)
from harness.commands.tables import Export, export_to

IMAGES = 24  # per split, if nothing else is asked


def diagnose(
    backbone: OneBackbone = "glamm-mini",
    datasets: Datasets = "all",
    data: Data = None,
    limit: DiagnosedLimit = IMAGES,
    run: DiagnosedRun = None,
    out: DiagnosisOut = None,
    plugin: Plugins = [],  # noqa: B006
    checkpoint: Checkpoint = None,
    clip: Clip = None,
    sam_dims: SamDims = None,
    device: Device = "auto",
    dtype: Dtype = "float32",
    threads: Threads = None,
    export: Export = None,
    debug: Debug = False,
) -> None:
    """Measure whether the referent's tokens look less like the text than others do, and what pruners keep of
    them."""
    from dataclasses import replace

    from harness.commands.header import begin
    from harness.progress import stage
    from harness.ranges import check_numbers

    check_numbers(limit=limit)
    with begin(f"a diagnosis of {backbone} on device {device}", threads):
        from backbones.device import told
        from harness.diagnosis import similarities as diagnosing
        from harness.engine.ranks import Place
        from harness.plan import Plan, with_settings
        from reports.diagnosis import FOLDER, verdict, write_diagnosis

    check_out(out)
    import_plugins(plugin)
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
