"""Several runs as one: their records, samples and costs, each row with the run it comes from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from harness import cost, metrics
from harness.store import records
from harness.store.answers import answer_tables
from harness.store.journal import digest
from harness.store.provenance import differences
from harness.store.records import MASKS
from harness.store.run_folder import cells_of, finished, run_info
from harness.store.tables import ROWS_AT_ONCE, plain, together
from pruners.base import UserError
from reports import diagnosis, machines
from reports.comparable import BOUND, COLUMN, KEPT, SETTING, fitting, medium_of

# runs on other images of a split stand in tables of their own
RESULT = ["cell", "data", "sample", "expression"]
# and of a method that does not draw, whose cell may name a seed
WITHOUT_SEED = [*SETTING, "pruner", "budget", "budget_kind", "positions", "data", "sample", "expression"]
ANSWER = ["cell", "sample", "expression"]
# characters of masks and kept tokens that a report holds: of a whole data set they are gigabytes
HELD = 64_000_000


@dataclass(frozen=True)
class Run:
    """One run folder.

    Attributes:
        info: what `run.json` says.
        failed: sample to reason.
        finished: whether every cell is complete.
        diagnosis: of the run's weights, as `reports.diagnosis.read_diagnosis`.
    """

    folder: Path
    info: dict[str, Any]
    failed: dict[str, str]
    finished: bool
    diagnosis: dict[str, Any] | None = None

    @property
    def name(self) -> str:
        return str(self.info.get("run", self.folder.name))


@dataclass(frozen=True)
class Runs:
    """What a report is made of.

    Attributes:
        frame: as `harness.store.records.read_run` (texts are categories), `run`, the place of the row's run
            in `runs`, and `draws`, the seed of its protocol's draws; no result twice.
        samples: as `harness.store.records.samples`, and `run`.
        costs: as `harness.cost.load_costs`, `run`, and `reports.machines.LETTER`; empty where nothing was
            measured.
        notes: what a reader has to know of the merging.
    """

    runs: tuple[Run, ...]
    frame: pd.DataFrame
    samples: pd.DataFrame
    costs: pd.DataFrame
    notes: tuple[str, ...]

    @property
    def facts(self) -> list[dict[str, Any]]:
        """What `run.json` says of each run."""
        return [run.info for run in self.runs]


def gather(folders: Sequence[str | Path]) -> Runs:
    """Read run folders.

    Raises:
        UserError: one holds no evaluated sample.
    """
    runs, frames, samples, costs = [], [], [], []
    notes: list[str] = []
    room = HELD
    for number, folder in enumerate(map(Path, folders)):
        held = records.read_run(folder, masks=False)
        frame, failed = held.frame, held.failures
        if frame.empty:
            reason = next(iter(failed.values()), "none was recorded")
            raise UserError(
                f"The run in {str(folder)!r} has no evaluated sample ({len(failed)} failed: {reason})."
            )
        told = diagnosis.read_diagnosis(folder / diagnosis.FOLDER)
        if told and told["fingerprint"] not in frame["fingerprint"].unique():
            notes.append(
                f"The diagnosis in {str(folder)!r} is of other weights ({told['fingerprint']}) and left out."
            )
            told = None
        info = run_info(folder)
        runs.append(Run(folder, info, failed, finished(folder), told))
        drawn = {cell: str(entry["setting"].get("draws", 0)) for cell, entry in cells_of(info).items()}
        frame["draws"] = frame["cell"].astype(object).map(drawn).astype("category")
        pictured = held.samples[held.samples["image"].astype(bool)]["sample"]
        masked, room = _held(frame, _sizes(folder), set(pictured), room)
        frame = _with_masks(folder, frame, masked)
        if kept_on := sorted(frame["pruner"][frame["code"] != ""].unique()):
            count = int((frame["code"] != "").sum())
            notes.append(
                f"{count} results of {', '.join(kept_on)} in {str(folder)!r} were computed by other code "
                f"than the rest of their "
                "rows (--keep-code)."
            )
        frames.append(frame.assign(run=number))
        samples.append(held.samples.assign(run=number))
        prices, left_out = _prices(cost.load_costs(folder), frame)
        notes += [
            f"The costs of {names} in {str(folder)!r} are of other code or another setting, and left out."
            for names in left_out
        ]
        if len(prices):
            prices = machines.with_facts(prices, info.get("provenance", {}))
        costs.append(prices.assign(run=number))
    frame = _one_cluster_per_medium(together(frames))
    kept = (frame["positions"] == "kept") & ~frame["own_positions"].astype(bool)
    if kept.any():
        names = frame["pruner"].astype(object)
        frame["pruner"] = names.where(~kept, names + KEPT).astype("category")
    frame, unscored = _scored(frame)
    notes += unscored
    notes += _measured_in_part(frame)
    frame, marked = _by_source(frame)
    notes += marked
    frame, twice = _once(frame)
    if twice.any():
        counted = {name for one in map(metrics.get, metrics.names()) for name in one.columns}
        shown = ["result", *(name for name in frame if name in counted)]
        again = frame.drop_duplicates(shown).duplicated("result").sum()
        agree = (
            "They agree" if not again else f"They disagree on {again} of them; the run named first is shown"
        )
        notes.append(f"{twice.sum()} results are in several of the runs. {agree}.")
    notes += _changes(runs)
    prices, of_machines = machines.lettered(pd.concat(costs), [run.name for run in runs])
    frame = frame[~twice].drop(columns="result").reset_index(drop=True)
    return Runs(tuple(runs), frame, pd.concat(samples), prices, (*notes, *of_machines))


def _once(frame: pd.DataFrame) -> tuple[pd.DataFrame, pd.Series[bool]]:
    """Records with `result`, a number that records of one result share, and which of them repeat an earlier
    one.

    A method that does not draw has no seed: what runs with different ones say of it is one result, under the
    seed that comes first.
    """
    draws = frame["stochastic"].isin([True, 1]) & (frame["pruner"] != BOUND)
    how: Any = {"sort": False, "dropna": False, "observed": True}
    drawn = frame.groupby(RESULT, **how).ngroup()
    fixed = -1 - frame.groupby(WITHOUT_SEED, **how).ngroup()
    first = frame.groupby([*SETTING, "pruner", "budget"], **how)["seed"].transform("first")
    frame = frame.assign(result=drawn.where(draws, fixed), seed=frame["seed"].where(draws, first))
    return frame, frame.duplicated("result")


def _sizes(folder: Path) -> pd.Series[int]:
    """Characters of the masks and tokens of every sample."""
    parts = []
    for table in answer_tables(folder, ["sample", *MASKS], ROWS_AT_ONCE):
        size = pc.add(*(pc.binary_length(table[name]) for name in MASKS))
        known = pa.table({"sample": table["sample"], "size": size})
        parts.append(known.group_by("sample").aggregate([("size", "sum")]))
    found = pa.concat_tables(parts).group_by("sample").aggregate([("size_sum", "sum")]).to_pandas()
    return found.set_index("sample")["size_sum_sum"]


def _held(
    frame: pd.DataFrame, sizes: pd.Series[int], pictured: set[str], room: int
) -> tuple[pd.Series[str], int]:
    """Samples whose masks and tokens are held, and the characters that are left: all samples with a picture,
    then the others, split by split in turn, until the room is full."""
    one = plain(frame.drop_duplicates("sample")[["sample", *COLUMN]]).assign(turn=0)
    one["turn"] = one.groupby(COLUMN).cumcount()
    one["seen"] = one["sample"].isin(pictured)
    one = one.sort_values(["seen", "turn", *COLUMN], ascending=[False, True, True, True], kind="stable")
    size = one["sample"].map(sizes)
    kept = one["sample"][one["seen"] | (size.cumsum() <= room)]
    return kept, max(0, room - int(sizes[kept].sum()))


def _with_masks(folder: Path, frame: pd.DataFrame, samples: pd.Series[str]) -> pd.DataFrame:
    """Records with `kept` and `mask`, which are empty but for these samples."""
    wanted = pa.array(samples, pa.string())
    parts = [
        table.filter(pc.is_in(table["sample"], value_set=wanted))
        for table in answer_tables(folder, [*ANSWER, *MASKS], ROWS_AT_ONCE)
    ]
    held = pa.concat_tables(parts).to_pandas().drop_duplicates(ANSWER)
    here = frame["sample"].isin(list(samples))
    asked = pd.MultiIndex.from_frame(plain(frame[here][ANSWER]))
    at = pd.MultiIndex.from_frame(held[ANSWER]).get_indexer(asked)
    for name in MASKS:
        texts = np.full(len(frame), "", dtype=object)
        texts[here.to_numpy()] = held[name].to_numpy(dtype=object)[at]
        frame[name] = texts
    return frame


def _one_cluster_per_medium(frame: pd.DataFrame) -> pd.DataFrame:
    """Rows of before schema 4, whose cluster is the number of their image, take that of a later row about the
    same sample, or else the one that others with that number have; so rows of two versions are drawn
    together."""
    pairs = plain(frame[["cluster", "sample"]].drop_duplicates())
    numbered = pairs["cluster"] == records.images(pairs["sample"])
    if not numbered.any() or numbered.all():
        return frame
    names = plain(frame[["cluster", "sample"]])
    number = records.images(names["sample"])
    older = names["cluster"] == number
    of_sample = names[~older].drop_duplicates("sample").set_index("sample")["cluster"]
    known = names["sample"].map(of_sample)
    pairs = pd.DataFrame({"number": number, "cluster": known})
    for some in (pairs[older], pairs):  # what older rows were drawn together with comes first
        one = some.dropna().drop_duplicates().drop_duplicates("number", keep=False)
        known = known.where(known.notna(), number.map(one.set_index("number")["cluster"]))
    joined = known.where(older & known.notna(), names["cluster"])
    return frame.assign(cluster=joined.astype("category"))


def _scored(frame: pd.DataFrame) -> tuple[pd.DataFrame, list[str]]:
    """Without the splits of clips whose masks are not there, so that nothing was measured, and which they
    are.

    Raises:
        UserError: there are no others.
    """
    known = frame["j"].notna() if "j" in frame else pd.Series(False, index=frame.index)
    split = [frame[name] for name in COLUMN]
    unknown = (medium_of(frame) == "video") & ~known.groupby(split, observed=True).transform("any")
    if not unknown.any():
        return frame, []
    names = frame[unknown][COLUMN].drop_duplicates().itertuples(index=False, name=None)
    told = ", ".join(" ".join(name) for name in names)
    if unknown.all():
        raise UserError(
            f"The masks of {told} are not there, so nothing was measured that a report could show; a server "
            f"scores these answers."
        )
    note = f"The masks of {told} are not there: its {unknown.sum()} answers have no score and no row."
    return frame[~unknown].reset_index(drop=True), [note]


def _measured_in_part(frame: pd.DataFrame) -> list[str]:
    """Metrics that some rows have and others do not."""
    found = []
    for one in metrics.made_of(frame.columns):
        wanted = frame[fitting(frame, one)]
        absent = wanted[list(one.columns)].isna().any(axis=1)
        if absent.any():
            found.append(
                f"{one.title} was not measured in {absent.sum()} of {len(wanted)} results, and is left out "
                f"where it is not."
            )
    return found


def _prices(prices: pd.DataFrame, frame: pd.DataFrame) -> tuple[pd.DataFrame, list[str]]:
    """The costs that are of the same setting and code as the records, and the pruners of the others."""
    if prices.empty or "source" not in prices:
        return prices, []
    facts = frame.drop_duplicates(["pruner", "source", "evaluation"])
    known = {name: set(part["source"]) for name, part in facts.groupby("pruner", observed=True)}
    same = prices["source"].isna() | pd.Series(
        [
            name not in known or source in known[name]
            for name, source in zip(prices["pruner"], prices["source"], strict=True)
        ],
        index=prices.index,
    )
    for name in cost.SETTING:
        of_run = frame[name].drop_duplicates()
        of_run = of_run.astype(str).str.split(":").str[0] if name == "device" else of_run
        of_cost = prices[name].astype(str).str.split(":").str[0] if name == "device" else prices[name]
        same &= of_cost.isna() | of_cost.isin(set(of_run)) | (of_cost == "None")
    others = ", ".join(sorted(set(prices["pruner"][~same])))
    return prices[same], [others] if others else []


def _by_source(frame: pd.DataFrame) -> tuple[pd.DataFrame, list[str]]:
    """Rows of one pruner's name and of several sources or defaults, told apart by a mark behind the name."""
    notes = []
    facts = frame[["pruner", "source", "parameters"]].drop_duplicates()
    facts = facts.assign(kind=_kinds(facts))
    marked: dict[tuple[str, str], str] = {}
    for name in sorted(set(facts["pruner"])):
        mine = facts[facts["pruner"] == name]
        several = list(dict.fromkeys(mine["kind"]))
        if len(several) > 1:
            marks = {kind: f"{name} #{digest({'kind': kind})[:4]}" for kind in several}
            marked |= {(name, kind): mark for kind, mark in marks.items()}
            notes.append(
                f"{name} was computed by {len(several)} sources or defaults, whose rows are told apart by "
                f"a mark."
            )
    if marked:
        pairs = zip(frame["pruner"], _kinds(frame), strict=True)
        frame = frame.assign(pruner=pd.Categorical([marked.get(pair, pair[0]) for pair in pairs]))
    return frame, notes


