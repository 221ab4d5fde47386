"""Cells: everything that changes an answer, expanded from what the user asked for."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from typing import Any

from pruners.base import Pruner

SEEDS_PER_STOCHASTIC_PRUNER = 3


@dataclass(frozen=True)
class Setting:
    """What all cells of a run share.

    Attributes:
        fingerprint: of the weights and their configuration.
    """

    backbone: str
    fingerprint: str
    protocol: str
    dtype: str
    attn: str
    device: str


@dataclass(frozen=True)
class Cell:
    """One score of a table, before it is averaged over seeds.

    Attributes:
        data: fingerprint of the split's samples.
        pruner: as given, seed left out.
        parameters: all of the pruner's hyper-parameters.
        budget: asked visual tokens; of `none`, the number that there are.
        seed: of the protocol's draws, and of the pruner's if it draws.
    """

    setting: Setting
    dataset: str
    split: str
    data: str
    pruner: str
    parameters: tuple[tuple[str, Any], ...]
    budget: int
    seed: int

    @cached_property
    def id(self) -> str:
        """16 hex digits; equal if and only if everything that changes the answer is equal."""
        text = json.dumps(asdict(self), sort_keys=True, separators=(",", ":"), default=str)
        return hashlib.sha256(text.encode()).hexdigest()[:16]


@dataclass(frozen=True)
class Job:
    """A cell with the pruner that fills it."""

    cell: Cell
    pruner: Pruner


def expand(pruners: Sequence[Pruner], budgets: Sequence[int], seed: int, patches: int) -> list[tuple[Pruner, str, int, int]]:
    """(pruner, name on the board, budget, seed) of every cell of a split.

    `none` runs once, at all tokens. A pruner that draws runs with three seeds from `seed` on.
    """
    found = []
    for pruner in pruners:
        name = replace(pruner, seed=type(pruner)().seed).spec() if pruner.stochastic else pruner.spec()  # type: ignore[call-arg, attr-defined]
        for budget in [patches] if pruner.name == "none" else budgets:
            if pruner.stochastic:
                for number in range(seed, seed + SEEDS_PER_STOCHASTIC_PRUNER):
                    found.append((replace(pruner, seed=number), name, budget, number))  # type: ignore[call-arg]
            else:
                found.append((pruner, name, budget, seed))
    return found


def jobs(
    setting: Setting,
    dataset: str,
    split: str,
    data: str,
    pruners: Sequence[Pruner],
    budgets: Sequence[int],
    seed: int,
    grid: tuple[int, int],
    num_layers: int,
) -> list[Job]:
    """All cells of one split.

    Raises:
        ImpossibleBudget: a pruner cannot end at a budget; nothing has run yet.
    """
    patches = grid[0] * grid[1]
    found = []
    for pruner, name, budget, number in expand(pruners, budgets, seed, patches):
        pruner.check(budget, patches, num_layers)
        parameters = tuple(sorted(pruner.parameters().items()))
        found.append(Job(Cell(setting, dataset, split, data, name, parameters, budget, number), pruner))
    return found
