"""A sweep, from the command line and from Python: plan in, run folders and their report out."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from harness.commands.options import (
    Answers,
    Attn,
    Backbones,
    BatchSize,
    Budgets,
    Checkpoint,
    Clip,
    Costs,
    Data,
    Datasets,
    Debug,
    Device,
    Dtype,
    Force,
    From,
    ImageBackend,
    KeepCode,
    Limit,
    LocalRank,
    MaxFailures,
    Out,
    Plugins,
    Positions,
    Protocol,
    Pruners,
    SamDims,
    Seed,
    Seeds,
    Settings,
    Share,
    TensorParallel,
    Threads,
    Version,
    Workers,
    check_out,
)
from harness.commands.settings import given as was_given
from harness.commands.tables import Export, Full, export_to
from harness.plan import Plan

if TYPE_CHECKING:
    import pandas as pd

    from backbones.base import Backbone
    from harness.engine.runner import Split, Way
    from reports import Report

ASKED = {"plugin": "plugins"}  # options that have another name in a plan
PRUNERS, BUDGETS, BACKBONES, POSITIONS = map(
    ",".join, (Plan.pruners, Plan.budgets, Plan.backbones, Plan.positions)
)


def sweep(
    context: typer.Context,
    pruners: Pruners = PRUNERS,
    budgets: Budgets = BUDGETS,
    backbones: Backbones = BACKBONES,
    datasets: Datasets = Plan.datasets,
    protocol: Protocol = Plan.protocol,
    positions: Positions = POSITIONS,
    answers: Answers = "",
    limit: Limit = Plan.limit,
    seed: Seed = Plan.seed,
    seeds: Seeds = Plan.seeds,
    device: Device = Plan.device,
    dtype: Dtype = Plan.dtype,
    attn: Attn = Plan.attn,
    image_backend: ImageBackend = Plan.image_backend,
    batch_size: BatchSize = Plan.batch_size,
    workers: Workers = None,
    threads: Threads = None,
    share: Share = True,
    max_failures: MaxFailures = 0.01,
    force: Force = False,
    keep_code: KeepCode = False,
    tensor_parallel: TensorParallel = 1,
    local_rank: LocalRank = None,
    out: Out = None,
    plugin: Plugins = [],  # noqa: B006
    checkpoint: Checkpoint = None,
    clip: Clip = None,
    sam_dims: SamDims = None,
    data: Data = None,
    costs: Costs = Plan.costs,
    again: From = None,
    settings: Settings = None,
    full: Full = False,
    export: Export = None,
    debug: Debug = False,
    version: Version = False,
) -> None:
    """Run a sweep and print its leaderboard."""
    given = {name: value for name, value in context.params.items() if was_given(context, name)}
    if context.invoked_subcommand is not None:
        _none_before(context, given)
        return
    from harness.commands.header import begin, sweep_header
    from harness.ranges import check_numbers

    check_numbers(
        limit=limit,
        seed=seed,
        seeds=seeds,
        batch_size=batch_size,
        workers=workers,
        max_failures=max_failures,
        tensor_parallel=tensor_parallel,
    )
    first, more = sweep_header(context.params, again is not None)
    with begin(first, threads, more):
        plans = _asked(given, again, {"checkpoint": checkpoint, "clip": clip, "sam_dims": sam_dims})
    how = {"share": share, "max_failures": max_failures, "keep_code": keep_code, "processes": None}
    sheets = []
    for done in _runs(plans, out, force, workers, tensor_parallel, how):
        if done.report is not None:
            _tell(done.folder, done.report, full)
            sheets += [done.report.sheet()] if export is not None else []
    export_to(export, *sheets)


def _asked(given: dict[str, Any], again: Path | None, own: dict[str, Any]) -> list[Plan]:
    """The plans of a command line.

    Args:
        given: the options that were given.
        again: file that is run again, under the options that are given.
        own: options of single backbones.
    """
    from harness.plan import load_plugins, read_plans, with_settings

    fields: dict[str, Any] = {
        ASKED.get(name, name): tuple(value) if name == "plugin" else value
        for name, value in given.items()
        if ASKED.get(name, name) in Plan.__dataclass_fields__
    }
    plans = [replace(plan, **fields) for plan in (read_plans(again) if again is not None else [Plan()])]
    load_plugins(plans)
    return [replace(plan, backbones=with_settings(plan.backbones, **own)) for plan in plans]


def _none_before(context: typer.Context, given: Iterable[str]) -> None:
    """Raise UserError if options stand before a command, which does not see them."""
    if lost := [one.opts[0] for one in context.command.params if one.name in given and one.name != "debug"]:
        from pruners.errors import UserError

        command = context.invoked_subcommand
        raise UserError(
            f"{', '.join(lost)} before the command {command} would be lost; write options behind it, see "
            f"python -m harness {command} --help."
        )


@dataclass(frozen=True)
class Result:
    """What a plan gave.

    Attributes:
        folders: run folders, one per backbone and kind of answers.
        leaderboard: their tables with all that a reader needs to trust them, as markdown.
    """

    folders: tuple[Path, ...]
    leaderboard: str

    @property
    def folder(self) -> Path:
        """The run folder, of the first backbone where there are several."""
        return self.folders[0]

    @cached_property
    def frame(self) -> pd.DataFrame:
        """One row per cell and expression, as `harness.store.records.load_records`, of all folders."""
        import pandas as pd

        from harness.store.records import load_records

        return pd.concat([load_records(folder) for folder in self.folders], ignore_index=True)


def evaluate(
    plan: Plan | Sequence[Plan],
    out: str | Path | None = None,
    *,
    force: bool = False,
    workers: int | None = None,
    share: bool = True,
    max_failures: float = 0.01,
    keep_code: bool = False,
    tensor_parallel: int = 1,
    threads: int | None = None,
    processes: int = 1,
) -> Result:
    """Run a plan, as the command line does: what is there already is not computed again.

    Args:
        plan: what to run; several are run into one folder, which holds all that they ask for.
        out: run folder, with a folder in it for each of several backbones or kinds of answers; by default
            below results/runs, named after what was asked.
        force: start anew beside a run that is there.
        workers: processes that read images ahead; None for 2 with a GPU, else 0.
        share: compute once what cells have in common.
        max_failures: share of the samples that may fail before the run stops.
        keep_code: go on with cells that other code began.
        tensor_parallel: processes that share one language model, under a launcher.
        threads: of torch, set for the whole process; None leaves them as they are.
        processes: that evaluate on the CPU, of one thread each; the others are forked from this one, which
            is to have no threads of its own then.

    Raises:
        UserError: something of the plan is not here, cannot be, or does not fit the folder.
    """
    from harness.plan import load_plugins

    plans = [plan] if isinstance(plan, Plan) else list(plan)
    load_plugins(plans)
    if threads is not None:
        from harness.engine import threads as threading

        threading.apply(threading.choose(threads))
    how = {"share": share, "max_failures": max_failures, "keep_code": keep_code, "processes": processes}
    done = list(_runs(plans, Path(out) if out is not None else None, force, workers, tensor_parallel, how))
    texts = [one.report.written[0].read_text(encoding="utf-8") for one in done if one.report]
    return Result(tuple(one.folder for one in done), "\n".join(texts))


@dataclass(frozen=True)
class _Done:
    """A run folder and its report; none from a process that is not the launcher's first."""

    folder: Path
    report: Report | None


