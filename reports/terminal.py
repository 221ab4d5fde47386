"""The leaderboard for a terminal: the columns that decide, at its width; the rest is in the files."""

from __future__ import annotations

import shutil
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tabulate import tabulate

from reports import comparable, costs, leaderboard
from reports.columns import LLM, SAID

if TYPE_CHECKING:
    from reports.gather import Runs
    from reports.tables import Table, TableRow

PIPE = 100  # columns where there is no terminal, unless COLUMNS says otherwise
NAME = 20  # columns that a method's text gets before others go without
SHORTEST = 8  # that it gets in any case
GAP = 2
CUT = "…"
METHOD, SCORE, BETWEEN, RELATIVE, CLOSE = "method", "Avg.", "95 %", "Rel. %", "not apart from"
TOKENS, LAYERS, PREFILL, TOTAL = "tokens", "mean over layers", "prefill", "total"
AGAINST = "vs "
SPEED = {PREFILL: "speedup_prefill", TOTAL: "speedup_total"}
# what goes first where it is narrow; other metrics go behind the first two, and an asked baseline stays
LEAST = (LLM, LAYERS, PREFILL, TOKENS, SAID, RELATIVE, TOTAL, CLOSE, BETWEEN)
LEGEND = 5  # lines of it


def width() -> int:
    """Columns to print at."""
    return shutil.get_terminal_size((PIPE, 24)).columns


def screen(runs: Runs, tables: Sequence[Table], written: Sequence[Path], columns: int | None = None) -> str:
    """All tables with what forbids a comparison, a legend of at most five lines, and where the rest is.

    Args:
        written: files of the report.
        columns: to print at; by default the terminal's.
    """
    wide = max(40, columns or width())
    parts = [
        _wrapped(f"! {note}", wide)
        for note in (
            *leaderboard.warning(runs),
            *comparable.why([table.group for table in tables], runs.facts, brief=True),
            *runs.notes,
        )
    ]
    gone: dict[str, None] = {}
    told: dict[str, None] = {}  # once is enough
    for table in tables:
        prices = costs.costs_of(runs.costs, table)
        cells = [[_cells(line, table, prices) for line in block] for _, block in table.blocks()]
        shown = fitting([row for block in cells for row in block], wide)
        gone |= dict.fromkeys(name for name in cells[0][0] if name not in shown)
        warned = [note for note in leaderboard.warnings(table, runs) if note not in told]
        told |= dict.fromkeys(warned)
        notes = [_wrapped(f"! {note}", wide) for note in warned]
        parts += ["", _wrapped(table.title, wide), *notes, _body(table, cells, shown, wide)]
    parts += ["", *legend(tables, runs, list(gone), wide), *where(written, wide)]
    return "\n".join(parts).strip("\n")


def fitting(rows: Sequence[dict[str, str]], wide: int) -> list[str]:
    """The columns that a width has room for, the least useful left out."""
    names = list(rows[0])
    kept = [name for name in names if name in (METHOD, SCORE) or name.startswith(AGAINST)]
    others = [name for name in names if name not in (*kept, *LEAST)]
    order = [*LEAST[:2], *reversed(others), *LEAST[2:]]
    longest = max(len(row[METHOD]) for row in rows)
    for name in (None, *order):
        names = [one for one in names if one != name]
        if wide - _taken(rows, names) >= min(longest, NAME):
            break
    return names


def _taken(rows: Sequence[dict[str, str]], names: Sequence[str]) -> int:
    """Columns that all but the method's text take."""
    return sum(GAP + max(len(name), *(len(row[name]) for row in rows)) for name in names if name != METHOD)


def _cells(line: TableRow, table: Table, prices: Mapping[tuple[str, int], dict[str, Any]]) -> dict[str, str]:
    """One row, every column that a terminal may show, in the order of the table."""
    whole = leaderboard.leaderboard_row(line, table)
    here = prices.get((line.pruner, line.budget), {})
    against = [name for name in whole if name.startswith(AGAINST)]  # asked for
    names = [
        METHOD,
        SCORE,
        *against,
        BETWEEN,
        RELATIVE,
        CLOSE,
        *(one.title for one in table.beside),
        SAID,
        TOKENS,
        LLM,
    ]
    cells = {name: whole[name] for name in (*names, LAYERS) if name in whole}
    for name, column in SPEED.items():
        if any(costs.known(record.get(column)) for record in prices.values()):
            text = costs.text(column, here)
            cells[name] = f"({text})" if name == TOTAL and here.get("note") else text
    return cells


