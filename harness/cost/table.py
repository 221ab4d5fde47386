"""Cost columns in units for reading."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd

from harness.cost.explain import EXPLAIN
from harness.cost.formulas import GIB
from harness.cost.store import load


def _scaled(value: Any, unit: float, digits: int) -> str:
    return "" if value is None or pd.isna(value) else f"{value / unit:.{digits}f}"


def readable(costs: pd.DataFrame) -> pd.DataFrame:
    """The columns of a cost table as text: pruner, budget, then what was counted and timed."""
    total = "cuda_ms" if "cuda_ms" in costs else "compute_ms"
    columns = {
        "macs_measured (G)": ("macs_measured", 1e9, 2),
        "macs_projected (G)": ("macs_projected", 1e9, 2),
        "flops_paper (G)": ("flops_paper", 1e9, 2),
        "activation_paper (MiB)": ("activation_paper", GIB / 1024, 1),
        "activation_peak (MiB)": ("activation_peak", GIB / 1024, 1),
        "prefill_ms": ("prefill_ms", 1, 2),
        total: (total, 1, 1),
        "pruner_ms": ("stage.pruner_ms", 1, 2),
        "x prefill": ("speedup_prefill", 1, 2),
        "x total": ("speedup_total", 1, 2),
    }
    found = costs[["pruner", "budget"]].copy()
    for title, (column, unit, digits) in columns.items():
        if column in costs and costs[column].notna().any():
            found[title] = [_scaled(value, unit, digits) for value in costs[column]]
    found["note"] = costs["note"]
    return found


def table(folder: str | Path) -> str:
    """Markdown of a run folder's costs, budgets falling; empty if it has none."""
    costs = load(folder)
    if costs.empty:
        return ""
    shown = readable(costs).sort_values(["budget", "pruner"], ascending=[False, True], kind="stable")
    return shown.to_markdown(index=False, disable_numparse=True, colalign=("left", *["right"] * (shown.shape[1] - 2), "left"))


def footer(folder: str | Path) -> list[str]:
    """What the cost columns that a run has are."""
    costs = load(folder)
    there = {column.partition(".")[0] for column in costs.columns if costs[column].notna().any()}
    return [f"{column}: {text}." for column, text in EXPLAIN.items() if column in there]
