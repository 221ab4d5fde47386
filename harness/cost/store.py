"""`costs.jsonl` of a run folder: raw samples, append-only; every figure of a cost table is derived from these
lines.

The first line says what was measured where. A "counts" line holds what one cell executes, a "round" line the
milliseconds of one forward pass of every cell in turn; where these left out the stages that are the same for
all cells, it has those of a few whole passes among them. It is a journal as the records are: a torn last line
is cut off and measured again.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import pandas as pd
from scipy.stats import mannwhitneyu

from backbones.costs import Shape
from harness.cost.formulas import paper_activation, paper_flops
from harness.store.journal import Journal, Reader, digest
from pruners.base import UserError

COSTS, LOCK, SCHEMA = "costs.jsonl", "costs.lock", 3
SETTING = ("fingerprint", "dtype", "attn", "device", "evaluation")  # of a header, and of a run's records
MACHINE = ("device", "device_name", "processor", "host", "threads", "clock")  # what timed, and by which clock
PROCESSOR_TIME, WALL_TIME = "processor time of one thread", "wall time"
# 1: without checksums and without the digests of code; 2: every pass whole, without a GPU its stages in wall
# time, the processor time of all of it beside them
SCHEMAS = (1, 2, 3)
NO_GAIN = "no speed-up"
# a row is called faster if its passes would look so much faster than those of `none` less often by chance
CHANCE = 0.05
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
EVERY = "every row"  # whose stages are the same, instead of a pruner
WHOLE = (
    "total",
    "compute",
    "own",
    "whole",
    "span",
)  # of a pass, and of the language model's loop with the pruner's part
INSIDE = "prefill/pruner"  # what a layer-stage pruner costs, spent while the language model runs


def cost_key(pruner: str, budget: int) -> str:
    """Name of a cost row."""
    return f"{pruner}@{budget}"


def complete(
    folder: Path, costs: str, code: Mapping[str, Any], wanted: Iterable[str], rounds: int = 0
) -> bool:
    """Whether a folder has costs of this kind and code: counts of all `wanted` keys and that many rounds, on
    any machine."""
    lines, _ = _read(folder / COSTS)
    if (
        not lines
        or lines[0]["costs"] != costs
        or any(lines[0].get(name) != value for name, value in code.items())
    ):
        return False
    return set(wanted) <= counted(lines) and set(range(rounds)) <= timed(lines)


def counted(lines: Iterable[Mapping[str, Any]]) -> set[str]:
    """Keys of the rows that have counts."""
    return {cost_key(line["pruner"], line["budget"]) for line in lines if line.get("kind") == "counts"}


def timed(lines: Iterable[Mapping[str, Any]]) -> set[int]:
    """Numbers of the rounds that are there."""
    return {line["number"] for line in lines if line.get("kind") == "round"}


class Ledgers:
    """Reads and appends the lines of one file; the only writer of it, if made inside of its file lock."""

    def __init__(self, folder: Path, header: Mapping[str, Any]) -> None:
        path = folder / COSTS
        lines, offset = _read(path)
        # timings of two settings do not mix; the older ones stay beside the new
        if lines and lines[0] != dict(header):
            path.replace(path.with_suffix(f".{digest(lines[0])[:8]}.jsonl"))
            lines, offset = [], 0
        elif not lines:
            path.unlink(missing_ok=True)  # torn before its first line was whole
        self._journal = Journal(path, header, offset)
        self.lines = lines or [dict(header)]

    def append(self, line: Mapping[str, Any]) -> None:
        """Write one line and wait until the disk has it."""
        self._journal.append([line])

    def close(self) -> None:
        """Close the file."""
        self._journal.close()


def _read(path: Path) -> tuple[list[dict[str, Any]], int]:
    """Header and lines, each once, and where the last whole line ends.

    Raises:
        UserError: another schema, a damaged line, or two lines of one row or round that differ.
    """
    if not path.is_file():
        return [], 0
    reader = Reader(path, SCHEMAS, "delete the file to measure again")
    lines: list[dict[str, Any]] = []
    seen: dict[object, tuple[int, dict[str, Any]]] = {}
    for number, line in reader:
        if problem := _problem(line, reader.header):
            raise UserError(f"{path}:{number} is damaged ({problem}); delete the file to measure again.")
        name = cost_key(line["pruner"], line["budget"]) if line["kind"] == "counts" else line["number"]
        if name not in seen:
            seen[name] = number, line
            lines.append(line)
        elif seen[name][1] != line:
            raise UserError(
                f"{path}:{seen[name][0]} and {path}:{number} measured {name} twice; delete the later line."
            )
    return ([reader.header, *lines] if reader.header else []), reader.offset


def _problem(line: Mapping[str, Any], header: Mapping[str, Any]) -> str:
    """Why no figure may come of a line; empty if one may."""
    try:
        if line["kind"] == "counts":
            counts = [*line["lengths"], *line["macs"].values(), line["budget"]]
            sound = isinstance(line["pruner"], str) and all(type(n) is int and n >= 0 for n in counts)
            sound = sound and min(line["lengths"]) >= header["text"] and "prefill" in line["peak"]
        elif line["kind"] == "round":
            passes = [*(stages for _, stages in line["ms"]), *line.get("fixed", ())]
            spent = [ms for stages in passes for ms in stages.values()]
            sound = type(line["number"]) is int and all("@" in name for name, _ in line["ms"])
            sound = sound and all(type(ms) in (int, float) and math.isfinite(ms) and ms >= 0 for ms in spent)
        else:
            return f"its kind is {line['kind']!r}"
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        return f"it is no row of costs: {error!r}"
    return "" if sound else "its figures are none"


def cost_samples(folder: str | Path) -> pd.DataFrame:
    """Raw milliseconds: a row per round, place in the round and stage, with columns round, place, pruner,
    budget, stage, ms. Stages that were timed for all rows at once have `EVERY` for a pruner, and no budget:
    0."""
    lines, _ = _read(Path(folder) / COSTS)
    rows = []
    for line in lines:
        if line.get("kind") == "round":
            passes = [*line["ms"], *((f"{EVERY}@0", stages) for stages in line.get("fixed", ()))]
            for place, (name, stages) in enumerate(passes):
                pruner, _, budget = name.rpartition("@")
                rows += [
                    (line["number"], place, pruner, int(budget), stage, value)
                    for stage, value in stages.items()
                ]
    return pd.DataFrame(rows, columns=["round", "place", "pruner", "budget", "stage", "ms"])


def load_costs(folder: str | Path) -> pd.DataFrame:
    """Cost table of a run folder, one row per (backbone, pruner, budget); empty if the run has no costs.

    Columns as in `EXPLAIN`; multiply-adds in units of one, bytes, milliseconds. Rows without samples
    (`--costs projected`, or a run that stopped before its first round) have no timing columns.
    """
    lines, _ = _read(Path(folder) / COSTS)
    counts = [line for line in lines if line.get("kind") == "counts"]
    if not counts:
        return pd.DataFrame()
    header, raw = lines[0], cost_samples(folder)
    rows = [{"macs_measured": math.nan} | _counted(header, line) for line in counts]
    if len(raw):
        wide = by_pass(raw)
        rows = [row | _timed(wide, row["pruner"], row["budget"], header["device"]) for row in rows]
    return pd.DataFrame(rows)


def by_pass(raw: pd.DataFrame) -> pd.DataFrame:
    """Milliseconds per (pruner, budget, round, place): a column per stage, the language model's loop, the
    whole pass, and what of it is the row's own. Of the stages that all rows share, each round's median."""
    shared = raw[raw["pruner"] == EVERY].groupby(["round", "stage"])["ms"].median().unstack()
    wide = raw[raw["pruner"] != EVERY].pivot(
        index=["pruner", "budget", "round", "place"], columns="stage", values="ms"
    )
    whole = "compute" if "compute" in wide else "total"
    wide["own"] = wide[whole]
    if len(shared):
        wide = wide.join(shared, on="round")
        wide["total"] += wide[list(shared)].sum(axis=1)
    wide["whole"] = wide[whole]
    inside = wide.pop(INSIDE).fillna(0) if INSIDE in wide else 0.0
    wide["span"] = wide["prefill"] + inside
    wide["pruner"] = (wide["pruner"].fillna(0) if "pruner" in wide else 0.0) + inside
    return wide.fillna({stage: 0.0 for stage in wide if stage not in WHOLE})


def _timed(wide: pd.DataFrame, name: str, budget: int, device: str) -> dict[str, Any]:
    """Medians, percentiles and speed-ups of one row; nothing if it has no samples."""
    index = wide.index
    mine = wide[(index.get_level_values("pruner") == name) & (index.get_level_values("budget") == budget)]
    if mine.empty:
        return {}
    unpruned = wide[index.get_level_values("pruner") == BASELINE]
    base, mine_by_round = (part.groupby("round").median() for part in (unpruned, mine))
    found: dict[str, Any] = {}
    whole = "cuda_ms" if device.startswith("cuda") else "compute_ms"
    for column, stage in (("prefill_ms", "span"), (whole, "whole")):
        low, middle, high = mine[stage].quantile([0.05, 0.5, 0.95]).tolist()
        found |= {column: middle, f"{column}_p5": low, f"{column}_p95": high}
    # what all rows share is no reason why one could be faster
    chance = mannwhitneyu(mine["own"], unpruned["own"], alternative="less").pvalue
    return found | {
        "speedup_prefill": (base["span"] / mine_by_round["span"]).median(),
        "speedup_total": (base["whole"] / mine_by_round["whole"]).median(),
        "note": "" if name == BASELINE or chance < CHANCE else NO_GAIN,
        "rounds": len(mine_by_round),
        **{f"stage.{stage}_ms": mine[stage].median() for stage in _in_order(mine.columns)},
        "stage.total_ms": mine["total"].median(),
    }


def _in_order(stages: Iterable[str]) -> list[str]:
    """Names of stages: those that most models have first, then what a model has of its own."""
    own = [stage for stage in stages if stage not in (*MODULES, *WHOLE)]
    return [*(stage for stage in MODULES if stage in stages), *own]


def _clock(header: Mapping[str, Any]) -> str:
    """What times of a ledger are read off; other clocks' times do not compare."""
    if str(header.get("device", "")).startswith("cuda"):
        return "CUDA events"
    return PROCESSOR_TIME if header["schema"] >= 3 else WALL_TIME


