"""Closing a run: once all that its sweeps ask for is recorded, the rows become tables, and `done.json` says
which.

A run that grows is open again, and is closed anew: its tables are all made from the journals, and `done.json`
is written behind the last of them, so that no reader meets old tables beside new ones.
"""

from __future__ import annotations

import resource
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from harness.store import records, run_folder
from harness.store.journal import write_atomically
from harness.store.rows import description
from harness.store.sweeps import images_wanted, samples_of
from harness.store.tables import compact

Column = tuple[str, str]  # data set and split


def lacking(folder: Path, info: Mapping[str, Any], images: Mapping[str, int]) -> dict[Column, set[str]]:
    """Samples that lack results, by data set and split; empty if all is there.

    Args:
        info: what `run.json` says.
        images: for every cell on how many of its split's first samples it is wanted.
    """
    cells = {cell: info["cells"][cell] for cell in images}
    found = {}
    for pair in run_folder.splits_of(cells):
        own = {cell: entry for cell, entry in cells.items() if (entry["dataset"], entry["split"]) == pair}
        names = [name for name, _ in samples_of(info, ":".join(pair))]
        asked = {cell: set(names[: images[cell]]) for cell in own}
        described = {cell: description(entry["setting"]["code"]) for cell, entry in own.items()}
        asked |= {text: set(names[: max(images[cell] for cell in own)]) for text in described.values()}
        rows = (row for row in _rows(folder, info, pair) if row["sample"] in asked.get(row["cell"], ()))
        absent = records.incomplete(rows, ((cell, name) for cell in own for name in asked[cell]), described)
        if absent:
            found[pair] = absent
    return found


def _rows(folder: Path, info: Mapping[str, Any], pair: Column) -> Iterator[dict[str, Any]]:
    return records.Journals(run_folder.split_folder(folder, *pair), info["cells"]).row_keys()


def close_run(folder: Path, sure: Mapping[str, int]) -> None:
    """Close a run if everything is there that any of its sweeps asks for; the caller holds the run's file
    lock.

    Args:
        sure: cells that are known to be complete on so many samples.
    """
    info = run_folder.run_info(folder)
    cells = run_folder.cells_of(info)
    images = images_wanted(info, cells)
    left = {cell: count for cell, count in images.items() if sure.get(cell, 0) < count}
    if run_folder.done_info(folder) or lacking(folder, info, left):
        return
    (folder / run_folder.DONE).unlink(missing_ok=True)
    tables = {}
    for pair in run_folder.splits_of(cells):
        place = run_folder.split_folder(folder, *pair)
        tables[place.name] = compact(place, records.shown_tables(place, info["cells"], cells))
    closed = {
        "schema": run_folder.SCHEMA,
        "run": info["run"],
        "cells": run_folder.held_digest(info),
        "splits": tables,
        "finished": datetime.now(UTC).isoformat(timespec="seconds"),
        "peak_memory_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
    }
    write_atomically(folder / run_folder.DONE, closed)
