"""`list`: what there is."""

from __future__ import annotations

import sys
from importlib import import_module
from types import ModuleType
from typing import Any

from harness.commands.options import Debug, Plugins, import_plugins
from harness.commands.tables import Export, export_to


class _Later(ModuleType):
    """Stands in for a module until something of it is used."""

    def __getattr__(self, name: str) -> Any:
        if sys.modules.get(self.__name__) is self:
            del sys.modules[self.__name__]
        return getattr(import_module(self.__name__), name)


def show(
    plugin: Plugins = [],  # noqa: B006
    export: Export = None,
    debug: Debug = False,
) -> None:
    """Pruners with their parameters and needs, backbones, which runs on which, data sets."""
    # nothing is computed here, and torch takes longer than all the rest
    sys.modules.setdefault("torch", _Later("torch"))
    from harness.overview import lines

    import_plugins(plugin)
    print(*lines(), sep="\n")
    if export is not None:
        from harness.overview import rows
        from reports.sheets import list_sheet

        export_to(export, list_sheet(rows()))
