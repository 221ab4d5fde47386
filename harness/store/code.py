"""Digests of the code that computes an answer: part of every cell's identity, so that other code never gives
old digits.

A digest is of the syntax tree without docstrings: comments, docstrings and formatting do not count, nor does
where the files lie.
"""

from __future__ import annotations

import ast
import hashlib
import importlib.util
import secrets
import sys
import sysconfig
import time
from collections.abc import Iterable, Iterator
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

from pruners.base import Pruner
from pruners.errors import UserError
from pruners.plugins import STARTED, plugin_source

HOME = Path(__file__).resolve().parents[2]
# files that can change a count or a choice of tokens, and those among them that cannot
EVALUATES = (
    "backbones/*.py",
    "backbones/parts/*.py",
    "backbones/glamm/*.py",
    "backbones/lisa/*.py",
    "backbones/videoglamm/*.py",
    "harness/data/*.py",
    "harness/data/video/*.py",
    "harness/engine/cells.py",
    "harness/engine/chosen.py",
    "harness/engine/evaluate.py",
    "harness/engine/prefetch.py",
    "harness/engine/rounding.py",
    "harness/engine/scores.py",
    "harness/engine/truth.py",
    "harness/metrics/__init__.py",
    "harness/metrics/base.py",
    "harness/metrics/boundary.py",
    "harness/metrics/generalised.py",
    "harness/metrics/masks.py",
    "harness/metrics/overlap.py",
    "harness/metrics/registry.py",
    "harness/metrics/video.py",
    "harness/registry.py",
    "harness/store/rows.py",
    "pruners/base.py",
    "pruners/checks.py",
    "pruners/lending.py",
    "pruners/views.py",
)
# names and settings, versions, costs, diagnosis, doctor, shapes without weights; budgets as texts, whose
# count is part of the cell
HARMLESS = (
    "harness/data/digests.py",  # whether a file is the same; what is decoded is hashed again
    "harness/data/video/archive.py",  # written of what was answered
    "harness/data/video/writer.py",
    "harness/engine/budgets.py",
    "harness/engine/steps.py",  # how far it is, for a bar
    "backbones/clip_alone.py",  # measured, and nothing of it recorded
    "backbones/clip_answer.py",  # asked by a person, of whose own media nothing is recorded
    "backbones/image_answer.py",
    "backbones/parts/clip_files.py",
    "backbones/costs.py",
    "backbones/device.py",  # the one that a model runs on is part of the cell
    "backbones/probes.py",
    "backbones/registry.py",
    "backbones/versions.py",
    "backbones/glamm/examine.py",
    "backbones/glamm/probes.py",
    "backbones/glamm/full_size.py",
    "backbones/glamm/shapes.py",
    "backbones/glamm/stages.py",
    "backbones/lisa/full_size.py",
    "backbones/lisa/shapes.py",
    "backbones/videoglamm/examine.py",
    "backbones/videoglamm/full_size.py",
    "backbones/videoglamm/shapes.py",
    "backbones/videoglamm/stages.py",
    "backbones/parts/sam2_shapes.py",
    "backbones/parts/staged.py",
    "backbones/videoglamm/mini/__init__.py",
    "backbones/mini/kind.py",  # warns, and decides nothing
    "backbones/mini/__init__.py",  # where the weights lie, which have a fingerprint
)
# files that count and time what evaluates
COSTS = (
    "backbones/costs.py",
    "backbones/parts/sam2_shapes.py",
    "backbones/parts/staged.py",
    "backbones/*/shapes.py",
    "backbones/*/stages.py",
    "harness/cost/*.py",
)
# in EVALUATES, or deciding nothing
NEUTRAL = (
    "pruners",
    "pruners.base",
    "pruners.checks",
    "pruners.errors",
    "pruners.fields",
    "pruners.lending",
    "pruners.plugins",
    "pruners.registration",
    "pruners.registry",
    "pruners.views",
    "pruners.written",
)
DIGITS = 16
IMPORTERS = ("import_module", "__import__")
PROCESS = secrets.token_hex(8)


