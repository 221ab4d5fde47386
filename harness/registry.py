"""Names to things that others may add and that have no parameters: metrics and data sets.

They become known by a decorator, as pruners do, and one of each is made at once.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

from pruners.errors import UserError
from pruners.plugins import Names, source_of

T = TypeVar("T")
C = TypeVar("C", bound=type)


class InstanceRegistry(Names[T]):
    """One kind of things by their names, in the order in which they became known.

    Attributes:
        wrong: what is wrong with one, as the end of a sentence; None if nothing is.
    """

    def __init__(
        self, what: str, base: type, home: str, group: str, wrong: Callable[[T], str | None]
    ) -> None:
        self.what, self.base, self.home, self.group, self.wrong = what, base, home, group, wrong
        super().__init__()

    def register(self, cls: C) -> C:
        """Class decorator: make one of a class without arguments, and know it under its `name`.

        Raises:
            UserError: the class is not of this kind, cannot be made, says something that makes no sense, or
                the name is taken by another class; both places are shown.
        """
        self._check_kind(cls)
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
        cls = type(made)
        self._check_texts(made, cls)
        name: str = made.name  # type: ignore[attr-defined]
        if not name.isprintable():
            raise UserError(
                f"The {self.what} {name!r} at {source_of(cls)} has a name that cannot be printed."
            )
        if wrong := self.wrong(made):
            raise UserError(f"The {self.what} {name!r} at {source_of(cls)} {wrong}.")
        self._enter(name, cls, made)
        return made

    def all(self) -> list[T]:
        """All of them, in the order of `names`."""
        return [self.known[name] for name in self.names()]
