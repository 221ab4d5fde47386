"""`gate`: a fixed subset against the committed baseline."""

from __future__ import annotations

from pathlib import Path

import typer

from harness.commands.options import Accept, Baseline, Debug, Plugins, Threads
from harness.commands.tables import Export, export_to


def gate(
    baseline: Baseline = Path("results/baseline.json"),
    accept: Accept = None,
    threads: Threads = None,
    plugin: Plugins = [],  # noqa: B006
    export: Export = None,
    debug: Debug = False,
) -> None:
    """Compare a fixed subset with the baseline; exit code 1 if anything changed that no rounding explains."""
    from harness.commands.header import begin

    with begin(f"the gate's subset against {baseline}", threads):
        from harness.gate import check as gating
        from pruners.errors import UserError
        from reports.sheets import gate_sheet

    if accept is not None:
        if export is not None:
            raise UserError("--accept compares nothing that --export could write; give one of the two.")
        gating.accept(baseline, accept, tuple(plugin))
        print(f"new baseline: {baseline}")
        return
    found = gating.check(baseline, tuple(plugin))
    for change in found.changes:
        print(f"{'failed' if change.reasons else 'changed within the tolerances'}: {change}")
        for line in (*change.reasons, *change.notes, *change.moved):
            print(f"    {line}")
    if found.unguarded:
        print(f"not in the baseline: {', '.join(found.unguarded)}; let them in with --accept REASON")
    print(
        f"gate: {len(found.worse)} of {found.cells} pruners at a budget and seed failed (scores per split, "
        f"kept tokens, token "
        f"counts, own cost), {len(found.changes) - len(found.worse)} changed within the tolerances"
    )
    if export is not None:
        export_to(export, gate_sheet(found))
    if found.worse:
        raise typer.Exit(1)
