"""Where a budget acts, and what it saves there: a table, one sentence, files."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import pandas as pd

from harness.cost.placements import Placed, Placements
from harness.store.journal import write_text
from reports.table_text import csv, pipe_table

TERA = 1e12


def frame_of(found: Placements) -> pd.DataFrame:
    """One row per placement and budget: multiply-adds in units of one, seconds, shares; NaN where a budget
    cannot be."""
    rows = []
    for row in found.rows:
        known = asdict(row)
        if row.why:
            known |= dict.fromkeys(("each", "tokens", "llm", "whole", "prefill", "fits"))
        saved = {f"saved_{what}": None if row.why else found.saved(row, what) for what in ("llm", "whole")}
        rows.append(known | saved)
    return pd.DataFrame(rows)


def markdown(found: Placements) -> str:
    """The same as a table for reading, and what '-' means."""
    tail = found.tail // found.views
    lines = []
    for row in found.rows:
        line = {"placement": row.placement, "K": str(row.budget)}
        told = ["-"] * 8
        if not row.why:
            told = [
                f"{row.each} + {tail}",
                str(row.tokens),
                f"{row.llm / TERA:.2f}",
                f"{row.whole / TERA:.2f}",
                f"{1e3 * row.prefill:.2f}",
                _share(found.saved(row)),
                _share(found.saved(row, "whole")),
                "yes" if row.fits else "no",
            ]
        lines.append(line | dict(zip(_columns(found), told, strict=True)))
    return "\n\n".join([pipe_table(lines), "\n".join(f"- {note}" for note in notes(found))])


def _columns(found: Placements) -> tuple[str, ...]:
    fits = "fits" if found.places is None else f"fits into {found.places}"
    return (
        "tokens a frame",
        "visual tokens",
        "language model TMAC",
        "all modules TMAC",
        "roofline prefill (ms)",
        "language model saved",
        "all modules saved",
        fits,
    )


def notes(found: Placements) -> list[str]:
    """What the figures rest on."""
    tail, first = found.tail // found.views, found.official
    said = [
        f"{found.views} frames, {found.text} text tokens, one pass over a given answer. K counts tokens of a "
        f"frame that are kept of CLIP's; of each frame {tail} tokens of the video encoder stand beside them, "
        f"which nothing prunes. All modules segment a clip of {found.masked} frames.",
        f"Saved: against K = {first.budget} in the placement {first.placement}. Roofline: {found.gpu.name}.",
    ]
    return said + [
        f"-: {row.placement} cannot be at K = {row.budget} ({row.why})." for row in found.rows if row.why
    ]


def sentence(found: Placements) -> str:
    """What budgets below all tokens save in each placement."""
    first = found.official
    groups: dict[str, list[Placed]] = {}
    for row in found.rows:
        if row.budget != first.budget:
            groups.setdefault(row.placement, []).append(row)
    told = [f"in {name}, {', and '.join(_told(found, row) for row in rows)}" for name, rows in groups.items()]
    share = 100 * first.llm / first.whole
    return (
        f"On {found.backbone} ({found.views} frames), where the language model spends {first.llm / TERA:.2f} "
        f"of {first.whole / TERA:.2f} TMAC ({share:.1f} %) on {first.tokens} visual tokens at K = "
        f"{first.budget} in the placement {first.placement}: {'; '.join(told) or 'no smaller K was asked'}."
    )


def _told(found: Placements, row: Placed) -> str:
    """What a row saves, as a part of the sentence."""
    k = f"K = {row.budget}"
    if row.why:
        return f"{k} cannot be ({row.why})"
    saved, whole = found.saved(row), found.saved(row, "whole")
    if row.llm == found.official.llm:
        said = (
            f"{k} saves nothing of the language model ({row.tokens} tokens as before) and "
            f"{100 * whole:.1f} % of all modules"
        )
    else:
        more = "" if saved > 0 else " more"
        verb = "saves" if saved > 0 else "costs"
        said = (
            f"{k} {verb} {100 * abs(saved):.1f} %{more} of the language model and {100 * abs(whole):.1f} %"
            f"{more} of all modules ({row.tokens} tokens)"
        )
    return said if row.fits else f"{said}, for which {found.places} positions are too few"


def _share(value: float) -> str:
    return f"{100 * value:.1f} %"


def write(found: Placements, folder: Path, command: str) -> list[Path]:
    """`study.md` and `study.csv`.

    Args:
        command: what made them, printed beside them.
    """
    folder.mkdir(parents=True, exist_ok=True)
    page, table = folder / "study.md", folder / "study.csv"
    write_text(table, csv(frame_of(found)))
    write_text(
        page,
        f"# Placements: where does a budget act?\n\n{sentence(found)}\n\n{markdown(found)}\n\n`{command}`\n",
    )
    return [page, table]
