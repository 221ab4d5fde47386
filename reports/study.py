"""A study: what one question to the harness does to every method at every budget, in paired differences, one
figure and one sentence."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import pandas as pd

from harness import metrics
from harness.metrics import Metric
from harness.metrics.bootstrap import Estimate, adjusted
from harness.store.journal import write_text
from harness.store.tables import plain
from pruners.base import UserError
from reports.columns import RANKED
from reports.comparable import COLUMN, KEPT, medium_of
from reports.drawn import Drawn, Weights
from reports.gather import gather
from reports.looks import COLOURS, GREY
from reports.style import STYLE, save
from reports.table_text import csv, pipe_table
from reports.tables import ALPHA, BOUND, column_rank

# what is asked: its two answers, the second minus the first, and what each does in words
AXES = {
    "positions": (
        ("compact", "kept"),
        ("tokens that are numbered anew", "tokens that keep their position ids"),
    ),
    "answers": (("forced", "generated"), ("forced answers", "answers that the model writes itself")),
}


@dataclass(frozen=True)
class Paired:
    """A method at a budget, asked both ways.

    Attributes:
        values: its averages over the columns.
        difference: the second minus the first.
        q: its p-value after control of false discoveries over the study.
        said: share of the expressions whose generated answer holds a [SEG]; None where none is generated.
    """

    pruner: str
    budget: int
    values: tuple[Estimate, Estimate]
    difference: Estimate
    q: float
    said: float | None = None


@dataclass(frozen=True)
class Study:
    """What both ways of asking gave on one backbone.

    Attributes:
        pairs: by falling budget, best difference first.
        mean: of all differences of pruned rows.
    """

    axis: str
    backbone: str
    protocol: str
    metric: Metric
    pairs: tuple[Paired, ...]
    mean: Estimate
    images: int

    @property
    def sentence(self) -> str:
        """What it says, in one sentence."""
        first, second = AXES[self.axis][1]
        pruned = [pair for pair in self.pairs if pair.pruner != BOUND]
        better, worse = (
            sum(pair.q < ALPHA and sign * pair.difference.value > 0 for pair in pruned)
            for sign in (self._sign, -self._sign)
        )
        known = (
            ""
            if np.isnan(self.mean.low)
            else f" (95 % {self._points(self.mean.low)} to {self._points(self.mean.high)})"
        )
        said = [pair.said for pair in pruned if pair.said is not None]
        spoken = (
            f"; [SEG] is said in {100 * min(said):.1f} to {100 * max(said):.1f} % of the answers"
            if said
            else ""
        )
        return (
            f"On {self.backbone} (protocol {self.protocol}, {self.images} images), {second} score "
            f"{self._points(self.mean.value)} {self.metric.title} points{known} against {first}, mean over "
            f"{len(pruned)} rows of methods and budgets: {better} are better and {worse} worse beyond "
            f"chance, {len(pruned) - better - worse} cannot be told apart{spoken}."
        )

    @property
    def _sign(self) -> int:
        return 1 if self.metric.higher_is_better else -1

    def _points(self, value: float) -> str:
        return f"{self.metric.scale * value:+.1f}"


def study(folders: Sequence[str | Path], axis: str) -> Study:
    """Compare the two answers of an axis in the runs of one backbone, in pairs on the same draws of images.

    Raises:
        UserError: the runs hold no method that was asked both ways.
    """
    values = AXES[axis][0]
    runs = gather(folders)
    frame = plain(runs.frame)
    frame = frame[~frame["own_positions"].astype(bool)] if axis == "positions" else frame
    base = frame["pruner"].str.removesuffix(KEPT) if axis == "positions" else frame["pruner"]
    frame = frame.assign(method=base, pruner=base + "\n" + frame[axis])
    both = frame.groupby(["method", "budget"])[axis].transform("nunique") == 2
    frame = frame[both]
    if frame.empty:
        raise UserError(
            f"No method was run with {axis} {' and '.join(values)} here; give others, e.g. --pruners all."
        )
    metric = metrics.get(RANKED[medium_of(frame).iloc[0]])
    columns = sorted(dict.fromkeys(frame[COLUMN].itertuples(index=False, name=None)), key=column_rank)
    drawn = Drawn(frame, columns, metric)
    found: list[tuple[Paired, list[Weights]]] = []
    for key, rows in frame.groupby(["method", "budget"], sort=False):
        method, budget = cast("tuple[str, int]", key)
        one, two = (drawn.weights(f"{method}\n{value}", budget, columns) for value in values)
        if one is None or two is None:
            continue
        minus = [b - a for a, b in zip(one, two, strict=True)]
        said = rows["seg_said"][rows[axis] == values[1]]
        pair = Paired(
            method,
            budget,
            (drawn.estimate(one), drawn.estimate(two)),
            drawn.estimate(minus),
            float("nan"),
            None if said.isna().all() else float(said.mean()),
        )
        found.append((pair, minus))
    qs = adjusted([pair.difference.p for pair, _ in found])
    pairs = [
        Paired(pair.pruner, pair.budget, pair.values, pair.difference, float(q), pair.said)
        for (pair, _), q in zip(found, qs, strict=True)
    ]
    pruned = [minus for pair, minus in found if pair.pruner != BOUND] or [minus for _, minus in found]
    mean = [sum(parts) / len(pruned) for parts in zip(*pruned, strict=True)]
    pairs.sort(key=lambda pair: (-pair.budget, metric.rank(pair.difference.value), pair.pruner))
    return Study(
        axis,
        str(frame["backbone"].iloc[0]),
        str(frame["protocol"].iloc[0]),
        metric,
        tuple(pairs),
        drawn.estimate(mean),
        int(frame["cluster"].nunique()),
    )


def write_study(found: Study, folder: Path, command: str) -> list[Path]:
    """`study.md`, `study.csv` and the figure.

    Args:
        command: what made it, printed beside it.
    """
    import matplotlib

    folder.mkdir(parents=True, exist_ok=True)
    write_text(folder / "study.csv", csv(frame_of(found)))
    with matplotlib.rc_context(STYLE):
        drawn = save(_figure(found), folder / found.axis)
    page = folder / "study.md"
    write_text(
        page,
        f"# {found.axis.capitalize()}: {' or '.join(AXES[found.axis][0])}?\n\n{found.sentence}\n\n"
        f"![differences]({drawn[0].name})\n\n{markdown(found)}\n\n`{command}`\n",
    )
    return [page, folder / "study.csv", *drawn]


def frame_of(found: Study) -> pd.DataFrame:
    """One row per pair, in no unit."""
    first, second = AXES[found.axis][0]
    return pd.DataFrame(
        [
            {
                "pruner": pair.pruner,
                "budget": pair.budget,
                first: pair.values[0].value,
                second: pair.values[1].value,
                "difference": pair.difference.value,
                "low": pair.difference.low,
                "high": pair.difference.high,
                "p": pair.difference.p,
                "q": pair.q,
                "said": np.nan if pair.said is None else pair.said,
            }
            for pair in found.pairs
        ]
    )


def markdown(found: Study) -> str:
    """The pairs as a table; '*' marks a difference beyond chance."""
    first, second = AXES[found.axis][0]
    scale, lines = found.metric.scale, []
    for pair in found.pairs:
        one = pair.difference
        between = "" if np.isnan(one.low) else f" ({scale * one.low:+.1f} to {scale * one.high:+.1f})"
        line = {
            "method": pair.pruner,
            "budget": pair.budget,
            first: f"{scale * pair.values[0].value:.1f}",
            second: f"{scale * pair.values[1].value:.1f}",
            f"{second} - {first}": f"{scale * one.value:+.1f}{between}{' *' if pair.q < ALPHA else ''}",
        }
        if any(other.said is not None for other in found.pairs):
            line["[SEG] said %"] = "-" if pair.said is None else f"{100 * pair.said:.1f}"
        lines.append(line)
    return pipe_table(lines)


def _figure(found: Study) -> Any:
    """Differences with intervals, one panel per budget, methods in one order."""
    from matplotlib.figure import Figure

    pairs = [pair for pair in found.pairs if pair.pruner != BOUND] or list(found.pairs)
    budgets = sorted({pair.budget for pair in pairs}, reverse=True)
    means = pd.DataFrame([(pair.pruner, pair.difference.value) for pair in pairs]).groupby(0)[1].mean()
    names = list(means.sort_values(ascending=not found.metric.higher_is_better).index)
    figure = Figure(figsize=(2.2 + 2.6 * len(budgets), 0.9 + 0.24 * len(names)), layout="constrained")
    panels = figure.subplots(1, len(budgets), sharex=True, sharey=True, squeeze=False)[0]
    scale = found.metric.scale
    for panel, budget in zip(panels, budgets, strict=True):
        for pair in pairs:
            if pair.budget != budget:
                continue
            one, place = pair.difference, names.index(pair.pruner)
            colour = GREY if not pair.q < ALPHA else COLOURS[2] if one.value > 0 else COLOURS[1]
            panel.plot(scale * one.value, place, "o", color=colour, markersize=4)
            if not np.isnan(one.low):
                panel.plot([scale * one.low, scale * one.high], [place, place], color=colour, linewidth=1)
        panel.axvline(0, color=GREY, linewidth=0.8)
        panel.set_title(f"{budget} tokens", fontsize=9, loc="left")
    panels[0].set_yticks(range(len(names)), names)
    panels[0].invert_yaxis()
    first, second = AXES[found.axis][0]
    figure.supxlabel(f"{second} - {first}, Avg. {found.metric.title}, {found.metric.unit}", fontsize=9)
    return figure
