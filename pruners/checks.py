"""What a pruner states and returns, looked at in one place for every caller: sweep, `try`, cost, diagnosis, Python."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from pruners.base import LayerPruner, Pruner, Selection, UserError, VisualTokens

if TYPE_CHECKING:
    from torch import Tensor


def stated(pruner: Pruner, budget: int, patches: int, num_layers: int) -> tuple[int, ...]:
    """Visual tokens that every layer of the language model will see, as the pruner states them beforehand.

    Raises:
        UserError: they do not end at (or average) the budget.
    """
    if isinstance(pruner, LayerPruner):
        after = pruner.tokens_after(budget, patches, num_layers)
        return (patches,) * pruner.layer + (after,) * (num_layers - pruner.layer)
    return (budget,) * num_layers


def select(pruner: Pruner, tokens: VisualTokens, budget: int) -> Selection:
    """The choice of a tower-stage pruner, checked."""
    return pruner.select(tokens.only(pruner.needs), budget)


def keep(pruner: LayerPruner, attention: Tensor, count: int) -> Tensor:
    """The choice of a layer-stage pruner at its cut, checked; arguments as in `LayerPruner.keep`."""
    return pruner.keep(attention, count)


def lengths(pruner: Pruner, budget: int, patches: int, ran: Sequence[int]) -> None:
    """Compare the visual tokens that every layer saw with those that the pruner stated.

    Raises:
        UserError: they differ.
    """
    if tuple(ran) != stated(pruner, budget, patches, len(ran)):
        raise UserError(f"{pruner.spec()} ran with other lengths than it stated.")
