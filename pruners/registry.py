"""Names to pruner classes: the built-in ones, entry points of installed packages, and plugin files."""

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
from contextlib import suppress
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any, TypeVar, get_type_hints

from pruners.base import LAYER_KINDS, PLAIN_KINDS, LayerPruner, Need, Pruner, UserError, nearest

ENTRY_POINTS = "groundprune.pruners"
LONGEST = 1000  # letters of a pruner's text: far more than any needs, and less than what Python's own parser dies of
SYNTAX = ",()[]*?@"  # separate pruners, hold parameters, make patterns, name costs: no part of a name
FACTS = ("name", "reference", "kind", "stage", "stochastic", "needs", "budget_kind", "seed_written")
_sources: dict[str, str] = {}  # of modules that registered a pruner
STARTED = time.time()  # before any pruner is imported
_registry: dict[str, type[Pruner]] = {}
elsewhere: list[dict[str, Any]] = []  # what other registries know, by name: metrics, data sets
_loaded_entry_points = False
P = TypeVar("P", bound=type[Pruner])


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


def register(cls: P) -> P:
    """Class decorator: make the pruner known under its `name`.

    Raises:
        UserError: it is no pruner, no frozen dataclass, has no name, a fact or a field that makes no sense,
            or the name is taken by another class; both places are shown.
    """
    if not (inspect.isclass(cls) and issubclass(cls, Pruner)):
        raise UserError(f"@register takes a subclass of pruners.Pruner, not {cls!r}.")
    for fact in ("name", "reference"):
        if not isinstance(getattr(cls, fact, None), str):
            raise UserError(
                f"The pruner {cls.__qualname__} at {source_of(cls)} has no {fact}; add {fact} = '...' to its class."
            )
    for wrong in (_wrong_name(cls.name), _wrong_facts(cls), _wrong_fields(cls)):
        if wrong:
            raise UserError(f"The pruner {_short(cls.name)} at {source_of(cls)} {wrong}.")
    known = _registry.get(cls.name)
    if known is not None and (known.__module__, known.__qualname__) != (cls.__module__, cls.__qualname__):
        raise UserError(
            f"Two pruners are named {cls.name!r}: {source_of(known)} and {source_of(cls)}; rename one of them."
        )
    _registry[cls.name] = cls
    _remember(cls.__module__)
    return cls


def _wrong_name(name: str) -> str | None:
    if not name or name != name.strip() or not name.isprintable() or set(name) & set(SYNTAX) or name == "all":
        return f"cannot be named so: a name is printable text without spaces around it and without {SYNTAX}, and not 'all'"
    return (
        f"has a name of {len(name)} letters; {LONGEST // 2} is the most" if len(name) > LONGEST // 2 else None
    )


def _wrong_facts(cls: type[Pruner]) -> str | None:
    """What is wrong with the class attributes that the harness reads."""
    if cls.kind not in ("method", "control"):
        return f"is of the kind {cls.kind!r}; a kind is 'method' or 'control'"
    if (cls.stage, issubclass(cls, LayerPruner)) not in (("tower", False), ("layer", True)):
        return f"has the stage {cls.stage!r}; subclasses of LayerPruner have 'layer' and all others 'tower'"
    if not isinstance(cls.stochastic, bool):
        return f"says stochastic = {cls.stochastic!r}; it is True or False"
    if not isinstance(cls.needs, frozenset):
        return (
            f"declares its needs as {type(cls.needs).__name__}; write needs = frozenset({{Need(...), ...}})"
        )
    for need in cls.needs:
        if not isinstance(need, Need):
            return f"needs {need!r}, which is no pruners.Need"
        if need.kind not in LAYER_KINDS + PLAIN_KINDS:
            return f"needs {need.kind!r}; there are {', '.join(LAYER_KINDS + PLAIN_KINDS)}"
        if type(need.layer) is not (int if need.kind in LAYER_KINDS else type(None)):
            rule = "a layer: -1 is the last" if need.kind in LAYER_KINDS else "no layer"
            return f"needs {need.kind!r} of layer {need.layer!r}; that kind takes {rule}"
    return None


