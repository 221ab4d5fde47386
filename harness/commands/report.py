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


def report(
    runs: RunFolders,
    out: ReportOut = None,
    latex: Latex = False,
    against: Against = None,
    metric: MetricName = None,
    plugin: Plugins = [],  # noqa: B006
    baseline: OldAgainst = None,
    debug: Debug = False,
) -> None:
    """Render the report of recorded runs again; several become one report, and nothing is computed anew."""
    from reports import render

    check_out(out)
    import_plugins(plugin)
    written = render(runs, out, against or baseline, latex, metric)
    print(written[0].read_text(encoding="utf-8"))
    print(*written, sep="\n")
