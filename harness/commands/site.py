"""`site`: a board of any number of runs and bundles, as a folder of pages."""

from __future__ import annotations

from harness.commands.options import Debug, Plugins, RunsAndBundles, SiteOut, check_out, import_plugins


def site(
    runs: RunsAndBundles,
    out: SiteOut,
    plugin: Plugins = [],  # noqa: B006
    debug: Debug = False,
) -> None:
    """Render runs and bundles as a static site: a board with filters, a page per method and per run."""
    from reports import site as board

    check_out(out)
    import_plugins(plugin)
    made = board.render(runs, out)
    print(made.text())
