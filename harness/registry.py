"""Names to things that others may add: the built-in ones, those of installed packages, and those of plugin
files.

Metrics and data sets are such things. They become known by a decorator, as pruners do.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any, Generic, TypeVar

from pruners.errors import UserError, nearest
from pruners.registration import installed, join, source_of

T = TypeVar("T")
C = TypeVar("C", bound=type)


class InstanceRegistry(Generic[T]):
    """One kind of things by their names, in the order in which they became known.

    Attributes:
        what: the kind in a user's words, e.g. "metric".
        base: the class that all of them derive from.
        home: the module whose `register` is the decorator, e.g. "harness.metrics".
        group: of the entry points.
        wrong: what is wrong with one, as the end of a sentence; None if nothing is.
        known: name to thing.
    """

    def __init__(
        self, what: str, base: type, home: str, group: str, wrong: Callable[[T], str | None]
    ) -> None:
        self.what, self.base, self.home, self.group, self.wrong = what, base, home, group, wrong
        self.known: dict[str, T] = {}
        join(self)
        self._entry_points_loaded = False

    def register(self, cls: C) -> C:
        """Class decorator: make one of a class without arguments, and know it under its `name`.

        Raises:
            UserError: the class is not of this kind, cannot be made, says something that makes no sense, or
                the name is taken by another class; both places are shown.
        """
        if not (inspect.isclass(cls) and issubclass(cls, self.base)):
            raise UserError(f"@register takes a subclass of {self.home}.{self.base.__name__}, not {cls!r}.")
        try:
            made: Any = cls()
        except Exception as error:
            raise UserError(
                f"The {self.what} {cls.__qualname__} at {source_of(cls)} cannot be made without arguments "
                f"({error})."
            ) from error
        self.add(made)
        return cls

    def add(self, made: T) -> T:
        """Know one that is made already.

        Raises:
            UserError: as `register`.
        """
        cls: type[Any] = type(made)
        for fact in ("name", "reference"):
            value = getattr(made, fact, None)
            if not isinstance(value, str) or not value.strip() or not value.isprintable():
                raise UserError(
                    f"The {self.what} {cls.__qualname__} at {source_of(cls)} has no {fact}; add {fact} = "
                    f"'...' to its class."
                )
        name: str = made.name  # type: ignore[attr-defined]
        if wrong := self.wrong(made):
            raise UserError(f"The {self.what} {name!r} at {source_of(cls)} {wrong}.")
        known = self.known.get(name)
        if known is not None and not _same(type(known), cls):
            raise UserError(
                f"Two {self.what}s are named {name!r}: {source_of(type(known))} and {source_of(cls)}; "
                f"rename one of them."
            )
        self.known[name] = made
        return made

    def _load_entry_points(self) -> None:
        if self._entry_points_loaded:
            return
        for cls in installed(self.group, self.base):
            self.register(cls)
        self._entry_points_loaded = True

    def names(self) -> list[str]:
        """All known names, the built-in ones first."""
        self._load_entry_points()
        return list(self.known)

    def get(self, name: str) -> T:
        """The one of that name.

        Raises:
            UserError: there is none.
        """
        self._load_entry_points()
        if name not in self.known:
            raise UserError(
                f"There is no {self.what} {name!r}; there are "
                f"{', '.join(self.known)}.{nearest(name, list(self.known))}"
            )
        return self.known[name]

    def all(self) -> list[T]:
        """All of them, in the order of `names`."""
        self._load_entry_points()
        return list(self.known.values())


def _same(one: type, other: type) -> bool:
    """Whether two classes are one, perhaps imported twice."""
    return (one.__module__, one.__qualname__) == (other.__module__, other.__qualname__)
