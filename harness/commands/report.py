"""`report`: leaderboard, figures and page of recorded runs."""

from __future__ import annotations

from harness.commands.options import (
    Against,
    Debug,
    Latex,
    MetricName,
    OldAgainst,
    Plugins,
    ReportOut,
    RunFolders,
    check_out,
    import_plugins,
)
from harness.commands.tables import Export, Full, export_to


def report(
    runs: RunFolders,
    out: ReportOut = None,
    latex: Latex = False,
    against: Against = None,
    metric: MetricName = None,
    plugin: Plugins = [],  # noqa: B006
    baseline: OldAgainst = None,
    full: Full = False,
    export: Export = None,
    debug: Debug = False,
) -> None:
    """Render the report of recorded runs again; several become one report, and nothing is computed anew."""
    from reports import report as write

    check_out(out)
    import_plugins(plugin)
    made = write(runs, out, against or baseline, latex, metric)
    print(made.text(full))
    if export is not None:
        export_to(export, made.sheet())
