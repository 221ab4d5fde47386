"""The leaderboard as text: markdown for people, CSV for programs."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd

from harness.metrics import Metric, bootstrap
from harness.metrics.bootstrap import Estimate
from harness.store.records import CUT_OFF
from reports import costs
from reports.columns import LLM, LOGPROB, SAID, SILENT, THINGS, explain, meanings
from reports.comparable import COLUMN, SETTING, medium_of
from reports.gather import Run, Runs
from reports.tables import Against, Table, TableRow, column_rank, columns_of, measured

MINI_WARNING = (
    "glamm-mini is a small model trained on generated scenes. Its table shows regressions and how the code "
    "behaves; "
    "it does not tell which method wins on the real GLaMM."
)
CELL = [*SETTING, "budget_kind", "pruner", "budget"]
NONE = "-"


def shown(value: float | None, metric: Metric) -> str:
    """A value as text in the metric's unit."""
    return NONE if value is None or np.isnan(value) else f"{metric.scale * value:.1f}"


def between(one: Estimate | None, metric: Metric) -> str:
    """An interval as text in the metric's unit."""
    if one is None or np.isnan(one.low):
        return NONE
    return f"{metric.scale * one.low:.1f} to {metric.scale * one.high:.1f}"


def signed(one: Estimate, metric: Metric) -> str:
    """A difference as text in the metric's unit, with its interval."""
    value, low, high = (f"{metric.scale * end:+.1f}" for end in (one.value, one.low, one.high))
    return value if np.isnan(one.low) else f"{value} ({low} to {high})"


def marks(line: TableRow) -> str:
    """What a row cannot be told apart from."""
    close = [name for name in ("random", "best") if name in line.against and not line.against[name].apart]
    unknown = [name for name in close if line.against[name].apart is None]
    return ", ".join(f"{name}?" if name in unknown else name for name in close)


def leaderboard_row(line: TableRow, table: Table) -> dict[str, str]:
    """One row of the table as text."""
    named = line.pruner + (f" ({len(line.seeds)} seeds)" if len(line.seeds) > 1 else "")
    cells = {"method": named}
    score = table.metric
    for column in table.columns:
        cells[" ".join(column)] = shown(line.scores[column].value, score) if column in line.scores else NONE
    cells["Avg."] = shown(line.average.value if line.average else None, score)
    if line.average and len(line.seeds) > 1:
        cells["Avg."] += f" ±{score.scale * (max(line.seeds) - min(line.seeds)) / 2:.1f}"
    relative = table.relative(line)
    cells["Rel. %"] = NONE if relative is None else f"{relative:.1f}"
    cells["95 %"] = between(line.average, score)
    cells["not apart from"] = marks(line)
    if baseline := _baseline(table):
        cells[f"vs {baseline}"] = _difference(line.against.get("baseline"), score)
    for one in table.beside:
        values = list(line.others[one.name].values())
        cells[one.title] = shown(float(np.mean(values)) if values else None, one)
    if any(other.said is not None for other in table.lines):
        cells[SAID] = NONE if line.said is None else f"{100 * line.said:.1f}"
    if any(other.seg_logprob is not None for other in table.lines):
        cells[LOGPROB] = NONE if line.seg_logprob is None else f"{line.seg_logprob:.3g}"
    if table.metric.medium == "video" and any(other.silent is not None for other in table.lines):
        cells[SILENT] = NONE if line.silent is None else str(line.silent)
    cells["tokens"] = f"{line.tokens_final:g}"
    if table.metric.medium == "video":
        cells[LLM] = NONE if line.tokens_llm is None else f"{line.tokens_llm:.0f}"
    cells["mean over layers"] = f"{line.tokens_mean:.4g}"
    if _cut(table):
        cells["per layer"] = line.schedule if line.stage != "tower" else ""
    cells["on rounding"] = (
        NONE if line.rounding is None else f"{100 * line.rounding[0]:.1f} / {100 * line.rounding[1]:.2f}"
    )
    return cells


def _cut(table: Table) -> bool:
    """Whether a method of the table prunes inside the language model, by a schedule that is known."""
    return any(line.stage != "tower" and line.schedule for line in table.lines)


def _baseline(table: Table) -> str | None:
    return next((line.against["baseline"].other for line in table.lines if "baseline" in line.against), None)


