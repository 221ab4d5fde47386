"""Digests of the code that computes an answer: part of every cell's identity, so that other code never gives old digits.

A digest is of the syntax tree without docstrings: comments, docstrings and formatting do not count, nor does where the
files lie.
"""

from __future__ import annotations

import ast
import hashlib
import importlib.util
import inspect
import sys
import sysconfig
import time
from collections.abc import Iterable, Iterator
from functools import cache
from pathlib import Path
from types import CodeType, ModuleType
from typing import Any

from pruners.base import Pruner, UserError
from pruners.registry import plugin_source

HOME = Path(__file__).resolve().parent.parent
# files that can change a count or a choice of tokens, and those among them that cannot
EVALUATES = (
    "backbones/*.py",
    "backbones/parts/*.py",
    "backbones/glamm/*.py",
    "harness/data/*.py",
    "harness/fill.py",
    "harness/loading.py",
    "harness/metrics.py",
    "harness/protocol.py",
    "harness/rows.py",
    "harness/stability.py",
    "harness/sweep.py",
    "pruners/base.py",
    "pruners/checks.py",
)
# costs, diagnosis, shapes without weights
HARMLESS = ("backbones/glamm/looking.py", "backbones/glamm/released.py", "backbones/glamm/stages.py")
NEUTRAL = ("pruners", "pruners.base", "pruners.checks", "pruners.registry")  # in EVALUATES, or deciding nothing
DIGITS = 16
STARTED = time.time()


def _without_docstrings(tree: ast.AST) -> ast.AST:
    for node in ast.walk(tree):
        body = getattr(node, "body", None)
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef) and body:
            first = body[0]
            if isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant) and isinstance(first.value.value, str):
                node.body = body[1:] or [ast.Pass()]
    return tree


def of_text(source: str | bytes) -> str:
    """Digest of Python source; of text that does not parse, of the text itself."""
    try:
        text = ast.unparse(_without_docstrings(ast.parse(source)))
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
    if edited := [name for name, path in zip(names, found, strict=True) if path.stat().st_mtime > STARTED]:
        raise UserError(f"{', '.join(edited[:3])} was edited after this process began, which runs the old code; start it again.")
    return {name: of_text(path.read_bytes()) for name, path in zip(names, found, strict=True) if name not in HARMLESS}


def costs() -> list[str]:
    """Digests of the files that count and time: the faithful pass in stages, and the meters."""
    found = [HOME / "backbones" / "glamm" / "stages.py", *sorted((HOME / "harness" / "cost").glob("*.py"))]
    return [of_text(path.read_bytes()) for path in found]


def of_pruner(cls: type[Pruner]) -> str:
    """Digest of a pruner's own source: the files of its class and its bases, and the modules of their own that these import."""
    return of_all(sorted(_sources(cls).values()))


def of_backbone(cls: type) -> str:
    """Digest of all that evaluates: this project's files, and the source of a backbone that comes from elsewhere."""
    return of_all([*evaluation().values(), *sorted(_sources(cls).values())])


@cache  # a class stays as it was imported, whatever its file says later
def _sources(cls: type) -> dict[str, str]:
    """Digest of every module that a class rests on and that is nobody else's library, by the module's name."""
    modules: dict[str, str] = {}
    for base in cls.__mro__:
        name = base.__module__
        if name not in NEUTRAL and (name not in sys.modules or _own(sys.modules[name], cls.__module__)):
            _collect(name, base, modules)
    return dict(sorted(modules.items()))


def _collect(name: str, cls: type | None, found: dict[str, str]) -> None:
    """Add the digest of a module and of those that it imports and that belong to the pruner."""
    if name in found:
        return
    module = sys.modules.get(name)
    source = plugin_source(name) or _read(module)
    if source is None:  # a notebook, an interactive session
        if cls is not None:
            found[name] = _of_object(cls)
        return
    found[name] = of_text(source)
    for other in _imported(source, module):
        if other.__name__ not in NEUTRAL and _own(other, name):
            _collect(other.__name__, None, found)


def _read(module: ModuleType | None) -> str | None:
    if module is None:
        return None
    try:
        return inspect.getsource(module)
    except (OSError, TypeError):
        return None


def _of_object(cls: type) -> str:
    """Digest of a class without a source file: what the interpreter runs of it, or the source that it remembers."""
    try:
        return of_text(inspect.cleandoc(inspect.getsource(cls)))
    except (OSError, TypeError):
        pass
    parts = [repr(sorted((k, v) for k, v in vars(cls).items() if isinstance(v, str | int | float | bool | tuple)))]
    parts += [part for name in sorted(vars(cls)) for part in _bytecode(getattr(vars(cls)[name], "__code__", None))]
    return of_all(hashlib.sha256(part.encode()).hexdigest() for part in parts)


def _bytecode(code: CodeType | None) -> Iterator[str]:
    if code is None:
        return
    yield code.co_code.hex()
    yield " ".join(map(str, code.co_names))
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _bytecode(constant)
        else:
            yield repr(constant)


def _imported(source: str | bytes, module: ModuleType | None) -> Iterator[ModuleType]:
    """Modules that a source imports anywhere, and those that define the names it imports."""
    package = getattr(module, "__package__", None) or ""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield from _module(alias.name)
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
    """The module of that name, if it was imported."""
    if isinstance(found := sys.modules.get(name), ModuleType):
        yield found


def _own(module: ModuleType, of: str) -> bool:
    """Whether a module belongs to the one called `of`: of its top-level package, or a loose file of the user's."""
    top = module.__name__.partition(".")[0]
    if top in ("backbones", "harness", "reports"):
        return False
    if top == of.partition(".")[0]:
        return True
    file = getattr(module, "__file__", None)
    if file is None:
        return False
    paths = {Path(path).resolve() for name, path in sysconfig.get_paths().items() if name in ("stdlib", "purelib", "platlib")}
    return not paths & set(Path(file).resolve().parents) and "site-packages" not in file