def _wrong_fields(cls: type[Pruner]) -> str | None:
    """What is wrong with its hyper-parameters, which only the fields of a frozen dataclass are."""
    made = cls.__dict__.get("__dataclass_params__")
    if made is None or not made.frozen or not made.init or not made.eq:
        return "is no frozen dataclass, so that its parameters would be lost; write @dataclass(frozen=True) under @register"
    fields = {field.name: field for field in dataclasses.fields(cls)}
    if lost := set(inspect.signature(cls).parameters) ^ set(fields):
        return f"has an __init__ that does not take exactly its fields ({', '.join(sorted(lost))}); let the dataclass make it"
    for name, field in fields.items():
        if name in FACTS:
            return f"makes {name} a parameter; write {name} = ... without a type, or with ClassVar"
        if field.default is dataclasses.MISSING:
            return f"gives {name} no default; every parameter has one"
    try:
        hints = get_type_hints(cls)
        if cls.stochastic and ("seed" not in fields or hints["seed"] is not int):
            return "is stochastic without a seed; give it a field seed: int = 0"
        if issubclass(cls, LayerPruner) and ("layer" not in fields or hints["layer"] is not int):
            return "prunes inside the language model without a layer; give it a field layer: int = 2"
        cls()
    except Exception as error:
        return f"cannot be made with its defaults ({error})"
    return None


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
    """Import a Python file that registers pruners, metrics or data sets; returns the names that it added.

    Raises:
        UserError: no such file, it cannot be imported, or it registers nothing.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"There is no plugin file {str(path)!r}; give --plugin the path of a Python file.")
    place = hashlib.sha256(str(path.resolve()).encode()).hexdigest()[
        :8
    ]  # two files of one name are two plugins
    module_name = f"groundprune_plugin_{path.stem}_{place}"
    spec = importlib.util.spec_from_file_location(module_name, path)
    if spec is None:
        raise UserError(
            f"The plugin {str(path)!r} is not a Python file; give --plugin a file that ends in .py."
        )
    before = dict(_registry)
    try:
        source = (
            path.read_bytes()
        )  # once, so that what runs, what is shown and what makes its identity is one text
        text = importlib.util.decode_source(source)
        module = importlib.util.module_from_spec(spec)
        sys.modules[module_name] = module
        linecache.cache[str(path)] = (len(text), None, text.splitlines(keepends=True), str(path))
        exec(compile(source, str(path), "exec", dont_inherit=True), module.__dict__)
    except (Exception, SystemExit) as error:
        sys.modules.pop(module_name, None)
        _registry.clear()
        _registry.update(before)
        for known in elsewhere:
            for name in [name for name, one in known.items() if one.__module__ == module_name]:
                del known[name]
        if isinstance(error, UserError):
            raise
        raise UserError(f"The plugin {str(path)!r} cannot be imported: {error!r}.") from error
    _sources[module_name] = text
    added = sorted(
        name
        for known in (_registry, *elsewhere)
        for name, one in known.items()
        if one.__module__ == module_name
    )
    if not added:
        raise UserError(
            f"The plugin {str(path)!r} registers no pruner, metric or data set; decorate its class with @pruners.register, "
            "@harness.metrics.register or @harness.data.register."
        )
    return added


def _remember(module_name: str) -> None:
    """Keep the source of a module as it is imported: the file may be another one by the time somebody
    asks."""
    file = getattr(sys.modules.get(module_name), "__file__", None)
    if module_name not in _sources and file is not None and file.endswith(".py"):
        with suppress(OSError, UnicodeDecodeError, SyntaxError):
            _sources[module_name] = importlib.util.decode_source(Path(file).read_bytes())


def plugin_source(module_name: str) -> str | None:
    """The text of a module that registered a pruner, as it was when it did; None for other modules."""
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
            f"There is no pruner {_short(name)}; there are {', '.join(names())}.{nearest(name, names())} "
            "See `python -m harness list`."
        )
    return _registry[name]


def _split(text: str) -> list[str]:
    """Parts between commas that stand outside brackets and quotes."""
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
        raise UserError(
            f"The pruner list {_short(text)} has an unclosed bracket; write e.g. 'litelvlm,fastv(layer=3)'."
        )
    parts = [part.strip() for part in (*parts, text[start:]) if part.strip()]
    for part in parts:
        if len(part) > LONGEST:
            raise UserError(f"The pruner {_short(part)} is {len(part)} letters long; {LONGEST} is the most.")
    return parts


def _short(text: str) -> str:
    return repr(text if len(text) <= 100 else f"{text[:100]}...")


def _given(name: str, part: str, rest: str) -> dict[str, Any]:
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
            return {key: ast.literal_eval(word.value) for key, word in zip(keys, call.keywords, strict=True)}
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError) as error:
        why = _short(str(error))[1:-1] or type(error).__name__
        raise UserError(
            f"Cannot read the pruner {_short(part)} ({why}); write e.g. '{name}(parameter=value)'."
        ) from error


def _build(part: str) -> Pruner:
    name, bracket, rest = part.partition("(")
    name = name.strip()
    cls = get(name)
    if not bracket:
        return cls()
    valid = [field.name for field in dataclasses.fields(cls)]
    given = _given(name, part, rest)
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
        raise UserError(f"{name} at {source_of(cls)} does not take {_short(part)} ({error}).") from error
    if cls.stochastic and "seed" in given:
        object.__setattr__(
            made, "seed_written", True
        )  # random(seed=0) is that draw alone, random is one of several
    return made


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
                raise UserError(
                    f"The pattern {_short(part)} matches no pruner; there are {', '.join(names())}."
                )
        else:
            chosen = [part]
        for one in chosen:
            pruner = _build(one)
            found.setdefault(pruner.spec(), pruner)
    if not found:
        raise UserError("No pruner was given; try --pruners all, or names from `python -m harness list`.")
    return list(found.values())