def _difference(against: Against | None, metric: Metric) -> str:
    return "" if against is None else signed(against.average, metric) + (" *" if against.apart else "")


def leaderboard_markdown(table: Table, measured: pd.DataFrame) -> str:
    """The table with a bold heading per budget, and the costs behind the scores."""
    lines: list[dict[str, str]] = []
    prices = costs.costs_of(measured, table)
    for heading, block in table.blocks():
        lines.append({"method": f"**{heading}**"})
        lines += [leaderboard_row(line, table) | costs.cost_row(line, prices) for line in block]
    frame = pd.DataFrame(lines).fillna("")
    align = ["left" if name in ("method", "not apart from") else "right" for name in frame.columns]
    return frame.to_markdown(index=False, disable_numparse=True, colalign=align)


def per_seed(frame: pd.DataFrame) -> pd.DataFrame:
    """All metrics (in no unit: 0..1 of a share) per pruner, budget, seed and split, with counts and measured
    tokens; one row each."""
    rows = []
    known = measured(frame)
    scores = {one.name for one in known}  # which may have the name of a column, whose sum says no more
    counts = list(dict.fromkeys(name for one in known for name in one.columns if name not in scores))
    for key, part in frame.groupby([*CELL, "seed", *COLUMN], sort=False, dropna=False, observed=True):
        clips = (part["frames"] > 1).any() or ("j" in part and part["j"].notna().any())
        medium, dataset, columns = (
            "video" if clips else "image",
            part["dataset"].iloc[0],
            columns_of(part, known),
        )
        rows.append(
            dict(zip([*CELL, "seed", *COLUMN], key, strict=True))
            | {one.name: one.value(columns) for one in known if one.medium == medium and one.fits(dataset)}
            | {name: part[name].sum(min_count=1) for name in counts}
            | {
                "tokens_final": (part["tokens_final"] / part["views"]).mean(),
                "tokens_mean": (part["tokens_mean"] / part["views"]).mean(),
                "tokens_llm": part["tokens_llm"].mean(),
                "expressions": len(part),
                "images": part["cluster"].nunique(),
                "data": part["data"].iloc[0],
                "cell": part["cell"].iloc[0],
            }
        )
    return pd.DataFrame(rows)


def compared(tables: list[Table]) -> pd.DataFrame:
    """Every score and every difference with its interval (in no unit), one row each; column 'Avg.' is the
    mean of the table's."""
    rows: list[dict[str, Any]] = []
    for table in tables:
        for line in table.lines:
            head = {"table": table.title, "pruner": line.pruner, "budget": line.budget}
            found = [("", "", line.scores, line.average, np.nan)]
            found += [
                (kind, one.other, one.columns, one.average, one.q) for kind, one in line.against.items()
            ]
            for kind, other, columns, average, q in found:
                named = [(" ".join(column), estimate, np.nan) for column, estimate in columns.items()]
                for name, one, adjusted in [*named, *([("Avg.", average, q)] if average else [])]:
                    p = one.p if kind else np.nan
                    facts = {"value": one.value, "low": one.low, "high": one.high, "p": p, "q": adjusted}
                    rows.append(head | {"against": kind, "other": other, "column": name} | facts)
    return pd.DataFrame(rows)


def warnings(table: Table, runs: Runs) -> list[str]:
    """Why rows of this table must not be compared, if they must not."""
    frame = table.group.frame
    _, things = THINGS[table.metric.medium]
    found = []
    for run in (runs.runs[place] for place in sorted(set(frame["run"].unique()))):
        which = f" ({run.name})" if len(runs.runs) > 1 else ""
        if not run.finished:
            found.append(f"This run{which} is unfinished; give its command again with --out and this folder.")
        changed = sorted({fact for part in run.info.get("continued", []) for fact in part["changed"]})
        if changed:
            found.append(f"This run{which} was stopped and went on after a change of {', '.join(changed)}.")
    sizes = (
        frame.groupby([*COLUMN, *CELL, "seed"], sort=False, dropna=False, observed=True)
        .size()
        .groupby(level=COLUMN, sort=False, observed=True)
    )
    uneven = [
        f"{' '.join(map(str, key))} ({min(part)} to {max(part)})"  # type: ignore[arg-type]
        for key, part in sizes
        if min(part) != max(part)
    ]
    if uneven:
        found.append(f"Not comparable: rows rest on different numbers of expressions in {', '.join(uneven)}.")
    blind = [one.title for one in (table.metric, *table.beside) if one.needs_generated]
    if blind and table.group.facts["answers"] == "forced":
        found.append(
            f"{', '.join(blind)} tell little here: a forced answer always holds a [SEG], so a mask is hardly "
            f"ever empty; run with --answers generated."
        )
    if any(line.average is None for line in table.lines):
        found.append("Not comparable: rows without an Avg. lack columns that others have.")
    if (least := frame.groupby(COLUMN, observed=True)["cluster"].nunique().min()) < bootstrap.FEWEST:
        found.append(f"A split with so few {things} has no interval: no row can be told apart from another.")
    elif least < 10:
        found.append(
            f"As few as {least} {things} in a split: its intervals hold the truth somewhat less often than "
            f"in 95 % of cases."
        )
    return found


