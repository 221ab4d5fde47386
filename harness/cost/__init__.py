"""Cost meters: multiply-adds, activation, time, and the closed forms of the literature, each in a column of its own."""

from harness.cost.explain import EXPLAIN
from harness.cost.store import load, samples
from harness.cost.table import footer, table

__all__ = ["EXPLAIN", "footer", "load", "samples", "table"]
