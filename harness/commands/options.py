"""The command line's grammar: every option and argument of all commands.

An option has one name, one type and one meaning in all commands; where a command needs another sentence in
its help, it has a declaration of its own below the shared one. `--help` shows them by panels.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from harness.commands.settings import apply_settings
from harness.commands.version import show_version

ASKED, MODEL, DATA, RUN, COSTS, OUTPUT = (
    "What is asked",
    "Model",
    "Data",
    "How it runs",
    "Costs",
    "Output",
)


def _of(panel: str, *names: str, help: str, **more: Any) -> Any:
    return typer.Option(*names, help=help, rich_help_panel=panel, **more)


# -- what is asked

Pruners = Annotated[
    str,
    _of(
        ASKED,
        "--pruners",
        "--pruner",
        help="'all', names, globs, parameters: 'litelvlm,fastv(layer=3),vis*'",
    ),
]
LAB = "with --clip alone, the laboratory: "
LabPruners = Annotated[
    str, _of(ASKED, "--pruners", "--pruner", help=f"{LAB}whose choices are measured, as in a run")
]
BUDGETS, BUDGET = ("--budgets", "--budget"), "visual tokens that the language model gets: "
Budgets = Annotated[str, _of(ASKED, *BUDGETS, help=f"{BUDGET}counts and shares, 64,33%,0.33")]
LabBudgets = Annotated[str, _of(ASKED, *BUDGETS, help=f"{LAB}visual tokens kept, counts and shares")]
OneBudget = Annotated[str, _of(ASKED, *BUDGETS, help=f"{BUDGET}one count or share, 64 or 33%")]
Protocol = Annotated[
    str | None,
    _of(
        ASKED,
        "--protocol",
        help="which expressions form a conversation: glamm: up to three; each: every one alone; by default "
        "the backbone's official one",
    ),
]
Positions = Annotated[
    str,
    _of(
        ASKED,
        "--positions",
        help="position ids of kept tokens: compact, numbered anew as most official codes do; kept, those of "
        "the whole sequence; or both: compact,kept",
    ),
]
Answers = Annotated[
    str,
    _of(
        ASKED,
        "--answers",
        help="forced: the answer with its [SEG] is given; generated: the model writes it, and may forget "
        "[SEG]; or both; by default the backbone's",
    ),
]
Seed = Annotated[
    int, _of(ASKED, "--seed", help="source of all draws; what does not draw does not depend on it")
]
Seeds = Annotated[int, _of(ASKED, "--seeds", help="how many seeds a pruner that draws runs with")]
Plugins = Annotated[
    list[str],
    _of(
        ASKED,
        "--plugin",
        help="Python file that registers pruners, backbones, metrics or data sets (can be repeated)",
    ),
]
From = Annotated[
    Path | None,
    _of(ASKED, "--from", help="run.json of a run, or a plan: do that again; options that are given win"),
]
Settings = Annotated[
    Path | None,
    _of(
        ASKED,
        "--settings",
        is_eager=True,
        callback=apply_settings,
        help="TOML file with options under their names; those of the command line win",
    ),
]
Cell = Annotated[
    str,
    _of(ASKED, "--cell", help="which of a run's cells: pruner@budget, or the beginning of its id"),
]
Baseline = Annotated[Path, _of(ASKED, "--baseline", help="file of committed scores")]
Accept = Annotated[
    str | None,
    _of(ASKED, "--accept", help="store this run as the new baseline; the text is the reason"),
]
Against = Annotated[
    str | None, _of(ASKED, "--against", help="a pruner that every row is compared with, e.g. fastv")
]
# `report --baseline fastv`, as it was called before --baseline was a file everywhere
OldAgainst = Annotated[str | None, _of(ASKED, "--baseline", help="--against", hidden=True)]
Subset = Annotated[
    Path | None,
    _of(
        ASKED,
        "--subset",
        metavar="FILE",
        help="score the recorded masks on clean labels: RefCOCO-M (folder or .parquet), Ref-L4 (.json), "
        "or a list of samples or expressions (.csv, .json); writes clean.md",
    ),
]
MetricName = Annotated[
    str | None,
    _of(ASKED, "--metric", help="rank by this metric, e.g. giou; by default ciou, of clips j&f"),
]

# -- model

BACKBONES = ("--backbones", "--backbone")
GLAMM = "glamm-mini, or glamm(checkpoint='DIR', clip='DIR or hub name'); see the command list"
Backbones = Annotated[str, _of(MODEL, *BACKBONES, help=f"one or several: {GLAMM}")]
OneBackbone = Annotated[str, _of(MODEL, *BACKBONES, help=f"one: {GLAMM}")]
ProjectedBackbone = Annotated[
    str,
    _of(
        MODEL,
        *BACKBONES,
        help="one whose shapes are known: glamm-7b, lisa-7b, glamm-mini, or glamm(checkpoint='DIR')",
    ),
]
ExaminedBackbones = Annotated[
    str, _of(MODEL, *BACKBONES, help="whose files are looked at: glamm, lisa, videoglamm")
]
StudiedBackbones = Annotated[
    str,
    _of(
        MODEL,
        *BACKBONES,
        help="by default glamm-mini, for placements videoglamm-3.8b; see the command list",
    ),
]
StudiedBudgets = Annotated[
    str,
    _of(
        ASKED,
        *BUDGETS,
        help=f"{BUDGET}counts and shares; by default 64,128,192, for placements 576,196,81",
    ),
]
Device = Annotated[
    str,
    _of(
        MODEL,
        "--device",
        help="auto: the CUDA GPU where one works, else the CPU; or cpu, cuda, cuda:1, mps",
    ),
]
Dtype = Annotated[str, _of(MODEL, "--dtype", help="float32, bfloat16, float16, float64")]
Attn = Annotated[str, _of(MODEL, "--attn", help="eager, sdpa, flash_attention_2")]
ImageBackend = Annotated[
    str, _of(MODEL, "--image-backend", help="pil, or mmcv: faster grounding branch, same pixels")
]
CHECKPOINT = "--checkpoint"
Checkpoint = Annotated[
    Path | None,
    _of(MODEL, CHECKPOINT, help="official checkpoint folder, of GLaMM: glamm(checkpoint='DIR'), or LISA"),
]
TokenizerOf = Annotated[
    Path | None,
    _of(MODEL, CHECKPOINT, help="official checkpoint folder, whose tokenizer counts the conversation"),
]
Clip = Annotated[str | None, _of(MODEL, "--clip", help="CLIP folder or hub name: glamm(clip='DIR')")]
DiagnosedClip = Annotated[
    str | None,
    _of(
        MODEL,
        "--clip",
        help="CLIP folder, hub name, or glamm-mini for the embedded one: without --checkpoint and --backbone "
        "the laboratory on CLIP alone, else glamm(clip='DIR')",
    ),
]
SamDims = Annotated[
    Path | None,
    _of(
        MODEL,
        "--sam-dims",
        help="json with the grounding encoder's numbers, if not ViT-H: glamm(sam_dims='FILE')",
    ),
]

# -- data

DATASETS = ("--datasets", "--dataset")
Datasets = Annotated[
    str,
    _of(DATA, *DATASETS, help="'all' (the table's eight columns) or e.g. refshapes:val,refcoco:testA"),
]
StudiedDatasets = Annotated[
    str,
    _of(
        DATA,
        *DATASETS,
        help="'all' or e.g. refshapes:val,refcoco:testA; by default all, for a ladder refshapes:val",
    ),
]
Download = Annotated[
    bool, _of(DATA, "--download", help="fetch weights that are not here from the hub, pinned and verified")
]
SubmittedDataset = Annotated[
    str, _of(DATA, *DATASETS, help="e.g. mevis:valid, where a run has several that can be submitted")
]
Data = Annotated[
    Path | None,
    _of(DATA, "--data", help="folder that holds Refer_Segm/ or refer_seg/, reason_seg/, video or own data"),
]
LIMIT = "images per split, 0 for all"
Limit = Annotated[
    int | None, _of(DATA, "--limit", help=f"{LIMIT}; by default the backbone's: 12 on glamm-mini, else all")
]
PrintedLimit = Annotated[
    int | None, _of(DATA, "--limit", help=f"{LIMIT} that the table is of, which is the default")
]
DiagnosedLimit = Annotated[int | None, _of(DATA, "--limit", help=LIMIT)]

# -- how it runs

BatchSize = Annotated[
    int, _of(RUN, "--batch-size", help="rows per forward pass; results do not depend on it")
]
Workers = Annotated[
    int | None,
    _of(RUN, "--workers", help="processes that read images ahead; by default 2 with a GPU, else 0"),
]


def parse_threads(text: str) -> int:
    """The number of threads that a text names, if there can be so many."""
    import os

    from harness.engine.threads import MOST

    most = MOST * (os.cpu_count() or 1)
    try:
        count = int(str(text))
    except ValueError:
        count = 0
    if not 1 <= count <= most:
        raise typer.BadParameter(
            f"{str(text)!r} is no number of threads; give 1 to {most}, or leave it out for what is free."
        )
    return count


Threads = Annotated[
    int | None,
    _of(
        RUN,
        "--threads",
        parser=parse_threads,
        metavar="INTEGER",
        help="threads of torch on the CPU; by default one per processor that nobody keeps busy; results do "
        "not depend on it",
    ),
]
Share = Annotated[
    bool,
    _of(RUN, "--share/--no-share", help="compute once what cells have in common; --no-share to compare"),
]
MaxFailures = Annotated[
    float, _of(RUN, "--max-failures", help="share of the samples that may fail before the run stops, 0 to 1")
]
Force = Annotated[bool, _of(RUN, "--force", help="start anew beside a run that is there already")]
KeepCode = Annotated[
    bool, _of(RUN, "--keep-code", help="go on with cells that other code began; their rows are marked")
]
DryRun = Annotated[
    bool, _of(RUN, "--dry-run", help="say what is needed, what is here and how long it takes; run nothing")
]
Anyway = Annotated[
    bool, _of(RUN, "--anyway", help="go on although files are missing, or the doctor or the proof says no")
]
TensorParallel = Annotated[
    int, _of(RUN, "--tensor-parallel", help="processes that share one language model, under a launcher")
]
LocalRank = Annotated[int | None, typer.Option("--local_rank", hidden=True)]  # what deepspeed's launcher adds

# -- costs

Costs = Annotated[
    str | None,
    _of(
        COSTS, "--costs", help="off, projected (from shapes) or measured; by default what suits the backbone"
    ),
]
TextTokens = Annotated[
    int | None,
    _of(
        COSTS,
        "--text-tokens",
        help="tokens beside the visual ones; by default those of a conversation of three expressions",
    ),
]
Gpu = Annotated[str, _of(COSTS, "--gpu", help="data sheet for the roofline: h100, h200, a100")]
Frames = Annotated[
    int | None,
    _of(COSTS, "--frames", help="frames of a clip that the language model sees; by default the backbone's"),
]
Explain = Annotated[bool, _of(COSTS, "--explain", help="say what every column is")]
Sharing = Annotated[
    bool, _of(COSTS, "--sweep", help="what cells save that share encodings, instead of the table")
]

# -- output

OUT = "--out"
Out = Annotated[
    Path | None,
    _of(
        OUTPUT,
        OUT,
        help="folder of the run, which goes on or grows if it is there; by default results/runs/<identity>",
    ),
]
DiagnosisOut = Annotated[
    Path | None,
    _of(
        OUTPUT,
        OUT,
        help="folder of the diagnosis; by default diagnosis/ of --run, or results/diagnosis/<backbone>",
    ),
]
PictureOut = Annotated[
    Path | None,
    _of(
        OUTPUT,
        OUT,
        help="PNG, SVG or PDF file, try.png by default; of a clip a GIF is written beside it",
    ),
]
StudyOut = Annotated[
    Path | None,
    _of(OUTPUT, OUT, help="folder of the study; by default results/study-<axis>, of an atlas in its run"),
]
ReproducedOut = Annotated[
    Path | None, _of(OUTPUT, OUT, help="folder of run and table; by default results/reproduce/<name>")
]
ReportOut = Annotated[Path | None, _of(OUTPUT, OUT, help="folder to write to; by default the first run's")]
SubmissionOut = Annotated[
    Path,
    _of(OUTPUT, OUT, help="zip file for a server; of ref-davis17 a folder for DAVIS' own evaluator"),
]
BundleOut = Annotated[
    Path | None, _of(OUTPUT, OUT, help="zip file of the bundle; by default <run>.zip in the working folder")
]
SiteOut = Annotated[Path, _of(OUTPUT, OUT, help="folder to write the site to")]
CheckBundle = Annotated[
    bool, _of(ASKED, "--check", help="verify bundles as a board does that takes them, and write nothing")
]
By = Annotated[str, _of(ASKED, "--by", help="who submits, as the board shows it")]
Url = Annotated[
    str, _of(ASKED, "--url", help="https address of the source of methods that are not this project's")
]
Licence = Annotated[str, _of(ASKED, "--licence", help="licence of that source, e.g. Apache-2.0")]
PartOfSplits = Annotated[
    bool,
    _of(ASKED, "--part", help="submit a run with --limit, which the board marks as a part of its splits"),
]
AllowDirty = Annotated[
    bool,
    _of(ASKED, "--allow-dirty", help="submit a run by code that no commit holds, which the board marks"),
]
Latex = Annotated[bool, _of(OUTPUT, "--latex", help="write leaderboard.tex, too")]
StudiedRun = Annotated[
    Path | None,
    _of(DATA, "--run", help="finished run: what an atlas is of; its methods beside a ladder's rungs"),
]
DiagnosedRun = Annotated[
    Path | None,
    _of(DATA, "--run", help="run folder of this backbone: what its pruners kept of the referents"),
]
Debug = Annotated[bool, typer.Option("--debug", help="show tracebacks")]
Version = Annotated[
    bool,
    typer.Option(
        "--version",
        is_eager=True,
        callback=show_version,
        help="versions of this project, torch and transformers",
    ),
]

# -- arguments

RunFolder = Annotated[Path, typer.Argument(metavar="RUN", help="folder of a finished run")]
RunFolders = Annotated[
    list[Path],
    typer.Argument(
        metavar="RUN...", help="folder of a run, e.g. results/runs/<id>; several become one report"
    ),
]
RunOrBundles = Annotated[
    list[Path],
    typer.Argument(metavar="RUN", help="folder of a finished run; with --check one or several bundles"),
]
RunsAndBundles = Annotated[
    list[Path],
    typer.Argument(metavar="RUN...", help="folders of runs, bundles, and folders of bundles such as board/"),
]
Image = Annotated[
    str | None,
    typer.Argument(
        metavar="IMAGE",
        help="image file, of a video backbone a folder of frames or a video file; without one, a built-in "
        "scene",
    ),
]
PublishedName = Annotated[
    str,
    typer.Argument(
        metavar="[NAME]", help="a published table by its name, or a spec of your own: ./mine.toml; list: all"
    ),
]
Expression = Annotated[str | None, typer.Argument(metavar="EXPRESSION", help="what to segment")]
Axis = Annotated[
    str,
    typer.Argument(
        metavar="AXIS",
        help="positions: kept tokens numbered anew, or with their position ids; answers: forced or "
        "generated; placements: where a budget acts, by shapes alone; atlas: on which expressions the rows "
        "of --run lose, from its records; ladder: how few tokens are enough if the truth chooses them",
    ),
]


def import_plugins(paths: list[str]) -> None:
    """Import the plugin files."""
    from pruners import load_plugin

    for path in paths:
        load_plugin(path)


def check_out(path: Path | None) -> None:
    """See that a command can write into the folder that `--out` names, before it works for it.

    Raises:
        UserError: it, or a folder on its way, is a file or may not be written.
    """
    import os

    from pruners.errors import UserError

    if path is None:
        return
    there = path
    while not there.exists() and there != there.parent:
        there = there.parent
    wrong = "" if there.is_dir() else "is a file"
    if not wrong and not os.access(there, os.W_OK):
        wrong = "may not be written by you"
    if wrong:
        raise UserError(
            f"Cannot write to --out {str(path)!r}, because {str(there)!r} {wrong}; give a "
            "folder that you may write."
        )


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
