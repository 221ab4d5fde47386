"""Why a row or an image has no answer, in one sentence each, and names in a sentence."""

from __future__ import annotations

from collections.abc import Iterable


def sample(keys: Iterable[str], most: int = 6) -> str:
    """A few names for a message, and how many more there are."""
    names = sorted(keys)
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


def not_finite(dtype: str) -> str:
    """The model's values are beyond the precision's range, or its weights are."""
    if dtype == "float16":
        return "The model's values are not finite in float16; give --dtype bfloat16 or float32."
    return f"The model's values are not finite in {dtype}; look at the weights with python -m harness doctor."


def too_long(text: int, visual: int, positions: int) -> str:
    """The language model has fewer positions than a conversation has tokens; empty if they suffice."""
    if text + visual <= positions:
        return ""
    return (
        f"The conversation is {text} tokens long and {visual} visual ones come to it, "
        f"where the language model has {positions} positions; write a shorter expression."
    )
