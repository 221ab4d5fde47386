"""Which rows a cost table has."""

from __future__ import annotations

from collections.abc import Sequence

from harness.cost.store import BASELINE
from harness.engine.cells import Line, expand
from pruners.base import Pruner
from pruners.registry import parse


def lines_of(
    pruners: Sequence[Pruner], budgets: Sequence[int], seed: int, grid: tuple[int, int], num_layers: int
) -> list[Line]:
    """One line per pruner and budget (the first seed's), the unpruned baseline first even where it was not
    asked for.

    Raises:
        ImpossibleBudget: a pruner cannot end at a budget.
    """
    found: dict[tuple[str, int], Line] = {}
    for line in expand([*parse(BASELINE), *pruners], budgets, seed, grid, num_layers):
        found.setdefault((line.name, line.budget), line)
    return list(found.values())
