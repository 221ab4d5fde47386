"""Which rows a cost table has."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from backbones.base import Backbone
from harness.cost.store import BASELINE
from harness.engine.cells import Line, Stated, expand
from harness.engine.served import served
from harness.plan import Plan
from harness.store.run_folder import cells_of, run_info
from pruners import checks
from pruners.base import Pruner, UserError
from pruners.registry import parse


def lines_of(
    pruners: Sequence[Pruner],
    budgets: Sequence[int | str],
    seed: int,
    grid: tuple[int, int],
    num_layers: int,
    stated: Stated = checks.stated,
) -> list[Line]:
    """One line per pruner and budget (the first seed's), the unpruned baseline first even where it was not
    asked for.

    Args:
        stated: what a backbone's layers will see: `Family.stated`.

    Raises:
        ImpossibleBudget: pruners can end at no budget.
    """
    found: dict[tuple[str, int], Line] = {}
    for line in expand([*parse(BASELINE), *pruners], budgets, seed, grid, num_layers, stated=stated):
        found.setdefault((line.name, line.budget), line)
    return list(found.values())


def lines_of_run(plan: Plan, backbone: Backbone, folder: Path) -> list[Line]:
    """The rows of a plan, and those that the run in this folder holds of other plans, so that a run that grew
    has costs of all its rows; a pruner that is not known here, as a plugin's may be, is left out."""
    grid, layers, stated = backbone.grid, backbone.num_layers, backbone.stated
    found = lines_of(served(plan.chosen(), backbone)[0], plan.budgets, plan.seed, grid, layers, stated)
    there = {(line.name, line.budget) for line in found}
    for cell in cells_of(run_info(folder)).values():
        if (cell["pruner"], cell["budget"]) in there:
            continue
        there.add((cell["pruner"], cell["budget"]))
        with suppress(UserError):
            (pruner,) = parse(cell["pruner"])
            found += expand([pruner], [cell["budget"]], cell["seed"], grid, layers, 1, stated=stated)
    return found
