"""The failure atlas as sentences, markdown, CSV and figures."""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from harness.diagnosis.atlas import Atlas, worst
from harness.diagnosis.difficulty import CONTROL
from harness.diagnosis.factors import FACTORS
from harness.store.journal import write_text
from pruners.base import UserError
from reports.atlas_figures import figures
from reports.atlas_findings import POINTS, findings
from reports.atlas_page import EXAMPLES, PAGE, html
from reports.atlas_tables import bins_table, coverage_table, difficulty_table, how, rows_table, swaps_table
from reports.export import Column, Sheet
from reports.style import STYLE, save
from reports.table_text import csv, pipe_table

FOLDER, FILE = "atlas", "atlas.md"


def write_atlas(found: Atlas, folder: Path, command: str) -> list[Path]:
    """`atlas.md`, `atlas.html` with examples, one CSV per table, and the figures.

    Args:
        command: what made it, printed beside it.

    Raises:
        UserError: the folder cannot be written.
    """
    import matplotlib

    try:
        folder.mkdir(parents=True, exist_ok=True)
        tables = frames_of(found)
        for name, table in tables.items():
            write_text(folder / f"{name}.csv", csv(table))
        drawn = []
        with matplotlib.rc_context(STYLE):
            for name, figure in figures(found).items():
                drawn += save(figure, folder / name)
        write_text(folder / FILE, markdown(found, command))
        write_text(folder / PAGE, html(found, folder, command))
    except OSError as error:
        raise UserError(
            f"Cannot write to {str(folder)!r} ({error.strerror}); give --out a folder that you may write."
        ) from error
    return [folder / FILE, folder / PAGE, *(folder / f"{name}.csv" for name in tables), *drawn]


def frames_of(found: Atlas) -> dict[str, pd.DataFrame]:
    """Every table in no unit, by its name: losses and their parts 0..1, `q` after control of false
    discoveries."""
    expressions = found.expressions[found.expressions["asked"]]
    worse = worst(found, EXAMPLES)
    listed = found.lines.loc[worse["line"], ["pruner", "budget"]].reset_index(drop=True)
    said = found.expressions.loc[worse["place"], ["sample", "expression", "text", "full", "picture"]]
    own = found.answers.loc[worse["answer"], ["iou", "loss", "coverage"]]
    examples = [listed, worse[["factor", "bin", "rank"]], said, own]
    tables = {
        "rows": found.lines,
        "bins": found.bins.drop(columns="line"),
        "contrasts": found.contrasts.drop(columns="line"),
        "coverage": found.explained,
        "expressions": expressions.drop(
            columns=["mask", "truth", "image", "content", "asked"], errors="ignore"
        ),
        "worst": pd.concat([part.reset_index(drop=True) for part in examples], axis=1),
    }
    if found.split is not None:
        tables |= {"difficulty": found.split.board, "swaps": found.split.swaps}
    return tables


def atlas_sheet(found: Atlas) -> Sheet:
    """Every mean of the atlas for a file: one row per method, budget, factor and bin."""
    columns = {
        "pruner": Column("method"),
        "budget": Column("visual tokens that were asked for", "tokens"),
        "factor": Column("what the expressions are grouped by: " + ", ".join(one.name for one in FACTORS)),
        "bin": Column("number of the group, from small values to large ones"),
        "from": Column("end of the group, not in it but for the first one"),
        "to": Column("its other end, in it"),
        "expressions": Column("in the group"),
        "images": Column("of these expressions"),
        "loss": Column(f"mean {found.score} of the unpruned row minus the method's, 0 to 1"),
        "loss low": Column("lower end of its 95 % interval"),
        "loss high": Column("upper end of its 95 % interval"),
    }
    title = f"Losses on {found.backbone}, protocol {found.protocol}"
    return Sheet(title, frames_of(found)["bins"], columns, list(findings(found).values()))


def markdown(found: Atlas, command: str) -> str:
    """The whole report; figures and tables lie beside it."""
    told = findings(found)
    expressions = int(found.expressions["asked"].sum())
    parts = [
        f"# Why rows lose: {found.backbone}, protocol {found.protocol}",
        f"`{command}`",
        f"{expressions} expressions of {found.images} {found.things}, {len(found.lines)} rows; "
        f"{found.left_out} expressions left out that have no truth or no answer of some row. Losses are "
        f"{found.score} of the unpruned row minus {found.score} of the row, of the same expression, in "
        f"points. Examples behind every mean: [{PAGE}]({PAGE}).",
        "\n".join(f"- {text}" for text in told.values()),
        "## Rows",
        told["boundary"],
        pipe_table(rows_table(found)),
    ]
    for factor in FACTORS:
        parts += [f"## By {factor.title}", told[factor.name]]
        if factor.name in found.unknown:
            continue
        parts += [
            f"![loss by {factor.title}]({factor.name}.svg)",
            pipe_table(bins_table(found, factor)),
            f"What it is: {factor.meaning}.",
        ]
    parts += [
        "## What coverage explains",
        told["explained"],
        "![what coverage explains](explained.svg)",
        pipe_table(coverage_table(found)),
        "## Hard and easy expressions",
        told["difficulty"],
    ]
    if found.split is not None:
        parts += [
            "![hard and easy expressions](difficulty.svg)",
            pipe_table(difficulty_table(found)),
            f"Hard: `{CONTROL}` of the same budget keeps less than {POINTS * found.split.share:.0f} % of the "
            f"expression's full {found.score}; {found.split.empty} expressions without any are in neither "
            f"half. `{CONTROL}` itself has no rank, as its own score chose the halves.",
        ]
        if len(found.split.swaps):
            parts.append(pipe_table(swaps_table(found)))
    parts += ["## How", "\n".join(f"- {line}" for line in how(found))]
    return "\n\n".join(parts) + "\n"