def warning(runs: Runs) -> list[str]:
    """What the numbers do not tell, if they come from the embedded model."""
    return [MINI_WARNING] if "glamm-mini" in runs.frame["backbone"].unique() else []


def footer(runs: Runs, tables: list[Table]) -> list[str]:
    """What a reader needs to trust the numbers."""
    frame = runs.frame
    counted = frame.drop_duplicates(["dataset", "split", "sample", "expression"])
    columns = sorted(
        set(counted[COLUMN].drop_duplicates().itertuples(index=False, name=None)), key=column_rank
    )
    parts = [
        (d, s, counted[(counted["dataset"] == d) & (counted["split"] == s)]["cluster"]) for d, s in columns
    ]
    beside = list({one.name: one for table in tables for one in table.beside}.values())
    clips = [table for table in tables if table.metric.medium == "video"]
    wanted = [
        "method",
        "data set and split",
        "Avg.",
        "Rel. %",
        "95 %",
        "not apart from",
        *(one.title for one in beside),
        *([SAID] if any(line.said is not None for table in tables for line in table.lines) else []),
        *([LOGPROB] if any(line.seg_logprob is not None for table in tables for line in table.lines) else []),
        *([SILENT] if any(line.silent is not None for table in clips for line in table.lines) else []),
        "tokens",
        *([LLM] if clips else []),
        "mean over layers",
        *(["per layer"] if any(map(_cut, tables)) else []),
        "on rounding",
    ]
    if any(_baseline(table) for table in tables):
        wanted.insert(6, "vs baseline")
    known = meanings(tables[0].metric, beside)
    lines = [*warning(runs), *explain(wanted, known), *costs.explain_costs(runs.costs)]
    for one in dict.fromkeys(table.metric for table in tables if table.metric is not tables[0].metric):
        lines.append(f"data set and split where it is {one.title}: {meanings(one, [])['data set and split']}")
    things = " or ".join(THINGS[medium][1] for medium in THINGS if medium in medium_of(frame).unique())
    lines.append(
        f"Samples ({things} / expressions): "
        + ", ".join(f"{dataset} {split} {part.nunique()} / {len(part)}" for dataset, split, part in parts)
        + "."
    )
    for number, run in enumerate(runs.runs):
        lines += _provenance(run, frame[frame["run"] == number])
    return lines


def _provenance(run: Run, frame: pd.DataFrame) -> list[str]:
    facts, plan = run.info.get("provenance", {}), run.info.get("plan", {})
    left_out = run.info.get("left_out", {})
    settings = [
        f"Protocol {row.protocol}, seed {plan.get('seed')}, {row.dtype}, attention {row.attn}, {row.device}; "
        f"weights {row.fingerprint}; run {run.name}."
        for row in frame.drop_duplicates(SETTING).itertuples()
    ]
    packages = [f"{name} {number}" for name, number in facts.get("packages", {}).items() if number]
    return [
        *settings,
        *([f"{run.info['cut_off']} {CUT_OFF}."] if run.info.get("cut_off") else []),
        *([f"Left out: {' '.join(map(str, left_out.values()))}"] if left_out else []),
        f"Code {str(facts.get('commit'))[:10]}{' with local changes' if facts.get('dirty') else ''}, "
        f"{', '.join(packages)}.",
        f"Failed samples: {len(run.failed)}"
        + "".join(f"; {name}: {why}" for name, why in list(run.failed.items())[:5])
        + ".",
    ]
