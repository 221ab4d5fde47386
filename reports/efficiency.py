"""A projection of costs beside the published table."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd

from backbones.costs import Prompt
from harness.cost.formulas import GIB
from harness.cost.projection import Projection
from harness.cost.roofline import Gpu, compute_seconds, prefill_seconds
from harness.cost.sharing import Account
from harness.cost.store import BASELINE, MODULES
from reports import publication

LANGUAGE_MODEL = MODULES["prefill"]
FASTV = (
    "fastv: layers before the cut see every token, so K=2 at 192 / 64 gives {ours} T by the paper's own "
    "counter where it prints "
    "{theirs} T. The printed pair is what that counter gives with about 256 and 192 kept tokens, perhaps a "
    "mislabelled rank; its "
    "printed activation and prefill are those of no cut at all (tokens masked, not dropped). Neither can "
    "be decided from outside."
)


def published(backbone: str) -> pd.DataFrame:
    """The printed efficiency rows of a backbone, or of one that is its shapes alone, indexed by (pruner,
    budget): FLOPs in T (`flops_t`), activation in GiB (`activation_gb`); empty where nothing is printed."""
    printed = ["pruner", "budget", "flops_t", "activation_gb", "source"]
    rows = [
        publication.read_published(table.file)[printed]
        for table in publication.published_of(backbone, "flops_paper")
    ]
    return (rows[0] if rows else pd.DataFrame(columns=printed)).set_index(["pruner", "budget"])


def _beside(ours: float, theirs: float, digits: int = 2) -> list[str]:
    if np.isnan(theirs):
        return [f"{ours:.{digits}f}", "", ""]
    return [f"{ours:.{digits}f}", f"{theirs:.{digits}f}", f"{100 * (ours / theirs - 1):+.1f} %"]


def figures(projection: Projection, printed: pd.DataFrame, on: Gpu) -> pd.DataFrame:
    """All cells as numbers: ours in units of one, bytes and milliseconds, beside what a paper printed of them
    (NaN where it did not); in the order of the table."""
    rows = []
    for cell in projection.cells.to_dict("records"):
        row: dict[Any, Any] = cell
        where = (row["pruner"], row["budget"])
        paper = printed.loc[where].to_dict() if where in printed.index else {}
        seconds, streaming = prefill_seconds(row["macs.language_model"], projection.shape, on)
        rows.append(
            {
                **{name: row[name] for name in ("pruner", "budget", "tokens_final", "tokens_mean")},
                "tokens_per_layer": row["per_layer"],
                "flops_paper": row["flops_paper"],
                "flops_printed": 1e12 * paper.get("flops_t", np.nan),
                "activation_paper_bytes": row["activation_paper"],
                "activation_printed_bytes": GIB * paper.get("activation_gb", np.nan),
                "activation_peak_bytes": row["activation_peak"],
                "macs_projected": row["macs_measured"],
                **{name: value for name, value in row.items() if str(name).startswith("macs.")},
                "roofline_prefill_ms": 1e3 * seconds,
                "waits_for_weights": streaming,
                "flops_fastv": row["flops_fastv"],
                "flops_visual": row["flops_visual"],
                "activation_llm_viewer_bytes": row["activation_llm_viewer"],
            }
        )
    return pd.DataFrame(rows).sort_values(["budget", "pruner"], ascending=[False, True], kind="stable")


def cells(projection: Projection, printed: pd.DataFrame, on: Gpu) -> pd.DataFrame:
    """Table of all cells: ours, the paper's, the error, then what the paper does not say."""
    rows = []
    for row in figures(projection, printed, on).to_dict("records"):
        flops = _beside(row["flops_paper"] / 1e12, row["flops_printed"] / 1e12)
        activation = _beside(row["activation_paper_bytes"] / GIB, row["activation_printed_bytes"] / GIB)
        rows.append(
            {
                "method": row["pruner"],
                "budget": row["budget"],
                "tokens mean": f"{row['tokens_mean']:.{4 if row['tokens_mean'] < 1e4 else 5}g}",
                "per layer": row["tokens_per_layer"],
                "FLOPs (T)": flops[0],
                "paper": flops[1],
                "error": flops[2],
                "activation (GiB)": activation[0],
                "paper ": activation[1],
                "error ": activation[2],
                "peak (GiB)": f"{row['activation_peak_bytes'] / GIB:.3f}",
                "all modules (TMAC)": f"{row['macs_projected'] / 1e12:.2f}",
                "pruner (GMAC)": f"{row['macs.pruner'] / 1e9:.2f}",
                "roofline prefill (ms)": f"{row['roofline_prefill_ms']:.2f}"
                + " weights" * row["waits_for_weights"],
                "FastV formula (T)": f"{row['flops_fastv'] / 1e12:.2f}",
                "visual only (T)": f"{row['flops_visual'] / 1e12:.2f}",
                "LLM-Viewer (GiB)": f"{row['activation_llm_viewer_bytes'] / GIB:.2f}",
            }
        )
    return pd.DataFrame(rows)