def _canonical(node: object) -> str:
    """A syntax tree as text that no Python version changes: node types and what is filled in; texts that
    stand alone left out."""
    if isinstance(node, list):
        return f"[{','.join(_canonical(one) for one in node if not _stands_alone(one))}]"
    if not isinstance(node, ast.AST):
        return repr(node)
    fields = (
        (name, value) for name, value in ast.iter_fields(node) if value not in (None, []) and name != "kind"
    )
    return f"{type(node).__name__}({','.join(f'{name}={_canonical(value)}' for name, value in fields)})"


def _stands_alone(node: object) -> bool:
    """Whether a statement is a text and nothing else, as docstrings are."""
    return (
        isinstance(node, ast.Expr)
        and isinstance(node.value, ast.Constant)
        and isinstance(node.value.value, str)
    )


def of_text(source: str | bytes) -> str:
    """Digest of Python source; of text that does not parse, of the text itself."""
    try:
        text = _canonical(ast.parse(source))
    except (SyntaxError, ValueError, RecursionError):
        text = source if isinstance(source, str) else source.decode(errors="replace")
    return hashlib.sha256(text.encode(errors="surrogatepass")).hexdigest()[:DIGITS]


def of_all(parts: Iterable[str]) -> str:
    """One digest of several."""
    return hashlib.sha256(" ".join(parts).encode()).hexdigest()[:DIGITS]


@cache
def evaluation() -> dict[str, str]:
    """Digest of every file that evaluates, by its path below the project.

    Raises:
        UserError: a file is newer than this process, which runs the code of before.
    """
    found = sorted({path for pattern in EVALUATES for path in HOME.glob(pattern)})
    names = [path.relative_to(HOME).as_posix() for path in found]
    for path in found:
        _not_edited(path)
    return {
        name: of_text(path.read_bytes())
        for name, path in zip(names, found, strict=True)
        if name not in HARMLESS
    }


def _not_edited(path: Path) -> None:
    """See that a file is what this process imported.

    Raises:
        UserError: it is newer than the process (a time to come is a clock that differs, and tells nothing).
    """
    if STARTED < path.stat().st_mtime <= time.time():
        raise UserError(
            f"{str(path)!r} was edited after this process began, which runs the old code; start it again."
        )


def costs(staged: type) -> list[str]:
    """Digests of the files that count and time: passes in stages, models without weights, and the meters.

    Args:
        staged: class of the pass; one that comes from elsewhere brings its sources.
    """
    found = sorted({path for pattern in COSTS for path in HOME.glob(pattern)})
    return [*(of_text(path.read_bytes()) for path in found), *sorted(_sources(staged).values())]


def of_pruner(cls: type[Pruner]) -> str:
    """Digest of a pruner's own source: the files of its class and its bases, and the modules of their own
    that these import."""
    return of_all(sorted(_sources(cls).values()))


def of_backbone(cls: type) -> str:
    """Digest of all that evaluates: this project's files, and the sources of a backbone and of metrics that
    come from elsewhere."""
    from harness import metrics

    measured = of_others(type(metric) for metric in metrics.of_medium(getattr(cls, "medium", "image")))
    return of_all([*evaluation().values(), *sorted(_sources(cls).values()), *measured])


def of_others(classes: Iterable[type]) -> list[str]:
    """Digests of the sources of those classes that are not this project's, sorted."""
    return sorted(
        {
            found
            for cls in classes
            if cls.__module__.partition(".")[0] != "harness"
            for found in _sources(cls).values()
        }
    )


@cache  # a class stays as it was imported, whatever its file says later
def _sources(cls: type) -> dict[str, str]:
    """Digest of every module that a class rests on and that is nobody else's library, by the module's
    name."""
    modules: dict[str, str] = {}
    for base in cls.__mro__:
        name = base.__module__
        if name not in NEUTRAL and (name not in sys.modules or _own(sys.modules[name], cls.__module__)):
            _collect(name, base, modules)
    return dict(sorted(modules.items()))


