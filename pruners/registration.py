"""What all that is registered has in common, pruners and backbones alike.

A registered thing is a frozen dataclass whose fields are what one writes: `name(parameter=value)`. Its class
becomes known by a decorator, through an entry point of an installed package, or from a plugin file.
"""

from __future__ import annotations

import ast
import dataclasses
import fnmatch
import hashlib
import importlib.util
import inspect
import linecache
import sys
import time
import warnings
from abc import ABC, abstractmethod
from collections.abc import Collection, Iterator
from contextlib import suppress
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any, ClassVar, Generic, TypeVar, get_type_hints

from pruners.errors import UserError, nearest

LONGEST = 1000  # letters of a text: far more than any needs, and less than what Python's parser dies of
SYNTAX = ",()[]*?@"  # separate things, hold parameters, make patterns, name costs: no part of a name
STARTED = time.time()  # before anything is registered
_sources: dict[str, str] = {}  # of modules that registered something
_registries: list[Any] = []
T = TypeVar("T")
C = TypeVar("C", bound=type)


# -- where a class comes from


def source_of(cls: type) -> str:
    """File and line where a class stands; its module, where there is no file."""
    try:
        file = inspect.getsourcefile(cls) or cls.__module__
    except TypeError:
        return cls.__module__
    try:
        return f"{file}:{inspect.getsourcelines(cls)[1]}"
    except OSError:
        return file


def plugin_source(module_name: str) -> str | None:
    """The text of a module that registered something, as it was when it did; None for other modules."""
    return _sources.get(module_name)


def _remember(module_name: str) -> None:
    """Keep the source of a module as it is imported: the file may be another one by the time somebody
    asks."""
    file = getattr(sys.modules.get(module_name), "__file__", None)
    if module_name not in _sources and file is not None and file.endswith(".py"):
        with suppress(OSError, UnicodeDecodeError, SyntaxError):
            _sources[module_name] = importlib.util.decode_source(Path(file).read_bytes())


def short(text: str) -> str:
    """A user's text in quotes, cut where it is long."""
    return repr(text if len(text) <= 100 else f"{text[:100]}...")


def split_list(text: str, what: str, example: str = "'name(parameter=value),name'") -> list[str]:
    """Parts of a list between commas that stand outside brackets and quotes.

    Args:
        what: the kind of its members, for the sentence about a list that cannot be read.

    Raises:
        UserError: a bracket or a quote is open, or a part is too long.
    """
    parts, depth, quote, start = [], 0, "", 0
    for place, letter in enumerate(text):
        if quote:
            quote = "" if letter == quote else quote
        elif depth and letter in "'\"":
            quote = letter
        elif letter == "," and depth == 0:
            parts.append(text[start:place])
            start = place + 1
        else:
            depth += (letter in "([") - (letter in ")]")
    if depth or quote:
        raise UserError(f"The {what} list {short(text)} has an unclosed bracket; write e.g. {example}.")
    parts = [part.strip() for part in (*parts, text[start:]) if part.strip()]
    for part in parts:
        if len(part) > LONGEST:
            raise UserError(f"The {what} {short(part)} is {len(part)} letters long; {LONGEST} is the most.")
    return parts


def installed(group: str, base: type) -> Iterator[type]:
    """Classes that installed packages bring under a group of entry points; importing one may register more.

    Raises:
        UserError: one cannot be imported.
    """
    for point in entry_points(group=group):
        try:
            found = point.load()
        except UserError:
            raise
        except Exception as error:
            raise UserError(
                f"The installed plugin {point.name!r} ({point.value}) cannot be imported: {error!r}; mend "
                f"or uninstall it."
            ) from error
        if inspect.isclass(found) and issubclass(found, base):
            yield found


def join(registry: Any) -> None:
    """Let plugin files register here as well.

    Args:
        registry: has `what` and `home` as `Registry` has them, and `known`, names to classes or things of
            them.
    """
    _registries.append(registry)


# -- names to classes


