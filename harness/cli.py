"""The command line: `python -m harness` and its commands."""

from __future__ import annotations

import signal
import sys
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Annotated, Any

import typer

from harness.commands import others as commands
from harness.commands.options import (
    Checkpoint,
    Clip,
    Data,
    Debug,
    Device,
    Dtype,
    Plugins,
    Pruners,
    SamDims,
    numbers,
)
from harness.engine.interrupts import Terminated, terminate

app = typer.Typer(
    add_completion=False,
    no_args_is_help=False,
    pretty_exceptions_enable=False,
    help="Which visual-token pruner, at which budget, keeps the masks right? Without a command: run a sweep.",
)
INTERRUPTED, TERMINATED = 130, 143  # exit codes after Ctrl-C (typer's own) and SIGTERM
DEFAULT_LIMIT = (
    12  # images per split on the embedded backbone: a first run, costs included, ends within three minutes
)


@app.callback(invoke_without_command=True)
def sweep(
    context: typer.Context,
    pruners: Pruners = "all",
    budgets: Annotated[
        str, typer.Option(help="visual tokens that the language model gets, comma separated")
    ] = "64,128,192",
    backbone_names: Annotated[
        str, typer.Option("--backbones", help="glamm-mini, \"glamm(checkpoint='DIR')\"; see list")
    ] = "glamm-mini",
    datasets: Annotated[
        str, typer.Option(help="'all' (the table's eight columns) or e.g. refshapes:val,refcoco:testA")
    ] = "all",
    protocol: Annotated[
        str, typer.Option(help="each: every expression alone; glamm: up to three in one conversation")
    ] = "each",
    limit: Annotated[
        int | None,
        typer.Option(help=f"images per split, 0 = all; by default {DEFAULT_LIMIT} on glamm-mini, else 0"),
    ] = None,
    seed: Annotated[int, typer.Option(help="source of all draws")] = 0,
    device: Device = "cpu",
    dtype: Dtype = "float32",
    attn: Annotated[str, typer.Option(help="eager, sdpa, flash_attention_2")] = "sdpa",
    image_backend: Annotated[
        str, typer.Option(help="pil, or mmcv: faster grounding branch, same pixels")
    ] = "pil",
    batch_size: Annotated[int, typer.Option(help="rows per forward pass; results do not depend on it")] = 16,
    workers: Annotated[
        int | None, typer.Option(help="processes that read images ahead; by default 2 with a GPU, else 0")
    ] = None,
    share: Annotated[
        bool, typer.Option(help="compute once what cells have in common; --no-share to compare")
    ] = True,
    max_failures: Annotated[
        float, typer.Option(help="share of the samples that may fail before the run stops")
    ] = 0.01,
    force: Annotated[
        bool, typer.Option("--force", help="start anew beside a run that is there already")
    ] = False,
    keep_code: Annotated[
        bool,
        typer.Option("--keep-code", help="go on with cells that other code began; their rows are marked"),
    ] = False,
    tensor_parallel: Annotated[
        int, typer.Option(help="processes that share one language model, under a launcher")
    ] = 1,
    local_rank: Annotated[
        int | None, typer.Option("--local_rank", hidden=True)
    ] = None,  # what deepspeed's launcher adds
    out: Annotated[
        Path | None,
        typer.Option(
            help="run folder; an unfinished run in it goes on; by default results/runs/<identity of the run>"
        ),
    ] = None,
    plugin: Plugins = [],  # noqa: B006
    checkpoint: Checkpoint = None,
    clip: Clip = None,
    sam_dims: SamDims = None,
    data: Data = None,
    costs: Annotated[
        str | None,
        typer.Option(
            help="off, projected (from shapes) or measured; by default measured on glamm-mini, projected on glamm"
        ),
    ] = None,
    debug: Debug = False,
) -> None:
    """Run a sweep and print its leaderboard."""
    if context.invoked_subcommand is not None:
        return
    from pruners import load_plugin, parse

    for path in plugin:
        load_plugin(path)
    chosen, sizes = tuple(parse(pruners)), numbers(budgets)

    import backbones
    from harness import data as sets
    from harness.cost import kinds as asked
    from harness.engine import runner
    from harness.engine.ranks import here
    from harness.store import folders

    wanted = backbones.parse(backbone_names)
    pairs = tuple(sets.parse_datasets(datasets, data))
    plans = {}
    for one in wanted:
        one.check_protocol(protocol)
        images = limit if limit is not None else DEFAULT_LIMIT if one.name == "glamm-mini" else 0
        plans[one] = runner.Plan(chosen, sizes, pairs, protocol, images, seed, str(data) if data else None)
    asked.check(costs, tensor_parallel)
    place = here(tensor_parallel)
    if workers is None:
        workers = 2 if device.startswith("cuda") else 0
    way = runner.Way(share, workers, max_failures, place, keep_code)
    for number, (one, plan) in enumerate(plans.items()):
        backbone = backbones.load(
            one,
            checkpoint=checkpoint,
            clip=clip,
            sam_dims=sam_dims,
            device=place.device(device),
            dtype=dtype,
            attn=attn,
            batch_size=batch_size,
            image_backend=image_backend,
            tensor_parallel=tensor_parallel,
        )
        kind = asked.kind(costs, backbone, tensor_parallel)
        splits = runner.prepare(plan, backbone)
        twins = sum(other.name == one.name for other in wanted) > 1
        base = out / (f"{one.name}-{number}" if twins else one.name) if out and len(wanted) > 1 else out
        folder = folders.choose(base, runner.identity(splits), force=force, world=place.world)
        finished = runner.run(plan, backbone, splits, folder, way)
        if not finished or place.rank > 0:
            continue
        asked.write(kind, plan, splits, backbone, folder)

        from harness.store.records import peak_memory
        from reports import render

        written = render(folder)
        print(written[0].read_text(encoding="utf-8"))
        print(
            f"records: {folder} (run.json, records/), made within {peak_memory(folder) / 2**20:.0f} MiB of memory"
        )
        print("report: " + "\n        ".join(map(str, written)))


