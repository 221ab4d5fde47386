"""Cells: everything that changes an answer, expanded from what the user asked for."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from typing import Any

from harness.store import code
from pruners import checks
from pruners.base import Pruner

SEEDS_PER_STOCHASTIC_PRUNER = 3


@dataclass(frozen=True)
class Setting:
    """What all cells of a run share.

    Attributes:
        fingerprint: of the weights and their configuration.
        code: digest of the code that evaluates.
        draws: seed of the protocol's draws; 0 of a protocol that has none.
    """

    backbone: str
    fingerprint: str
    protocol: str
    dtype: str
    attn: str
    device: str
    code: str = ""
    draws: int = 0


@dataclass(frozen=True)
class Cell:
    """One score of a table, before it is averaged over seeds.

    Attributes:
        data: fingerprint of the split's samples.
        pruner: as given, seed left out.
        parameters: all of the pruner's hyper-parameters.
        budget: asked visual tokens; of `none`, the number that there are.
        seed: asked for, and of the pruner's draws.
        source: digest of the pruner's own source.
    """

    setting: Setting
    dataset: str
    split: str
    data: str
    pruner: str
    parameters: tuple[tuple[str, Any], ...]
    budget: int
    seed: int
    source: str = ""

    @cached_property
    def id(self) -> str:
        """16 hex digits; equal if and only if everything that changes the answer is equal, code included."""
        text = json.dumps(asdict(self), sort_keys=True, separators=(",", ":"), default=str)
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    @cached_property
    def asked(self) -> str:
        """The same without the code, and without the defaults that it gives: what the user asked for, in his
        words."""
        return replace(self, parameters=(), source="", setting=replace(self.setting, code="")).id


@dataclass(frozen=True)
class Line:
    """A pruner at a budget and a seed: one cell of every split.

    Attributes:
        name: the pruner as given, seed left out.
    """

    pruner: Pruner
    name: str
    budget: int
    seed: int


@dataclass(frozen=True)
class Job:
    """A cell with the pruner that fills it.

    Attributes:
        code: what computes it, where that is not the cell's own code (--keep-code).
    """

    cell: Cell
    pruner: Pruner
    code: str = ""


def expand(
    pruners: Sequence[Pruner], budgets: Sequence[int], seed: int, grid: tuple[int, int], num_layers: int
) -> list[Line]:
    """Every pruner at every budget, each once.

    `none` runs once, at all tokens. A pruner that draws runs with three seeds from `seed` on, or with the one
    that the user wrote: `random(seed=7)`.

    Args:
        grid: rows and columns of the backbone's visual tokens.
        num_layers: layers of the backbone's language model.

    Raises:
        UserError: a pruner cannot end at a budget, or states that it will not.
    """
    patches = grid[0] * grid[1]
    found: dict[tuple[str, int, int], Line] = {}
    for pruner in pruners:
        name = pruner.unseeded().spec()
        for budget in [patches] if pruner.name == "none" else budgets:
            checks.stated(pruner, budget, patches, num_layers)
            for number in _seeds(pruner, seed):
                one = pruner.with_seed(number) if pruner.stochastic else pruner
                found.setdefault((name, budget, number), Line(one, name, budget, number))
    return list(found.values())


def _seeds(pruner: Pruner, seed: int) -> Sequence[int]:
    if not pruner.stochastic:
        return (seed,)
    own: int = pruner.seed  # type: ignore[attr-defined]
    if pruner.seed_written or pruner != pruner.unseeded():  # on the command line, or in Python
        return (own,)
    return range(seed, seed + SEEDS_PER_STOCHASTIC_PRUNER)


def jobs(setting: Setting, dataset: str, split: str, data: str, lines: Sequence[Line]) -> list[Job]:
    """All cells of one split; `data` is its fingerprint."""
    found = []
    for line in lines:
        parameters = tuple(sorted(line.pruner.parameters().items()))
        source = code.of_pruner(type(line.pruner))
        cell = Cell(setting, dataset, split, data, line.name, parameters, line.budget, line.seed, source)
        found.append(Job(cell, line.pruner))
    return found
