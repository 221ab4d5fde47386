"""What was measured on CLIP alone, as one page with figures and a table of numbers."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from harness.diagnosis.laboratory import BOUND, INSIDE, MEASURES, RANDOM, Laboratory, reasons
from harness.metrics.bootstrap import DRAWS, Estimate
from harness.store.journal import write_text
from pruners.base import UserError
from reports import export
from reports.diagnosis import FILE as SIMILARITIES_PAGE
from reports.diagnosis import limits, verdict, write_diagnosis
from reports.figures import line_of
from reports.looks import looks
from reports.style import STYLE, save

PAGE, TABLE, ROWS = "clip-lab.md", "clip-lab.csv", "clip-lab-expressions.csv"
FIGURES = {
    "recall": "Referent coverage by budget: the share of the referent's area whose visual tokens are kept. "
    "Bars: 95 % intervals over images.",
    "spread": "How a choice is spread: effective rank of what is kept, against the farthest that a patch "
    "lies from any kept one on the grid; one panel per budget.",
}
DIGITS = {"auroc": 2, "rank": 1, "feature radius": 2, "grid radius": 1}
MEANINGS = {
    "coverage": "referent coverage: share of the referent's area whose visual tokens are kept",
    "auroc": "chance that a method that scores patches scores one of the referent above one outside",
    "rank": "effective rank of the kept features",
    "feature radius": "coverage radius in features: 1 - cosine of the patch that is farthest from any kept "
    "one",
    "grid radius": "coverage radius on the grid: the same in patches",
    "beyond random": "referent coverage minus that of random at the budget",
}
UNITS = {"rank": "dimensions", "grid radius": "patches"}


def findings(found: Laboratory) -> list[str]:
    """What the laboratory says, a sentence each."""
    return [verdict(found.diagnosis), _sink(found), *_coverage(found), *_radius(found)]


def _sink(found: Laboratory) -> str:
    layer, share, even = found.sink
    more = share.value / even
    holds = share.low > even if not np.isnan(share.low) else None
    told = f"{limits(share, 2)} of [EOS]'s attention in layer {layer} of {found.diagnosis.layers}"
    if holds is None:
        return f"Too few images for an interval: {told} goes to the start token, where even is {even:.2f}."
    what = "There is a text attention sink" if holds and more > 2 else "There is no text attention sink"
    return (
        f"{what} in {found.diagnosis.backbone}: {told} goes to the start token, {more:.1f} times of what "
        f"even attention gives ({even:.2f})."
    )


def _coverage(found: Laboratory) -> Iterator[str]:
    """The best method of every budget, and those that keep less than random."""
    for budget in found.budgets:
        names = [
            name
            for name, count in found.methods
            if count == budget and name not in found.sees_truth and found.kinds[name] == "method"
        ]
        values = {name: found.mean(name, budget, "coverage") for name in names}
        values = {name: one for name, one in values.items() if not np.isnan(one.value)}
        if not values:
            continue
        best = max(values, key=lambda name: values[name].value)
        text = (
            f"At {budget} of {found.patches} tokens {best} keeps most of the referent, "
            f"{limits(values[best], 2)} of its area"
        )
        gaps = {name: gap for name in values if (gap := found.beyond_random(name, budget)) is not None}
        if gaps:
            text += f"; random keeps {limits(found.mean(RANDOM, budget, 'coverage'), 2)}"
            less = [name for name, gap in gaps.items() if gap.high < 0]
            text += f", and less than random keep {', '.join(less)}" if less else ", and no method keeps less"
        yield f"{text}."


def _radius(found: Laboratory) -> Iterator[str]:
    """Which choice leaves the largest hole, at the smallest budget."""
    if not found.budgets:
        return
    budget = found.budgets[-1]
    holes = {
        name: found.mean(name, budget, "grid radius")
        for name, count in found.methods
        if count == budget and name not in found.sees_truth
    }
    holes = {name: one for name, one in holes.items() if not np.isnan(one.value)}
    if len(holes) > 1:
        least, most = (pick(holes, key=lambda name: holes[name].value) for pick in (min, max))
        yield (
            f"At {budget} tokens no patch is farther than {limits(holes[least], 1)} patches from a kept "
            f"one with {least}, and {limits(holes[most], 1)} with {most}."
        )


def table(found: Laboratory) -> pd.DataFrame:
    """One row per method, budget and measure, in the units of `MEANINGS` and `UNITS`."""
    rows: list[dict[str, Any]] = []
    for pruner, budget in found.methods:
        here: dict[str, Any] = {"pruner": pruner, "budget": budget}
        measured: list[tuple[str, Estimate | None]] = [
            (name, found.mean(pruner, budget, name)) for name in MEASURES
        ]
        measured.append(("beyond random", found.beyond_random(pruner, budget)))
        rows += [
            here
            | {"measure": name, "value": one.value, "low": one.low, "high": one.high, "images": one.images}
            for name, one in measured
            if one is not None and not np.isnan(one.value)
        ]
    return pd.DataFrame(rows)


def lab_sheet(found: Laboratory) -> export.Sheet:
    """The methods' numbers for a file of another format."""
    columns = {
        "pruner": export.Column("method"),
        "budget": export.Column("visual tokens", "tokens"),
        "measure": export.Column("; ".join(f"{name}: {text}" for name, text in MEANINGS.items())),
        "value": export.Column("mean over images of means over an image's expressions"),
        "low": export.Column("lower end of the 95 % interval"),
        "high": export.Column("upper end of the 95 % interval"),
        "images": export.Column("that it rests on"),
    }
    title = f"CLIP laboratory: {found.diagnosis.backbone}"
    return export.Sheet(title, table(found), columns, findings(found))


