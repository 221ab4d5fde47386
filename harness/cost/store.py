"""`costs.jsonl` of a run folder: raw samples, append-only; every figure of a cost table is derived from these lines.

The first line says what was measured where. A "counts" line holds what one cell executes, a "round" line the milliseconds of
one forward pass of every cell in turn. A line is whole or not there: a torn last one is cut off and measured again.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import math
import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pandas as pd
from scipy.stats import mannwhitneyu

from harness.cost.formulas import Shape, paper_activation, paper_flops
from pruners.base import UserError

COSTS, LOCK, SCHEMA = "costs.jsonl", "costs.lock", 1
NO_GAIN = "no speed-up"
CHANCE = 0.05  # a row is called faster if its passes would look so much faster than those of `none` less often by chance
BASELINE = "none"
MODULES = {
    "vision": "vision_tower",
    "text": "text_tower",
    "pruner": "pruner",
    "projector": "projector",
    "prefill": "language_model",
    "lm_head": "lm_head",
    "seg_head": "seg_head",
    "grounding_encoder": "grounding_encoder",
    "mask_decoder": "mask_decoder",
}
INSIDE = "prefill/pruner"  # what a layer-stage pruner costs, spent while the language model runs


def key(pruner: str, budget: int) -> str:
    """Name of a cost row."""
    return f"{pruner}@{budget}"


@contextmanager
def alone(folder: Path) -> Iterator[None]:
    """Of all processes that work in a folder one is inside; the kernel lets the next one in when it leaves or is gone."""
    with (folder / LOCK).open("ab") as file:
        fcntl.lockf(file, fcntl.LOCK_EX)
        yield


def complete(folder: Path, costs: str, wanted: Iterable[str], rounds: int = 0) -> bool:
    """Whether a folder has costs of this kind: counts of all `wanted` keys and that many rounds, on whatever machine."""
    lines, _ = _read(folder / COSTS)
    if not lines or lines[0]["costs"] != costs:
        return False
    return set(wanted) <= counted(lines) and set(range(rounds)) <= timed(lines)


def counted(lines: Iterable[Mapping[str, Any]]) -> set[str]:
    """Keys of the rows that have counts."""
    return {key(line["pruner"], line["budget"]) for line in lines if line.get("kind") == "counts"}


def timed(lines: Iterable[Mapping[str, Any]]) -> set[int]:
    """Numbers of the rounds that are there."""
    return {line["number"] for line in lines if line.get("kind") == "round"}


class Ledgers:
    """Reads and appends the lines of one file; the only writer of it, if made under `alone`."""

    def __init__(self, folder: Path, header: Mapping[str, Any]) -> None:
        self.path = folder / COSTS
        lines, good = _read(self.path)
        if lines and lines[0] != dict(header):  # timings of two settings do not mix; the older ones stay beside the new
            digest = hashlib.sha256(json.dumps(lines[0], sort_keys=True).encode()).hexdigest()[:8]
            self.path.replace(self.path.with_suffix(f".{digest}.jsonl"))
            lines, good = [], 0
        self._file = self.path.open("r+b" if self.path.exists() else "w+b")
        self._file.truncate(good)
        self._file.seek(good)
        if not lines:
            self.append(dict(header))
        self.lines = lines or [dict(header)]

    def append(self, line: Mapping[str, Any]) -> None:
        """Write one line and wait until the disk has it."""
        self._file.write(json.dumps(line, sort_keys=True).encode() + b"\n")
        self._file.flush()
        os.fsync(self._file.fileno())

    def close(self) -> None:
        """Close the file."""
        self._file.close()


def _read(path: Path) -> tuple[list[dict[str, Any]], int]:
    """Lines and the number of good bytes.

    Raises:
        UserError: another schema, or a damaged line before the last.
    """
    raw = path.read_bytes() if path.is_file() else b""
    lines: list[dict[str, Any]] = []
    good = 0
    for number, line in enumerate(raw.split(b"\n")[:-1]):
        try:
            found = json.loads(line)
        except ValueError as error:
            raise UserError(f"'{path}', line {number + 1}, is damaged ({error}); delete the file to measure again.") from error
        if number == 0 and found.get("schema") != SCHEMA:
            raise UserError(
                f"'{path}' has cost schema {found.get('schema')!r}, this version reads {SCHEMA}; delete it to measure again."
            )
        lines.append(found)
        good += len(line) + 1
    return lines, good


def samples(folder: str | Path) -> pd.DataFrame:
    """Raw milliseconds: a row per round, place in the round and stage, with columns round, place, pruner, budget, stage, ms."""
    lines, _ = _read(Path(folder) / COSTS)
    rows = []
    for line in lines:
        if line.get("kind") == "round":
            for place, (name, stages) in enumerate(line["ms"]):
                pruner, _, budget = name.rpartition("@")
                rows += [(line["number"], place, pruner, int(budget), stage, value) for stage, value in stages.items()]
    return pd.DataFrame(rows, columns=["round", "place", "pruner", "budget", "stage", "ms"])


def load(folder: str | Path) -> pd.DataFrame:
    """Cost table of a run folder, one row per (backbone, pruner, budget); empty if the run has no costs.

    Columns as in `EXPLAIN`; multiply-adds in units of one, bytes, milliseconds. Rows without samples (`--costs projected`, or
    a run that stopped before its first round) have no timing columns.
    """
    lines, _ = _read(Path(folder) / COSTS)
    counts = [line for line in lines if line.get("kind") == "counts"]
    if not counts:
        return pd.DataFrame()
    header, raw = lines[0], samples(folder)
    rows = [{"macs_measured": math.nan} | _counted(header, line) for line in counts]
    if len(raw):
        wide = _wide(raw)
        rows = [row | _timed(wide, row["pruner"], row["budget"], header["device"]) for row in rows]
    return pd.DataFrame(rows)


def _wide(raw: pd.DataFrame) -> pd.DataFrame:
    """Milliseconds per (pruner, budget, round, place): a column per stage, the language model's loop and the whole pass."""
    wide = raw.pivot(index=["pruner", "budget", "round", "place"], columns="stage", values="ms")
    inside = wide.pop(INSIDE).fillna(0) if INSIDE in wide else 0.0
    wide["span"] = wide["prefill"] + inside
    wide["pruner"] = (wide["pruner"].fillna(0) if "pruner" in wide else 0.0) + inside
    return wide.fillna({stage: 0.0 for stage in MODULES if stage in wide})