def _collect(name: str, cls: type | None, found: dict[str, str], known: ModuleType | None = None) -> None:
    """Add the digest of a module and of those that it imports and that belong to the pruner."""
    if name in found:
        return
    module = sys.modules.get(name) or known
    source = plugin_source(name) or _read(module)
    # a notebook, an interactive session: what it rests on cannot be known, so it is never the same again
    if source is None:
        if cls is not None:
            found[name] = of_all([PROCESS, str(id(cls))])
        return
    found[name] = of_text(source)
    top = name.partition(".")[0]
    if top != "pruners" and (package := sys.modules.get(top)) is not None and hasattr(package, "__path__"):
        found |= _package(package)
    for other in _imported(source, module):
        if other.__name__ not in NEUTRAL and _own(other, name):
            _collect(other.__name__, None, found, other)


@cache  # read once, however many classes it has
def _package(package: ModuleType) -> dict[str, str]:
    """Digest of every file of a package, data included, by its path in it."""
    found = {}
    for home in map(Path, package.__path__):
        for path in sorted(home.rglob("*")):
            # of what is compiled another process may be writing a part, under a name for the while
            if "__pycache__" not in path.parts and path.suffix not in (".pyc", ".pyo") and path.is_file():
                _not_edited(path)
                content = path.read_bytes()
                name = f"{package.__name__}/{path.relative_to(home).as_posix()}"
                found[name] = (
                    of_text(content) if path.suffix == ".py" else hashlib.sha256(content).hexdigest()
                )
    return found


def _read(module: ModuleType | None) -> str | None:
    file = getattr(module, "__file__", None)
    if file is None or not file.endswith(".py"):
        return None
    try:
        _not_edited(Path(file))
        return Path(file).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        return None


def _imported(source: str | bytes, module: ModuleType | None) -> Iterator[ModuleType]:
    """Modules that a source imports anywhere, and those that define the names it imports."""
    package = getattr(module, "__package__", None) or ""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield from _module(alias.name)
        elif (
            isinstance(node, ast.Call)
            and getattr(node.func, "attr", getattr(node.func, "id", "")) in IMPORTERS
        ):
            for word in node.args[:1]:
                if isinstance(word, ast.Constant) and isinstance(word.value, str):
                    yield from _module(word.value)
        elif isinstance(node, ast.ImportFrom):
            name = "." * node.level + (node.module or "")
            try:
                name = importlib.util.resolve_name(name, package)
            except ImportError:
                continue
            for parent in _module(name):
                yield parent
                for alias in node.names:
                    yield from _module(f"{name}.{alias.name}")
                    value: Any = getattr(parent, alias.name, None)
                    yield from _module(getattr(value, "__module__", None) or "")


def _module(name: str) -> Iterator[ModuleType]:
    """The modules of that name and of its parents; one that nobody imported yet is looked for without running
    it."""
    parts = name.split(".") if name and not name.startswith(".") else []
    for count in range(1, len(parts) + 1):
        part = ".".join(parts[:count])
        if isinstance(found := sys.modules.get(part), ModuleType):
            yield found
        elif count == 1 and part not in sys.stdlib_module_names:
            try:
                spec = importlib.util.find_spec(part)
            except (ImportError, ValueError):
                return
            if spec is not None and spec.origin:
                module = ModuleType(part)
                module.__file__ = spec.origin
                yield module


def _own(module: ModuleType, of: str) -> bool:
    """Whether a module belongs to the one called `of`: of its top-level package, or a loose file of the
    user's."""
    top = module.__name__.partition(".")[0]
    if top in ("backbones", "harness", "reports"):
        return False
    if top in ("pruners", of.partition(".")[0]):
        return True
    file = getattr(module, "__file__", None)
    if file is None:
        return False
    paths = {
        Path(path).resolve()
        for name, path in sysconfig.get_paths().items()
        if name in ("stdlib", "purelib", "platlib")
    }
    foreign = {"site-packages", "dist-packages"} & set(Path(file).parts)
    return not foreign and not paths & set(Path(file).resolve().parents)
