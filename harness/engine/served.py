"""Which of the asked pruners a backbone can serve."""

from __future__ import annotations

from collections.abc import Sequence

from backbones.registry import Family
from pruners.base import Pruner
from pruners.errors import UserError


def served(pruners: Sequence[Pruner], backbone: Family) -> tuple[list[Pruner], dict[str, str]]:
    """The pruners that a backbone can serve, and why it cannot serve the others: text to sentence.

    Raises:
        UserError: it can serve none of them.
    """
    reasons = {pruner.spec(): backbone.lacks(pruner) for pruner in pruners}
    left_out = {text: reason for text, reason in reasons.items() if reason}
    if left_out and len(left_out) == len(reasons):
        raise UserError(f"No pruner is left: {' '.join(left_out.values())} Give others, e.g. --pruners all.")
    return [pruner for pruner in pruners if pruner.spec() not in left_out], left_out
