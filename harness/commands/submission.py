"""`submission`: a run's answers as a competition's server, or DAVIS' evaluator, takes them."""

from __future__ import annotations

from harness.commands.options import (
    Cell,
    Data,
    Debug,
    Plugins,
    RunFolder,
    SubmissionOut,
    SubmittedDataset,
    import_plugins,
)


def submission(
    run: RunFolder,
    out: SubmissionOut,
    data: Data = None,
    datasets: SubmittedDataset = "",
    cell: Cell = "",
    plugin: Plugins = [],  # noqa: B006
    debug: Debug = False,
) -> None:
    """Write and check a run's answers to Refer-YouTube-VOS, MeViS or Ref-DAVIS-17 for their own scorers."""
    from harness import submission as files

    import_plugins(plugin)
    print(files.write(run, data, out, datasets, cell))