def _runs(
    plans: Sequence[Plan],
    out: Path | None,
    force: bool,
    workers: int | None,
    tensor_parallel: int,
    how: dict[str, Any],
) -> Iterator[_Done]:
    """Run the plans on every backbone that they name and with all answers, one folder after the other."""
    import backbones
    from harness.engine.ranks import here
    from harness.engine.runner import Way
    from harness.plan import check_costs
    from harness.ranges import check_numbers
    from pruners.base import UserError

    # whatever is wrong shows before a model is loaded
    check_numbers(workers=workers, tensor_parallel=tensor_parallel, max_failures=how["max_failures"])
    check_out(out)
    for plan in plans:
        check_costs(plan.costs, tensor_parallel)
        plan.chosen()
    texts = list(dict.fromkeys(text for plan in plans for text in plan.backbones))
    if not texts:
        raise UserError(f"--backbones is empty; there are {', '.join(backbones.names())}.")
    settings = [backbones.one(text) for text in texts]
    for text, one in zip(texts, settings, strict=True):
        for plan in plans:
            if text in plan.backbones:
                plan.pairs_of(one)
            one.check_protocol(plan.protocol or one.protocol)
            one.check_can("positions", plan.positions)
            one.check_can("answers", plan.answers)
    for plan in plans:
        plan.check_looked_at(
            [one for text, one in zip(texts, settings, strict=True) if text in plan.backbones]
        )
    names = [one.name for one in settings]
    if len(set(names)) < len(names) and out is not None:
        raise UserError(
            "--out has a folder per backbone, and two of --backbones have one name; give one at a time."
        )
    place = here(tensor_parallel)
    devices = [place.device(plan.device) for plan in plans]
    if workers is None:
        workers = 2 if devices[0].startswith("cuda") else 0
    way = Way(place=place, workers=workers, **how)
    for text, one in zip(texts, settings, strict=True):
        own = [plan.on(text) for plan in plans if text in plan.backbones]
        asked = list(dict.fromkeys(answers for plan in own for answers in plan.answers))
        for answers in asked:
            parts = [*([one.name] if len(texts) > 1 else []), *([answers] if len(asked) > 1 else [])]
            base = out / "-".join(parts) if out is not None and parts else out
            these = [replace(plan, answers=(answers,)) for plan in own if answers in plan.answers]
            yield _run(these, base, force, way, tensor_parallel)


