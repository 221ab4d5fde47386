"""The leaderboard: cIoU per data set and split, grouped by budget as in the published tables."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd

from harness import metrics, records
from pruners.base import UserError
from pruners.registry import names

MARKDOWN, CSV = "leaderboard.md", "leaderboard.csv"
MINI_WARNING = (
    "glamm-mini is a small model trained on generated scenes. Its table shows regressions and how the code behaves; "
    "it does not tell which method wins on the real GLaMM."
)
CELL = ["backbone", "protocol", "pruner", "budget"]
COLUMN = ["dataset", "split"]


def scores(frame: pd.DataFrame) -> pd.DataFrame:
    """All metrics (0..1) per pruner, budget, seed and split, with counts and measured tokens; one row each."""
    rows = []
    for key, part in frame.groupby([*CELL, "seed", *COLUMN], sort=False):
        rows.append(
            dict(zip([*CELL, "seed", *COLUMN], key, strict=True))
            | metrics.scores(part["intersection"], part["union"])
            | {
                "tokens_final": part["tokens_final"].mean(),
                "tokens_mean": part["tokens_mean"].mean(),
                "expressions": len(part),
                "images": part["sample"].nunique(),
            }
        )
    return pd.DataFrame(rows)


def _kind(spec: str) -> str:
    from pruners.registry import get

    name = spec.partition("(")[0]
    return get(name).kind if name in names() else "method"


def _order(rows: pd.DataFrame) -> list[str]:
    """Methods before controls, each by falling average."""
    mean = rows.groupby("pruner")["ciou"].mean()
    return sorted(mean.index, key=lambda spec: (_kind(spec) == "control", -mean[spec], spec))


def _line(part: pd.DataFrame, columns: list[tuple[str, str]], bound: float | None) -> dict[str, Any]:
    """One row of the table: mean over seeds, spread of the average over seeds in brackets."""
    line: dict[str, Any] = {"method": part["pruner"].iloc[0]}
    for dataset, split in columns:
        here = part[(part["dataset"] == dataset) & (part["split"] == split)]["ciou"]
        line[f"{dataset} {split}"] = f"{100 * here.mean():.1f}" if len(here) else "-"
    per_seed = part.groupby("seed")["ciou"].mean()
    average = float(per_seed.mean())
    line["Avg."] = f"{100 * average:.1f}"
    if len(per_seed) > 1:
        line["method"] += f" ({len(per_seed)} seeds)"
        line["Avg."] += f" ±{100 * (per_seed.max() - per_seed.min()) / 2:.1f}"
    line["Rel. %"] = f"{100 * average / bound:.1f}" if bound else "-"
    line["gIoU"] = f"{100 * part['giou'].mean():.1f}"
    line["tokens"] = f"{part['tokens_final'].mean():g}"
    line["mean over layers"] = f"{part['tokens_mean'].mean():.4g}"
    return line


def table(frame: pd.DataFrame) -> str:
    """Markdown of one backbone and protocol."""
    summary = scores(frame)
    columns = list(dict.fromkeys(frame[COLUMN].itertuples(index=False, name=None)))
    columns.sort(key=_column_rank)
    bound_rows = summary[summary["pruner"] == "none"]
    bound = float(bound_rows["ciou"].mean()) if len(bound_rows) else None
    groups: list[tuple[str, pd.DataFrame]] = []
    if len(bound_rows):
        groups.append((f"Upper bound, all {int(bound_rows['budget'].iloc[0])} tokens", bound_rows))
    rest = summary[summary["pruner"] != "none"]
    groups += [
        (f"Retain {budget} tokens", rest[rest["budget"] == budget]) for budget in sorted(set(rest["budget"]), reverse=True)
    ]
    lines: list[dict[str, Any]] = []
    for title, rows in groups:
        lines.append({"method": f"**{title}**"})
        lines += [_line(rows[rows["pruner"] == spec], columns, bound) for spec in _order(rows)]
    return pd.DataFrame(lines).fillna("").to_markdown(index=False, disable_numparse=True, colalign=_align(lines))


def _align(lines: list[dict[str, Any]]) -> list[str]:
    width = max(len(line) for line in lines)
    return ["left"] + ["right"] * (width - 1)


def _column_rank(column: tuple[str, str]) -> tuple[int, str, int]:
    dataset, split = column
    order = ("val", "testA", "testB", "test")
    family = 2 if dataset.endswith("g") else 1 if dataset.endswith("+") else 0
    return (family, dataset, order.index(split) if split in order else 9)


def warnings(frame: pd.DataFrame, info: dict[str, Any], finished: bool) -> list[str]:
    """Why rows of this table must not be compared, if they must not."""
    found = [] if finished else ["This run is unfinished; give its command again with --out and this folder."]
    changed = sorted({fact for part in info.get("continued", []) for fact in part["changed"]})
    if changed:
        found.append(f"This run was stopped and went on after a change of {', '.join(changed)}.")
    sizes = frame.groupby([*COLUMN, *CELL, "seed"], sort=False).size().groupby(level=COLUMN, sort=False)
    uneven = [f"{' '.join(map(str, key))} ({min(part)} to {max(part)})" for key, part in sizes if min(part) != max(part)]  # type: ignore[arg-type]
    if uneven:
        found.append(f"Not comparable: rows rest on different numbers of expressions in {', '.join(uneven)}.")
    return found


def footer(frame: pd.DataFrame, info: dict[str, Any], failed: dict[str, str]) -> list[str]:
    """What a reader needs to trust the numbers."""
    counted = frame.drop_duplicates(["dataset", "split", "sample", "expression"])
    columns = sorted(set(counted[COLUMN].itertuples(index=False, name=None)), key=_column_rank)
    parts = [(d, s, counted[(counted["dataset"] == d) & (counted["split"] == s)]["sample"]) for d, s in columns]
    facts = info.get("provenance", {})
    packages = facts.get("packages", {})
    asked = info.get("asked", {})
    cell: dict[str, Any] = next(iter(info.get("cells", {}).values()), {})
    setting = cell.get("setting", {})
    lines = [
        "cIoU in percent: sum of intersections over sum of unions. Avg. is the mean of the columns, Rel. % its share of "
        "the upper bound's. tokens: visual tokens in the last layer of the language model, measured; mean over layers: "
        "what methods that prune inside it really process.",
        "Samples (images / expressions): "
        + ", ".join(f"{dataset} {split} {part.nunique()} / {len(part)}" for dataset, split, part in parts)
        + ".",
        f"Protocol {', '.join(frame['protocol'].unique())}, seed {asked.get('seed')}, {setting.get('dtype')}, attention "
        f"{setting.get('attn')}, {setting.get('device')}; weights {setting.get('fingerprint')}; run {info.get('run')}.",
        f"Code {str(facts.get('commit'))[:10]}{' with local changes' if facts.get('dirty') else ''}, "
        + ", ".join(f"{name} {number}" for name, number in packages.items() if number)
        + ".",
        f"Failed samples: {len(failed)}" + "".join(f"; {name}: {why}" for name, why in list(failed.items())[:5]) + ".",
    ]
    if "glamm-mini" in set(frame["backbone"]):
        lines.insert(0, MINI_WARNING)
    return lines


def render(folder: str | Path) -> str:
    """Write leaderboard.md and leaderboard.csv of a run folder; returns the markdown.

    Raises:
        UserError: the run has no finished sample.
    """
    folder = Path(folder)
    frame, failed, info = records.load(folder), records.failures(folder), records.run_info(folder)
    if frame.empty:
        reason = next(iter(failed.values()), "none was recorded")
        raise UserError(f"The run in {str(folder)!r} has no evaluated sample ({len(failed)} failed: {reason}).")
    parts = []
    for (backbone, protocol), part in frame.groupby(["backbone", "protocol"], sort=False):
        notes = "".join(f"**{warning}**\n\n" for warning in warnings(part, info, (folder / records.DONE).exists()))
        parts.append(f"# {backbone}, protocol {protocol}\n\n{notes}{table(part)}\n")
    text = "\n".join([*parts, *(f"- {line}" for line in footer(frame, info, failed))]) + "\n"
    (folder / MARKDOWN).write_text(text)
    scores(frame).to_csv(folder / CSV, index=False)
    return text
