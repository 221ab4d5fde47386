"""What all that is registered has in common, pruners and backbones alike.

A registered thing is a frozen dataclass whose fields are what one writes: `name(parameter=value)`. Its class
becomes known by a decorator, through an entry point of an installed package, or from a plugin file.
"""

from __future__ import annotations

import ast
import dataclasses
import fnmatch
import inspect
import warnings
from abc import ABC, abstractmethod
from collections.abc import Collection
from typing import Any, ClassVar, TypeVar, get_type_hints

from pruners.errors import UserError, nearest, reason
from pruners.plugins import Names, short, source_of

LONGEST = 1000  # letters of a text: far more than any needs, and less than what Python's parser dies of
SYNTAX = ",()[]*?@"  # separate things, hold parameters, make patterns, name costs: no part of a name
T = TypeVar("T")
C = TypeVar("C", bound=type)


def split_list(text: str, what: str, example: str = "'name(parameter=value),name'") -> list[str]:
    """Parts of a list between commas that stand outside brackets and quotes.

    Args:
        what: the kind of its members, for the sentence about a list that cannot be read.

    Raises:
        UserError: a bracket or a quote is open, or a part is empty or too long.
    """
    parts, depth, quote, start = [], 0, "", 0
    escaped = False  # by a backslash before it, as in the text of any string that holds both kinds of quotes
    for place, letter in enumerate(text):
        if quote:
            quote = "" if letter == quote and not escaped else quote
            escaped = letter == "\\" and not escaped
        elif depth and letter in "'\"":
            quote = letter
        elif letter == "," and depth == 0:
            parts.append(text[start:place])
            start = place + 1
        else:
            depth += (letter in "([") - (letter in ")]")
    if depth or quote:
        wrong = "an unclosed quote" if quote else "an unclosed bracket" if depth > 0 else "a bracket too many"
        raise UserError(f"The {what} list {short(text)} has {wrong}; write e.g. {example}.")
    parts = [part.strip() for part in (*parts, text[start:])]
    if any(parts) and not all(parts):
        raise UserError(f"The {what} list {short(text)} has a comma too many; write e.g. {example}.")
    parts = [part for part in parts if part]
    for part in parts:
        if len(part) > LONGEST:
            raise UserError(f"The {what} {short(part)} is {len(part)} letters long; {LONGEST} is the most.")
    return parts


# -- names to classes


