"""Names to pruner classes: the built-in ones, entry points of installed packages, and plugin files."""

from __future__ import annotations

import ast
import dataclasses
import fnmatch
import hashlib
import importlib.util
import inspect
import sys
from importlib.metadata import entry_points
from pathlib import Path
from typing import TypeVar

from pruners.base import Pruner, UserError, nearest

ENTRY_POINTS = "groundprune.pruners"
_registry: dict[str, type[Pruner]] = {}
_loaded_entry_points = False
_sources: dict[str, str] = {}
P = TypeVar("P", bound=type[Pruner])


def _place(cls: type[Pruner]) -> str:
    try:
        return f"{inspect.getsourcefile(cls)}:{inspect.getsourcelines(cls)[1]}"
    except (OSError, TypeError):
        return cls.__module__


def register(cls: P) -> P:
    """Class decorator: make the pruner known under its `name`.

    Raises:
        UserError: it is no pruner, has no name, or the name is taken by another class; both places are shown.
    """
    if not (inspect.isclass(cls) and issubclass(cls, Pruner)):
        raise UserError(f"@register takes a subclass of pruners.Pruner, not {cls!r}.")
    for fact in ("name", "reference"):
        if not isinstance(getattr(cls, fact, None), str):
            raise UserError(f"The pruner {cls.__qualname__} at {_place(cls)} has no {fact}; add {fact} = '...' to its class.")
    known = _registry.get(cls.name)
    if known is not None and (known.__module__, known.__qualname__) != (cls.__module__, cls.__qualname__):
        raise UserError(f"Two pruners are named {cls.name!r}: {_place(known)} and {_place(cls)}; rename one of them.")
    _registry[cls.name] = cls
    return cls


def _load_entry_points() -> None:
    global _loaded_entry_points
    if _loaded_entry_points:
        return
    for point in entry_points(group=ENTRY_POINTS):
        try:
            found = point.load()
        except UserError:
            raise
        except Exception as error:
            raise UserError(
                f"The installed plugin {point.name!r} ({point.value}) cannot be imported: {error!r}; mend or uninstall it."
            ) from error
        if inspect.isclass(found) and issubclass(found, Pruner):
            register(found)
    _loaded_entry_points = True


def load_plugin(path: str | Path) -> list[str]:
    """Import a Python file that registers pruners; returns the names that it added.

    Raises:
        UserError: no such file, it cannot be imported, or it registers nothing.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"There is no plugin file {str(path)!r}; give --plugin the path of a Python file.")
    place = hashlib.sha256(str(path.resolve()).encode()).hexdigest()[:8]  # two files of one name are two plugins
    module_name = f"groundprune_plugin_{path.stem}_{place}"
    spec = importlib.util.spec_from_file_location(module_name, path)
    if spec is None or spec.loader is None:
        raise UserError(f"The plugin {str(path)!r} is not a Python file; give --plugin a file that ends in .py.")
    module = importlib.util.module_from_spec(spec)
    sys.modules[module_name] = module
    try:
        _sources[module_name] = path.read_text(encoding="utf-8")
        exec(compile(_sources[module_name], str(path), "exec"), module.__dict__)
    except UserError:
        raise
    except Exception as error:
        raise UserError(f"The plugin {str(path)!r} cannot be imported: {error!r}.") from error
    added = sorted(name for name, cls in _registry.items() if cls.__module__ == module_name)
    if not added:
        raise UserError(f"The plugin {str(path)!r} registers no pruner; decorate its class with @pruners.register.")
    return added


def plugin_source(module_name: str) -> str | None:
    """Source of a plugin file as it ran; None for a module that is no plugin."""
    return _sources.get(module_name)


def names() -> list[str]:
    """All known names: `none`, then the methods, then the other controls, each by name."""
    _load_entry_points()
    rank = {"none": -1}
    return sorted(_registry, key=lambda name: (rank.get(name, _registry[name].kind == "control"), name))


def get(name: str) -> type[Pruner]:
    """The class of that name.

    Raises:
        UserError: there is none.
    """
    _load_entry_points()
    if name not in _registry:
        raise UserError(
            f"There is no pruner {name!r}; there are {', '.join(names())}.{nearest(name, names())} See `python -m harness list`."
        )
    return _registry[name]


def _split(text: str) -> list[str]:
    """Parts between commas that stand outside brackets."""
    parts, depth, current = [], 0, ""
    for letter in text:
        depth += (letter in "([") - (letter in ")]")
        if letter == "," and depth == 0:
            parts.append(current)
            current = ""
        else:
            current += letter
    if depth:
        raise UserError(f"The pruner list {text!r} has an unclosed bracket; write e.g. 'litelvlm,fastv(layer=3)'.")
    return [part.strip() for part in (*parts, current) if part.strip()]


def _build(part: str) -> Pruner:
    name, bracket, rest = part.partition("(")
    cls = get(name.strip())
    if not bracket:
        return cls()
    valid = [field.name for field in dataclasses.fields(cls)]
    try:
        call = ast.parse(f"f({rest}", mode="eval").body
        if not isinstance(call, ast.Call) or call.args:
            raise ValueError("give parameters by name")
        given = {word.arg or "**": ast.literal_eval(word.value) for word in call.keywords}
    except (ValueError, SyntaxError) as error:
        raise UserError(f"Cannot read the pruner {part!r} ({error}); write e.g. '{name}(parameter=value)'.") from error
    for key in given:
        if key not in valid:
            hint = f"its parameters are {', '.join(valid)}.{nearest(key, valid)}" if valid else "it has no parameters."
            raise UserError(f"{name} has no parameter {key!r}; {hint}")
    return cls(**given)


def parse(text: str) -> list[Pruner]:
    """Read a list such as `litelvlm,fastv(layer=3),vis*` or `all`; every pruner once, in the order given.

    Raises:
        UserError: unknown name or parameter, bad value, or a pattern that matches nothing.
    """
    found: dict[str, Pruner] = {}
    for part in _split(text):
        if part == "all":
            chosen = names()
        elif "(" not in part and any(letter in part for letter in "*?["):
            chosen = fnmatch.filter(names(), part)
            if not chosen:
                raise UserError(f"The pattern {part!r} matches no pruner; there are {', '.join(names())}.")
        else:
            chosen = [part]
        for one in chosen:
            pruner = _build(one)
            found.setdefault(pruner.spec(), pruner)
    if not found:
        raise UserError("No pruner was given; try --pruners all, or names from `python -m harness list`.")
    return list(found.values())
