"""The harness: engine, record store, data sets, metrics, costs, the gate and the command line.

`harness.evaluate(harness.Plan(...))` runs a sweep. Both names are looked up when they are used, so that
importing this package imports nothing heavy.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

_PLACES = {"Plan": "harness.plan", "Result": "harness.commands.sweep", "evaluate": "harness.commands.sweep"}


def __getattr__(name: str) -> Any:
    if name not in _PLACES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_PLACES[name]), name)