def modules(projection: Projection, on: Gpu) -> pd.DataFrame:
    """What no pruner changes, and behind it the rest of an unpruned pass."""
    unpruned = projection.cells[projection.cells["pruner"] == BASELINE].iloc[0]
    whole, rows = float(unpruned["macs_measured"]), []
    for name, macs in (projection.shared | _changed(projection, unpruned)).items():
        part, peak = projection.parts.get(name), projection.peaks.get(name)
        if name == LANGUAGE_MODEL:
            peak = int(unpruned["activation_peak"])
        frames = part.frames if part is not None else 0
        rows.append(
            {
                "module": part.title if part is not None and part.title else f"{name} of `{BASELINE}`",
                "GMAC": f"{macs / 1e9:.2f}",
                "GMAC a frame": f"{macs / frames / 1e9:.2f}" if frames else "",
                "share": f"{100 * macs / whole:.1f} %" if unpruned[f"macs.{name}"] else "",
                "roofline (ms)": f"{1e3 * compute_seconds(macs, on):.2f}",
                "peak (MiB)": "" if peak is None else f"{peak / 2**20:.1f}",
            }
        )
    table = pd.DataFrame(rows)
    return table if table["GMAC a frame"].any() else table.drop(columns="GMAC a frame")


def _changed(projection: Projection, unpruned: pd.Series[Any]) -> dict[str, int]:
    """Multiply-adds of the modules that pruners change."""
    own = (name for name in projection.parts if name not in projection.shared)
    return {name: int(unpruned[f"macs.{name}"]) for name in (*own, LANGUAGE_MODEL)}


def projection_notes(
    projection: Projection, printed: pd.DataFrame, prompt: Prompt, attn: str, on: Gpu
) -> list[str]:
    """What the figures rest on, and what they say."""
    found = [
        f"{prompt.text} text tokens in the language model; bfloat16; attention {attn}. FLOPs by the "
        f"paper's counter, one per "
        "multiply-add: 4nd^2 + 2n^2d + 3ndm over decoder layers. Activation is its sum of n(2d + m) "
        "elements over layers; the "
        "peak is what is alive at once in the language model.",
        f"Roofline: {on.name}, {on.rate / 1e12:g} TFLOP/s bfloat16, {on.bandwidth / 1e12:g} TB/s; "
        f"'weights' marks rows that wait "
        f"for the weights. Below {on.crossover:.0f} tokens in all "
        f"({max(0, on.crossover - prompt.text):.0f} visual) a pass at "
        "batch 1 takes as long as reading the weights: fewer tokens buy nothing there.",
    ]
    ours = projection.cells.set_index(["pruner", "budget"])["flops_paper"] / 1e12
    both = [
        ("fastv", budget)
        for budget in (192, 64)
        if ("fastv", budget) in ours.index and ("fastv", budget) in printed.index
    ]
    if len(both) == 2:
        told = [" / ".join(f"{source[cell]:.2f}" for cell in both) for source in (ours, printed["flops_t"])]
        found.append(FASTV.format(ours=told[0], theirs=told[1]))
    if len(printed):
        found.append(f"Paper: {printed['source'].iloc[0]}.")
    if too_long := _too_long(projection):
        found.append(
            f"The language model has {projection.places} positions. {', '.join(too_long)} need more: these "
            f"rows cannot run, their figures are of what they would cost."
        )
    found += projection.notes
    return found


def _too_long(projection: Projection) -> list[str]:
    """Rows with more tokens than the language model has positions for."""
    if projection.places is None:
        return []
    return [
        f"{row['pruner']} at {row['budget']} ({row['lengths'][0]} tokens)"
        for row in projection.cells.to_dict("records")
        if row["lengths"][0] > projection.places
    ]


def render_projection(projection: Projection, backbone: str, prompt: Prompt, attn: str, on: Gpu) -> str:
    """Markdown of a projection."""
    printed = published(backbone)
    parts = [cells(projection, printed, on), modules(projection, on)]
    tables = [part.to_markdown(index=False, disable_numparse=True) for part in parts]
    return "\n\n".join(
        [*tables, "\n".join(f"- {note}" for note in projection_notes(projection, printed, prompt, attn, on))]
    )


def sharing_table(accounts: dict[str, Account]) -> str:
    """Markdown of what sharing saves per image, a column per protocol."""
    first = next(iter(accounts.values()))
    lines: list[dict[str, str]] = [{"TMAC per image": f"{first.cells} cells, each alone"}]
    lines += [{"TMAC per image": f"- {title}"} for title in first.savings]
    lines += [{"TMAC per image": title} for title in ("shared", "ratio", "once per run")]
    for title, found in accounts.items():
        figures = [found.naive, *(-saved for saved in found.savings.values()), found.shared]
        told = [
            *(f"{figure / 1e12:.2f}" for figure in figures),
            f"{found.ratio:.2f}x",
            f"{found.once / 1e12:.2f}",
        ]
        for line, text in zip(lines, told, strict=True):
            line[title] = text
    return pd.DataFrame(lines).to_markdown(
        index=False, disable_numparse=True, colalign=["left", *["right"] * len(accounts)]
    )
