"""The oracle ladder as a sentence, markdown, CSV and a figure."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from harness.diagnosis.budgets import Budgets
from harness.diagnosis.ladder import ENOUGH, RUNGS, Ladder
from harness.metrics.bootstrap import DRAWS
from harness.store.journal import write_text
from pruners.base import UserError
from reports.export import Column, Sheet
from reports.looks import COLOURS, GREY
from reports.style import STYLE, save
from reports.table_text import csv, pipe_table

FILE = "ladder.md"
PERCENT = 100.0


def write_ladder(
    found: Ladder, needs: Budgets, methods: Budgets | None, folder: Path, command: str
) -> list[Path]:
    """`ladder.md`, one CSV per table, and the figure.

    Args:
        needs: of the rungs.
        methods: of a run's methods, if one was given.
        command: what made it, printed beside it.

    Raises:
        UserError: the folder cannot be written.
    """
    import matplotlib

    try:
        folder.mkdir(parents=True, exist_ok=True)
        tables = frames_of(found, needs, methods)
        for name, table in tables.items():
            write_text(folder / f"{name}.csv", csv(table))
        with matplotlib.rc_context(STYLE):
            drawn = save(_figure(found, needs), folder / "ladder")
        write_text(folder / FILE, markdown(found, needs, methods, command))
    except OSError as error:
        raise UserError(
            f"Cannot write to {str(folder)!r} ({error.strerror}); give --out a folder that you may write."
        ) from error
    return [folder / FILE, *(folder / f"{name}.csv" for name in tables), *drawn]


def frames_of(found: Ladder, needs: Budgets, methods: Budgets | None) -> dict[str, pd.DataFrame]:
    """Every table in no unit, by its name."""
    tables = {"ladder": needs.table, "curves": needs.curves, "least": needs.least, "answers": found.rows}
    if methods is not None:
        tables |= {"methods": methods.table, "methods-least": methods.least}
    return tables


def ladder_sheet(found: Ladder, needs: Budgets) -> Sheet:
    """What every rung needs, for a file."""
    columns = {
        "rung": Column("how tokens are chosen: " + ", ".join(RUNGS)),
        "least": Column(f"mean of the fewest tokens with {ENOUGH:g} of the full IoU", "tokens"),
        "least low": Column("lower end of its 95 % interval", "tokens"),
        "least high": Column("upper end of its 95 % interval", "tokens"),
        "median": Column("of the same", "tokens"),
        "reached": Column("share of the expressions that have it with fewer than all tokens"),
        "fixed": Column(f"one budget for all with {ENOUGH:g} of the full gIoU", "tokens"),
        "own": Column("mean of own budgets with the same gIoU", "tokens"),
        "saving": Column("share of the tokens that own budgets save"),
        "saving low": Column("lower end of its 95 % interval"),
        "saving high": Column("upper end of its 95 % interval"),
    }
    return Sheet(f"Oracle ladder of {found.backbone}", needs.table, columns, [sentence(found, needs)])


def sentence(found: Ladder, needs: Budgets) -> str:
    """What the ladder says, in one sentence."""
    if needs.table.empty or not needs.expressions:
        return (
            f"{found.backbone} keeps nothing of these expressions even with all tokens, so no budget is the "
            "least."
        )
    table = needs.table.set_index("rung")
    greedy, own, random = (table.loc[name] for name in ("greedy", "referent", "random"))
    saving = needs.table["saving"].to_numpy()
    best = None if np.isnan(saving).all() else needs.table.iloc[int(np.nanargmax(saving))]
    return (
        f"On {found.backbone}, {PERCENT * ENOUGH:.0f} % of an expression's full IoU takes {_tokens(greedy)} "
        f"of {found.counts[-1]} tokens on average if a search that sees the truth chooses them, "
        f"{_tokens(own)} if they are the referent's (which reach it for {PERCENT * own['reached']:.0f} % of "
        f"the expressions) and {_tokens(random)} at random{_adaptive(best)} ({needs.expressions} expressions "
        f"of {needs.images} images)."
    )


def _adaptive(best: Any) -> str:
    """What budgets of one's own save where they save most; nothing where that is not known."""
    if best is None:
        return ""
    low, high = (PERCENT * best[f"saving {end}"] for end in ("low", "high"))
    if np.isnan(low):
        return "; what budgets of one's own would save cannot be told from so few images"
    if low <= 0:
        return "; that budgets of one's own would save anything against one for all cannot be told"
    return (
        f"; a budget of its own for every expression saves at most {PERCENT * best['saving']:.0f} % of the "
        f"tokens (95 % {low:.0f} to {high:.0f}) against one for all with the same gIoU (rung {best['rung']})"
    )


def _tokens(row: Any) -> str:
    between = "" if np.isnan(row["least low"]) else f" ({row['least low']:.1f} to {row['least high']:.1f})"
    return f"{row['least']:.1f}{between}"


def _saved(row: Any) -> str:
    low, high = (PERCENT * row[f"saving {end}"] for end in ("low", "high"))
    return f"{PERCENT * row['saving']:.0f}" + ("" if np.isnan(low) else f" ({low:.0f} to {high:.0f})")