def _body(table: Table, cells: Sequence[Sequence[dict[str, str]]], shown: Sequence[str], wide: int) -> str:
    """The rows below their headings, methods' texts shortened where they must be."""
    rows = [row for block in cells for row in block]
    room = max(SHORTEST, wide - _taken(rows, shown))
    short = shortened([row[METHOD] for row in rows], room)
    # as rows and not as headers, which tabulate gives room to spare
    body = [list(shown), *([short[row[METHOD]], *(row[name] for name in shown[1:])] for row in rows)]
    align = ["left" if name in (METHOD, CLOSE) else "right" for name in shown]
    lines = tabulate(body, tablefmt="plain", disable_numparse=True, colalign=align).splitlines()
    rule = max(map(len, lines))
    found, place = [lines[0]], 1
    for heading, block in table.blocks():
        told = textwrap.shorten(heading, rule - 4, placeholder=CUT)
        found += [f"- {told} ".ljust(rule, "-"), *lines[place : place + len(block)]]
        place += len(block)
    return "\n".join(line.rstrip() for line in found)


def shortened(texts: Iterable[str], room: int) -> dict[str, str]:
    """Each text in at most `room` letters, no two alike; what is too long loses a part of its middle.

    >>> shortened(["fastv", "litelvlm(context_share=0.25)", "litelvlm(context_share=0.5)"], 20)
    {'fastv': 'fastv', 'litelvlm(context_share=0.25)': 'litelvlm(con…e=0.25)', \
'litelvlm(context_share=0.5)': 'litelvlm(con…re=0.5)'}
    """
    names = list(dict.fromkeys(texts))
    found = {name: name for name in names if len(name) <= room}
    usual = (room - len(CUT)) * 2 // 3
    heads = sorted(range(1, room - len(CUT)), key=lambda head: abs(head - usual))
    for name in names:
        if name in found:
            continue
        cuts = (name[:head] + CUT + name[len(name) - (room - len(CUT) - head) :] for head in heads)
        free = (cut for cut in cuts if cut not in found.values())
        numbers = (f"{name[: room - len(CUT) - len(str(n))]}{CUT}{n}" for n in range(1, len(names) + 1))
        found[name] = next(free, None) or next(one for one in numbers if one not in found.values())
    return {name: found[name] for name in names}


def legend(tables: Sequence[Table], runs: Runs, gone: Sequence[str], wide: int) -> list[str]:
    """What the columns say, in at most LEGEND lines."""
    titles = " / ".join(dict.fromkeys(table.metric.title for table in tables))
    cut = f"; here without {', '.join(gone)}" if gone else ""
    lines = [
        f"Avg.: {titles} in {tables[0].metric.unit_word}, mean of all splits; 95 %: its interval; "
        "Rel. %: of `none`",
        "not apart from: `random`, or the best of its budget (false-discovery rate 5 %)",
    ]
    if any(costs.known(value) for name in SPEED.values() for value in runs.costs.get(name, ())):
        lines.append("prefill, total: speed-up against `none`; in brackets: not beyond chance")
    lines.append(f"leaderboard.md, --full: every column, explained{cut}")
    found = [part for line in lines for part in textwrap.wrap(line, wide, subsequent_indent="  ")]
    if len(found) > LEGEND:  # narrow: each line as far as it goes
        found = [textwrap.shorten(line, wide, placeholder=CUT) for line in lines]
    return found


def where(written: Sequence[Path], wide: int) -> list[str]:
    """The files of a report: folder by folder."""
    folders: dict[Path, list[str]] = {}
    for path in written:
        folders.setdefault(path.parent, []).append(path.name)
    if not folders:
        return []
    base = written[0].parent
    names = folders.pop(base)
    names += [f"{folder.name}/ ({len(inside)})" for folder, inside in folders.items()]
    return [
        "",
        f"report: {base}",
        *textwrap.wrap(", ".join(names), wide, initial_indent="  ", subsequent_indent="  "),
    ]


def _wrapped(text: str, wide: int) -> str:
    """A text in at most three lines."""
    lines = textwrap.wrap(text, wide, subsequent_indent="  ")
    rest = " ".join(line.strip() for line in lines[2:])
    last = [f"  {textwrap.shorten(rest, wide - 2, placeholder=CUT)}"] if rest else []
    return "\n".join([*lines[:2], *last])
