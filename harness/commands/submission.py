"""`submission`: a run's answers as a competition's server, or DAVIS' evaluator, takes them."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from harness.commands.options import Data, Debug, Plugins, RunFolder, import_plugins

Out = Annotated[
    Path,
    typer.Option("--out", help="zip file for a server; of ref-davis17 a folder for DAVIS' own evaluator"),
]
Dataset = Annotated[
    str, typer.Option("--datasets", help="e.g. mevis:valid, where a run has several that can be submitted")
]
Cell = Annotated[
    str,
    typer.Option("--cell", help="which of a run's cells: pruner@budget, or the beginning of its id"),
]


def submission(
    run: RunFolder,
    out: Out,
    data: Data = None,
    datasets: Dataset = "",
    cell: Cell = "",
    plugin: Plugins = [],  # noqa: B006
    debug: Debug = False,
) -> None:
    """Write and check a run's answers to Refer-YouTube-VOS, MeViS or Ref-DAVIS-17 for their own scorers."""
    from harness import submission as files

    import_plugins(plugin)
    print(files.write(run, data, out, datasets, cell))
