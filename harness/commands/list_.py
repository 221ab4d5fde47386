"""`list`: what there is."""

from __future__ import annotations

import dataclasses
import sys
from importlib import import_module
from types import ModuleType
from typing import Any

from harness.commands.options import Debug, Plugins, import_plugins


class _Later(ModuleType):
    """Stands in for a module until something of it is used."""

    def __getattr__(self, name: str) -> Any:
        if sys.modules.get(self.__name__) is self:
            del sys.modules[self.__name__]
        return getattr(import_module(self.__name__), name)


def show(plugin: Plugins = [], debug: Debug = False) -> None:  # noqa: B006
    """Pruners with their parameters and needs, backbones, data sets."""
    # nothing is computed here, and torch takes longer than all the rest
    sys.modules.setdefault("torch", _Later("torch"))
    import backbones
    from pruners import get, names

    import_plugins(plugin)
    print("pruners")
    for name in names():
        cls = get(name)
        fields: tuple[dataclasses.Field[Any], ...] = dataclasses.fields(cls)  # type: ignore[arg-type]
        parameters = ", ".join(f"{field.name}={field.default!r}" for field in fields)
        needs = ", ".join(sorted(n.kind + (f"[{n.layer}]" if n.layer is not None else "") for n in cls.needs))
        print(f"  {name}({parameters})  {cls.kind}, {cls.stage}; reads {needs or 'patches'}; {cls.reference}")
    print("backbones")
    for name, text in backbones.names().items():
        print(f"  {name}  {text}")
    print("data sets")
    print("  refshapes, refshapes+ (val, testA, testB), refshapesg (val, test)  generated on first use")
    print("  refcoco, refcoco+ (val, testA, testB), refcocog (val, test), grefcoco  read from --data DIR")
