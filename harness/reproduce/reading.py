"""A TOML table into a dataclass, strictly: what is not known, of another type or missing is one sentence with
file and key."""

from __future__ import annotations

import types
from collections.abc import Mapping
from dataclasses import MISSING, Field, fields
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from pruners.errors import UserError, nearest

T = TypeVar("T")
WORDS = {str: "a text", int: "a whole number", float: "a number", bool: "true or false"}


def read(cls: type[T], content: Any, file: str, key: str = "") -> T:
    """A dataclass from a table of TOML.

    Args:
        cls: whose fields are the keys; fields without a default have to be there.
        content: as `tomllib` gives it.
        file: for messages.
        key: where the table stands in the file, `metrics.ciou`; empty for the whole file.

    Raises:
        UserError: it is no table, or has an unknown key, a value of another type, or lacks a key.
    """
    if not isinstance(content, Mapping):
        raise wrong(file, key, f"is {content!r}, and has to be a table")
    known = {field.name: field for field in fields(cls) if field.init}  # type: ignore[arg-type]
    for name in content:
        if name not in known:
            there = f"has no {name!r}; it has {', '.join(known)}.{nearest(str(name), known)}"
            raise wrong(file, key, there, "")
    if lacking := [name for name, field in known.items() if _wanted(field) and name not in content]:
        raise wrong(file, key, f"lacks {', '.join(map(repr, lacking))}")
    types_of = get_type_hints(cls)
    values = {
        name: _value(types_of[name], value, file, f"{key}.{name}" if key else name)
        for name, value in content.items()
    }
    return cls(**values)


def wrong(file: str, key: str, what: str, end: str = ".") -> UserError:
    """What is wrong with a key of a file, as an error to raise."""
    where = f"[{key}]" if key else "its top"
    return UserError(f"The spec {file!r}: {where} {what}{end}")


def _wanted(field: Field[Any]) -> bool:
    return field.default is MISSING and field.default_factory is MISSING


def _value(kind: Any, value: Any, file: str, key: str) -> Any:
    """A value in the type that its field is annotated with."""
    origin, inner = get_origin(kind), get_args(kind)
    if origin in (
        Union,
        types.UnionType,
    ):  # `int | None`; TOML has no null, so None is a key that is not there
        return _value(next(one for one in inner if one is not type(None)), value, file, key)
    if origin is Literal:
        if value not in inner:
            words = " or ".join(map(repr, inner))
            raise wrong(file, key, f"is {value!r}, and has to be {words}.{nearest(str(value), inner)}", "")
        return value
    if origin is tuple:
        if not isinstance(value, list):
            raise wrong(file, key, f"is {value!r}, and has to be a list")
        if inner[-1] is not Ellipsis and len(value) != len(inner):
            raise wrong(file, key, f"has {len(value)} entries, and has to have {len(inner)}")
        return tuple(_value(inner[0], one, file, f"{key}[{place}]") for place, one in enumerate(value))
    if origin is not None and issubclass(origin, Mapping):
        if not isinstance(value, Mapping):
            raise wrong(file, key, f"is {value!r}, and has to be a table")
        return {name: _value(inner[1], one, file, f"{key}.{name}") for name, one in value.items()}
    if kind is Any:
        return value
    if kind in WORDS:
        if type(value) is not kind and not (kind is float and type(value) is int):
            raise wrong(file, key, f"is {value!r}, and has to be {WORDS[kind]}")
        return float(value) if kind is float else value
    return read(kind, value, file, key)