def _run(plans: Sequence[Plan], out: Path | None, force: bool, way: Way, tensor_parallel: int) -> _Done:
    """Run plans of one backbone into one folder."""
    from harness.cost import kinds
    from harness.engine import interrupts, runner
    from harness.progress import say, stage
    from harness.store import folders

    with stage(f"loading {plans[0].backbones[0]}"):
        backbone = plans[0].load(way.place, tensor_parallel)
    kind = kinds.kind(plans[-1].costs, backbone, tensor_parallel)
    prepared = [runner.prepare(plan, backbone) for plan in plans]
    run = runner.identity([split for splits in prepared for split in splits])
    folder = folders.choose(out, run, force=force, world=way.place.world)
    say(*_header(prepared, backbone, folder, kind))
    interrupts.goes_on(*(["--backbones", plans[0].backbones[0], "--out", str(folder)] if force else []))
    finished = [
        runner.run(plan, backbone, splits, folder, way) for plan, splits in zip(plans, prepared, strict=True)
    ]
    if not all(finished) or way.place.rank > 0:
        return _Done(folder, None)
    kinds.write_costs(kind, plans[-1], prepared[-1], backbone, folder)

    from reports import PARTS, report

    with stage("writing the report", len(PARTS), "parts") as progress:

        def told(part: str) -> None:
            progress.at(PARTS.index(part), part)

        return _Done(folder, report(folder, told=told))


def _header(prepared: Sequence[Sequence[Split]], backbone: Backbone, folder: Path, kind: str) -> list[str]:
    """What runs, counted, and what comes then."""
    cells = {job.cell.id: len(split.samples) for splits in prepared for split in splits for job in split.jobs}
    names = {job.pruner.name for splits in prepared for split in splits for job in split.jobs}
    images = {split.name: len(split.samples) for splits in prepared for split in splits}
    unit, whole = "clip" if backbone.medium == "video" else "image", sum(images.values())
    media = len({content.medium for splits in prepared for split in splits for content in split.contents})
    shared = f" ({media} different ones, each encoded once)" if media < whole else ""
    then = {"off": "", "projected": "projected costs and ", "measured": "measured costs and "}[kind]
    return [
        f"{backbone.name} on {backbone.device}: {len(names)} pruners, {len(cells)} cells on "
        f"{whole} {unit}s of {len(images)} split{'s' * (len(images) > 1)}{shared} = "
        f"{sum(cells.values()):,} {unit}s x cells",
        f"into {folder}; then {then}the report",
    ]


def _tell(folder: Path, report: Report, full: bool) -> None:
    """Print a run's leaderboard, and where the rest is."""
    from harness.store.run_folder import finished, peak_memory

    memory = f", made within {peak_memory(folder) / 2**20:.0f} MiB of memory" if finished(folder) else ""
    print(report.text(full))
    print(f"records: {folder} (run.json, records/){memory}")
