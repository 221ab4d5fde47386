"""Cells: everything that changes an answer, expanded from what the user asked for."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from typing import Any

from harness.engine.budgets import tokens_of
from harness.store import code
from pruners import checks
from pruners.base import ImpossibleBudget, Pruner

SEEDS = 3  # of a pruner that draws
Stated = Callable[[Pruner, int, int, int], tuple[int, ...]]  # pruner, budget, patches, layers


@dataclass(frozen=True)
class Setting:
    """What all cells of a run share.

    Attributes:
        fingerprint: of the weights and their configuration.
        code: digest of the code that evaluates.
        draws: seed of the protocol's draws; 0 of a protocol that has none.
        answers: "forced", or "generated" by the model.
        model: what else of the backbone changes its answers, its `facts`: "placement grid, 16 frames".
    """

    backbone: str
    fingerprint: str
    protocol: str
    dtype: str
    attn: str
    device: str
    code: str = ""
    draws: int = 0
    answers: str = "forced"
    model: str = ""


@dataclass(frozen=True)
class Cell:
    """One score of a table, before it is averaged over seeds.

    Attributes:
        pruner: as given, seed left out.
        parameters: all of the pruner's hyper-parameters.
        budget: asked visual tokens; of `none`, the number that there are.
        seed: of the pruner's draws; 0 of one that does not draw.
        source: digest of the pruner's own source.
        positions: whether kept tokens are numbered anew ("compact") or as in the whole sequence ("kept").
        own_positions: whether that is the method's own rule, which the run cannot change; it changes no
            answer.
    """

    setting: Setting
    dataset: str
    split: str
    pruner: str
    parameters: tuple[tuple[str, Any], ...]
    budget: int
    seed: int
    source: str = ""
    positions: str = "compact"
    own_positions: bool = False

    @cached_property
    def id(self) -> str:
        """16 hex digits; equal if and only if everything that changes the answer is equal, code included."""
        facts = {name: value for name, value in asdict(self).items() if name != "own_positions"}
        if not self.setting.model:  # as in runs of before
            del facts["setting"]["model"]
        text = json.dumps(facts, sort_keys=True, separators=(",", ":"), default=str)
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    @cached_property
    def asked(self) -> str:
        """The same without the code, and without the defaults that it gives: what the user asked for, in his
        words."""
        setting = replace(self.setting, code="")
        positions = "kept" if self.positions == "kept" and not self.own_positions else ""
        return replace(self, parameters=(), source="", positions=positions, setting=setting).id


@dataclass(frozen=True)
class Line:
    """A pruner at a budget and a seed: one cell of every split.

    Attributes:
        name: the pruner as given, seed left out.
        budget: visual tokens.
        asked: the budget as it was written, `33%`; empty where nobody wrote it.
        positions: as in `Cell`.
    """

    pruner: Pruner
    name: str
    budget: int
    seed: int
    asked: str = ""
    positions: str = "compact"


@dataclass(frozen=True)
class Job:
    """A cell with the pruner that fills it.

    Attributes:
        code: what computes it, where that is not the cell's own code (--keep-code).
        budget_asked: the budget as it was written.
    """

    cell: Cell
    pruner: Pruner
    code: str = ""
    budget_asked: str = ""


def expand(
    pruners: Sequence[Pruner],
    budgets: Sequence[int | str],
    seed: int,
    grid: tuple[int, int],
    num_layers: int,
    seeds: int = SEEDS,
    positions: Sequence[str] = ("compact",),
    stated: Stated = checks.stated,
) -> list[Line]:
    """Every pruner at every budget with all positions, each once.

    `none` runs once, at all tokens; a method that has a rule of its own for positions, with that alone. A
    pruner that draws runs with `seeds` seeds from `seed` on, or with the one that the user wrote:
    `random(seed=7)`. A budget that the patches allow and a pruner cannot end at is left out, and `impossible`
    says why, unless nothing but `none` is left.

    Args:
        budgets: counts, or texts: counts and shares.
        grid: rows and columns of the backbone's visual tokens.
        num_layers: layers of the backbone's language model.
        positions: of POSITIONS, for methods that run with either.
        stated: what a backbone's layers will see: `Family.stated`.

    Raises:
        UserError: a budget is none, pruners can end at no budget, or one states what it will not do.
    """
    patches = grid[0] * grid[1]
    refused = impossible(pruners, budgets, grid, num_layers, stated)
    found: dict[tuple[str, int, int, str], Line] = {}
    for pruner in pruners:
        name = pruner.unseeded().spec()
        for asked in [patches] if pruner.name == "none" else budgets:
            budget = tokens_of(asked, patches)
            if (name, budget) in refused:
                continue
            stated(pruner, budget, patches, num_layers)
            for number in _seeds(pruner, seed, seeds):
                one = pruner.with_seed(number) if pruner.stochastic else pruner
                written = asked if isinstance(asked, str) else ""
                # with all tokens both are the same
                for place in ("compact",) if pruner.name == "none" else positions:
                    line = Line(one, name, budget, number, written, one.positions_for(place))
                    found.setdefault((name, budget, number, line.positions), line)
    if refused and all(name == "none" for name, *_ in found):
        raise next(iter(refused.values()))
    return list(found.values())


def impossible(
    pruners: Sequence[Pruner],
    budgets: Sequence[int | str],
    grid: tuple[int, int],
    num_layers: int,
    stated: Stated = checks.stated,
) -> dict[tuple[str, int], ImpossibleBudget]:
    """Pruners, and budgets within the patches that they cannot end at, and why; arguments are those of
    `expand`."""
    patches, found = grid[0] * grid[1], {}
    for pruner in pruners:
        for budget in (tokens_of(asked, patches) for asked in budgets):
            if pruner.name == "none" or not 1 <= budget <= patches:
                continue
            try:
                stated(pruner, budget, patches, num_layers)
            except ImpossibleBudget as error:
                found[pruner.unseeded().spec(), budget] = error
    return found


def _seeds(pruner: Pruner, seed: int, seeds: int) -> Sequence[int]:
    if not pruner.stochastic:
        return (0,)
    own: int = pruner.seed  # type: ignore[attr-defined]
    if pruner.seed_written or pruner != pruner.unseeded():  # on the command line, or in Python
        return (own,)
    return range(seed, seed + seeds)


def jobs(setting: Setting, dataset: str, split: str, lines: Sequence[Line]) -> list[Job]:
    """All cells of one split."""
    found = []
    for line in lines:
        cell = Cell(
            setting=setting,
            dataset=dataset,
            split=split,
            pruner=line.name,
            parameters=tuple(sorted(line.pruner.parameters().items())),
            budget=line.budget,
            seed=line.seed,
            source=code.of_pruner(type(line.pruner)),
            positions=line.positions,
            own_positions=line.pruner.own_positions,
        )
        found.append(Job(cell, line.pruner, budget_asked=line.asked))
    return found