def rungs_table(needs: Budgets, name: str = "rung") -> str:
    """What every rung, or method, needs."""
    lines = []
    for row in needs.table.to_dict("records"):
        few = np.isnan(row["fixed"])
        lines.append(
            {
                name: row["rung"],
                "least tokens, mean": _tokens(row),
                "median": f"{row['median']:.0f}",
                "reached %": f"{PERCENT * row['reached']:.0f}",
                "one budget for all": "-" if few else f"{row['fixed']:.1f}",
                "own budgets": "-" if few else f"{row['own']:.1f}",
                "they save %": "-" if few else _saved(row),
            }
        )
    return pipe_table(lines)


def curves_table(needs: Budgets) -> str:
    """Mean IoU at every count."""
    lines = []
    for rung, part in needs.curves.groupby("rung", sort=False):
        line = {"rung": str(rung)}
        for row in part.to_dict("records"):
            line[str(row["count"])] = f"{PERCENT * row['iou']:.1f}"
        lines.append(line)
    return pipe_table(lines)


def markdown(found: Ladder, needs: Budgets, methods: Budgets | None, command: str) -> str:
    """The whole report; the figure lies beside it."""
    which = f"first {found.limit} images each" if found.limit else "all images"
    parts = [
        f"# Oracle ladder of {found.backbone}",
        f"`{command}`",
        sentence(found, needs),
        "![ladder](ladder.svg)",
        "## What every rung needs",
        rungs_table(needs),
        f"Least tokens: the fewest of the counts below at which an expression has {PERCENT * ENOUGH:.0f} % "
        "of its full IoU; all tokens where none does ('reached' are the others). One budget for all: mean "
        f"tokens at which gIoU is {PERCENT * ENOUGH:.0f} % of the full one, between two counts on a straight "
        "line; own budgets: mean tokens at the same gIoU, if every expression gets the fewest tokens with "
        "an equal share of its full IoU. IoU above the full one counts as the full one. Own budgets are "
        "chosen knowing every IoU, so what they save is the most that a method could.",
        "## gIoU by tokens",
        curves_table(needs),
        "\n".join(f"- {name}: {text}." for name, text in RUNGS.items()),
    ]
    if methods is not None:
        parts += [
            "## What the methods of the run need",
            rungs_table(methods, "method"),
            f"{methods.expressions} expressions of {methods.images} images of the run, among the budgets "
            "that it has; tokens are means over layers. Its expressions may stand in conversations, the "
            "ladder's are asked alone.",
        ]
    parts += [
        "## How",
        f"{needs.expressions} expressions of {needs.images} images ({', '.join(found.datasets)}, {which}, "
        f"seed {found.seed}), each asked alone; {found.left_out} left out whose referent covers no token, "
        f"{needs.empty} whose full IoU is 0; weights {found.fingerprint}; {found.evaluations} rows were run. "
        f"Tokens are numbered anew, as most methods do. Brackets are 95 % intervals from {DRAWS} draws of "
        "images with replacement, corrected for few images. A count that reaches the share by luck counts "
        "as reached, and IoU may fall again behind it. The greedy search ends where an expression has "
        "enough; what follows is not searched.",
    ]
    return "\n\n".join(parts) + "\n"


def _figure(found: Ladder, needs: Budgets) -> Any:
    """gIoU by tokens, and how many expressions have enough by tokens."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10.5, 3.9), layout="constrained")
    left, right = figure.subplots(1, 2)
    for place, (rung, part) in enumerate(needs.curves.groupby("rung", sort=False)):
        colour, marker = COLOURS[place % len(COLOURS)], "osD^v"[place % 5]
        value = PERCENT * part["iou"]
        reach = np.array([value - PERCENT * part["iou low"], PERCENT * part["iou high"] - value])
        style = {"color": colour, "marker": marker, "markersize": 4, "linewidth": 1.2, "elinewidth": 0.7}
        left.errorbar(part["count"], value, yerr=np.nan_to_num(reach).clip(min=0), label=str(rung), **style)
        own = np.sort(needs.least["tokens"][needs.least["rung"] == rung])
        share = PERCENT * np.arange(1, len(own) + 1) / max(len(own), 1)
        right.step(own, share, where="post", color=colour, linewidth=1.4, label=str(rung))
    for panel in (left, right):
        panel.set_xscale("log", base=2)
        ticks = [2**k for k in range(14) if 2**k <= found.counts[-1]]
        panel.set_xticks(ticks, [str(tick) for tick in ticks], fontsize=8)
        panel.axvline(found.counts[-1], color=GREY, linewidth=0.7, linestyle=":")
    left.set_xlabel("visual tokens", fontsize=9)
    left.set_ylabel("gIoU, %", fontsize=9)
    left.set_ylim(bottom=0)
    right.set_xlabel("visual tokens", fontsize=9)
    right.set_ylabel(f"expressions with {PERCENT * ENOUGH:.0f} % of their full IoU, %", fontsize=9)
    right.legend(fontsize=8, loc="lower right")
    return figure
