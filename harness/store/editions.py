"""`run.json`: what was asked, which cells that means, and by which code they are computed.

The same command after an edit of a pruner, or of the code that evaluates, asks for the same and has other
cells: another *edition* of the run. Its cells are computed beside the old ones, and tables show those of the
current edition alone.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from harness.engine.cells import Job
from harness.store import code
from harness.store.journal import alone, write_atomically
from harness.store.provenance import collect, differences
from harness.store.records import DONE, FOLDER, LOOSE, RUN, SCHEMA, done_info, run_info, verify
from pruners.base import UserError

LOCK = "run.lock"
NAMED = 3  # changed files that a sentence names


@dataclass(frozen=True)
class Opened:
    """A run folder that holds this run.

    Attributes:
        info: what `run.json` says.
        edition: number of the current edition.
        jobs: per split; under `--keep-code` with the cells that other code began.
        said: what a user has to know of what changed since the last time, in sentences.
        finished: whether all of it is there already.
    """

    info: dict[str, Any]
    edition: int
    jobs: list[list[Job]]
    said: tuple[str, ...] = ()
    finished: bool = False


def entry(job: Job, grid: tuple[int, int], geometry: str) -> dict[str, Any]:
    """What `run.json` says of a cell: all that a report needs.

    Args:
        grid: rows and columns of the backbone's patches.
        geometry: what they cover of an image, one of `backbones.parts.geometry.GEOMETRIES`.
    """
    pruner = job.pruner
    needs = sorted(need.kind + (f"[{need.layer}]" if need.layer is not None else "") for need in pruner.needs)
    return asdict(job.cell) | {
        "asked": job.cell.asked,
        "stage": pruner.stage,
        "budget_kind": pruner.budget_kind,
        "kind": pruner.kind,
        "needs": needs,
        "stochastic": pruner.stochastic,
        "grid": list(grid),
        "geometry": geometry,
    }


def open_run(
    folder: Path,
    run: str,
    asked: Mapping[str, Any],
    splits: Sequence[Sequence[Job]],
    grid: tuple[int, int],
    device: str,
    keep_code: bool = False,
    *,
    geometry: str,
    left_out: Mapping[str, str],
) -> Opened:
    """Make the run folder, or see that it holds this run, and choose the edition.

    Args:
        run: identity of what was asked, code left out.
        splits: the cells of every split.
        keep_code: go on with the cells that other code began, and mark the rows.
        geometry: as in `entry`.
        left_out: pruners that the backbone cannot serve, and why.

    Raises:
        UserError: the folder holds another run, records without `run.json`, or a finished run that is
            damaged.
    """
    facts = collect(device)
    folder.mkdir(parents=True, exist_ok=True)
    with alone(folder / LOCK):
        info = run_info(folder)
        if not info:
            if (folder / FOLDER).exists():
                raise UserError(f"{str(folder)!r} holds records without {RUN}; give a new --out folder.")
            info = {
                "schema": SCHEMA,
                "run": run,
                "asked": dict(asked),
                "provenance": facts,
                "cells": {},
                "editions": [],
            }
        elif info.get("run") != run:
            raise UserError(
                f"{str(folder)!r} holds another run ({info.get('run')}, this one is {run}); give a new --out folder."
            )
        elif info.get("schema") != SCHEMA:
            raise UserError(
                f"{str(folder)!r} was made by an earlier version, which a report still reads; give a new --out folder to go on."
            )
        before = _current(info) if info["editions"] else None
        jobs = [list(part) for part in splits]
        if before and keep_code:
            jobs = [[_kept(job, info["cells"], before["cells"]) for job in part] for part in jobs]
        cells = [job.cell.id for part in jobs for job in part]
        said: tuple[str, ...] = ()
        changed = before is None or set(before["cells"]) != set(cells)
        if changed:
            known = len(info["editions"])
            info = _with_edition(info, cells, [entry(job, grid, geometry) for part in jobs for job in part])
            back = before is not None and len(info["editions"]) == known
            said = (
                (f"back to the code of {_clock(_current(info)['time'])}",)
                if back
                else _changes(info, before)
                if before
                else ()
            )
        if changed or not left_out.items() <= info.get("left_out", {}).items():
            info["left_out"] = info.get("left_out", {}) | dict(left_out)
            write_atomically(folder / RUN, info, LOOSE)
        opened = Opened(info, info["edition"], jobs, said)
        if (folder / DONE).exists() and (done := done_info(folder)):
            verify(folder)
            when = _clock(done["finished"])
            return replace(
                opened,
                said=(*said, f"finished at {when}, nothing computed; --force starts anew"),
                finished=True,
            )
        if not changed and (moved := differences(info.get("provenance", {}), facts)):
            info.setdefault("continued", []).append({"changed": moved, "provenance": facts})
            write_atomically(folder / RUN, info, LOOSE)
        return opened


def _current(info: Mapping[str, Any]) -> dict[str, Any]:
    edition: dict[str, Any] = info["editions"][info["edition"]]
    return edition


def _kept(job: Job, known: Mapping[str, Any], current: Sequence[str]) -> Job:
    """The job under the cell of the current edition that was asked for in the same words."""
    for number in current:
        if known[number]["asked"] == job.cell.asked:
            old = known[number]
            setting = replace(job.cell.setting, code=old["setting"]["code"])
            cell = replace(job.cell, source=old["source"], setting=setting)
            mark = "" if cell.id == job.cell.id else f"{job.cell.source}/{job.cell.setting.code}"
            return replace(job, cell=cell, code=mark)
    return job


def _with_edition(info: dict[str, Any], cells: list[str], entries: list[dict[str, Any]]) -> dict[str, Any]:
    """With these cells as the current edition; an edition that was there before becomes current again."""
    editions = list(info["editions"])
    there = next((k for k, one in enumerate(editions) if set(one["cells"]) == set(cells)), None)
    if there is None:
        there = len(editions)
        time = datetime.now(UTC).isoformat(timespec="seconds")
        editions.append({"time": time, "cells": cells, "files": code.evaluation()})
    known = dict(zip(cells, entries, strict=True)) | info["cells"]
    return info | {"cells": known, "editions": editions, "edition": there}


def _changes(info: Mapping[str, Any], before: Mapping[str, Any]) -> tuple[str, ...]:
    """Sentences about what was edited since an edition, and how many cells run again for it."""
    now = _current(info)
    since = _clock(before["time"])
    known = info["cells"]
    old = {known[cell]["asked"]: known[cell] for cell in before["cells"]}
    pairs = [(old[known[cell]["asked"]], known[cell]) for cell in now["cells"] if known[cell]["asked"] in old]
    if any(was["setting"]["code"] != cell["setting"]["code"] for was, cell in pairs):
        files = sorted(
            name
            for name in now["files"] | before["files"]
            if now["files"].get(name) != before["files"].get(name)
        )
        named = ", ".join(files[:NAMED]) + (f" and {len(files) - NAMED} more" if len(files) > NAMED else "")
        return (
            f"{named or 'the backbone'} changed since {since}, {len(pairs)} cells run again beside the old ones",
        )
    counts: dict[str, int] = {}
    for was, cell in pairs:
        if was["source"] != cell["source"]:
            counts[cell["pruner"]] = counts.get(cell["pruner"], 0) + 1
    return tuple(
        f"{name}: source changed since {since}, {count} cells run again beside the old ones"
        for name, count in counts.items()
    )


def _clock(time: str) -> str:
    """A stored time as a person at this machine reads it; the day only if it is another one."""
    there, now = datetime.fromisoformat(time).astimezone(), datetime.now(UTC).astimezone()
    return there.strftime("%H:%M" if there.date() == now.date() else "%Y-%m-%d %H:%M")
