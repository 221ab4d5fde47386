"""Rendering only: rows in; markdown, CSV, LaTeX, figures and a page out."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

MARKDOWN, CSV, COMPARED, LATEX, PAGE, FIGURES = (
    "leaderboard.md",
    "leaderboard.csv",
    "differences.csv",
    "leaderboard.tex",
    "report.html",
    "figures",
)


def render(
    folders: str | Path | Sequence[str | Path],
    out: str | Path | None = None,
    baseline: str | None = None,
    latex: bool = False,
    metric: str | None = None,
) -> list[Path]:
    """Write the report of one or several runs; the same records give the same bytes.

    Args:
        folders: run folders.
        out: folder to write to; by default that of the first run.
        baseline: a pruner that every row is compared with.
        latex: whether to write a LaTeX table too.
        metric: name of the metric that tables rank by; by default cIoU, and J&F of clips.

    Returns:
        What was written, leaderboard.md first.

    Raises:
        UserError: a run has no evaluated sample, no row has the baseline's name, the metric is not known or
            was not measured, or `out` cannot be written.
    """
    from pruners.base import UserError
    from reports import comparable, figures, leaderboard, page, papers, publication
    from reports.gather import gather
    from reports.tables import tables

    named = [folders] if isinstance(folders, str | Path) else list(folders)
    runs = gather(named)
    found = tables(runs, baseline, metric)
    target = Path(out) if out is not None else Path(named[0])
    parts = [
        f"**{note}**\n"
        for note in (*comparable.why([table.group for table in found], runs.facts), *runs.notes)
    ]
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
    parts.append("\n".join(f"- {line}" for line in leaderboard.footer(runs, found)) + "\n")
    texts = {
        MARKDOWN: "\n".join(parts),
        CSV: leaderboard.per_seed(runs.frame).to_csv(index=False, lineterminator="\n"),
        COMPARED: leaderboard.compared(found).to_csv(index=False, lineterminator="\n"),
        PAGE: page.html(runs, found),
    }
    if latex:
        texts[LATEX] = "\n".join(leaderboard.latex(table) for table in found)
    try:
        target.mkdir(parents=True, exist_ok=True)
        for name, text in texts.items():
            (target / name).write_text(text, encoding="utf-8")
        drawn = figures.draw_figures(runs, found, target / FIGURES)
    except OSError as error:
        raise UserError(
            f"Cannot write to {str(target)!r} ({error.strerror}); give --out a folder that you may write."
        ) from error
    return [target / name for name in texts] + drawn


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