def _counted(header: Mapping[str, Any], line: Mapping[str, Any]) -> dict[str, Any]:
    shape = Shape(**header["shape"])
    seen = [n - header["text"] for n in line["lengths"]]
    macs = dict(line["macs"])
    macs["pruner"] = macs.get("pruner", 0) + macs.pop(INSIDE, 0)
    return {
        "backbone": header["backbone"],
        "costs": header["costs"],
        "source": header.get("sources", {}).get(line["pruner"]),
        **{name: header.get(name) for name in dict.fromkeys((*SETTING, *MACHINE))},
        "clock": _clock(header),
        "pruner": line["pruner"],
        "budget": line["budget"],
        "tokens_final": seen[-1],
        "tokens_mean": sum(seen) / len(seen),
        f"macs_{header['costs']}": sum(macs.values()),
        "flops_paper": paper_flops(line["lengths"], shape),
        "activation_paper": paper_activation(line["lengths"], shape, header["element"]),
        "activation_peak": line["peak"]["prefill"],
        "activation_peak_run": line["peak"].get("run"),
        **{f"macs.{MODULES.get(stage, stage)}": macs.get(stage, 0) for stage in (*MODULES, *_in_order(macs))},
        "macs_fvcore": line.get("fvcore"),
        "note": "",
    }
