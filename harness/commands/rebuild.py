"""`rebuild`: a finished run's tables from its journals."""

from __future__ import annotations

from harness.commands.options import Debug, RunFolder


def rebuild(run: RunFolder, debug: Debug = False) -> None:
    """Make a finished run's tables again from its journals, when they were damaged or lost."""
    from harness.store.records import rebuild_tables as again

    if again(run):
        print(f"rebuilt: the tables of {run} are those of its journals")
    else:
        print(f"{run} is not finished: give its command again with --out {run}, which does what is missing")