class _Later(ModuleType):
    """Stands in for a module until something of it is used."""

    def __getattr__(self, name: str) -> Any:
        if sys.modules.get(self.__name__) is self:
            del sys.modules[self.__name__]
        return getattr(import_module(self.__name__), name)


@app.command("list")
def show(plugin: Plugins = [], debug: Debug = False) -> None:  # noqa: B006
    """Pruners with their parameters and needs, backbones, which runs on which, data sets."""
    sys.modules.setdefault(
        "torch", _Later("torch")
    )  # nothing is computed here, and torch takes longer than all the rest
    from harness.commands.list_ import lines
    from pruners import load_plugin

    for path in plugin:
        load_plugin(path)
    print(*lines(), sep="\n")


@app.command()
def gate(
    baseline: Annotated[Path, typer.Option(help="committed scores")] = Path("results/baseline.json"),
    accept: Annotated[
        str | None, typer.Option(help="store this run as the new baseline; the text is the reason")
    ] = None,
    plugin: Plugins = [],  # noqa: B006
    debug: Debug = False,
) -> None:
    """Compare a fixed subset with the baseline; exit code 1 if anything changed that no rounding explains."""
    from harness.gate import check as gating

    if accept is not None:
        gating.accept(baseline, accept, tuple(plugin))
        print(f"new baseline: {baseline}")
        return
    found = gating.check(baseline, tuple(plugin))
    for change in found.changes:
        print(f"{'failed' if change.reasons else 'changed within the tolerances'}: {change}")
        for line in (*change.reasons, *change.notes, *change.moved):
            print(f"    {line}")
    if found.unguarded:
        print(f"not in the baseline: {', '.join(found.unguarded)}; let them in with --accept REASON")
    print(
        f"gate: {len(found.worse)} of {found.cells} pruners at a budget and seed failed (scores per split, kept tokens, token "
        f"counts, own cost), {len(found.changes) - len(found.worse)} changed within the tolerances"
    )
    if found.worse:
        raise typer.Exit(1)


app.command("try")(commands.attempt)
app.command()(commands.cost)
app.command()(commands.diagnose)
app.command()(commands.doctor)
app.command()(commands.rebuild)


def main() -> int:
    """Run the command line; a user's mistake is one sentence and exit code 2."""
    signal.signal(signal.SIGTERM, terminate)
    try:
        code = int(app(standalone_mode=False) or 0)
    except Terminated:
        code = TERMINATED
    except Exception as error:
        message = _sentence(error)
        if message is None or "--debug" in sys.argv:
            raise
        print(f"error: {message}", file=sys.stderr)
        return 2
    if code in (INTERRUPTED, TERMINATED):
        print("stopped, nothing recorded is lost; give the same command again to go on", file=sys.stderr)
    return code


def _sentence(error: Exception) -> str | None:
    """What to tell the user; None if the mistake is ours."""
    if hasattr(error, "format_message"):  # an option that does not exist, or a value of another type
        return f"{error.format_message()} See python -m harness --help."
    from pruners.base import UserError

    return str(error) if isinstance(error, UserError) else None
