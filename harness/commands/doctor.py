"""`doctor`: this machine, data and weights."""

from __future__ import annotations

from pathlib import Path

import typer

from harness.commands.options import Checkpoint, Clip, Data, Debug, SamDims


def doctor(
    data: Data = None,
    checkpoint: Checkpoint = None,
    clip: Clip = None,
    sam_dims: SamDims = None,
    debug: Debug = False,
) -> None:
    """Look at this machine, data and weights, one line per finding; exit code 1 if something is wrong."""
    from harness.doctor import examine

    wrong = 0
    for finding in examine(data, checkpoint, Path(clip) if clip is not None else None, sam_dims):
        print(finding, flush=True)
        wrong += finding.level == "wrong"
    print(f"doctor: {wrong or 'nothing'} wrong")
    if wrong:
        raise typer.Exit(1)
