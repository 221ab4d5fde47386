"""The figures of an atlas."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd

from harness.diagnosis.atlas import Atlas
from harness.diagnosis.difficulty import HALVES
from harness.diagnosis.factors import FACTORS, Factor
from reports.atlas_findings import POINTS, line_name
from reports.atlas_tables import bin_heads
from reports.looks import COLOURS, GREY


def figures(found: Atlas) -> dict[str, Any]:
    """All figures by their names."""
    drawn = {factor.name: _losses(found, factor) for factor in FACTORS if factor.name not in found.unknown}
    drawn["explained"] = _explained(found)
    if found.split is not None:
        drawn["difficulty"] = _difficulty(found)
    return drawn


def _losses(found: Atlas, factor: Factor) -> Any:
    """Bars of loss, one per bin, of every method; a panel per budget."""
    from matplotlib import colormaps
    from matplotlib.figure import Figure

    bins = found.bins[found.bins["factor"] == factor.name]
    heads = bin_heads(found, factor)
    budgets = sorted(bins["budget"].unique(), reverse=True)
    names = list(bins.groupby("pruner")["loss"].mean().sort_values().index)
    colours = colormaps["viridis"](np.linspace(0.12, 0.88, len(heads)))
    figure = Figure(
        figsize=(max(2.2 + 0.5 * len(names), 7.0), 1.4 + 2.3 * len(budgets)), layout="constrained"
    )
    panels = figure.subplots(len(budgets), 1, sharex=True, sharey=True, squeeze=False)[:, 0]
    width = 0.82 / len(heads)
    for panel, budget in zip(panels, budgets, strict=True):
        for place, (number, head) in enumerate(heads.items()):
            part = bins[(bins["bin"] == number) & (bins["budget"] == budget)]
            at = part["pruner"].map(names.index).to_numpy() + width * (place - (len(heads) - 1) / 2)
            loss, reach = _reach(part, "loss")
            panel.bar(at, loss, width, color=colours[place], label=head)
            panel.errorbar(at, loss, yerr=reach, fmt="none", ecolor=GREY, elinewidth=0.8)
        panel.axhline(0, color=GREY, linewidth=0.6)
        panel.grid(visible=False, axis="x")
        panel.set_title(f"{budget} tokens", fontsize=9, loc="left")
        panel.set_ylabel("loss, points", fontsize=8)
    panels[-1].set_xticks(range(len(names)), names, rotation=35, ha="right", fontsize=8)
    title = {"title": factor.title, "title_fontsize": 7.5, "fontsize": 7.5, "ncols": len(heads)}
    panels[0].legend(loc="lower right", bbox_to_anchor=(1, 1), **title)
    return figure


def _reach(table: pd.DataFrame, name: str) -> tuple[Any, Any]:
    """Points of a column, and how far their intervals reach to both sides; 0 where there is none."""
    value, low, high = (POINTS * table[f"{name}{end}"].to_numpy() for end in ("", " low", " high"))
    return value, np.nan_to_num(np.array([value - low, high - value])).clip(min=0)


def _explained(found: Atlas) -> Any:
    """R^2 alone and partial, one line per row."""
    from matplotlib.figure import Figure

    table = found.explained.dropna(subset=["alone R2"])
    table = table.sort_values("alone R2", ascending=False, ignore_index=True)
    figure = Figure(figsize=(6.2, 1.2 + 0.22 * len(table)), layout="constrained")
    panel = figure.subplots()
    for place, name in enumerate(("alone", "partial")):
        at = np.arange(len(table)) + 0.3 * place - 0.15
        shown, reach = _reach(table, f"{name} R2")
        label = "coverage alone" if name == "alone" else "beside the other factors"
        style: Any = {"fmt": "os"[place], "color": COLOURS[place], "markersize": 3.5, "elinewidth": 0.9}
        panel.errorbar(shown, at, xerr=reach, label=label, **style)
    panel.set_yticks(range(len(table)), [line_name(row) for row in table.to_dict("records")], fontsize=7)
    panel.invert_yaxis()
    panel.set_xlim(left=0)
    panel.set_xlabel("share of the loss's variance that coverage explains, %", fontsize=8)
    panel.legend(fontsize=7)
    return figure


def _difficulty(found: Atlas) -> Any:
    """Both halves' means of every row, a panel per budget."""
    from matplotlib.figure import Figure

    assert found.split is not None  # asked by `figures`
    board = found.split.board
    budgets = sorted(board["budget"].unique(), reverse=True)
    most = int(board.groupby("budget").size().max())
    figure = Figure(figsize=(1.6 + 3.6 * len(budgets), 1.2 + 0.22 * most), layout="constrained")
    for panel, budget in zip(figure.subplots(1, len(budgets), squeeze=False)[0], budgets, strict=True):
        part = board[board["budget"] == budget].sort_values("hard", ascending=False, ignore_index=True)
        for place, name in enumerate(HALVES):
            shown, reach = _reach(part, name)
            style = {
                "color": COLOURS[1 - place],
                "markersize": 4,
                "elinewidth": 0.9,
                "fmt": "o",
                "label": name,
            }
            panel.errorbar(shown, np.arange(len(part)) + 0.24 * place - 0.12, xerr=reach, **style)
        panel.set_yticks(range(len(part)), part["pruner"], fontsize=7)
        panel.invert_yaxis()
        panel.set_title(f"{budget} tokens", fontsize=9, loc="left")
        panel.set_xlabel(f"g{found.score}, %", fontsize=8)
        panel.legend(fontsize=7)
    return figure
