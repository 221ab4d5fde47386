"""`submit`: a run as a small bundle that a board takes, and verifying one."""

from __future__ import annotations

from harness.commands.options import (
    AllowDirty,
    BundleOut,
    By,
    CheckBundle,
    Debug,
    Licence,
    PartOfSplits,
    Plugins,
    RunOrBundles,
    Url,
    import_plugins,
)


def submit(
    runs: RunOrBundles,
    out: BundleOut = None,
    check: CheckBundle = False,
    by: By = "",
    url: Url = "",
    licence: Licence = "",
    part: PartOfSplits = False,
    allow_dirty: AllowDirty = False,
    plugin: Plugins = [],  # noqa: B006
    debug: Debug = False,
) -> None:
    """Write a finished run as a bundle for a board: one JSON and one Parquet, checked; no pictures."""
    from pruners.errors import UserError

    import_plugins(plugin)
    if check:
        from harness.bundle.accept import accept

        told = [line for path in runs for line in accept(path)]
    else:
        from harness.bundle.submit import submit as write

        if len(runs) != 1:
            raise UserError(
                f"A bundle is of one run and {len(runs)} are given; give the command once for each."
            )
        told = write(runs[0], out, by, url, licence, part, allow_dirty)
    print("\n".join(told))
