"""Where registered classes come from: this project, entry points of installed packages, plugin files.

Whatever is registered is known by a name, of one kind: pruners, backbones, metrics, data sets.
"""

from __future__ import annotations

import hashlib
import importlib.util
import inspect
import linecache
import sys
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import suppress
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any, Generic, TypeVar

from pruners.errors import UserError, nearest, reason

STARTED = time.time()  # before anything is registered
_sources: dict[str, str] = {}  # of modules that registered something
_kinds: list[Names[Any]] = []
T = TypeVar("T")


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
                f"The installed plugin {point.name!r} ({point.value}) cannot be imported "
                f"({reason(error)}); mend or uninstall it."
            ) from error
        if inspect.isclass(found) and issubclass(found, base):
            yield found


class Names(ABC, Generic[T]):
    """One kind of registered things by their names: the built-in ones, those of installed packages, and those
    of plugin files.

    Attributes:
        what: the kind in a user's words, e.g. "pruner".
        base: what every class of it derives from.
        home: where `base` and the decorator `register` are imported from, e.g. "pruners".
        group: of the entry points.
        known: name to class, or to what was made of it.
    """

    what: str
    base: type
    home: str
    group: str

    def __init__(self) -> None:
        self.known: dict[str, T] = {}
        self._entry_points_loaded = False
        _kinds.append(self)

    @abstractmethod
    def register(self, cls: Any) -> Any:
        """Class decorator: make a class known under its `name`."""

    def names(self) -> list[str]:
        """All known names."""
        self._load_entry_points()
        return list(self.known)

    def get(self, name: str) -> T:
        """What the name stands for.

        Raises:
            UserError: nothing has it.
        """
        known = self.names()
        if name not in self.known:
            raise UserError(
                f"There is no {self.what} {short(name)}; there are {', '.join(known)}.{nearest(name, known)}"
            )
        return self.known[name]

    def _load_entry_points(self) -> None:
        if not self._entry_points_loaded:
            for cls in installed(self.group, self.base):
                self.register(cls)
            self._entry_points_loaded = True

    def _check_kind(self, cls: Any) -> None:
        """Raise UserError unless it is a class of this kind."""
        if not (inspect.isclass(cls) and issubclass(cls, self.base)):
            raise UserError(f"@register takes a subclass of {self.home}.{self.base.__name__}, not {cls!r}.")

    def _check_texts(self, of: Any, cls: type) -> None:
        """Raise UserError unless a class, or what was made of it, says its name and where it comes from."""
        for fact in ("name", "reference"):
            if not isinstance(value := getattr(of, fact, None), str) or not value.strip():
                raise UserError(
                    f"The {self.what} {cls.__qualname__} at {source_of(cls)} has no {fact}; add {fact} = "
                    f"'...' to its class."
                )

    def _enter(self, name: str, cls: type, thing: T) -> None:
        """Know a thing, and the source of its class as it is now.

        Raises:
            UserError: another class has the name; both places are shown.
        """
        known = self.known.get(name)
        owner: Any = known if inspect.isclass(known) else type(known)
        if known is not None and (owner.__module__, owner.__qualname__) != (cls.__module__, cls.__qualname__):
            raise UserError(
                f"Two {self.what}s are named {name!r}: {source_of(owner)} and {source_of(cls)}; rename one "
                f"of them."
            )
        self.known[name] = thing
        _remember(cls.__module__)


def import_plugin(path: str | Path) -> dict[str, list[str]]:
    """Import a Python file that registers something; returns the names that it added, by kind.

    Raises:
        UserError: no such file, it cannot be imported, or it registers nothing.
    """
    path = Path(path)
    if not path.is_file():
        many = ", and --plugin again for each further one" if "," in str(path) else ""
        raise UserError(
            f"There is no plugin file {str(path)!r}; give --plugin the path of a Python file{many}."
        )
    place = hashlib.sha256(str(path.resolve()).encode()).hexdigest()  # two files of one name are two plugins
    module_name = f"groundprune_plugin_{path.stem}_{place[:8]}"
    spec = importlib.util.spec_from_file_location(module_name, path)
    if spec is None:
        raise UserError(
            f"The plugin {str(path)!r} is not a Python file; give --plugin a file that ends in .py."
        )
    before = [(kind, dict(kind.known)) for kind in _kinds]
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
        for kind, known in before:
            kind.known.clear()
            kind.known.update(known)
        if isinstance(error, UserError):
            raise
        raise UserError(
            f"The plugin {str(path)!r} cannot be imported ({reason(error)}); mend it, or leave out --plugin."
        ) from error
    _sources[module_name] = text
    of_kind = {
        kind.what: sorted(name for name, cls in kind.known.items() if cls.__module__ == module_name)
        for kind in _kinds
    }
    added = {what: names for what, names in of_kind.items() if names}
    if not added:
        raise UserError(
            f"The plugin {str(path)!r} registers no {' and no '.join(of_kind)}; decorate its class with "
            f"{' or '.join(f'@{kind.home}.register' for kind in _kinds)}."
        )
    return added


def _forget(module_name: str) -> None:
    """Take out what a module registered where nothing was known before: it may have been the first to import
    a kind."""
    for kind in _kinds:
        for name in [name for name, cls in kind.known.items() if cls.__module__ == module_name]:
            del kind.known[name]
