"""What a bundle holds, how a run becomes one, and how one becomes a run folder again.

A bundle has what a table needs and no more: cells and methods as the run recorded them, the code by its
digests, the machine by its kind, and counts per expression. What it leaves out: pictures, masks, the text of
expressions and answers, paths, and the names of hosts and users. A medium, whose name is a path below the
data root, stands there as a digest; so do bundles of several runs draw the same media together.
"""

from __future__ import annotations

import hashlib
import math
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from harness.cost import store as cost_store
from harness.cost.explain import EXPLAIN
from harness.cost.store import COSTS, load_costs
from harness.engine.cells import Cell, Setting
from harness.progress import say
from harness.store import records, run_folder, sweeps
from harness.store.blocks import tables_of
from harness.store.journal import Journal, Reader, digest, write_atomically
from harness.store.provenance import PACKAGES
from harness.store.tables import compact
from pruners.base import UserError

FORMAT, SCHEMA = "groundprune bundle", 1
# what a result is, column by column: the type of each in Parquet
COUNTS: dict[str, str] = {
    "cell": "string",
    "sample": "string",
    "expression": "int64",
    "medium": "string",
    "frames": "int64",
    "views": "int64",
    "shown": "string",
    "tokens_final": "int64",
    "tokens_mean": "float64",
    "tokens_llm": "int64",
    "intersection": "int64",
    "union": "int64",
    "coverage": "float64",
    "rounding_tokens": "float64",
    "rounding_iou": "float64",
    "seg_said": "int64",
    "seg_logprob": "float64",
    "measures": "measures",
    "curves": "curves",
}
OF_CELL = (*(field.name for field in fields(Cell)), "data")
# of an entry of run.json besides; what an older run does not say
BESIDE: dict[str, Any] = {
    "stage": "tower",
    "budget_kind": "final",
    "schedule": "",
    "sent": 0,
    "pooled": 1,
    "kind": "method",
    "needs": [],
    "stochastic": False,
    "budget_asked": "",
    "grid": [],
    "geometry": "",
}
OF_PLAN = (
    *("answers", "attn", "backbones", "batch_size", "budgets", "costs", "datasets", "device", "dtype"),
    *("image_backend", "limit", "positions", "protocol", "pruners", "seed", "seeds"),
)
OF_METHOD = (
    *("name", "parameters", "kind", "stage", "needs", "stochastic", "budget_kind", "own_positions"),
    *("source", "reference", "own", "conformance"),
)
# a path of somebody's machine: two folders or more from the root, a home, a drive, an address of a file
PATH = re.compile(r"(?<![\w./~])/[\w.+@~-]+(?:/[\w.+@~-]*)+|(?<!\w)~\w*/\S*|\b[A-Za-z]:\\\S*|file:/\S*")
NO_PATH = "PATH"
SUBSET, DIRTY = "subset", "dirty"
MARKS = {
    SUBSET: "a part of its splits (--limit), whose rows compare with that part alone",
    DIRTY: "by code that no commit holds",
}


@dataclass(frozen=True)
class Bundle:
    """A run as others get it.

    Attributes:
        facts: as JSON; see docs/joining-the-board.md.
        rows: a row per cell and expression, with the columns of COUNTS.
    """

    facts: dict[str, Any]
    rows: pd.DataFrame

    @property
    def name(self) -> str:
        """The run's, which is the digest of what was asked, and the first digits of what was counted."""
        return f"{self.facts['run'][:8]}-{self.facts['results']['sha256'][:6]}"


def without_paths(value: Any) -> Any:
    """The same with NO_PATH for every path that a text holds."""
    if isinstance(value, str):
        return PATH.sub(NO_PATH, value)
    if isinstance(value, Mapping):
        return {without_paths(str(name)): without_paths(one) for name, one in value.items()}
    return [without_paths(one) for one in value] if isinstance(value, list | tuple) else value


def cell_id(entry: Mapping[str, Any]) -> str:
    """The identity that follows from what a cell says of itself.

    Raises:
        TypeError, KeyError: it does not say all.
    """
    said = {field.name: entry[field.name] for field in fields(Cell)}
    return Cell(**said | {"setting": Setting(**entry["setting"])}).id


def _entry(cell: Mapping[str, Any]) -> dict[str, Any]:
    """A cell as a bundle has it: all names, no paths."""
    plain = {"parameters": [], "source": "", "positions": "compact", "own_positions": False, "data": ""}
    said = {**plain, **BESIDE, "sent": cell.get("budget", 0), **cell}
    said["setting"] = asdict(Setting(**{"code": "", **cell["setting"]}))
    found: dict[str, Any] = without_paths({name: said[name] for name in (*OF_CELL, *BESIDE)})
    return found


