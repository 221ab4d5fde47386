"""Rendering only: rows in; markdown, CSV, JSON, LaTeX, figures, a page and a terminal's table out."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from reports.export import Sheet
    from reports.gather import Runs
    from reports.tables import Table

MARKDOWN, CSV, JSON, COMPARED, LATEX, PAGE, FIGURES = (
    "leaderboard.md",
    "leaderboard.csv",
    "leaderboard.json",
    "differences.csv",
    "leaderboard.tex",
    "report.html",
    "figures",
)
PARTS = ("records", "tables", "page", "figures")  # of the work, in order


def _nobody(part: str) -> None:
    """Shows nothing."""


@dataclass(frozen=True)
class Report:
    """What one or several runs say.

    Attributes:
        tables: rows that are ranked together, table by table.
        written: its files, leaderboard.md first.
    """

    runs: Runs
    tables: tuple[Table, ...]
    written: tuple[Path, ...]

    def text(self, full: bool = False, columns: int | None = None) -> str:
        """What a command prints: a table at the terminal's width, or all of leaderboard.md, and the files.

        Args:
            full: all columns, each explained.
            columns: width of the short one; by default the terminal's, and 100 in a pipe.
        """
        from reports import terminal

        if full:
            return "\n".join([self.written[0].read_text(encoding="utf-8"), *map(str, self.written)])
        return terminal.screen(self.runs, self.tables, self.written, columns)

    def sheet(self) -> Sheet:
        """Its tables for a file of another format."""
        from reports import frames

        return frames.sheet(self.runs, self.tables)


def render(
    folders: str | Path | Sequence[str | Path],
    out: str | Path | None = None,
    baseline: str | None = None,
    latex: bool = False,
    metric: str | None = None,
    told: Callable[[str], None] = _nobody,
) -> list[Path]:
    """Write the report of one or several runs, as `report`; its files, leaderboard.md first."""
    return list(report(folders, out, baseline, latex, metric, told).written)


def report(
    folders: str | Path | Sequence[str | Path],
    out: str | Path | None = None,
    baseline: str | None = None,
    latex: bool = False,
    metric: str | None = None,
    told: Callable[[str], None] = _nobody,
) -> Report:
    """Write the report of one or several runs; the same records give the same bytes.

    Args:
        folders: run folders.
        out: folder to write to; by default that of the first run.
        baseline: a pruner that every row is compared with.
        latex: whether to write a LaTeX table too.
        metric: name of the metric that tables rank by; by default cIoU, and J&F of clips.
        told: is called with one of PARTS before it is done.

    Raises:
        UserError: a run has no evaluated sample, no row has the baseline's name, the metric is not known or
            was not measured, or `out` cannot be written.
    """
    from harness.store.journal import write_text
    from pruners.base import UserError
    from reports import export, figures, frames, leaderboard, page, samples
    from reports.gather import gather
    from reports.tables import tables

    named = [folders] if isinstance(folders, str | Path) else list(folders)
    told("records")
    runs = gather(named)
    told("tables")
    found = tables(runs, baseline, metric)
    target = Path(out) if out is not None else Path(named[0])
    told("page")
    whole = frames.sheet(runs, found)
    shown = page.page(runs, found)
    texts = {
        MARKDOWN: _markdown(runs, found, target),
        CSV: export.csv(leaderboard.per_seed(runs.frame)),
        JSON: export.json_text(whole),
        COMPARED: export.csv(leaderboard.compared(list(found))),
        PAGE: shown.text,
    }
    if latex:
        texts[LATEX] = export.tex(whole)
    try:
        target.mkdir(parents=True, exist_ok=True)
        for name, text in texts.items():
            write_text(target / name, text)
        beside = samples.write_beside(target, shown.parts, shown.pictures)
        told("figures")
        drawn = figures.draw_figures(runs, found, target / FIGURES)
    except OSError as error:
        raise UserError(
            f"Cannot write to {str(target)!r} ({error.strerror}); give --out a folder that you may write."
        ) from error
    return Report(runs, tuple(found), (*(target / name for name in texts), *beside, *drawn))


def _markdown(runs: Runs, found: Sequence[Table], target: Path) -> str:
    """The text of leaderboard.md, which lies in the target folder."""
    from reports import comparable, leaderboard, papers, publication

    why = comparable.why([table.group for table in found], runs.facts)
    parts = [f"**{note}**\n" for note in (*why, *runs.notes)]
    for table in found:
        notes = [f"**{warning}**\n" for warning in leaderboard.warnings(table, runs)]
        shown = [
            f"{leaderboard.leaderboard_markdown(table, runs.costs)}\n",
            *papers.clip_markdown(table),
            *publication.published_markdown(table, runs),
        ]
        parts.append("\n".join([f"# {table.title}\n", *notes, *shown]))
    parts += [
        f"{heading}\n" for run in runs.runs for heading in _diagnosed(run.folder, run.diagnosis, target)
    ]
    parts.append("\n".join(f"- {line}" for line in leaderboard.footer(runs, list(found))) + "\n")
    return "\n".join(parts)


def _diagnosed(folder: Path, told: dict[str, Any] | None, target: Path) -> list[str]:
    """A run's diagnosis: its verdict, and where the rest is."""
    if told is None:
        return []
    from reports import diagnosis

    page = Path(os.path.relpath(folder / diagnosis.FOLDER / diagnosis.FILE, target)).as_posix()
    return [
        f"# Diagnosis of {told['backbone']}",
        f"{told['verdict']} Numbers and figures: [{diagnosis.FILE}]({page}).",
    ]