def _kinds(frame: pd.DataFrame) -> pd.Series[str]:
    """Source and parameters of each row as one text."""
    texts = [frame[name].astype(object).fillna("").astype(str) for name in ("source", "parameters")]
    return texts[0] + " " + texts[1]


def _changes(runs: Sequence[Run]) -> list[str]:
    """Runs of different code, packages or machines: no reason to part them, but one to know."""
    first = runs[0].info.get("provenance", {})
    found = []
    for run in runs[1:]:
        here = run.info.get("provenance", {})
        told = [
            f"{fact} ({_fact(first.get(fact), here.get(fact))})"
            for fact in differences(first, here)
            if not (fact == "diff" and first.get("commit") != here.get("commit"))
        ]
        if told:
            found.append(
                f"Runs {runs[0].name} and {run.name} were made with different {', '.join(told)}; a number "
                f"may differ by that."
            )
    return found


def _fact(one: Any, other: Any) -> str:
    """Both values of a fact; of packages those that differ."""
    if isinstance(one, dict) and isinstance(other, dict):
        names = [name for name in dict.fromkeys((*one, *other)) if one.get(name) != other.get(name)]
        return ", ".join(f"{name} {one.get(name)} and {other.get(name)}" for name in names)
    return " and ".join("none" if value is None else str(value)[:10] for value in (one, other))
