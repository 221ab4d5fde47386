"""`reproduce`: a published table again, on this machine, and number by number whether it holds."""

from __future__ import annotations

import gc
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from harness.commands.options import (
    Anyway,
    BatchSize,
    Checkpoint,
    Clip,
    Data,
    Debug,
    Device,
    Download,
    DryRun,
    Dtype,
    Plugins,
    PrintedLimit,
    PublishedName,
    ReproducedOut,
    check_out,
    import_plugins,
)
from harness.commands.settings import given

if TYPE_CHECKING:
    from harness.plan import Plan
    from harness.reproduce.needs import Needs
    from harness.reproduce.spec import Spec

LIST = "list"


def reproduce(
    context: typer.Context,
    name: PublishedName = LIST,
    data: Data = None,
    checkpoint: Checkpoint = None,
    clip: Clip = None,
    limit: PrintedLimit = None,
    device: Device = "auto",
    dtype: Dtype = "float32",
    batch_size: BatchSize = 16,
    out: ReproducedOut = None,
    dry_run: DryRun = False,
    download: Download = False,
    anyway: Anyway = False,
    plugin: Plugins = [],  # noqa: B006
    debug: Debug = False,
) -> None:
    """Run a published table again: what it needs, the doctor, a proof of the set-up on a sample, the sweep,
    and a verdict per number. Exit code 1 if a number differs or the set-up is not proven, 2 if something is
    missing."""
    from harness.plan import load_plugins
    from harness.reproduce import needs as needing
    from harness.reproduce.costs import check_metrics
    from reports import publication, reproduced

    check_out(out)
    if name == LIST:
        import_plugins(plugin)
        print(*_listed(data), sep="\n")
        return
    spec = publication.spec(name)
    check_metrics(spec)
    folders = {"checkpoint": checkpoint, "clip": clip}
    plan = _plan(spec, context, data, limit, device, dtype, batch_size)
    plan = replace(plan, plugins=(*plan.plugins, *plugin))
    load_plugins([plan])
    needs = needing.look(spec, folders, data)
    if dry_run:
        from harness.reproduce import estimates

        print(*reproduced.needs_lines(spec, needs, estimates.of(spec, plan)), sep="\n")
        return
    if download:
        for path in needing.fetch(spec, folders):
            print(f"fetched and verified: {path}", file=sys.stderr)
        needs = needing.look(spec, folders, data)
    base = out or Path("results") / "reproduce" / spec.name
    if not _scored(spec):
        _costs_alone(spec, needing.ready(spec, plan, folders), bool(needs.missing), base)
        return
    if not anyway:
        needing.refuse(needs, download)
    _run(spec, needing.ready(spec, plan, folders), needs, anyway, base)


def _plan(
    spec: Spec,
    context: typer.Context,
    data: Path | None,
    limit: int | None,
    device: str,
    dtype: str,
    batch_size: int,
) -> Plan:
    """The spec's plan as it is run here: options that are given win."""
    from pruners.errors import UserError

    options = {"device": device, "dtype": dtype, "batch_size": batch_size}
    own: dict[str, Any] = {option: value for option, value in options.items() if given(context, option)}
    most = spec.plan.limit
    if limit and most and limit > most:
        raise UserError(
            f"--limit {limit} is more than the {most} images per split that {spec.name} prints numbers of; "
            f"give {most} or fewer."
        )
    plan = replace(spec.plan, data=str(data) if data else None, limit=limit or most, **own)
    return replace(plan, costs=plan.costs or "off")


def _scored(spec: Spec) -> bool:
    """Whether a spec prints anything beside costs."""
    from harness.reproduce.costs import is_cost

    return not all(map(is_cost, spec.metrics))


