"""Methods that cut more than once: before which layers, and to how many tokens, so that the layers average a
budget."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import ceil, floor

from pruners.base import Cut, Pruner
from pruners.errors import ImpossibleBudget, UserError

Seen = Callable[[list[int]], list[int]]
DEPTH = 32  # layers of the language models that the methods were published with


def scaled(layers: Sequence[int], num_layers: int) -> tuple[int, ...]:
    """Layers of a model of 32 in one of another depth: from 1 on, and at least 1 apart.

    Example:
        >>> scaled((2, 8, 16), 40), scaled((2, 8, 16), 5)
        ((2, 10, 20), (1, 2, 3))
    """
    found = [0]
    for layer in layers:
        found.append(max(round(layer * num_layers / DEPTH), found[-1] + 1))
    return tuple(found[1:])


def check_numbers(name: str, field: str, values: object, least: int, most: float = float("inf")) -> None:
    """Raise UserError unless a parameter is None or a tuple of whole numbers within bounds."""
    if values is None:
        return
    if not isinstance(values, tuple) or not values or not all(type(one) is int for one in values):
        raise UserError(f"{name}: {field} are whole numbers in brackets, as (2, 8, 16), not {values!r}.")
    if not all(least <= one <= most for one in values):
        until = "on" if most == float("inf") else f"to {most:.0f}"
        raise UserError(f"{name}: {field} are whole numbers from {least} {until}, not {values!r}.")


def check_ascending(name: str, field: str, values: object) -> None:
    """Raise UserError unless layers are None or whole numbers from 1 on that ascend."""
    check_numbers(name, field, values, 1)
    if isinstance(values, tuple) and list(values) != sorted(set(values)):
        raise UserError(f"{name}: {field} ascend, as (2, 8, 16), not {values!r}.")


def check_inside(pruner: Pruner, layers: Sequence[int], num_layers: int) -> None:
    """Raise ImpossibleBudget unless a language model has layers to cut before."""
    if layers[-1] >= num_layers:
        raise ImpossibleBudget(
            f"{pruner.spec()} cuts before layer {layers[-1]} of a language model that has {num_layers} "
            f"layers; give layers 1 to {num_layers - 1}, or take a deeper model."
        )


def spans(layers: Sequence[int], num_layers: int) -> list[int]:
    """How many layers run before the first cut, between cuts, and behind the last."""
    return [end - start for start, end in zip((0, *layers), (*layers, num_layers), strict=True)]


def total(counts: Sequence[float], runs: Sequence[int], patches: int) -> float:
    """Tokens of all layers together, of `patches` and then so many behind every cut."""
    return sum(run * count for run, count in zip(runs, (patches, *counts), strict=True))


def bracket(mean: Callable[[float], float], target: float, most: float = 1.0) -> tuple[float, float]:
    """Neighbouring numbers of 0 to `most` between which something that grows passes `target`; the second has
    reached it."""
    low, high = 0.0, most
    for _ in range(64):
        middle = (low + high) / 2
        low, high = (middle, high) if mean(middle) < target else (low, middle)
    return low, high


def settled(
    pruner: Pruner,
    counts: Sequence[int],
    layers: Sequence[int],
    budget: int,
    patches: int,
    num_layers: int,
    seen: Seen = list,
) -> tuple[Cut, ...]:
    """Cuts whose counts are moved by single tokens, the last first, until they average the budget: every
    layer behind the first cut rounds, or truncates, by a token at most.

    Args:
        counts: of every cut, not growing; these are moved, from 1 on.
        seen: (counts) -> the tokens that the layers then see, where these are others.

    Raises:
        ImpossibleBudget: no counts average it.
    """
    check_inside(pruner, layers, num_layers)
    runs, counts = spans(layers, num_layers), [min(count, patches) for count in counts]
    fewest = total(seen([1] * len(counts)), runs, patches) - (num_layers - runs[0])
    least = max(runs[0] * patches // num_layers + 1, ceil(fewest / num_layers))
    if budget < least:
        raise ImpossibleBudget(
            f"{pruner.spec()} cannot average {budget} tokens over {num_layers} layers: the least mean is "
            f"{least}."
        )
    while True:
        there = seen(counts)
        missing = budget * num_layers - total(there, runs, patches)
        pruned = sum(run for run, count in zip(runs[1:], there, strict=True) if count < patches)
        if abs(missing) <= pruned:
            return tuple(map(Cut, layers, there))
        up, around = missing > 0, [patches, *counts, 1]
        room = [
            around[k] > around[k + 1] if up else around[k + 1] > around[k + 2] for k in range(len(counts))
        ]
        counts[max(k for k, free in enumerate(room) if free)] += 1 if up else -1


def named(
    pruner: Pruner, cuts: tuple[Cut, ...], mean: float, budget: int, num_layers: int
) -> tuple[Cut, ...]:
    """Cuts that are what they are, under the one budget that is their name: their mean as a whole number.

    Raises:
        ImpossibleBudget: another was asked.
    """
    check_inside(pruner, [cut.layer for cut in cuts], num_layers)
    if budget not in (floor(mean), ceil(mean)):
        raise ImpossibleBudget(
            f"{pruner.spec()} averages {mean:.1f} tokens whatever is asked, and not {budget}; give --budgets "
            f"{floor(mean)}."
        )
    return cuts