class Registry(Names[type[T]], ABC):
    """Names to the frozen dataclasses of one kind.

    Attributes:
        facts: class attributes with a meaning; no field may have the name of one.
        example: a list as one writes it.
        empty: what to say of a list that names nothing.
    """

    facts: ClassVar[tuple[str, ...]]
    example: ClassVar[str]
    empty: ClassVar[str]

    @abstractmethod
    def wrong(self, cls: type[T]) -> str | None:
        """What is wrong with the facts of a class, as the end of a sentence; None if nothing is."""

    def finish(self, made: T, given: Collection[str]) -> None:
        """Look at what was made of a text that wrote the parameters `given`."""

    def order(self, name: str) -> tuple[Any, ...]:
        """Sorts the names."""
        return (name,)

    def register(self, cls: C) -> C:
        """Class decorator: make the class known under its `name`.

        Raises:
            UserError: it is not of this kind, no frozen dataclass, has no name, a fact or a field that makes
                no sense, or the name is taken by another class; both places are shown.
        """
        self._check_kind(cls)
        self._check_texts(cls, cls)
        kind: type[T] = cls  # type: ignore[assignment]
        name: str = cls.name  # type: ignore[attr-defined]
        for wrong in (_wrong_name(name), self.wrong(kind), self._wrong_fields(kind)):
            if wrong:
                raise UserError(f"The {self.what} {short(name)} at {source_of(cls)} {wrong}.")
        self._enter(name, cls, kind)
        return cls

    def _wrong_fields(self, cls: type[T]) -> str | None:
        """What is wrong with its parameters, which only the fields of a frozen dataclass are."""
        made = cls.__dict__.get("__dataclass_params__")
        if made is None or not made.frozen or not made.init or not made.eq:
            return (
                "is no frozen dataclass, so that its parameters would be lost; write "
                "@dataclass(frozen=True) under @register"
            )
        fields = {field.name: field for field in dataclasses.fields(cls)}  # type: ignore[arg-type]
        if lost := set(inspect.signature(cls).parameters) ^ set(fields):
            return (
                f"has an __init__ that does not take exactly its fields ({', '.join(sorted(lost))}); "
                f"let the dataclass make it"
            )
        for name, field in fields.items():
            if name in self.facts:
                return f"makes {name} a parameter; write {name} = ... without a type, or with ClassVar"
            if field.default is dataclasses.MISSING:
                return f"gives {name} no default; every parameter has one"
        try:
            hints = get_type_hints(cls)
            if wrong := self.wrong_fields(cls, {name: hints[name] for name in fields}):
                return wrong
            cls()
        except Exception as error:
            return f"cannot be made with its defaults ({reason(error)})"
        return None

    def wrong_fields(self, cls: type[T], hints: dict[str, Any]) -> str | None:
        """What else is wrong with its parameters, given the type of each; None if nothing is."""
        return None

    def names(self) -> list[str]:
        """All known names, sorted."""
        return sorted(super().names(), key=self.order)

    def parse(self, text: str) -> list[T]:
        """Read a list such as `litelvlm,fastv(layer=3),vis*` or `all`; everything once, in the order given.

        >>> from pruners import parse
        >>> [pruner.spec() for pruner in parse("vis*,fastv(layer=2)")]
        ['visionzip', 'vispruner', 'fastv']

        Raises:
            UserError: unknown name or parameter, bad value, or a pattern that matches nothing.
        """
        found: dict[str, T] = {}
        for part in split_list(text, self.what, self.example):
            if part == "all":
                chosen = self.names()
            elif "(" not in part and any(letter in part for letter in "*?["):
                chosen = fnmatch.filter(self.names(), part)
                if not chosen:
                    raise UserError(
                        f"The pattern {short(part)} matches no {self.what}; there are "
                        f"{', '.join(self.names())}."
                    )
            else:
                chosen = [part]
            for one in chosen:
                made = self._build(one)
                found.setdefault(made.spec(), made)  # type: ignore[attr-defined]
        if not found:
            raise UserError(self.empty.format(names=", ".join(self.names())))
        return list(found.values())

    def _given(self, name: str, part: str, rest: str) -> dict[str, Any]:
        """The parameters behind a name's bracket; literals alone, nothing runs.

        Raises:
            UserError: it is no list of `parameter=value`.
        """
        try:
            with warnings.catch_warnings(action="ignore"):  # of the parser, about odd literals
                if not rest.endswith(")"):
                    raise ValueError("something stands behind the bracket")
                call = ast.parse(f"f({rest}", mode="eval").body
                if not isinstance(call, ast.Call) or not isinstance(call.func, ast.Name):
                    raise ValueError("something stands behind the bracket")
                if call.args or any(word.arg is None for word in call.keywords):
                    raise ValueError("give parameters by name")
                keys = [str(word.arg) for word in call.keywords]
                if twice := {key for key in keys if keys.count(key) > 1}:
                    raise ValueError(f"{min(twice)} is given twice")
                return {key: _literal(key, word.value) for key, word in zip(keys, call.keywords, strict=True)}
        except (ValueError, SyntaxError, MemoryError, RecursionError) as error:
            why = str(error) if type(error) is ValueError else "its brackets hold no parameter=value"
            raise UserError(
                f"Cannot read the {self.what} {short(part)} ({why}); write e.g. '{name}(parameter=value)', "
                "texts in quotes."
            ) from error

    def _build(self, part: str) -> T:
        name, bracket, rest = part.partition("(")
        name = name.strip()
        cls = self.get(name)
        if not bracket:
            return cls()
        valid = [field.name for field in dataclasses.fields(cls)]  # type: ignore[arg-type]
        given = self._given(name, part, rest)
        for key in given:
            if key not in valid:
                hint = (
                    f"its parameters are {', '.join(valid)}.{nearest(key, valid)}"
                    if valid
                    else "it has no parameters."
                )
                raise UserError(f"{name} has no parameter {key!r}; {hint}")
        try:
            made = cls(**given)
        except UserError:
            raise
        except Exception as error:
            raise UserError(
                f"{name} at {source_of(cls)} does not take {short(part)} ({reason(error)})."
            ) from error
        self.finish(made, given)
        return made


def _literal(key: str, value: ast.expr) -> Any:
    """What a parameter's text stands for; nothing runs.

    Raises:
        ValueError: it is no literal.
    """
    try:
        return ast.literal_eval(value)
    except (ValueError, TypeError, SyntaxError) as error:
        raise ValueError(
            f"{key} is {short(ast.unparse(value))}, and a value is a number, a text in quotes, True, False, "
            "None or a list of them"
        ) from error


def _wrong_name(name: str) -> str | None:
    if not name or name != name.strip() or not name.isprintable() or set(name) & set(SYNTAX) or name == "all":
        return (
            f"cannot be named so: a name is printable text without spaces around it and without "
            f"{SYNTAX}, and not 'all'"
        )
    return (
        f"has a name of {len(name)} letters; {LONGEST // 2} is the most" if len(name) > LONGEST // 2 else None
    )
