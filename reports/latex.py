"""Tables in LaTeX with booktabs: caption, label, names that are safe to typeset, and bold only where the best
row is apart from all others of its budget."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import groupby
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from reports import costs, leaderboard
from reports.columns import LLM, THINGS
from reports.table_text import slug

if TYPE_CHECKING:
    from reports.tables import Table, TableRow

ESCAPED = {sign: f"\\{sign}" for sign in "&%$#_{}"} | {
    "\\": r"\textbackslash{}",
    "^": r"\textasciicircum{}",
    "~": r"\textasciitilde{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    '"': r"\textquotedbl{}",
    "'": r"\textquotesingle{}",
    "±": r"$\pm$",
    "…": r"\ldots{}",
}
# cost columns of a paper's table, where they were measured or projected
COSTS = ("macs_measured", "macs_projected", "flops_paper", "prefill_ms", "speedup_prefill", "speedup_total")
PREAMBLE = r"% \usepackage[T1]{fontenc}\usepackage{textcomp,booktabs,graphicx}"
# shrinks a table that is wider than the page
FIT = r"\resizebox{\ifdim\width>\textwidth\textwidth\else\width\fi}{!}{%"


class Head(NamedTuple):
    """Heading of a column, below `above`, which neighbours share."""

    name: str
    above: str = ""


def escaped(text: str) -> str:
    """A text as LaTeX prints it, on one line.

    >>> escaped("a_b {50 %}")
    'a\\\\_b \\\\{50 \\\\%\\\\}'
    """
    return "".join(ESCAPED.get(sign, sign) for sign in " ".join(text.split()) if sign.isprintable())


def table(
    title: str,
    caption: str,
    heads: Sequence[Head],
    blocks: Sequence[tuple[str, Sequence[Sequence[str]]]],
    numeric: Sequence[bool],
    bold: Sequence[tuple[int, int, int]] = (),
    label: str = "",
) -> str:
    """A floating table as wide as the page.

    Args:
        title: first sentence of the caption.
        heads: of the columns.
        blocks: heading, empty for none, and rows of plain text, as many as columns each.
        numeric: which columns are flushed right.
        bold: (block, row, column) of cells.
    """
    lines = [
        rf"% {escaped(title)}",
        PREAMBLE,
        r"\begin{table*}[t]",
        r"\centering",
        r"\footnotesize",
        r"\setlength{\tabcolsep}{3pt}",
        rf"\caption{{{escaped(' '.join(f'{title}. {caption}'.split()))}}}",
        rf"\label{{tab:{label or slug(title)}}}",
        FIT,
        rf"\begin{{tabular}}{{@{{}}{''.join('r' if right else 'l' for right in numeric)}@{{}}}}",
        r"\toprule",
        *_heads(heads),
    ]
    for number, (heading, rows) in enumerate(blocks):
        lines.append(r"\midrule")
        if heading:
            lines.append(rf"\multicolumn{{{len(heads)}}}{{@{{}}l}}{{\textit{{{escaped(heading)}}}}} \\")
        for place, row in enumerate(rows):
            cells = [
                rf"\textbf{{{escaped(text)}}}" if (number, place, column) in bold else escaped(text)
                for column, text in enumerate(row)
            ]
            lines.append(" & ".join(cells) + r" \\")
    return "\n".join([*lines, r"\bottomrule", r"\end{tabular}%", "}", r"\end{table*}", ""])


def _heads(heads: Sequence[Head]) -> list[str]:
    """One line, or two where columns share a heading."""
    found = [" & ".join(escaped(head.name) for head in heads) + r" \\"]
    if any(head.above for head in heads):
        above, rules, start = [], [], 1
        for name, group in groupby(heads, key=lambda head: head.above):
            span = len(list(group))
            above += [rf"\multicolumn{{{span}}}{{c}}{{{escaped(name)}}}"] if name else [""] * span
            if name:
                rules.append(rf"\cmidrule(lr){{{start}-{start + span - 1}}}")
            start += span
        found = [" & ".join(above) + r" \\", " ".join(rules), *found]
    return found


def leaderboard_table(
    table_: Table, prices: Mapping[tuple[str, int], dict[str, Any]], number: int, notes: Sequence[str]
) -> str:
    """A leaderboard: scores by split, average with its interval, and what a row costs.

    Args:
        prices: as `costs.costs_of`.
        number: of the table in its report; makes the label its own.
        notes: what a reader has to know beside what the columns are.
    """
    score = table_.metric
    shown = [name for name in COSTS if any(costs.known(one.get(name)) for one in prices.values())]
    tokens = ["tokens", *([LLM] if score.medium == "video" else []), "mean over layers"]
    beside = [one.title for one in table_.beside]
    heads = [
        Head("method"),
        *(Head(split, dataset) for dataset, split in table_.columns),
        *map(Head, ("Avg.", "95 %", "Rel. %", *beside)),
        *(Head({"tokens": "last", "mean over layers": "mean"}.get(name, name), "tokens") for name in tokens),
        *(
            Head(name.removeprefix("speedup_"), "speed-up")
            if name.startswith("speedup_")
            else Head(costs.SHOWN[name][0])
            for name in shown
        ),
    ]
    split = [" ".join(column) for column in table_.columns]
    blocks: list[tuple[str, list[list[str]]]] = []
    bold: list[tuple[int, int, int]] = []
    average = 1 + len(split)
    for heading, block in table_.blocks():
        rows = []
        for line in block:
            cells = leaderboard.leaderboard_row(line, table_)
            here = {  # a paper's table has no room for spreads
                name: value
                for name, value in prices.get((line.pruner, line.budget), {}).items()
                if not name.endswith(("_p5", "_p95"))
            }
            names = ("method", *split, "Avg.", "95 %", "Rel. %", *beside, *tokens)
            rows.append([*(cells[name] for name in names), *(costs.text(name, here) for name in shown)])
        if (best := apart(block)) is not None:
            bold.append((len(blocks), best, average))
        blocks.append((heading, rows))
    things = THINGS[score.medium][1]
    caption = (
        f"{score.title} in {score.unit_word} by split; Avg.: mean of the splits, with its 95 % interval "
        f"from drawing {things} again; Rel. %: share of the upper bound. Bold: the best Avg. of a budget, "
        f"where it differs significantly from every other row that does not see the truth (paired draws of "
        f"{things}, false-discovery rate of 5 % over the table); no bold where it does not. "
    )
    if any(name.startswith("speedup") for name in shown):
        caption += "Speed-ups: against none on the same machine, median of interleaved rounds. "
    return table(
        table_.title,
        caption + " ".join(notes),
        heads,
        blocks,
        [False, *[True] * (len(heads) - 1)],
        bold,
        slug(f"{table_.group.facts['backbone']} {table_.group.facts['protocol']} {number}"),
    )


def apart(block: Sequence[TableRow]) -> int | None:
    """The row of a budget that is best and apart from every other that does not see the truth, by the table's
    own test; None where there is none."""
    honest = [line for line in block if line.average is not None and not line.sees_truth]
    best = {line.against["best"].other for line in honest if "best" in line.against}
    if len(best) != 1 or len(honest) < 2:
        return None
    (name,) = best
    others = [line.against["best"] for line in honest if line.pruner != name and "best" in line.against]
    if len(others) != len(honest) - 1 or not all(one.apart and not np.isnan(one.q) for one in others):
        return None
    return next((place for place, line in enumerate(block) if line.pruner == name), None)
