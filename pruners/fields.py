"""Whether a value fits the annotation of a dataclass's field, and how to say what would."""

from __future__ import annotations

import sys
from types import NoneType, UnionType
from typing import Literal, Union, get_args, get_origin


def fits(value: object, hint: object) -> bool:
    """Whether a value is of an annotated type; annotations beyond plain values are taken as fitting."""
    if get_origin(hint) is Literal:
        return any(value == valid and type(value) is type(valid) for valid in get_args(hint))
    if get_origin(hint) in (Union, UnionType):
        return any(fits(value, option) for option in get_args(hint))
    if hint is float:  # finite, also as float64 for whole numbers of any length
        return (
            isinstance(value, int | float)
            and not isinstance(value, bool)
            and abs(value) <= sys.float_info.max
        )
    return type(value) is hint if hint in _WORDS else True


def wanted(hint: object) -> str:
    """The values that a type allows, in words."""
    if get_origin(hint) is Literal or get_origin(hint) in (Union, UnionType):
        return " or ".join(
            repr(option) if get_origin(hint) is Literal else wanted(option) for option in get_args(hint)
        )
    return _WORDS.get(hint, str(hint))


_WORDS: dict[object, str] = {
    bool: "True or False",
    float: "a number",
    int: "a whole number",
    str: "a text in quotes",
    NoneType: "None",
}
