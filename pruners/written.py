"""A frozen dataclass as one writes it: `name(parameter=value)`, parameters of the types that they are
annotated with."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection
from typing import Any, Literal, get_args, get_origin, get_type_hints

from pruners.errors import UserError, nearest
from pruners.fields import fits, wanted


def check_types(made: Any) -> None:
    """See that every field of a dataclass holds a value of its annotated type, and make floats of whole
    numbers.

    Raises:
        UserError: one does not.
    """
    hints = get_type_hints(type(made))
    for field in dataclasses.fields(made):
        value, hint = getattr(made, field.name), hints[field.name]
        if not fits(value, hint):
            options = [str(option) for option in get_args(hint)] if get_origin(hint) is Literal else []
            raise UserError(
                f"{made.name}: {field.name} is {wanted(hint)}, not {value!r}.{nearest(str(value), options)}"
            )
        if hint is float:  # 1 and 1.0 are one thing, so they have one text
            object.__setattr__(made, field.name, float(value))


def text_of(made: Any, also: Collection[str] = ()) -> str:
    """A registered thing as one writes it, defaults left out: `litelvlm(context_share=0.25)`.

    Args:
        also: fields that are written although they have their default.
    """
    given = [
        f"{field.name}={value!r}"
        for field in dataclasses.fields(made)
        if (value := getattr(made, field.name)) != field.default or field.name in also
    ]
    return f"{made.name}({', '.join(given)})" if given else str(made.name)