def board(found: Laboratory) -> str:
    """The methods' table for reading, by falling budget and coverage."""
    bound = [(name, count) for name, count in found.methods if name == BOUND]
    blocks = [bound] if bound else []
    for budget in found.budgets:
        names = [name for name, count in found.methods if count == budget and name != BOUND]
        names.sort(key=lambda name: -np.nan_to_num(found.mean(name, budget, "coverage").value, nan=-1.0))
        blocks.append([(name, budget) for name in names])
    lines: list[dict[str, str]] = []
    for block in blocks:
        lines.append({"method": f"**{block[0][1]} tokens**"})
        for name, budget in block:
            gap = found.beyond_random(name, budget)
            more = "-" if gap is None or np.isnan(gap.value) else f"{gap.value:+.2f}{_apart(gap)}"
            lines.append(
                {"method": name, "coverage": limits(found.mean(name, budget, "coverage"), 2)}
                | {"beyond random": more}
                | {one: limits(found.mean(name, budget, one), DIGITS[one]) for one in MEASURES[1:]}
            )
    frame = pd.DataFrame(lines).fillna("")
    return str(frame.to_markdown(index=False, disable_numparse=True))


def _apart(gap: Estimate) -> str:
    return " *" if not np.isnan(gap.low) and (gap.low > 0 or gap.high < 0) else ""


def speed(found: Laboratory) -> str:
    """How long it took, in a sentence."""
    per = 100 / max(found.images, 1)
    return (
        f"{found.images} images took {found.seconds:.1f} s on {found.device}, {per * found.seconds:.1f} s "
        f"per 100 images, of which the vision tower {per * found.encoding:.1f} s."
    )


def markdown(found: Laboratory) -> str:
    """The text of the page."""
    diagnosis = found.diagnosis
    which = f"first {diagnosis.limit} images each" if diagnosis.limit else "all images"
    parts = [
        f"# CLIP laboratory: {diagnosis.backbone}",
        "\n".join(f"- **{one}**" for one in findings(found)),
        f"{len(diagnosis.rows)} expressions of {found.images} images ({', '.join(diagnosis.datasets)}, "
        f"{which}); "
        f"{diagnosis.left_out} expressions left out because their referent fills no visual token; weights "
        f"{diagnosis.fingerprint}.",
    ]
    if found.bad:
        told = "; ".join(f"{why} ({count})" if count > 1 else why for why, count in reasons(found.bad))
        parts.append(f"**{len(found.bad)} images could not be read and are not in any number: {told}**")
    parts += [
        f"## The claim\n\nAUROC of the similarities, ranks of the referent's tokens and the attention of "
        f"every layer: [{SIMILARITIES_PAGE}]({SIMILARITIES_PAGE}).",
        "![ranks](ranks.svg)",
        "![sink](sink.svg)",
        "## What methods keep",
        board(found),
        *(f"![{name}]({name}.svg)\n\n{caption}" for name, caption in FIGURES.items()),
        "## How",
        "\n".join(f"- {name}: {text}." for name, text in MEANINGS.items()),
        f"A visual token is the referent's if the truth covers at least {INSIDE:g} of its patch. Means are "
        f"over images of "
        f"means over an image's expressions, brackets 95 % intervals from {DRAWS} draws of images; * marks a "
        f"difference to random whose interval does not hold 0. A method that does not read the text "
        f"chooses once per "
        f"image; one that draws does so with its own seed. Rank and radius say how much of the image a "
        f"choice "
        f"stands for, coverage how much of what is asked for: a good choice need not be good at both.",
    ]
    if found.left_out:
        whys = "\n".join(f"- {why}" for why in found.left_out.values())
        parts.append(f"Left out, since CLIP alone cannot serve them:\n\n{whys}")
    parts.append(f"All numbers: {TABLE}; per expression: {ROWS}.")
    return "\n\n".join(parts) + "\n"