def _run(spec: Spec, plan: Plan, needs: Needs, anyway: bool, base: Path) -> None:
    """Doctor, proof, sweep, table."""
    from backbones.device import told
    from harness.commands.sweep import evaluate
    from harness.engine.ranks import here
    from harness.engine.runner import Way
    from harness.reproduce import check
    from harness.reproduce.costs import judge_costs
    from harness.reproduce.proof import prove
    from pruners.errors import UserError
    from reports import reproduced

    same: dict[str, bool] = {}
    wrong = 0
    for finding in check.examine(spec, plan, needs, same):
        print(finding, flush=True)
        wrong += finding.level == "wrong"
    if wrong and not anyway:
        raise UserError(f"The doctor found {wrong} wrong (above); mend that, or go on with --anyway.")
    place = here()
    _alone(place.world, plan, base)
    backbone = plan.load(place)
    print(told(plan.device, backbone.device), file=sys.stderr)
    workers = 2 if backbone.device.startswith("cuda") else 0
    proof = prove(spec, plan, backbone, base / "proof", same, Way(place=place, workers=workers))
    print(*reproduced.proof_lines(spec, proof), sep="\n", flush=True)
    if not proof.stands and not anyway:
        print(f"stopped before anything else ran: {spec.name} is not proven here; --anyway goes on")
        raise typer.Exit(1)
    del backbone
    gc.collect()  # of the GPU, too, before the sweep loads it again
    done = evaluate(plan, base / "run")
    cells = [
        *reproduced.cells_of(spec, done.folders, same, proof.draw),
        *reproduced.of_costs(judge_costs(spec, done.folder)),
    ]
    _tell(spec, cells, proof, list(_remarks(spec, plan, proof, same)), base)


def _alone(world: int, plan: Plan, base: Path) -> None:
    """Write the plan down, and refuse to be one of several processes.

    Raises:
        UserError: a launcher started several, or the folder cannot be written.
    """
    import json

    from pruners.errors import UserError

    file = base / "plan.json"
    try:
        base.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(plan.resolved().to_json(), indent=2) + "\n", encoding="utf-8")
    except OSError as error:
        raise UserError(
            f"Cannot write to {str(base)!r} ({error.strerror}); give --out a folder that you may write."
        ) from error
    if world > 1:
        raise UserError(
            f"reproduce is one process, and a launcher started {world}; fill its run with the launcher and "
            f"python -m harness --from {file} --out {base / 'run'}, then give it again without."
        )


def _remarks(spec: Spec, plan: Plan, proof: Any, same: dict[str, bool]) -> Iterator[str]:
    """What else a reader has to know of this run."""
    if plan.limit and plan.limit != spec.plan.limit:
        yield f"Only the first {plan.limit} images of each split were asked."
    if others := [name for name, known in same.items() if not known]:
        yield (
            f"Whether the images of {', '.join(others)} are those of the print is not known, so their "
            f"intervals are those of other images."
        )
    if not proof.stands:
        yield "The set-up was not proven: the unpruned row lies outside of its band (--anyway)."


def _costs_alone(spec: Spec, plan: Plan, missing: bool, base: Path) -> None:
    """A table of costs: projected from shapes, and measured where weights and a GPU are here."""
    from backbones.device import resolve
    from harness.commands.sweep import evaluate
    from harness.reproduce.costs import judge_costs
    from reports import reproduced

    folder, remarks = None, []
    if not missing and resolve(plan.device).startswith("cuda"):
        folder = evaluate(plan, base / "run").folder
    else:
        remarks.append(
            "Projected from shapes alone; times were not measured (that takes weights, data and a GPU)."
        )
    _tell(spec, reproduced.of_costs(judge_costs(spec, folder)), None, remarks, base)


def _tell(spec: Spec, cells: Any, proof: Any, remarks: list[str], base: Path) -> None:
    from reports import reproduced

    written = reproduced.write(spec, cells, proof, remarks, base)
    print(written[0].read_text(encoding="utf-8"))
    print("reproduced: " + "\n            ".join(map(str, written)))
    if "differs" in reproduced.verdicts(cells):
        raise typer.Exit(1)


def _listed(data: Path | None) -> Iterator[str]:
    """Every spec in a line."""
    import pandas as pd

    from harness.reproduce import needs as needing
    from reports import publication

    rows = []
    for spec in publication.specs():
        missing = needing.look(spec, {}, data).missing
        numbers = sum(len(spec.cells(metric)) for metric in spec.metrics)
        what = ", ".join(dict.fromkeys(one.what.split()[0] for one in missing))
        able = "yes" if not missing else f"no: {what} missing" if _scored(spec) else "projected alone"
        rows.append(
            {
                "name": spec.name,
                "table": spec.title,
                "backbone": spec.backbone,
                "data": ", ".join(dict.fromkeys(dataset for dataset, _ in spec.columns)),
                "numbers": numbers,
                "runs here": able,
            }
        )
    yield pd.DataFrame(rows).to_markdown(index=False, disable_numparse=True)
    yield "python -m harness reproduce NAME --dry-run says what one needs; the path of a TOML file is a spec"
