"""The command line's options and arguments, each declared once; a command takes those that it needs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from harness.commands.settings import apply_settings

# what is asked
Pruners = Annotated[
    str, typer.Option("--pruners", help="'all', names, globs, parameters: 'litelvlm,fastv(layer=3),vis*'")
]
Budgets = Annotated[
    str,
    typer.Option(
        "--budgets",
        "--budget",
        help="visual tokens that the language model gets: counts and shares, 64,33%,0.33",
    ),
]
Backbones = Annotated[
    str,
    typer.Option(
        "--backbones",
        "--backbone",
        help="glamm-mini, or glamm(checkpoint='DIR', clip='DIR or hub name'); see the command list",
    ),
]
Datasets = Annotated[
    str,
    typer.Option("--datasets", help="'all' (the table's eight columns) or e.g. refshapes:val,refcoco:testA"),
]
Protocol = Annotated[
    str | None,
    typer.Option(
        "--protocol",
        help="which expressions form a conversation: glamm: up to three; each: every one alone; by default "
        "the backbone's official one",
    ),
]
Positions = Annotated[
    str,
    typer.Option(
        "--positions",
        help="position ids of kept tokens: compact, numbered anew as most official codes do; kept, those of "
        "the whole sequence; or both: compact,kept",
    ),
]
Answers = Annotated[
    str,
    typer.Option(
        "--answers",
        help="forced: the answer with its [SEG] is given; generated: the model writes it, and may forget "
        "[SEG]; or both; by default the backbone's",
    ),
]
Limit = Annotated[
    int | None,
    typer.Option(
        "--limit", help="images per split, 0 = all; a sweep on glamm-mini has 12 by default, else 0"
    ),
]
Seed = Annotated[
    int, typer.Option("--seed", help="source of all draws; what does not draw does not depend on it")
]
Seeds = Annotated[int, typer.Option("--seeds", help="how many seeds a pruner that draws runs with")]
Costs = Annotated[
    str | None,
    typer.Option(
        "--costs",
        help="off, projected (from shapes) or measured; by default what suits the backbone",
    ),
]
Data = Annotated[
    Path | None,
    typer.Option(
        "--data", help="folder that holds Refer_Segm/ or refer_seg/, reason_seg/, video or own data"
    ),
]
Plugins = Annotated[
    list[str],
    typer.Option(
        "--plugin",
        help="Python file that registers pruners, backbones, metrics or data sets (can be repeated)",
    ),
]
From = Annotated[
    Path | None,
    typer.Option("--from", help="run.json of a run, or a plan: do that again; options that are given win"),
]
Settings = Annotated[
    Path | None,
    typer.Option(
        "--settings",
        is_eager=True,
        callback=apply_settings,
        help="TOML file with options under their names; those of the command line win",
    ),
]
# how the model runs
Device = Annotated[str, typer.Option("--device", help="cpu, cuda, cuda:1")]
Dtype = Annotated[str, typer.Option("--dtype", help="float32, bfloat16, float16, float64")]
Attn = Annotated[str, typer.Option("--attn", help="eager, sdpa, flash_attention_2")]
ImageBackend = Annotated[
    str, typer.Option("--image-backend", help="pil, or mmcv: faster grounding branch, same pixels")
]
BatchSize = Annotated[
    int, typer.Option("--batch-size", help="rows per forward pass; results do not depend on it")
]
Checkpoint = Annotated[
    Path | None,
    typer.Option(
        "--checkpoint", help="official checkpoint folder, of GLaMM: glamm(checkpoint='DIR'), or LISA"
    ),
]
Clip = Annotated[str | None, typer.Option("--clip", help="CLIP folder or hub name: glamm(clip='DIR')")]
SamDims = Annotated[
    Path | None,
    typer.Option(
        "--sam-dims", help="json with the grounding encoder's numbers, if not ViT-H: glamm(sam_dims='FILE')"
    ),
]
# how a run is done
Workers = Annotated[
    int | None,
    typer.Option("--workers", help="processes that read images ahead; by default 2 with a GPU, else 0"),
]
Share = Annotated[
    bool,
    typer.Option("--share/--no-share", help="compute once what cells have in common; --no-share to compare"),
]
MaxFailures = Annotated[
    float, typer.Option("--max-failures", help="share of the samples that may fail before the run stops")
]
Force = Annotated[bool, typer.Option("--force", help="start anew beside a run that is there already")]
KeepCode = Annotated[
    bool, typer.Option("--keep-code", help="go on with cells that other code began; their rows are marked")
]
TensorParallel = Annotated[
    int, typer.Option("--tensor-parallel", help="processes that share one language model, under a launcher")
]
LocalRank = Annotated[int | None, typer.Option("--local_rank", hidden=True)]  # what deepspeed's launcher adds
Debug = Annotated[bool, typer.Option("--debug", help="show tracebacks")]
# where results go, and what a command looks at
Out = Annotated[
    Path | None,
    typer.Option(
        "--out",
        help="folder of a run, which goes on or grows if it is there (by default results/runs/<identity>); "
        "of a diagnosis (by default the run's); of `try` a PNG, SVG or PDF file, beside which a clip's GIF "
        "is written",
    ),
]
Run = Annotated[
    Path | None,
    typer.Option("--run", help="run folder of this backbone: what its pruners kept of the referents"),
]
RunFolder = Annotated[Path, typer.Argument(metavar="RUN", help="folder of a finished run")]
Image = Annotated[
    str | None,
    typer.Argument(
        metavar="IMAGE",
        help="image file, of a video backbone a folder of frames or a video file; without one, a built-in "
        "scene",
    ),
]
Expression = Annotated[str | None, typer.Argument(metavar="EXPRESSION", help="what to segment")]
Baseline = Annotated[Path, typer.Option("--baseline", help="committed scores")]
Accept = Annotated[
    str | None,
    typer.Option("--accept", help="store this run as the new baseline; the text is the reason"),
]
TextTokens = Annotated[
    int | None,
    typer.Option(
        "--text-tokens",
        help="tokens beside the visual ones; by default those of a conversation of three expressions",
    ),
]
Gpu = Annotated[str, typer.Option("--gpu", help="data sheet for the roofline: h100, h200, a100")]
Frames = Annotated[
    int | None,
    typer.Option("--frames", help="frames of a clip that the language model sees; by default the backbone's"),
]
Explain = Annotated[bool, typer.Option("--explain", help="say what every column is")]
Sharing = Annotated[
    bool, typer.Option("--sweep", help="what cells save that share encodings, instead of the table")
]


def import_plugins(paths: list[str]) -> None:
    """Import the plugin files."""
    from pruners import load_plugin

    for path in paths:
        load_plugin(path)


def one_backbone(text: str) -> str:
    """The text, if it names one backbone.

    Raises:
        UserError: it names several.
    """
    from harness.plan import Plan
    from pruners.base import UserError

    named = Plan(backbones=text).backbones  # type: ignore[arg-type]
    if len(named) != 1:
        raise UserError(f"--backbone takes one backbone here, not {text!r}; name one of them.")
    return named[0]
