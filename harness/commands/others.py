"""Commands that look at one thing: an image, this machine, a backbone. Heavy imports happen when one runs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

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


def attempt(
    image: Annotated[str | None, typer.Argument(help="image file; without one, a built-in scene")] = None,
    expression: Annotated[str | None, typer.Argument(help="what to segment")] = None,
    pruners: Pruners = "all",
    budget: Annotated[int, typer.Option(help="visual tokens that the language model gets")] = 64,
    out: Annotated[Path, typer.Option(help="PNG, SVG or PDF file")] = Path("try.png"),
    backbone: Annotated[str, typer.Option(help="glamm-mini, glamm")] = "glamm-mini",
    plugin: Plugins = [],  # noqa: B006
    checkpoint: Checkpoint = None,
    clip: Clip = None,
    sam_dims: SamDims = None,
    device: Device = "cpu",
    dtype: Dtype = "float32",
    debug: Debug = False,
) -> None:
    """Draw what every pruner keeps of one image, and the mask that follows."""
    from harness.engine.single_image import attempt as ask
    from harness.engine.single_image import subject
    from pruners import load_plugin, parse

    for path in plugin:
        load_plugin(path)
    chosen = parse(pruners)
    pixels, text, truth = subject(image, expression)

    import backbones
    from reports.overlay import draw

    model = backbones.load(
        backbone, checkpoint=checkpoint, clip=clip, sam_dims=sam_dims, device=device, dtype=dtype
    )
    found = ask(model, pixels, text, chosen, budget, truth)
    draw(found, model.grid, budget, out)
    for reason in found.lacking:
        print(f"left out: {reason}")
    if found.left_out:
        print(f"left out, because only the truth tells them what to keep: {', '.join(found.left_out)}")
    for one in found.answers:
        score = "" if one.iou is None else f"  IoU {100 * one.iou:5.1f} %"
        print(f"{one.name:<24} {one.answer.tokens_final:>4} tokens  {one.answer.seconds:6.3f} s{score}")
    print(f"picture: {out}")


def doctor(
    data: Data = None,
    checkpoint: Checkpoint = None,
    clip: Annotated[Path | None, typer.Option(help="CLIP folder")] = None,
    sam_dims: SamDims = None,
    backbone_names: Annotated[
        str, typer.Option("--backbones", help="whose files to look at: \"glamm(checkpoint='DIR')\"")
    ] = "glamm",
    plugin: Plugins = [],  # noqa: B006
    debug: Debug = False,
) -> None:
    """Look at this machine, data and weights, one line per finding; exit code 1 if something is wrong."""
    from pruners import load_plugin

    for path in plugin:
        load_plugin(path)

    import backbones
    from harness.doctor import examine

    files = {"checkpoint": checkpoint, "clip": clip, "sam_dims": sam_dims}
    asked = [backbones.with_files(one, **files) for one in backbones.parse(backbone_names)]
    wrong = 0
    for finding in examine(data, asked):
        print(finding, flush=True)
        wrong += finding.level == "wrong"
    print(f"doctor: {wrong or 'nothing'} wrong")
    if wrong:
        raise typer.Exit(1)


def diagnose(
    backbone: Annotated[str, typer.Option(help="glamm-mini, \"glamm(checkpoint='DIR')\"")] = "glamm-mini",
    datasets: Annotated[
        str, typer.Option(help="'all' (the table's eight columns) or e.g. refshapes:val,refcoco:testA")
    ] = "all",
    data: Data = None,
    limit: Annotated[int, typer.Option(min=0, help="images per split, 0 = all")] = 24,
    run: Annotated[
        Path | None, typer.Option(help="run folder of this backbone: what its pruners kept of the referents")
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            help="folder; by default <run>/diagnosis, where the run's report finds it, or results/diagnosis/<backbone>"
        ),
    ] = None,
    plugin: Plugins = [],  # noqa: B006
    checkpoint: Checkpoint = None,
    clip: Clip = None,
    sam_dims: SamDims = None,
    device: Device = "cpu",
    dtype: Dtype = "float32",
    debug: Debug = False,
) -> None:
    """Measure whether the referent's tokens look less like the text than others do, and what pruners keep of
    them."""
    import dataclasses

    from pruners import load_plugin

    for path in plugin:
        load_plugin(path)

    import backbones
    from harness.data import parse_datasets
    from harness.diagnosis import similarities as diagnosing
    from reports.diagnosis import FOLDER, verdict, write

    pairs = parse_datasets(datasets, data)
    model = backbones.load(
        backbone, checkpoint=checkpoint, clip=clip, sam_dims=sam_dims, device=device, dtype=dtype
    )
    kept = diagnosing.kept(run, model) if run is not None else None
    found = dataclasses.replace(
        diagnosing.examine(model, pairs, limit, str(data) if data else None), kept=kept
    )
    page = write(found, out or (run / FOLDER if run else Path("results") / "diagnosis" / model.name))
    print(verdict(found))
    if run is not None and out is None:
        print(f"`python -m reports {run}` puts it into the run's report.")
    if run is None:
        print(
            "What pruners keep of the referents was not looked at; add --run and the folder of a run of this backbone."
        )
    print(f"diagnosis: {page}")


def cost(
    backbone: Annotated[
        str, typer.Option(help="glamm-7b, glamm-mini or \"glamm(checkpoint='DIR')\"; no weights are read")
    ] = "glamm-7b",
    pruners: Pruners = "all",
    budgets: Annotated[str, typer.Option(help="visual tokens, comma separated")] = "64,128,192",
    text_tokens: Annotated[
        int | None,
        typer.Option(
            help="tokens beside the visual ones; by default those of a conversation of three expressions"
        ),
    ] = None,
    checkpoint: Annotated[
        Path | None,
        typer.Option(
            help="folder whose tokenizer counts that conversation; with glamm, whose numbers are taken"
        ),
    ] = None,
    gpu: Annotated[str, typer.Option(help="data sheet for the roofline: h100, h200, a100")] = "h100",
    attn: Annotated[str, typer.Option(help="eager, sdpa, flash_attention_2")] = "sdpa",
    explain: Annotated[bool, typer.Option("--explain", help="say what every column is")] = False,
    sweep: Annotated[
        bool, typer.Option("--sweep", help="what cells save that share encodings, instead of the table")
    ] = False,
    plugin: Plugins = [],  # noqa: B006
    debug: Debug = False,
) -> None:
    """Project what every pruner costs at full size, beside the published numbers; needs no weights and no
    GPU."""
    import backbones
    from pruners import load_plugin, parse

    for path in plugin:
        load_plugin(path)
    chosen, sizes = tuple(parse(pruners)), numbers(budgets)
    backbones.check_attention(attn)

    from backbones.parts.tokenizer import LlamaTokenizer
    from harness.cost import EXPLAIN, projection, sharing
    from harness.cost.lines import lines_of
    from harness.cost.roofline import gpu as sheet
    from harness.cost.store import BASELINE
    from pruners.errors import UserError
    from reports import efficiency

    on, settings = sheet(gpu), backbones.with_files(backbones.one(backbone), checkpoint=checkpoint)
    model = settings.shapes()
    if model is None:
        raise UserError(f"The shapes of {settings.name} are not known; give glamm-7b or glamm-mini.")
    folder = checkpoint or (backbones.MINI / "checkpoint" if backbone == "glamm-mini" else None)
    if text_tokens is not None or folder is None:
        prompt = projection.Prompt(projection.TEXT_TOKENS if text_tokens is None else text_tokens)
    else:
        prompt = projection.Prompt.counted(LlamaTokenizer(folder))
    vision, layers = model.clip.config.vision_config, model.language_model.config.num_hidden_layers
    side = vision.image_size // vision.patch_size
    lines = lines_of(chosen, sizes, 0, (side, side), layers)
    if sweep:
        lines = [line for line in lines if line.pruner.kind == "method" or line.name == BASELINE]
        accounts = {}
        for talks, one in ((1, prompt), (prompt.turns, prompt.alone())):
            title = f"{talks} conversation{'s' * (talks > 1)} of {one.turns} ({one.text} text tokens)"
            accounts[title] = sharing.account(
                projection.project(model, lines, one, attn=attn), lines, one, talks
            )
        print(
            f"# {backbone}, a sweep, projected; controls but {BASELINE} left out\n\n{efficiency.sweep(accounts)}"
        )
        return
    projected = projection.project(model, lines, prompt, attn=attn)
    print(f"# {backbone}, projected\n")
    print(efficiency.render(projected, backbone.removesuffix("-7b"), prompt, attn, on))
    if explain:
        print(*(f"- {column}: {text}." for column, text in EXPLAIN.items()), sep="\n")


def rebuild(
    run: Annotated[Path, typer.Argument(help="folder of a finished run")],
    debug: Debug = False,
) -> None:
    """Make a finished run's tables again from its journals, when they were damaged or lost."""
    from harness.store.records import rebuild as again

    if again(run):
        print(f"rebuilt: the tables of {run} are those of its journals")
    else:
        print(f"{run} is not finished: give its command again with --out {run}, which does what is missing")