def write_laboratory(found: Laboratory, out: Path) -> Path:
    """Write the page, its tables and figures, and the diagnosis of the similarities beside them; the page's
    path.

    Raises:
        UserError: the folder cannot be written.
    """
    write_diagnosis(found.diagnosis, out)
    drawn: dict[str, Callable[[Laboratory], Figure]] = {"recall": _recall, "spread": _spread}
    try:
        with matplotlib.rc_context(STYLE):
            for name, draw in drawn.items():
                save(draw(found), out / name)
        write_text(out / TABLE, export.csv(table(found)))
        write_text(out / ROWS, export.csv(found.rows))
        write_text(out / PAGE, markdown(found))
    except OSError as error:
        raise UserError(
            f"Cannot write to {str(out)!r} ({error.strerror}); give --out a folder that you may write."
        ) from error
    return out / PAGE


# -- figures


def _named(found: Laboratory) -> list[str]:
    return list(dict.fromkeys(name for name, _ in found.methods if name != BOUND))


def _looks(found: Laboratory) -> Any:
    return looks(_named(found), [name for name in _named(found) if found.kinds[name] == "control"])


def _recall(found: Laboratory) -> Figure:
    figure = Figure(figsize=(7, 4.2), layout="constrained")
    axes = figure.subplots()
    styles, budgets = _looks(found), found.budgets[::-1]
    for name in _named(found):
        known = [budget for budget in budgets if (name, budget) in found.methods]
        ends = [found.mean(name, budget, "coverage") for budget in known]
        if all(np.isnan(one.value) for one in ends):
            continue
        reach = np.array([[one.value - one.low, one.high - one.value] for one in ends]).T
        axes.errorbar(
            known,
            [one.value for one in ends],
            yerr=np.nan_to_num(reach).clip(min=0),
            elinewidth=0.6,
            label=name,
            **line_of(styles[name]),
        )
    chance = [budget / found.patches for budget in budgets]
    axes.plot(budgets, chance, color="#444444", linewidth=0.8, linestyle=":", label="chance")
    axes.set_xticks(budgets, [str(budget) for budget in budgets])
    axes.set_xlabel(f"visual tokens kept, of {found.patches}")
    axes.set_ylabel("referent coverage")
    axes.set_ylim(0, 1.02)
    axes.legend(fontsize=7, loc="center left", bbox_to_anchor=(1.0, 0.5))
    return figure


def _spread(found: Laboratory) -> Figure:
    budgets = found.budgets
    figure = Figure(figsize=(3.4 * max(len(budgets), 1) + 1.2, 3.4), layout="constrained")
    grid = figure.subplots(1, max(len(budgets), 1), squeeze=False, sharey=True)[0]
    styles = _looks(found)
    for axes, budget in zip(grid, budgets, strict=False):
        for name in _named(found):
            if (name, budget) not in found.methods:
                continue
            hole, rank = (found.mean(name, budget, one).value for one in ("grid radius", "rank"))
            if not np.isnan(hole):
                axes.plot([hole], [rank], label=name, **line_of(styles[name], size=6) | {"linestyle": "none"})
        axes.set_title(f"{budget} tokens", fontsize=9, loc="left")
        axes.set_xlabel("farthest patch from a kept one, in patches")
    grid[0].set_ylabel("effective rank of what is kept")
    handles, names = grid[0].get_legend_handles_labels()
    figure.legend(handles, names, fontsize=7, loc="outside right center")
    return figure
