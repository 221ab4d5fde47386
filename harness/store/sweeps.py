"""What a run folder is to hold: its sweeps, each the cells of one command on the first samples of every
split.

A run grows by sweeps: a command that asks for more (pruners, budgets, splits, images) adds one, and a cell is
wanted on the most samples that any sweep asks. `run.json` keeps the samples of every split in order, each
with the digest of its content, so that a sample which changed is seen, and a report knows what the numbers
rest on.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from harness.store.journal import digest
from pruners.base import UserError

Known = list[list[str]]  # [sample, digest of its content] of a split, in the split's order
LOCKS = "claims"  # the file of all claims' locks, and how the names of their states begin


def split_key(cell: Mapping[str, Any]) -> str:
    """`dataset:split` of a cell as `run.json` has it."""
    return f"{cell['dataset']}:{cell['split']}"


def images_wanted(info: Mapping[str, Any], cells: Mapping[str, Mapping[str, Any]]) -> dict[str, int]:
    """On how many samples of its split, from the first on, each of these cells is wanted; empty for a run of
    before schema 4."""
    found: dict[str, int] = {}
    for sweep in info.get("sweeps", []):
        for cell in sweep["cells"]:
            if cell in cells:
                found[cell] = max(found.get(cell, 0), sweep["images"][split_key(cells[cell])])
    return found


def samples_of(info: Mapping[str, Any], split: str) -> Known:
    """[sample, content] of a split, in order."""
    known: Known = info.get("samples", {}).get(split, [])
    return known


def joined(folder: str, split: str, known: Known, asked: Sequence[tuple[str, str]]) -> Known:
    """A split's samples when a command asks for these: the longer of both lists, of which the other is the
    beginning.

    Raises:
        UserError: a sample's content changed, or the samples are others or in another order.
    """
    for (old, content), (new, now) in zip(known, asked, strict=False):
        if old != new:
            raise UserError(
                f"{folder!r} holds other images of {split} ({old} where this command has {new}); give the "
                f"--data and --datasets that it was made of, or another --out folder."
            )
        if content != now:
            raise UserError(
                f"{old} changed since {folder!r} recorded it (its image, an expression or a mask); put the "
                f"data back as they "
                "were, or give a new --out folder."
            )
    return known if len(known) >= len(asked) else [list(pair) for pair in asked]


def claims_name(sweep: Mapping[str, Any]) -> str:
    """How the name of the file begins, in the run folder, of what processes that do this sweep have claimed
    and finished."""
    mark = digest({"cells": sorted(sweep["cells"]), "images": sweep["images"]})
    return f"{LOCKS}-{mark[:8]}"


def plans_of(info: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The plans that together ask for all that a run holds, in the order in which they were given; one of
    which a later one asks for everything is left out."""
    asked = []
    for sweep in info["sweeps"]:
        cells = [info["cells"][cell] for cell in sweep["cells"]]
        asked.append({cell["asked"]: sweep["images"][split_key(cell)] for cell in cells})
    return [
        sweep["plan"]
        for k, sweep in enumerate(info["sweeps"])
        if not any(
            all(later.get(cell, 0) >= images for cell, images in asked[k].items()) for later in asked[k + 1 :]
        )
    ]


def are_sweeps(info: Mapping[str, Any]) -> bool:
    """Whether what `run.json` says of its sweeps can be: known cells, on no more samples than the run has."""
    sweeps, samples, cells = (
        info.get(name, kind) for name, kind in (("sweeps", []), ("samples", {}), ("cells", {}))
    )
    if not isinstance(sweeps, list) or not isinstance(samples, dict):
        return False
    pairs = [pair for known in samples.values() for pair in (known if isinstance(known, list) else [None])]
    if not all(
        isinstance(pair, list) and len(pair) == 2 and all(isinstance(one, str) for one in pair)
        for pair in pairs
    ):
        return False
    return all(isinstance(sweep, dict) and _is_sweep(sweep, samples, cells) for sweep in sweeps)


def _is_sweep(sweep: Mapping[str, Any], samples: Mapping[str, Known], cells: Mapping[str, Any]) -> bool:
    images, own = sweep.get("images"), sweep.get("cells")
    if not isinstance(images, dict) or not isinstance(own, list) or not isinstance(sweep.get("plan"), dict):
        return False
    if not all(
        type(count) is int and 0 <= count <= len(samples.get(split, ())) for split, count in images.items()
    ):
        return False
    return all(isinstance(cell, str) and cell in cells and split_key(cells[cell]) in images for cell in own)
