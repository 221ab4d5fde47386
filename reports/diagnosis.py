"""A diagnosis as markdown and figures."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from harness.diagnosis.summary import BINS, INSIDE, MAIN, SIMILARITIES, Diagnosis, Kept
from harness.metrics.bootstrap import DRAWS, Estimate
from harness.store.journal import read_whole, write_atomically, write_text
from pruners.base import UserError
from reports.looks import COLOURS
from reports.style import STYLE, save
from reports.table_text import csv

SCHEMA = 1
FOLDER, FILE, SUMMARY = "diagnosis", "diagnosis.md", "diagnosis.json"
BAR, LEVEL, EDGE = *COLOURS[:2], "#1c2f42"
CAPTIONS = {
    "ranks": "Where the referent's tokens rank among all tokens of the image by each similarity; dashed: "
    "no relation.",
    "sink": "Share of the [EOS] token's attention on the start token, mean over heads.",
    "coverage": "Referent coverage: the share of the referent's area whose visual tokens are kept.",
    "overlap": "Overlap: mean Jaccard index of the patches that two pruners keep for the same expression.",
    "places": "Position bias: for how many of the expressions a patch is kept, as a share.",
}
RELATION = {True: "less", False: "more"}


def verdict(found: Diagnosis) -> str:
    """Whether the reversal holds, in one sentence."""
    auroc = found.mean(f"auroc {MAIN}")
    figures = f"AUROC {auroc.value:.3f}, 95 % interval {auroc.low:.3f} to {auroc.high:.3f}"
    if found.reversal is None:
        why = (
            f"AUROC {auroc.value:.3f}, too few for an interval"
            if np.isnan(auroc.low)
            else f"{figures}, which includes 0.5"
        )
        return (
            f"It is undecided whether the visual-text similarity reversal holds on {found.backbone}: "
            f"{auroc.images} images do "
            "not tell whether the referent's visual tokens look less or more like the question than other "
            "tokens do "
            f"({why})."
        )
    holds, side = ("holds", "below") if found.reversal else ("does not hold", "above")
    return (
        f"The visual-text similarity reversal {holds} on {found.backbone}: the referent's visual tokens look "
        f"{RELATION[found.reversal]} like the question than other tokens do ({figures}, {side} 0.5, "
        f"{auroc.images} images)."
    )


def write_diagnosis(found: Diagnosis, out: Path) -> Path:
    """Write `diagnosis.md`, `diagnosis.csv` (one row per expression), the figures, and what a report tells;
    the markdown's path.

    Raises:
        UserError: the folder cannot be written.
    """
    try:
        out.mkdir(parents=True, exist_ok=True)
        write_text(out / "diagnosis.csv", csv(found.rows))
        figures: dict[str, Callable[[], Figure]] = {
            "ranks": lambda: _ranks(found),
            "sink": lambda: _sink(found),
        }
        if (kept := found.kept) is not None:
            figures |= {
                "coverage": lambda: _coverage(kept),
                "overlap": lambda: _overlap(kept),
                "places": lambda: _places(kept),
            }
        with matplotlib.rc_context(STYLE):
            for name, draw in figures.items():
                save(draw(), out / name)
        write_text(out / FILE, _markdown(found))
        told: dict[str, Any] = {
            "schema": SCHEMA,
            "backbone": found.backbone,
            "fingerprint": found.fingerprint,
            "verdict": verdict(found),
        }
        told["figures"] = {name: CAPTIONS[name] for name in figures}
        write_atomically(out / SUMMARY, told)
    except OSError as error:
        raise UserError(
            f"Cannot write to {str(out)!r} ({error.strerror}); give --out a folder that you may write."
        ) from error
    return out / FILE


def read_diagnosis(folder: Path) -> dict[str, Any] | None:
    """What `write` left in a folder: backbone, fingerprint, verdict, and per figure its caption; None if it
    did not.

    Raises:
        UserError: it is damaged, or names figures that `write` does not make.
    """
    path = folder / SUMMARY
    told = read_whole(path, f"delete {folder}, or diagnose again")
    if not told:
        return None
    sound = told.get("schema") == SCHEMA and all(
        isinstance(told.get(name), str) for name in ("backbone", "fingerprint", "verdict")
    )
    figures = told.get("figures")
    if not sound or not isinstance(figures, dict) or figures.keys() - CAPTIONS.keys():
        raise UserError(f"{str(path)!r} is damaged (it is no diagnosis); delete {folder}, or diagnose again.")
    return told


# -- text


def limits(found: Estimate, digits: int = 3) -> str:
    """A number with its interval."""
    return _between(found.value, found.low, found.high, digits)


def _between(value: float, low: float, high: float, digits: int) -> str:
    if np.isnan(value):
        return "-"
    return f"{value:.{digits}f}" + ("" if np.isnan(low) else f" [{low:.{digits}f}, {high:.{digits}f}]")


def _markdown(found: Diagnosis) -> str:
    rows, images = len(found.rows), found.rows["image"].nunique()
    sets = ", ".join(found.datasets)
    similarity = pd.DataFrame(
        [
            {
                "similarity": name,
                "AUROC of the referent": limits(found.mean(f"auroc {name}")),
                "lowest tenth": f"{100 * found.mean(f'rank {name} 0').value:.1f} %",
                "highest tenth": f"{100 * found.mean(f'rank {name} {BINS - 1}').value:.1f} %",
                "what it is": text,
            }
            for name, text in SIMILARITIES.items()
        ]
    ).to_markdown(index=False, disable_numparse=True)
    layers = pd.DataFrame(
        [
            {"layer": k, "share on the start token": limits(found.mean(f"start {k}"))}
            for k in range(found.layers)
        ]
    ).to_markdown(index=False, disable_numparse=True)
    tokens = found.mean("tokens")
    which = f"first {found.limit} images each" if found.limit else "all images"
    parts = [
        f"# Diagnosis of {found.backbone}",
        f"**{verdict(found)}**",
        f"{rows} expressions of {images} images ({sets}, {which}); "
        f"{found.left_out} expressions left out because their referent fills no visual token; weights "
        f"{found.fingerprint}.",
        "## Where the referent's tokens rank",
        similarity,
        "AUROC: the chance that a token of the referent is more similar than a token outside it; 0.5 is no "
        "relation, below it "
        "the referent looks *less* similar. Lowest and highest tenth: the share of the referent's tokens "
        "there; "
        "10 % is no relation.",
        "![ranks](ranks.svg)",
        f"Correlation over an image's tokens between similarity to [EOS] (of the question) and to [CLS]: "
        f"Pearson "
        f"{limits(found.mean('pearson'))}, Spearman {limits(found.mean('spearman'))}.",
        "## Where [EOS] looks in the text",
        layers,
        f"Share of the [EOS] token's attention on the start token, mean over heads. A question has "
        f"{tokens.value:.1f} tokens on "
        f"average, so even attention would give {1 / tokens.value:.3f}; far more than that is a text "
        f"attention sink.",
        "![sink](sink.svg)",
    ]
    if found.kept is not None:
        parts += _kept_text(found.kept)
    parts += [
        "## How",
        f"A visual token is the referent's if the truth covers at least {INSIDE:g} of its patch, outside "
        f"if it covers nothing; "
        "borders in between enter ranks and not AUROC. Visual tokens and [CLS] are those that the "
        "projector gets, through CLIP's "
        "last norm and visual projection. Means are over images of means over an image's expressions; "
        "brackets are 95 % "
        f"intervals from {DRAWS} draws of images with replacement, corrected for few images.",
    ]
    return "\n\n".join(parts) + "\n"


def _kept_text(kept: Kept) -> list[str]:
    table = pd.DataFrame(
        [
            {
                "pruner": row["pruner"],
                "budget": row["budget"],
                "referent coverage": _between(row["coverage"], row["coverage low"], row["coverage high"], 3),
                "its correlation with IoU": _between(
                    row["correlation"], row["correlation low"], row["correlation high"], 2
                ),
                "gIoU": f"{100 * row['gIoU']:.1f}",
                "expressions": row["expressions"],
            }
            for row in kept.table.to_dict("records")
        ]
    ).to_markdown(index=False, disable_numparse=True)
    return [
        "## What the pruners keep",
        f"From the run `{kept.run}`.",
        table,
        "Coverage: the share of the referent's area whose visual tokens are kept as patches; class, mean "
        "and pooled tokens are "
        "none, and where all are pooled there is no coverage. Correlation: Pearson, over expressions; - "
        "where nothing varies.",
        "![coverage](coverage.svg)",
        "Overlap: mean Jaccard index of the patches that two pruners keep for the same expression; of a "
        "pruner that draws, the "
        "first seed.",
        "![overlap](overlap.svg)",
        "Position bias: for how many of the expressions a patch is kept, as a share; those that keep all "
        "or none are left out.",
        "![places](places.svg)",
    ]


# -- figures


def _bars(axes: Any, places: Any, found: list[Estimate]) -> None:
    values = [one.value for one in found]
    reach = np.array([[one.value - one.low, one.high - one.value] for one in found]).T
    axes.bar(places, values, color=BAR, width=0.85)
    axes.errorbar(
        places, values, yerr=np.nan_to_num(reach).clip(min=0), fmt="none", ecolor=EDGE, capsize=2, linewidth=1
    )


def _ranks(found: Diagnosis) -> Figure:
    figure = Figure(figsize=(11, 3), layout="constrained")
    for axes, name in zip(figure.subplots(1, len(SIMILARITIES), sharey=True), SIMILARITIES, strict=True):
        _bars(axes, np.arange(BINS), [found.mean(f"rank {name} {k}") for k in range(BINS)])
        axes.axhline(1 / BINS, color=LEVEL, linewidth=1, linestyle="--")
        axes.set_title(f"{name}\nAUROC {found.mean(f'auroc {name}').value:.3f}", fontsize=9)
        axes.set_xticks([0, BINS - 1], ["least\nsimilar", "most\nsimilar"], fontsize=8)
    figure.supylabel("share of the referent's tokens", fontsize=9)
    return figure


def _sink(found: Diagnosis) -> Figure:
    figure = Figure(figsize=(5, 3), layout="constrained")
    axes = figure.subplots()
    _bars(axes, np.arange(found.layers), [found.mean(f"start {k}") for k in range(found.layers)])
    axes.axhline(
        1 / found.mean("tokens").value, color=LEVEL, linewidth=1, linestyle="--", label="even attention"
    )
    axes.set_xticks(range(found.layers))
    axes.set_xlabel("layer of the text tower", fontsize=9)
    axes.set_ylabel("[EOS] attention on\nthe start token", fontsize=9)
    axes.legend(fontsize=8, frameon=False)
    return figure


def _coverage(kept: Kept) -> Figure:
    budgets = sorted(set(kept.table["budget"]), reverse=True)
    figure = Figure(figsize=(6, 0.6 + 0.24 * len(kept.table) + 0.4 * len(budgets)), layout="constrained")
    sizes = [int((kept.table["budget"] == budget).sum()) + 1 for budget in budgets]
    grid = figure.subplots(len(budgets), 1, sharex=True, squeeze=False, gridspec_kw={"height_ratios": sizes})
    for axes, budget in zip(grid[:, 0], budgets, strict=True):
        part = kept.table[kept.table["budget"] == budget].iloc[::-1]
        reach = np.array([part["coverage"] - part["coverage low"], part["coverage high"] - part["coverage"]])
        axes.barh(part["pruner"], part["coverage"], color=BAR)
        axes.errorbar(
            part["coverage"],
            np.arange(len(part)),
            xerr=np.nan_to_num(reach).clip(min=0),
            fmt="none",
            ecolor=EDGE,
            capsize=2,
        )
        axes.set_title(f"{budget} tokens", fontsize=9, loc="left")
        axes.tick_params(labelsize=8)
    grid[-1, 0].set_xlabel("referent coverage", fontsize=9)
    return figure


def _overlap(kept: Kept) -> Figure:
    count = max(len(kept.overlap), 1)
    figure = Figure(figsize=(4.6 * count, 4.2), layout="constrained")
    grid = figure.subplots(1, count, squeeze=False)[0]
    for axes in grid[len(kept.overlap) :]:
        axes.set_axis_off()
    for axes, (budget, table) in zip(grid, kept.overlap.items(), strict=False):
        axes.imshow(table, vmin=0, vmax=1, cmap="viridis")
        axes.grid(visible=False)
        axes.set_xticks(range(len(table)), table.columns, rotation=90, fontsize=7)
        axes.set_yticks(range(len(table)), table.index, fontsize=7)
        for (i, j), value in np.ndenumerate(table.to_numpy()):
            axes.text(
                j,
                i,
                f"{value:.2f}",
                ha="center",
                va="center",
                fontsize=5.5,
                color="black" if value > 0.6 else "white",
            )
        axes.set_title(f"{budget} tokens", fontsize=9)
    return figure


def _places(kept: Kept) -> Figure:
    pruners = sorted({pruner for pruner, _ in kept.places})
    budgets = sorted({budget for _, budget in kept.places}, reverse=True)
    figure = Figure(figsize=(1.35 * len(pruners) + 0.8, 1.6 * len(budgets) + 0.3), layout="constrained")
    grid = figure.subplots(len(budgets), len(pruners), squeeze=False)
    image = None
    for (i, budget), (j, pruner) in ((a, b) for a in enumerate(budgets) for b in enumerate(pruners)):
        axes = grid[i, j]
        if (pruner, budget) in kept.places:
            image = axes.imshow(kept.places[pruner, budget], vmin=0, vmax=1, cmap="magma")
            axes.set_title(f"{pruner}\n{budget}", fontsize=7)
        axes.set_axis_off()
    if image is not None:
        figure.colorbar(image, ax=grid, shrink=0.8).ax.tick_params(labelsize=7)
    return figure
