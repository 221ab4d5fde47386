"""What a budget of visual tokens costs wherever it can act: every placement of a backbone at every budget, by
shapes alone, whatever chooses the tokens."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from math import prod
from typing import Any

from backbones.costs import Prompt, Shapes
from backbones.registry import Settings
from harness.cost.lines import lines_of
from harness.cost.projection import Projection, project
from harness.cost.roofline import Gpu, prefill_seconds
from harness.cost.store import BASELINE
from harness.engine.budgets import tokens_of
from pruners.base import ImpossibleBudget, UserError
from pruners.registry import parse

EVEN = "uniform"  # chooses by place, so that its own work costs nothing


@dataclass(frozen=True)
class Placed:
    """A budget in a placement.

    Attributes:
        budget: visual tokens kept of a view.
        each: tokens of a view in the language model; 0 where the budget cannot be there.
        tokens: visual tokens in the language model, of all views and of what no pruner sees.
        llm, whole: multiply-adds of the language model's layers, and of all modules.
        prefill: seconds, by the roofline.
        fits: whether the language model has positions for the sequence.
        why: why the budget cannot be there; empty where it can.
    """

    placement: str
    budget: int
    each: int = 0
    tokens: int = 0
    llm: int = 0
    whole: int = 0
    prefill: float = 0.0
    fits: bool = False
    why: str = ""


@dataclass(frozen=True)
class Placements:
    """All placements of a backbone at some budgets.

    Attributes:
        backbone: its name.
        views: that the language model sees.
        tail: its tokens of all views that no pruner sees.
        text: its text tokens.
        places: tokens that it has positions for; None where that bounds nothing.
        masked: frames of the clip, all of which get masks.
        official: everything in the first placement, with which the others are compared.
        gpu: of the roofline.
    """

    backbone: str
    views: int
    tail: int
    text: int
    places: int | None
    masked: int
    official: Placed
    rows: tuple[Placed, ...]
    gpu: Gpu

    def saved(self, row: Placed, what: str = "llm") -> float:
        """Share of the official multiply-adds that a row saves; below 0 where it costs more."""
        ours, theirs = getattr(row, what), getattr(self.official, what)
        return 1 - float(ours) / float(theirs)


def placed(settings: Settings, frames: int | None) -> list[Settings]:
    """The settings in every placement of theirs.

    Args:
        frames: that the language model sees; None for what the settings say.

    Raises:
        UserError: there are no placements, or the backbone sees no frames.
    """
    found: tuple[str, ...] = getattr(settings, "placements", ())
    own = {field.name for field in fields(settings)}
    if not found or "placement" not in own:
        from backbones import get, names

        able = [name for name in names() if getattr(get(name), "placements", ())]
        raise UserError(
            f"{settings.name} has one place where a budget can act; give --backbone {' or '.join(able)}."
        )
    how: dict[str, Any] = {} if frames is None else {"frames": frames}
    return [replace(settings, **how | {"placement": one}) for one in found]


def compare(
    settings: Settings, budgets: Sequence[int | str], frames: int | None, text: int | None, gpu: Gpu
) -> Placements:
    """Every placement at every budget.

    Args:
        budgets: counts, or texts: counts and shares of the views' patches in the first placement.
        frames: as in `placed`.
        text: text tokens; None for a usual conversation.

    Raises:
        UserError: as `placed`, or a budget is none.
    """
    rows: list[Placed] = []
    first: Projection | None = None
    for one in placed(settings, frames):
        model = one.shapes()
        if model is None:
            raise UserError(f"The shapes of {one.name} are not known; give another --backbone.")
        if first is None:
            patches, prompt = prod(model.grid), model.prompt(text)
            asked = dict.fromkeys(_within(tokens_of(budget, patches), patches) for budget in budgets)
            everything = dict.fromkeys([patches, *asked])
        found, first = _in(one, model, prompt, list(everything), patches, gpu, first)
        rows += found
    assert model is not None and first is not None
    views, masked = len(model.views(prompt)), max(part.frames for part in first.parts.values())
    shown = tuple(row for row in rows if row.budget in asked)
    return Placements(
        settings.name, views, model.tail, prompt.text, model.places, masked, rows[0], shown, gpu
    )


def _within(budget: int, patches: int) -> int:
    """The budget, if there are so many patches."""
    if not 1 <= budget <= patches:
        raise UserError(f"A view has {patches} patches, not {budget}; give --budgets 1 to {patches}.")
    return budget


def _in(
    settings: Any,
    model: Shapes,
    prompt: Prompt,
    budgets: Sequence[int],
    patches: int,
    gpu: Gpu,
    like: Projection | None,
) -> tuple[list[Placed], Projection]:
    """Rows of one placement, and its projection.

    Args:
        patches: of a view; a budget of all of them is that nothing is pruned.
    """
    own, (even,) = prod(model.grid), parse(EVEN)
    why: dict[int, str] = {}
    for budget in budgets:
        if budget > own and budget != patches:
            why[budget] = f"more than the {own} tokens of a frame"
        elif budget != patches:
            try:
                settings.stated(even, budget, own, model.shape.layers)
            except ImpossibleBudget as error:
                why[budget] = str(error).rstrip(".")
    able = [budget for budget in budgets if budget not in why and budget != patches]
    chosen, layers = ([even] if able else []), model.shape.layers
    lines = lines_of(chosen, able or [own], 0, model.grid, layers, settings.stated)
    found = project(model, lines, prompt, like=like)
    cells = {
        patches if row["pruner"] == BASELINE else row["budget"]: row for row in found.cells.to_dict("records")
    }
    rows = []
    for budget in budgets:
        if budget in why:
            rows.append(Placed(settings.placement, budget, why=why[budget]))
            continue
        row: dict[Any, Any] = cells[budget]
        llm, length = int(row["macs.language_model"]), row["lengths"][0]
        rows.append(
            Placed(
                settings.placement,
                budget,
                model.sent(min(budget, own)),
                length - prompt.text,
                llm,
                int(row["macs_measured"]),
                prefill_seconds(llm, model.shape, gpu)[0],
                model.places is None or length <= model.places,
            )
        )
    return rows, found