def pack(folder: Path, by: str = "", url: str = "", licence: str = "") -> Bundle:
    """A run as a bundle, whatever it is worth; `harness.bundle.submit` says what may be submitted.

    Raises:
        UserError: its records cannot be read, or it has none.
    """
    frame, info = records.load_records(folder), run_folder.run_info(folder)
    if frame.empty:
        raise UserError(f"The run in {str(folder)!r} has no evaluated sample, so there is nothing to show.")
    known = run_folder.cells_of(info)
    prints = {
        cell: str(data) for cell, data in frame.drop_duplicates("cell")[["cell", "data"]].to_numpy().tolist()
    }
    entries = {cell: _entry({**entry, "data": prints.get(cell, "")}) for cell, entry in known.items()}
    ids = {cell: cell_id(entry) for cell, entry in entries.items()}
    cells = {ids[cell]: entry for cell, entry in entries.items()}
    failed = Counter(":".join(name.split(":")[:2]) for name in records.failures(folder))
    asked = frame.groupby(["dataset", "split"], sort=False)["sample"].nunique().reset_index()
    names = [f"{dataset}:{split}" for dataset, split in asked[["dataset", "split"]].to_numpy().tolist()]
    told = info.get("provenance", {})
    facts: dict[str, Any] = {
        "format": FORMAT,
        "schema": SCHEMA,
        "run": str(info.get("run", folder.name)),
        "time": str(told.get("time", "")),
        "by": by,
        "url": url,
        "licence": licence,
        "finished": run_folder.finished(folder),
        "plans": [
            without_paths({name: plan[name] for name in OF_PLAN if name in plan}) for plan in _plans(info)
        ],
        "code": {name: told.get(name) for name in ("commit", "dirty", "diff")} | {"files": _files(info)},
        "environment": _environment(told),
        "continued": sorted({fact for part in info.get("continued", []) for fact in part["changed"]}),
        "other_code": sorted(set(frame["pruner"][frame["code"] != ""])),
        "samples": dict(zip(names, asked["sample"].tolist(), strict=True)),
        "failed": dict(failed),
        "cells": cells,
        "methods": _methods(known, cells),
        "costs": _costs(folder, str(info.get("run", ""))),
    }
    facts["marks"] = marks(facts)
    return Bundle(facts, _rows(frame, ids))


def marks(facts: Mapping[str, Any]) -> list[str]:
    """What a reader has to know of a run that is no full one of published code."""
    found = [SUBSET] if any(plan.get("limit") for plan in facts["plans"]) else []
    return found + ([DIRTY] if facts["code"]["dirty"] or not facts["code"]["commit"] else [])


