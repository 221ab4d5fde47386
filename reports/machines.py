"""Machines that costs were measured on: times of two of them never stand together unmarked."""

from __future__ import annotations

import string
from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from harness.cost.store import MACHINE

LETTER = "machine"  # column of costs: a letter per machine, empty where all were timed on one


def is_time(name: str) -> bool:
    """Whether a column of `harness.cost.load_costs` hangs on the machine: milliseconds and speed-ups."""
    return name.endswith("_ms") or "_ms_p" in name or name.startswith("speedup_")


def with_facts(costs: pd.DataFrame, provenance: Mapping[str, Any]) -> pd.DataFrame:
    """Costs of one run with what is known of their machine.

    Args:
        provenance: of the run; stands in for what older ledgers do not say.
    """
    found = costs.copy()
    for name in MACHINE:
        if name not in found:
            found[name] = None
    old = found["processor"].isna()
    known = " ".join(str(provenance[name]) for name in ("processor", "platform") if provenance.get(name))
    found["processor"] = found["processor"].where(~old, known or None)
    for name in ("device_name", "threads"):
        found[name] = found[name].where(found[name].notna(), provenance.get(name))
    return found


def lettered(costs: pd.DataFrame, names: Sequence[str]) -> tuple[pd.DataFrame, list[str]]:
    """Costs of several runs with LETTER, and what a reader has to know of it; nothing where one machine timed
    all.

    Args:
        costs: as `with_facts` of each run, and `run`, its place in `names`.
        names: of the runs.
    """
    timed = [name for name in costs if is_time(str(name)) and costs[name].notna().any()]
    if not timed:
        return costs.assign(**{LETTER: ""}), []
    keys = [tuple(map(_text, row)) for row in costs[list(MACHINE)].itertuples(index=False, name=None)]
    has = costs[timed].notna().any(axis=1).tolist()
    found = list(dict.fromkeys(key for key, is_timed in zip(keys, has, strict=True) if is_timed))
    if len(found) < 2:
        return costs.assign(**{LETTER: ""}), []
    letters = {key: _letter(place) for place, key in enumerate(found)}
    column = [letters[key] if is_timed else "" for key, is_timed in zip(keys, has, strict=True)]
    marked = costs.assign(**{LETTER: column})
    told = []
    for key, letter in letters.items():
        runs = [names[int(place)] for place in dict.fromkeys(marked["run"][marked[LETTER] == letter])]
        told.append(f"[{letter}] {_described(key)} (run {', '.join(runs)})")
    return marked, [
        f"Times were measured on {len(found)} machines, or by other clocks, and do not compare between them: "
        f"{'; '.join(told)}. A speed-up is against `none` on the same machine; figures of time show those of "
        f"one machine alone."
    ]


def _text(value: Any) -> str:
    if value is None or value != value:
        return ""
    return f"{value:g}" if isinstance(value, float) else str(value)


def _letter(place: int) -> str:
    more, last = divmod(place, len(string.ascii_lowercase))
    return (_letter(more - 1) if more else "") + string.ascii_lowercase[last]


def _described(key: tuple[str, ...]) -> str:
    """A machine in words; the host's digest tells machines of one kind apart."""
    facts = dict(zip(MACHINE, key, strict=True))
    threads = facts["threads"]
    words = [
        facts["device_name"] or facts["device"],
        facts["processor"],
        f"host {facts['host']}" if facts["host"] else "",
        f"{threads} thread{'s' * (threads != '1')}" if threads else "",
        facts["clock"],
    ]
    return ", ".join(dict.fromkeys(word for word in words if word)) or "not recorded"
