"""`doctor`: this machine, data and weights."""

from __future__ import annotations

import typer

from harness.commands.options import (
    Checkpoint,
    Clip,
    Data,
    Debug,
    ExaminedBackbones,
    Plugins,
    SamDims,
    import_plugins,
)


def doctor(
    data: Data = None,
    checkpoint: Checkpoint = None,
    clip: Clip = None,
    sam_dims: SamDims = None,
    backbones: ExaminedBackbones = "glamm",
    plugin: Plugins = [],  # noqa: B006
    debug: Debug = False,
) -> None:
    """Look at this machine, data and weights, one line per finding; exit code 1 if something is wrong."""
    from backbones import parse, with_files
    from harness.doctor import examine

    import_plugins(plugin)
    files = {"checkpoint": checkpoint, "clip": clip, "sam_dims": sam_dims}
    wrong = 0
    for finding in examine(data, [with_files(one, **files) for one in parse(backbones)]):
        print(finding, flush=True)
        wrong += finding.level == "wrong"
    print(f"doctor: {wrong or 'nothing'} wrong")
    if wrong:
        raise typer.Exit(1)