def _plans(info: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The plans that together ask for all that the run holds."""
    return sweeps.plans_of(info) if info.get("sweeps") else [info.get("plan", {})]


def _files(info: Mapping[str, Any]) -> dict[str, str]:
    """Digests of the files that evaluated, by their path in the repository."""
    editions = info.get("editions", [])
    return dict(editions[info["edition"]]["files"]) if editions else {}


def _environment(told: Mapping[str, Any]) -> dict[str, Any]:
    """The machine's kind; neither its name nor anything that tells it from another of its kind."""
    packages = told.get("packages", {})
    return {
        "python": str(told.get("python", "")),
        "system": re.split(r"\W", str(told.get("platform", "")))[0],
        "packages": {name: str(packages[name]) for name in PACKAGES if packages.get(name)},
        "processor": without_paths(str(told.get("processor", ""))),
        "device": without_paths(str(told.get("device_name", ""))),
        "threads": told.get("threads"),
    }


def _methods(known: Mapping[str, Mapping[str, Any]], cells: Mapping[str, dict[str, Any]]) -> dict[str, Any]:
    """What the run says of its methods, by their text; `own` and `conformance` are seen to at submission."""
    of_run = {without_paths(str(cell["pruner"])): str(cell.get("reference", "")) for cell in known.values()}
    found: dict[str, Any] = {}
    for cell in cells.values():
        facts = {name: cell[name] for name in OF_METHOD if name in cell}
        facts["parameters"] = [pair for pair in cell["parameters"] if pair[0] != "seed"]
        named = {"name": cell["pruner"].partition("(")[0], "reference": of_run[cell["pruner"]]}
        found.setdefault(cell["pruner"], facts | named | {"own": None, "conformance": {}})
    return found


def _costs(folder: Path, run: str) -> dict[str, Any]:
    """The lines of the run's costs, which are raw samples, and what the columns made of them mean."""
    measured = load_costs(folder)
    if measured.empty:
        return {}
    reader = Reader(folder / COSTS, (2, cost_store.SCHEMA), "delete the file to measure again")
    try:
        lines = [line for _, line in reader]
    except UserError:  # of an earlier version, which recorded no digests
        return {}
    if reader.header["schema"] < cost_store.SCHEMA and reader.header.get("costs") == "measured":
        say(f"costs of {folder} are left out: an earlier version measured them by another clock")
        return {}
    # machines of one kind are told apart by the run: nobody can say from outside that they are the same
    header = {name: value for name, value in reader.header.items() if name not in ("sample", "host")}
    header["host"] = hashlib.sha256(f"run {run}".encode()).hexdigest()[:8]
    names = [str(name) for name in measured]
    meant = {name: EXPLAIN[name] for name in names if name in EXPLAIN}
    found: dict[str, Any] = without_paths({"header": header, "lines": lines, "conventions": meant})
    return found


def _rows(frame: pd.DataFrame, ids: Mapping[str, str]) -> pd.DataFrame:
    """The records' counts, typed."""
    found = frame.assign(cell=frame["cell"].map(ids))
    found["medium"] = [hashlib.sha256(name.encode()).hexdigest()[:16] for name in found["cluster"]]
    found["measures"] = pd.Series(_measured(frame), index=found.index, dtype=object)
    found["curves"] = frame.get("curves", pd.Series([{}] * len(found), index=found.index, dtype=object))
    return found[list(COUNTS)].reset_index(drop=True)


def _measured(frame: pd.DataFrame) -> list[dict[str, float]]:
    """What metrics of others counted, by name."""
    held = {*records.COLUMNS, *records.FROM_RUN, "curves"}
    names = [str(name) for name in frame if name not in held]
    return [
        {name: value for name, value in zip(names, row, strict=True) if value == value}
        for row in frame[names].itertuples(index=False, name=None)
    ]


def records_of(bundle: Bundle) -> Iterator[dict[str, Any]]:
    """The rows as a journal has them: what a bundle leaves out is empty, scores are made of the counts."""
    cells: dict[str, dict[str, Any]] = bundle.facts["cells"]
    empty: dict[int, str] = {}
    alike = bundle.rows.groupby(["cell", "sample"], sort=False)["expression"]
    ordered = bundle.rows.assign(place=alike.cumcount(), of=alike.transform("size"))
    for row in ordered.to_dict("records"):
        cell = cells[row["cell"]]
        said = {str(name): _plain(value) for name, value in row.items()}
        bits = math.prod(cell["grid"] or [0]) * said["views"]
        if bits not in empty:
            empty[bits] = records.pack_tokens(np.empty(0, dtype=np.int64), bits)
        inner, outer = said["intersection"], said["union"]
        # no mask of a clip is a mask of no pixels in every frame
        frames = int(said["frames"])
        said["cluster"] = said.pop("medium")
        yield said | {
            "status": "ok",
            "dataset": cell["dataset"],
            "split": cell["split"],
            "backbone": cell["setting"]["backbone"],
            "protocol": cell["setting"]["protocol"],
            **{name: cell[name] for name in ("pruner", "budget", "seed")},
            "code": "",
            "iou": inner / outer if outer else 1.0,
            "kept": empty[bits],
            "mask": " ".join(["0"] * frames) if frames > 1 else "",
            "wrote": "",
        }


def _plain(value: Any) -> Any:
    if isinstance(value, np.generic):
        value = value.item()
    return None if value is pd.NA or (isinstance(value, float) and math.isnan(value)) else value


def unpack(bundle: Bundle, folder: Path) -> Path:
    """Write a run folder that reports read, without what a bundle leaves out."""
    facts = bundle.facts
    folder.mkdir(parents=True)
    rows: dict[str, list[dict[str, Any]]] = {}
    for row in records_of(bundle):
        place = run_folder.split_folder(folder, row["dataset"], row["split"])
        rows.setdefault(place.name, []).append(row)
    tables = {}
    for name, part in rows.items():
        place = folder / run_folder.FOLDER / name
        place.mkdir(parents=True)
        tables[name] = compact(place, [tables_of(part)])
    machine = facts["environment"]
    info = {
        "schema": run_folder.SCHEMA,
        "run": facts["run"],
        "plan": facts["plans"][-1] if facts["plans"] else {},
        "cells": facts["cells"],
        "editions": [{"time": facts["time"], "cells": list(facts["cells"]), "files": facts["code"]["files"]}],
        "edition": 0,
        "provenance": {
            **{name: facts["code"][name] for name in ("commit", "dirty", "diff")},
            **{name: machine[name] for name in ("python", "packages", "processor", "threads")},
            "device_name": machine["device"],
        },
        "continued": [{"changed": facts["continued"]}] if facts["continued"] else [],
    }
    write_atomically(folder / run_folder.RUN, info, run_folder.LOOSE)
    if facts["finished"]:
        closed = {"schema": run_folder.SCHEMA, "run": facts["run"], "splits": tables}
        closed |= {"cells": run_folder.held_digest(info), "peak_memory_bytes": 0}
        write_atomically(folder / run_folder.DONE, closed)
    if facts["costs"]:
        journal = Journal(folder / COSTS, facts["costs"]["header"])
        journal.append(facts["costs"]["lines"])
        journal.close()
    return folder


def content_digest(facts: Mapping[str, Any]) -> str:
    """Digest of what a bundle's JSON says."""
    return digest(facts)
