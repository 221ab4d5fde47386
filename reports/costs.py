"""Measured costs as columns: units for reading, one row per pruner and budget."""

from __future__ import annotations

from dataclasses import dataclass
from math import nan, pi
from typing import Any

import pandas as pd

from harness.cost import EXPLAIN
from reports.comparable import KEPT
from reports.machines import LETTER, is_time
from reports.pareto import Point
from reports.tables import Table, TableRow

GIGA, MIB = 1e9, 2**20
# column of `harness.cost.load`: heading, divisor, digits; in the order in which they are shown
SHOWN: dict[str, tuple[str, float, int]] = {
    "macs_measured": ("MACs G", GIGA, 2),
    "macs_projected": ("MACs projected G", GIGA, 2),
    "flops_paper": ("FLOPs (paper) G", GIGA, 2),
    "activation_paper": ("activation (paper) MiB", MIB, 1),
    "activation_peak": ("activation peak MiB", MIB, 1),
    "prefill_ms": ("prefill ms", 1, 1),
    "compute_ms": ("compute ms", 1, 1),
    "cuda_ms": ("CUDA ms", 1, 1),
    "stage.pruner_ms": ("pruner ms", 1, 2),
    "speedup_prefill": ("speed-up prefill", 1, 2),
    "speedup_total": ("speed-up total", 1, 2),
    "note": ("note", 1, 0),
}
MACS = "macs"  # measured where they were, else projected
TOTAL = "stage.total_ms"
SPREAD = ("prefill_ms", "compute_ms", "cuda_ms")  # shown with their 5th and 95th percentile


@dataclass(frozen=True)
class Price:
    """A cost that rows are plotted against.

    Attributes:
        key: of files, and on the page.
        column: of `costs_of`.
        label: with its unit.
        unit: divisor.
    """

    key: str
    column: str
    label: str
    unit: float = 1.0


PRICES = (
    Price("macs", MACS, "multiply-adds, G", GIGA),
    Price("prefill", "prefill_ms", "prefill, ms"),
    Price("total", "compute_ms", "whole pass, ms of processor time"),
    Price("total-cuda", "cuda_ms", "whole pass, CUDA ms"),
)
# half the 95 % interval of a median over the distance of the median and a 5 % quantile, of one normal sample:
# 1.960 standard errors, each sqrt(pi / 2) standard deviations, over the 1.645 that the quantile lies away
MEDIAN_ERROR = 1.960 * (pi / 2) ** 0.5 / 1.645


def interval(record: dict[str, Any], column: str) -> tuple[float, float, float]:
    """A cost and the ends of its 95 % interval: of a median of rounds as their 5th and 95th percentile and
    their number tell, if they scatter normally on either side; of a count the count."""
    middle = float(record[column])
    ends = [record.get(f"{column}_{end}") for end in ("p5", "p95")]
    if not all(map(known, ends)):
        return middle, middle, middle
    rounds = record.get("rounds")
    part = MEDIAN_ERROR / max(1.0, float(rounds) if known(rounds) else 1.0) ** 0.5  # type: ignore[arg-type]
    low, high = (middle + part * (float(end) - middle) for end in ends)  # type: ignore[arg-type]
    return middle, low, high


def priced(
    table: Table, measured: dict[tuple[str, int], dict[str, Any]], price: Price
) -> list[tuple[TableRow, Point]]:
    """Cost and accuracy of the rows whose cost is known; accuracy in the metric's unit, turned so that higher
    is better, NaN where a row has none."""
    found = []
    for line in table.lines:
        record = measured.get((line.pruner, line.budget), {})
        if not known(record.get(price.column)):
            continue
        cost, cheap, dear = (value / price.unit for value in interval(record, price.column))
        scale = table.metric.scale if table.metric.higher_is_better else -table.metric.scale
        one = line.average
        scores = (one.value, one.low, one.high) if one else (nan, nan, nan)
        middle, low, high = (scale * value for value in scores)
        low, high = min(low, high), max(low, high)
        found.append((line, Point(cost, cheap, dear, middle, low, high)))
    return found


def costs_of(costs: pd.DataFrame, table: Table) -> dict[tuple[str, int], dict[str, Any]]:
    """The measured costs of a table's rows; runs of the table alone, the first that has a row counts."""
    found: dict[tuple[str, int], dict[str, Any]] = {}
    if costs.empty:
        return found
    mine = costs[
        (costs["backbone"] == table.group.facts["backbone"])
        & costs["run"].isin(set(table.group.frame["run"]))
    ]
    for record in mine.to_dict("records"):
        facts = {str(key): value for key, value in record.items()}
        facts[MACS] = next(
            (facts[name] for name in ("macs_measured", "macs_projected") if known(facts.get(name))), None
        )
        found.setdefault((str(record["pruner"]), int(record["budget"])), facts)
    return {
        (line.pruner, line.budget): found[key]  # positions cost nothing
        for line in table.lines
        if (key := (line.pruner.removesuffix(KEPT), line.budget)) in found
    }


def of_one_machine(measured: dict[tuple[str, int], dict[str, Any]]) -> dict[tuple[str, int], dict[str, Any]]:
    """The costs, times of other machines than the first one left out, as figures draw them."""
    first = next((record[LETTER] for record in measured.values() if record.get(LETTER)), "")
    return {
        key: record
        if record.get(LETTER, "") in ("", first)
        else {name: value for name, value in record.items() if not is_time(name)}
        for key, record in measured.items()
    }


def cost_row(line: TableRow, measured: dict[tuple[str, int], dict[str, Any]]) -> dict[str, str]:
    """The cost cells of one row as text; empty where nothing was measured at all."""
    if not measured:
        return {}
    here = measured.get((line.pruner, line.budget), {})
    columns = [name for name in SHOWN if any(known(record.get(name)) for record in measured.values())]
    return {SHOWN[name][0]: text(name, here) for name in columns}


def known(value: Any) -> bool:
    """Whether there is a figure or a word."""
    return value is not None and value != "" and value == value


def text(name: str, record: dict[str, Any]) -> str:
    """A figure of SHOWN as it is printed, with the letter of the machine that it hangs on."""
    value: Any = record.get(name)
    if not known(value):
        return "" if name == "note" else "-"
    if isinstance(value, str):
        return value
    _, unit, digits = SHOWN[name]
    told = f"{value / unit:.{digits}f}"
    if name in SPREAD and known(record.get(f"{name}_p5")) and known(record.get(f"{name}_p95")):
        told += f" ({record[f'{name}_p5']:.{digits}f} to {record[f'{name}_p95']:.{digits}f})"
    return f"{told} [{record[LETTER]}]" if record.get(LETTER) and is_time(name) else told


def stages(record: dict[str, Any]) -> dict[str, float]:
    """Median milliseconds per stage; their total is not one."""
    return {
        name.removeprefix("stage.").removesuffix("_ms"): float(value)
        for name, value in record.items()
        if name.startswith("stage.") and name.endswith("_ms") and name != TOTAL and known(value)
    }


def explain_costs(costs: pd.DataFrame) -> list[str]:
    """What the shown columns mean, one line each."""
    if costs.empty:
        return []
    shown = [name for name in SHOWN if name in costs and costs[name].map(known).any()]
    return [f"{SHOWN[name][0]}: {EXPLAIN[name.partition('.')[0]]}." for name in shown]
