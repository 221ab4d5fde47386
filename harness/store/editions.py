"""`run.json`: what was asked, which cells that means, and by which code they are computed.

A folder holds one run: one backbone in one setting. A command that asks for more makes the run grow: its
cells are new, or wanted on more samples, and a *sweep* says so. The same command after an edit of a pruner,
or of the code that evaluates, asks for the same and has other cells: another *edition* of the run. Its cells
are computed beside the old ones, and tables show, of all that was ever asked, the cells of the code that it
was asked of last.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from backbones.base import Backbone
from backbones.registry import signal
from harness.engine.cells import Job
from harness.store import code, sweeps
from harness.store.journal import alone, write_atomically
from harness.store.provenance import collect, differences
from harness.store.run_folder import DONE, FOLDER, LOOSE, RUN, SCHEMA, done_info, run_info
from harness.store.tables import verify
from pruners import checks
from pruners.base import UserError

LOCK = "run.lock"
NAMED = 3  # changed files that a sentence names
# of a setting, where they are not its names
WORDS = {
    "fingerprint": "weights",
    "draws": "seed",
    "attn": "attention",
}
# the option that decides each fact of a setting
OPTIONS = {
    "backbone": "--backbones",
    "fingerprint": "--backbones with the same weights",
    "model": "--backbones with the same parameters",
    "protocol": "--protocol",
    "dtype": "--dtype",
    "attn": "--attn",
    "device": "--device",
    "draws": "--seed",
    "answers": "--answers",
}
OF_BACKBONE = ("fingerprint", "model")  # whose values are no words of the command line


@dataclass(frozen=True)
class Asked:
    """What a command asks of a run folder.

    Attributes:
        run: identity of what is asked, code left out; names a new run.
        plan: as JSON.
        jobs: the cells of every split.
        samples: (sample, digest of its content) of every `dataset:split`.
        cut_off: questions of every `dataset:split` that are longer than the text tower.
        left_out: pruners that the backbone cannot serve, and why.
    """

    run: str
    plan: Mapping[str, Any]
    jobs: Sequence[Sequence[Job]]
    samples: Mapping[str, Sequence[tuple[str, str]]]
    cut_off: Mapping[str, int]
    left_out: Mapping[str, str]


@dataclass(frozen=True)
class Opened:
    """A run folder that holds what was asked.

    Attributes:
        info: what `run.json` says.
        jobs: per split; under `--keep-code` with the cells that other code began.
        claims: how the name of the file of what is claimed begins.
        said: what a user has to know of what changed since the last time, in sentences.
        finished: whether all of the run is there already.
    """

    info: dict[str, Any]
    jobs: list[list[Job]]
    claims: str
    said: tuple[str, ...] = ()
    finished: bool = False


def entry(job: Job, backbone: Backbone) -> dict[str, Any]:
    """What `run.json` says of a cell: all that a report needs."""
    pruner, patches = job.pruner, backbone.grid[0] * backbone.grid[1]
    schedule = backbone.stated(pruner, job.cell.budget, patches, backbone.num_layers)
    return asdict(job.cell) | {
        "asked": job.cell.asked,
        "stage": pruner.stage,
        "budget_kind": pruner.budget_kind,
        "schedule": checks.told(schedule),
        "sent": schedule[-1],
        "pooled": backbone.pooled,
        "kind": pruner.kind,
        "needs": sorted(map(signal, pruner.needs)),
        "reference": pruner.reference,
        "stochastic": pruner.stochastic,
        "budget_asked": job.budget_asked,
        "grid": list(backbone.grid),
        "geometry": backbone.geometry,
    }


def open_run(folder: Path, asked: Asked, backbone: Backbone, keep_code: bool = False) -> Opened:
    """Make the run folder, or see that it can hold what is asked, and write down what is new.

    Args:
        keep_code: go on with the cells that other code began, and mark the rows.

    Raises:
        UserError: the folder holds a run of another setting or other data, records without `run.json`, or a
            finished run that is damaged.
    """
    facts = collect(backbone.device)
    folder.mkdir(parents=True, exist_ok=True)
    with alone(folder / LOCK):
        old = run_info(folder) or _new(folder, asked, facts)
        if old.get("schema") != SCHEMA:
            raise UserError(
                f"{str(folder)!r} was made by an earlier version, which a report still reads; give a new "
                f"--out folder to go on."
            )
        jobs = [list(part) for part in asked.jobs]
        if before := _current(old):
            _check_setting(folder, old["cells"][before[0]], jobs[0][0])
            if keep_code:
                jobs = [[_kept(job, old["cells"], before) for job in part] for part in jobs]
        info = _with_samples(folder, old, asked)
        info = _with_edition(info, {job.cell.id: entry(job, backbone) for part in jobs for job in part})
        info = _with_sweep(info, jobs, asked)
        info["left_out"] = info.get("left_out", {}) | dict(asked.left_out)
        said = (*_edited(old, info), *_grown(old, info)) if before else ()
        if before and info["edition"] == old["edition"] and (info != old or not (folder / DONE).exists()):
            info = _continued(info, facts)
        if _held(info) != _held(old):
            # first, so that it never speaks of more than its tables hold
            (folder / DONE).unlink(missing_ok=True)
        if info != old:
            write_atomically(folder / RUN, info, LOOSE)
        opened = Opened(info, jobs, sweeps.claims_name(_sweep(jobs, asked)), said)
        if not (done := done_info(folder)):
            return opened
        verify(folder)
        finished = f"finished at {_clock(done['finished'])}, nothing computed; --force starts anew"
        return replace(opened, said=(*said, finished), finished=True)


def _new(folder: Path, asked: Asked, facts: Mapping[str, Any]) -> dict[str, Any]:
    if (folder / FOLDER).exists():
        raise UserError(f"{str(folder)!r} holds records without {RUN}; give a new --out folder.")
    empty = {"cells": {}, "editions": [], "edition": 0, "sweeps": [], "samples": {}}
    return {"schema": SCHEMA, "run": asked.run, "provenance": dict(facts)} | empty


def _current(info: Mapping[str, Any]) -> list[str]:
    """Cells of the current edition; none of a run that is new."""
    return info["editions"][info["edition"]]["cells"] if info["editions"] else []


def _held(info: Mapping[str, Any]) -> dict[str, int]:
    """On how many samples each current cell is wanted."""
    return sweeps.images_wanted(info, {cell: info["cells"][cell] for cell in _current(info)})


def _check_setting(folder: Path, known: Mapping[str, Any], job: Job) -> None:
    """See that a folder's cells and a new one share all that the cells of a run share, code left out.

    Raises:
        UserError: they do not.
    """
    differing, options = [], []
    for name, now in asdict(job.cell.setting).items():
        was = known["setting"].get(name, "" if name == "model" else None)  # which older runs lack
        if name != "code" and was != now:
            differing.append(f"its {WORDS.get(name, name)} is {was!r} and this one's {now!r}")
            options.append(f"{OPTIONS[name]} {was}" if name not in OF_BACKBONE else OPTIONS[name])
    if differing:
        given = ", ".join(dict.fromkeys(options))
        raise UserError(
            f"{str(folder)!r} holds another run: {', '.join(differing)}; to go on with it give {given}, to "
            f"repeat it --from {folder / RUN} --out {folder}, and for a run of its own another --out folder."
        )


def _kept(job: Job, known: Mapping[str, Any], current: Sequence[str]) -> Job:
    """The job under the cell of the current edition that was asked for in the same words; one that nobody
    asked for yet under the code of that edition, so that its rows stand in one table with the others."""
    same = next((known[cell] for cell in current if known[cell]["asked"] == job.cell.asked), None)
    old = same or known[current[-1]]
    setting = replace(job.cell.setting, code=old["setting"]["code"])
    cell = replace(job.cell, setting=setting, source=same["source"] if same else job.cell.source)
    mark = "" if cell.id == job.cell.id else f"{job.cell.source}/{job.cell.setting.code}"
    return replace(job, cell=cell, code=mark)


def _with_samples(folder: Path, info: dict[str, Any], asked: Asked) -> dict[str, Any]:
    samples = {
        split: sweeps.joined(str(folder), split, sweeps.samples_of(info, split), pairs)
        for split, pairs in asked.samples.items()
    }
    return info | {"samples": info["samples"] | samples}


def _with_edition(info: dict[str, Any], entries: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """With these cells among the current ones, in the place of those that were asked for in the same words.

    The edition is the same one if nothing gave way and the code that evaluates is none that is new; an
    edition that was there before becomes current again.
    """
    before, known = _current(info), dict(entries) | info["cells"]
    left = {entry["asked"]: cell for cell, entry in entries.items()}
    cells = [left.pop(known[cell]["asked"], cell) for cell in before] + list(left.values())
    codes = [{known[cell]["setting"]["code"] for cell in some} for some in (before, left.values())]
    editions = list(info["editions"])
    if before and cells[: len(before)] == before and codes[1] <= codes[0]:
        there = info["edition"]
        editions[there] = editions[there] | {"cells": cells}
    else:
        there = next((k for k, one in enumerate(editions) if set(one["cells"]) == set(cells)), len(editions))
        if there == len(editions):
            time = datetime.now(UTC).isoformat(timespec="seconds")
            editions.append({"time": time, "cells": cells, "files": code.evaluation()})
    return info | {"cells": known, "editions": editions, "edition": there}


def _sweep(jobs: Sequence[Sequence[Job]], asked: Asked) -> dict[str, Any]:
    return {
        "plan": dict(asked.plan),
        "cells": [job.cell.id for part in jobs for job in part],
        "images": {split: len(pairs) for split, pairs in asked.samples.items()},
        "cut_off": dict(asked.cut_off),
    }


def _with_sweep(info: dict[str, Any], jobs: Sequence[Sequence[Job]], asked: Asked) -> dict[str, Any]:
    """With what a command asks for as a sweep, if the others do not ask for all of it already."""
    new = _sweep(jobs, asked)
    cells = {cell: info["cells"][cell] for cell in new["cells"]}
    there = sweeps.images_wanted(info, cells)
    if all(there.get(cell, 0) >= new["images"][sweeps.split_key(entry)] for cell, entry in cells.items()):
        return info
    every = [*info["sweeps"], new]
    most: Counter[str] = Counter()
    for sweep in every:
        most |= Counter(sweep["cut_off"])
    return info | {"sweeps": every, "plan": new["plan"], "cut_off": most.total()}


def _continued(info: dict[str, Any], facts: Mapping[str, Any]) -> dict[str, Any]:
    """With a note of what changed around the run since it began, where anything did."""
    moved = differences(info.get("provenance", {}), dict(facts))
    more = [*info.get("continued", []), {"changed": moved, "provenance": dict(facts)}]
    return info | {"continued": more} if moved else info


def _edited(old: Mapping[str, Any], info: Mapping[str, Any]) -> Iterator[str]:
    """Sentences about what was edited since the edition before, and how many cells run again for it."""
    known, now = info["cells"], info["editions"][info["edition"]]
    was = {known[cell]["asked"]: known[cell] for cell in _current(old)}
    pairs = {
        cell: (was[known[cell]["asked"]], known[cell])
        for cell in now["cells"]
        if known[cell]["asked"] in was and cell not in _current(old)
    }
    if not pairs:
        return
    if all(cell in old["cells"] for cell in pairs):
        times = [one["time"] for one in old["editions"] if pairs.keys() <= set(one["cells"])]
        yield f"back to the code of {_clock(times[-1])}" if times else "back to code of before"
        return
    before = old["editions"][old["edition"]]
    since = _clock(before["time"])
    if any(one["setting"]["code"] != other["setting"]["code"] for one, other in pairs.values()):
        files = sorted(
            name
            for name in now["files"] | before["files"]
            if now["files"].get(name) != before["files"].get(name)
        )
        named = ", ".join(files[:NAMED]) + (f" and {len(files) - NAMED} more" if len(files) > NAMED else "")
        yield (
            f"{named or 'the backbone'} changed since {since}, {len(pairs)} cells run again beside the "
            f"old ones"
        )
        return
    for name, count in Counter(cell["pruner"] for _, cell in pairs.values()).items():
        yield f"{name}: source changed since {since}, {count} cells run again beside the old ones"


def _grown(old: Mapping[str, Any], info: Mapping[str, Any]) -> Iterator[str]:
    """A sentence about what a run holds more than before, if it does."""
    before, now = (
        {
            one["cells"][cell]["asked"]: (images, one["cells"][cell]["pruner"])
            for cell, images in _held(one).items()
        }
        for one in (old, info)
    )
    names = Counter(pruner for asked, (_, pruner) in now.items() if asked not in before)
    more = sum(asked in before and images > before[asked][0] for asked, (images, _) in now.items())
    parts = [f"{names.total()} cells ({', '.join(names)})"] if names else []
    parts += [f"more images for {more} cells"] if more else []
    if parts:
        yield f"the run grows by {' and '.join(parts)}; what is there is not computed again"


def _clock(time: str) -> str:
    """A stored time as a person at this machine reads it; the day only if it is another one."""
    there, now = datetime.fromisoformat(time).astimezone(), datetime.now(UTC).astimezone()
    return there.strftime("%H:%M" if there.date() == now.date() else "%Y-%m-%d %H:%M")
