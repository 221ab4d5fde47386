"""Where a run lives: its identity names its folder, so the same command finds what it has begun."""

from __future__ import annotations

from itertools import count
from pathlib import Path

from pruners.base import UserError

RUNS = Path("results") / "runs"


def choose(out: Path | None, run: str, *, force: bool = False, world: int = 1) -> Path:
    """The folder of a run.

    Args:
        out: what the user asked for; None for one below `results/runs`.
        run: identity of the run.
        force: start anew, in `<folder>-2`, `<folder>-3` and so on if there is one already; without `out`,
            later commands find the newest.
        world: processes that have to agree on the folder.

    Raises:
        UserError: `force` with several processes and no folder that they could agree on.
    """
    base = out or RUNS / run[:8]
    if force and world > 1:
        raise UserError("--force cannot be agreed on by several processes; give a new --out folder instead.")
    names = (base if number == 1 else base.with_name(f"{base.name}-{number}") for number in count(1))
    if not force and out is not None:
        return base
    newest = base
    for folder in names:
        if not folder.exists():
            return folder if force or not newest.exists() else newest
        newest = folder
    return newest
