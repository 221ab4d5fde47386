"""Cost meters: multiply-adds, activation, time, and the closed forms of the literature, each in a column of
its own."""

from harness.cost.explain import EXPLAIN
from harness.cost.store import SETTING, load, samples

__all__ = ["EXPLAIN", "SETTING", "load", "samples"]