def _timed(wide: pd.DataFrame, name: str, budget: int, device: str) -> dict[str, Any]:
    """Medians, percentiles and speed-ups of one row; nothing if it has no samples."""
    index = wide.index
    mine = wide[(index.get_level_values("pruner") == name) & (index.get_level_values("budget") == budget)]
    if mine.empty:
        return {}
    unpruned = wide[index.get_level_values("pruner") == BASELINE]
    base, mine_by_round = (part.groupby("round").median() for part in (unpruned, mine))
    whole = "total" if device.startswith("cuda") else "compute"
    found: dict[str, Any] = {}
    for column, stage in (("prefill_ms", "span"), ("cuda_ms" if whole == "total" else "compute_ms", whole)):
        low, middle, high = mine[stage].quantile([0.05, 0.5, 0.95]).tolist()
        found |= {column: middle, f"{column}_p5": low, f"{column}_p95": high}
    chance = mannwhitneyu(mine[whole], unpruned[whole], alternative="less").pvalue
    return found | {
        "speedup_prefill": (base["span"] / mine_by_round["span"]).median(),
        "speedup_total": (base[whole] / mine_by_round[whole]).median(),
        "note": "" if name == BASELINE or chance < CHANCE else NO_GAIN,
        "rounds": len(mine_by_round),
        **{f"stage.{stage}_ms": mine[stage].median() for stage in (*MODULES, "total") if stage in mine},
    }


def _counted(header: Mapping[str, Any], line: Mapping[str, Any]) -> dict[str, Any]:
    shape = Shape(**header["shape"])
    seen = [n - header["text"] for n in line["lengths"]]
    macs = dict(line["macs"])
    macs["pruner"] = macs.get("pruner", 0) + macs.pop(INSIDE, 0)
    return {
        "backbone": header["backbone"],
        "costs": header["costs"],
        "pruner": line["pruner"],
        "budget": line["budget"],
        "tokens_final": seen[-1],
        "tokens_mean": sum(seen) / len(seen),
        f"macs_{header['costs']}": sum(macs.values()),
        "flops_paper": paper_flops(line["lengths"], shape),
        "activation_paper": paper_activation(line["lengths"], shape, header["element"]),
        "activation_peak": line["peak"]["prefill"],
        "activation_peak_run": line["peak"].get("run"),
        **{f"macs.{module}": macs.get(stage, 0) for stage, module in MODULES.items()},
        "macs_fvcore": line.get("fvcore"),
        "note": "",
    }
