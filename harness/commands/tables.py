"""`--full` and `--export`: how a command's table is printed, and the file that it is written to besides."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from harness.commands.options import OUTPUT

if TYPE_CHECKING:
    from reports.export import Sheet


def _checked(context: typer.Context, path: Path | None) -> Path | None:
    """Callback of --export: whatever is wrong with the file shows before anything runs."""
    if path is None or context.resilient_parsing:
        return path
    from reports.export import check

    return check(path)


Full = Annotated[
    bool,
    typer.Option(
        "--full",
        help="print all columns, each explained, as in leaderboard.md; without it those that fit",
        rich_help_panel=OUTPUT,
    ),
]
Export = Annotated[
    Path | None,
    typer.Option(
        "--export",
        metavar="FILE",
        callback=_checked,
        help="write the table there, too: .csv, .json, .md or .tex",
        rich_help_panel=OUTPUT,
    ),
]


def export_to(path: Path | None, *sheets: Sheet) -> None:
    """Write a command's tables to the file of --export, if it was given, and say so.

    Raises:
        UserError: it cannot be written.
    """
    if path is None or not sheets:
        return
    from reports.export import write

    write(sheets, path)
    print(f"export: {path}")
