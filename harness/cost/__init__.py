"""Cost meters: multiply-adds, activation, time, and the closed forms of the literature, each in a column of
its own."""

from harness.cost.explain import EXPLAIN
from harness.cost.store import SETTING, cost_samples, load_costs

__all__ = ["EXPLAIN", "SETTING", "cost_samples", "load_costs"]
