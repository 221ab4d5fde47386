"""`report`: leaderboard, figures and page of recorded runs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from harness.commands.options import (
    Against,
    Debug,
    Latex,
    MetricName,
    OldAgainst,
    Plugins,
    ReportOut,
    RunFolders,
    Subset,
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
    subset: Subset = None,
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
    if subset is not None:
        _clean(
            runs,
            subset,
            out,
            metric,
            export,
            {"--against": against or baseline, "--latex": latex, "--full": full},
        )
        return
    made = write(runs, out, against or baseline, latex, metric)
    print(made.text(full))
    if export is not None:
        export_to(export, made.sheet())


def _clean(
    runs: Sequence[Path],
    subset: Path,
    out: Path | None,
    metric: str | None,
    export: Path | None,
    others: Mapping[str, object],
) -> None:
    """Score recorded masks on other labels, and compare the boards."""
    from harness.labels import answered, join, read_labels, rescore
    from pruners.errors import UserError
    from reports.clean_text import clean_sheet, screen, write_clean
    from reports.gather import gather

    if odd := [name for name, value in others.items() if value]:
        raise UserError(
            f"{odd[0]} has no meaning with --subset, which compares all pairs of methods; leave it out."
        )
    labels = read_labels(subset)
    gathered = gather(runs)
    asked = answered(gathered.samples, gathered.frame)
    found = rescore(runs, join(labels, asked), asked)
    tables, written = write_clean(labels, gathered, found, out or runs[0], metric)
    print(screen(labels, found, tables))
    print(*written, sep="\n")
    if export is not None:
        export_to(export, clean_sheet(labels, found, tables))