class Registry(ABC, Generic[T]):
    """Names to the classes of one kind: the built-in ones, entry points of installed packages, and plugin
    files.

    Attributes:
        what: the kind in a user's words, e.g. "pruner".
        base: what every class of it derives from.
        home: where `base` and the decorator `register` are imported from, e.g. "pruners".
        group: of the entry points.
        facts: class attributes with a meaning; no field may have the name of one.
        example: a list as one writes it.
        empty: what to say of a list that names nothing.
        known: name to class.
    """

    what: ClassVar[str]
    base: ClassVar[type]
    home: ClassVar[str]
    group: ClassVar[str]
    facts: ClassVar[tuple[str, ...]]
    example: ClassVar[str]
    empty: ClassVar[str]

    def __init__(self) -> None:
        self.known: dict[str, type[T]] = {}
        self._entry_points_loaded = False
        join(self)

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
        if not (inspect.isclass(cls) and issubclass(cls, self.base)):
            raise UserError(f"@register takes a subclass of {self.home}.{self.base.__name__}, not {cls!r}.")
        for fact in ("name", "reference"):
            if not isinstance(getattr(cls, fact, None), str):
                raise UserError(
                    f"The {self.what} {cls.__qualname__} at {source_of(cls)} has no {fact}; add {fact} = "
                    f"'...' to its class."
                )
        kind: type[T] = cls  # type: ignore[assignment]
        name: str = cls.name  # type: ignore[attr-defined]
        for wrong in (_wrong_name(name), self.wrong(kind), self._wrong_fields(kind)):
            if wrong:
                raise UserError(f"The {self.what} {short(name)} at {source_of(cls)} {wrong}.")
        known = self.known.get(name)
        if known is not None and (known.__module__, known.__qualname__) != (cls.__module__, cls.__qualname__):
            raise UserError(
                f"Two {self.what}s are named {name!r}: {source_of(known)} and {source_of(cls)}; rename one "
                f"of them."
            )
        self.known[name] = kind
        _remember(cls.__module__)
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
            return f"cannot be made with its defaults ({error})"
        return None

    def wrong_fields(self, cls: type[T], hints: dict[str, Any]) -> str | None:
        """What else is wrong with its parameters, given the type of each; None if nothing is."""
        return None

    def _load_entry_points(self) -> None:
        if self._entry_points_loaded:
            return
        for cls in installed(self.group, self.base):
            self.register(cls)
        self._entry_points_loaded = True

    def names(self) -> list[str]:
        """All known names, sorted."""
        self._load_entry_points()
        return sorted(self.known, key=self.order)

    def get(self, name: str) -> type[T]:
        """The class of that name.

        Raises:
            UserError: there is none.
        """
        self._load_entry_points()
        if name not in self.known:
            raise UserError(
                f"There is no {self.what} {short(name)}; there are "
                f"{', '.join(self.names())}.{nearest(name, self.names())} "
                "See `python -m harness list`."
            )
        return self.known[name]

    def parse(self, text: str) -> list[T]:
        """Read a list such as `litelvlm,fastv(layer=3),vis*` or `all`; everything once, in the order given.

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
                call = ast.parse(f"f({rest}", mode="eval").body
                if (
                    not isinstance(call, ast.Call)
                    or not isinstance(call.func, ast.Name)
                    or not rest.endswith(")")
                ):
                    raise ValueError("what stands behind the bracket is not understood")
                if call.args or any(word.arg is None for word in call.keywords):
                    raise ValueError("give parameters by name")
                keys = [str(word.arg) for word in call.keywords]
                if twice := {key for key in keys if keys.count(key) > 1}:
                    raise ValueError(f"{min(twice)} is given twice")
                return {
                    key: ast.literal_eval(word.value) for key, word in zip(keys, call.keywords, strict=True)
                }
        except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError) as error:
            why = short(str(error))[1:-1] or type(error).__name__
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
            raise UserError(f"{name} at {source_of(cls)} does not take {short(part)} ({error}).") from error
        self.finish(made, given)
        return made


def _wrong_name(name: str) -> str | None:
    if not name or name != name.strip() or not name.isprintable() or set(name) & set(SYNTAX) or name == "all":
        return (
            f"cannot be named so: a name is printable text without spaces around it and without "
            f"{SYNTAX}, and not 'all'"
        )
    return (
        f"has a name of {len(name)} letters; {LONGEST // 2} is the most" if len(name) > LONGEST // 2 else None
    )


# -- plugin files


def import_plugin(path: str | Path) -> dict[str, list[str]]:
    """Import a Python file that registers something; returns the names that it added, by kind.

    Raises:
        UserError: no such file, it cannot be imported, or it registers nothing.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"There is no plugin file {str(path)!r}; give --plugin the path of a Python file.")
    place = hashlib.sha256(str(path.resolve()).encode()).hexdigest()  # two files of one name are two plugins
    module_name = f"groundprune_plugin_{path.stem}_{place[:8]}"
    spec = importlib.util.spec_from_file_location(module_name, path)
    if spec is None:
        raise UserError(
            f"The plugin {str(path)!r} is not a Python file; give --plugin a file that ends in .py."
        )
    before = [(registry, dict(registry.known)) for registry in _registries]
    try:
        # once, so that what runs, what is shown and what makes its identity is one text
        source = path.read_bytes()
        text = importlib.util.decode_source(source)
        module = importlib.util.module_from_spec(spec)
        sys.modules[module_name] = module
        linecache.cache[str(path)] = (len(text), None, text.splitlines(keepends=True), str(path))
        exec(compile(source, str(path), "exec", dont_inherit=True), module.__dict__)
    except (Exception, SystemExit) as error:
        sys.modules.pop(module_name, None)
        _forget(module_name)
        for registry, known in before:
            registry.known.clear()
            registry.known.update(known)
        if isinstance(error, UserError):
            raise
        raise UserError(f"The plugin {str(path)!r} cannot be imported: {error!r}.") from error
    _sources[module_name] = text
    of_kind = {
        registry.what: sorted(name for name, cls in registry.known.items() if cls.__module__ == module_name)
        for registry in _registries
    }
    added = {what: names for what, names in of_kind.items() if names}
    if not added:
        raise UserError(
            f"The plugin {str(path)!r} registers no {' and no '.join(of_kind)}; decorate its class with "
            f"{' or '.join(f'@{registry.home}.register' for registry in _registries)}."
        )
    return added


def _forget(module_name: str) -> None:
    """Take out what a module registered where nothing was known before: it may have been the first to import
    a registry."""
    for registry in _registries:
        for name in [name for name, cls in registry.known.items() if cls.__module__ == module_name]:
            del registry.known[name]
