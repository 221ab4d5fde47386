"""Small changes of a module's source, each of which is to fail a test: a comparison's boundary, an operator,
a constant, a statement left out.

Left alone are what no answer hangs on: docstrings, messages (f-strings, what is raised, printed, warned),
type hints, decorators, assertions, and the keywords of QUIET.
"""

from __future__ import annotations

import ast
import hashlib
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace

COMPARED: dict[type[ast.cmpop], tuple[type[ast.cmpop], ...]] = {
    ast.Lt: (ast.LtE, ast.GtE),  # the boundary first, then the contrary
    ast.LtE: (ast.Lt, ast.Gt),
    ast.Gt: (ast.GtE, ast.LtE),
    ast.GtE: (ast.Gt, ast.Lt),
    ast.Eq: (ast.NotEq,),
    ast.NotEq: (ast.Eq,),
    ast.In: (ast.NotIn,),
    ast.NotIn: (ast.In,),
    ast.Is: (ast.IsNot,),
    ast.IsNot: (ast.Is,),
}
COUNTED: dict[type[ast.operator], type[ast.operator]] = {
    ast.Add: ast.Sub,
    ast.Sub: ast.Add,
    ast.Mult: ast.Div,
    ast.Div: ast.Mult,
    ast.FloorDiv: ast.Mult,
    ast.Mod: ast.Mult,
    ast.Pow: ast.Mult,
    ast.BitAnd: ast.BitOr,
    ast.BitOr: ast.BitAnd,
}
TWINS = {
    "min": "max",
    "any": "all",
    "amin": "amax",
    "argmin": "argmax",
    "minimum": "maximum",
    "first": "last",
}
TWINS |= {other: name for name, other in TWINS.items()}
SWAPPED = {"where", "zip", "range", "clip", "clamp", "full", "repeat", "tile", "moveaxis", "transpose"}
# calls that speak to people, or to the type checker alone
SPEAKS = {
    "print",
    "warn",
    "warning",
    "info",
    "debug",
    "error",
    "exception",
    "echo",
    "cast",
    "TypeVar",
    "note",
}
# keywords that guard against this project's own slips, or say how, not what
QUIET = {"strict", "encoding", "stacklevel", "maxsize", "ensure_ascii", "indent", "file", "flush", "check"}


@dataclass(frozen=True)
class Change:
    """One change of a module.

    Attributes:
        scope: the function or class that it is in; empty at the top.
        start, end: bytes of the source that `text` replaces.
        lines: first and last line of the statement that changes.
        running: it is code of a function's body; all else runs when the module is imported.
        was, now: the lines of the place, on one line each, before and after.
        nth: which of the places in this scope whose lines read alike.
    """

    scope: str
    line: int
    start: int
    end: int
    text: str
    lines: tuple[int, int]
    running: bool
    was: str = ""
    now: str = ""
    nth: int = 0

    def applied(self, source: bytes) -> bytes:
        """The changed module."""
        return source[: self.start] + self.text.encode() + source[self.end :]


class _Places(ast.NodeVisitor):
    """Goes through a module and notes every change."""

    def __init__(self, source: bytes) -> None:
        self.source = source
        self.offsets = [0]
        for line in source.splitlines(keepends=True):
            self.offsets.append(self.offsets[-1] + len(line))
        self.scope: list[str] = []
        self.depth = 0  # of functions
        self.statement: tuple[int, int] = (1, 1)
        self.found: list[Change] = []

    def span(self, node: ast.expr | ast.stmt) -> tuple[int, int]:
        assert node.end_lineno is not None and node.end_col_offset is not None
        return (
            self.offsets[node.lineno - 1] + node.col_offset,
            self.offsets[node.end_lineno - 1] + node.end_col_offset,
        )

    def note(self, node: ast.expr | ast.stmt, text: str) -> None:
        """`node` could as well be `text`."""
        start, end = self.span(node)
        at = (node.lineno, self.statement, self.depth > 0)
        self.found.append(Change(".".join(self.scope), at[0], start, end, text, at[1], at[2]))

    def instead(self, node: ast.expr, other: ast.expr) -> None:
        """`node` could as well be `other`."""
        text = ast.unparse(other)
        self.note(node, text if isinstance(other, ast.Constant | ast.Name | ast.Call) else f"({text})")

    def visit(self, node: ast.AST) -> None:
        if isinstance(node, ast.stmt):
            first = getattr(node, "body", None)
            last = first[0].lineno - 1 if isinstance(first, list) and first else node.end_lineno
            self.statement = (node.lineno, max(node.lineno, last or node.lineno))
        super().visit(node)

    # --- what holds code

    def visit_FunctionDef(self, node: ast.FunctionDef) -> None:
        for default in (*node.args.defaults, *node.args.kw_defaults):
            if default is not None:
                self.visit(default)
        self.scope.append(node.name)
        self.depth += 1
        self._body(node.body)
        self.depth -= 1
        self.scope.pop()

    def visit_ClassDef(self, node: ast.ClassDef) -> None:
        self.scope.append(node.name)
        self._body(node.body)
        self.scope.pop()

    def _body(self, body: list[ast.stmt]) -> None:
        for statement in body:
            self.visit(statement)

    def visit_AnnAssign(self, node: ast.AnnAssign) -> None:
        if node.value is not None:
            self._stored(node, [node.target])
            self.visit(node.value)

    def visit_If(self, node: ast.If) -> None:
        if isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING":
            return
        self._turned(node.test)
        self.visit(node.test)
        self._body([*node.body, *node.orelse])

    # --- what is left alone

    def visit_JoinedStr(self, node: ast.JoinedStr) -> None:
        """A message."""

    def visit_Assert(self, node: ast.Assert) -> None:
        """Guards against this project's own slips."""

    # --- statements that could be missing

    def visit_Raise(self, node: ast.Raise) -> None:
        self.note(node, "pass")

    def visit_Expr(self, node: ast.Expr) -> None:
        if isinstance(node.value, ast.Call) and _name(node.value.func) not in SPEAKS:
            self.note(node, "pass")
        if not isinstance(node.value, ast.Constant):
            self.visit(node.value)

    def visit_Assign(self, node: ast.Assign) -> None:
        if any(isinstance(target, ast.Name) and target.id == "__all__" for target in node.targets):
            return
        self._stored(node, node.targets)
        for target in node.targets:
            self.visit(target)
        self.visit(node.value)

    def visit_AugAssign(self, node: ast.AugAssign) -> None:
        self.note(node, "pass")
        self.visit(node.value)

    def visit_Return(self, node: ast.Return) -> None:
        if node.value is not None:
            if not (isinstance(node.value, ast.Constant) and node.value.value is None):
                self.note(node, "return None")
            self.visit(node.value)
        elif self.depth:
            self.note(node, "pass")

    def visit_Break(self, node: ast.Break) -> None:
        self.note(node, "continue")

    def visit_Continue(self, node: ast.Continue) -> None:
        self.note(node, "break")

    def _stored(self, node: ast.stmt, targets: list[ast.expr]) -> None:
        """An attribute or an item that is not set; a name that is not would be an error at once."""
        if all(isinstance(target, ast.Attribute | ast.Subscript) for target in targets):
            self.note(node, "pass")

    # --- expressions

    def visit_Compare(self, node: ast.Compare) -> None:
        for place, old in enumerate(node.ops):
            for new in COMPARED[type(old)]:
                ops = [*node.ops[:place], new(), *node.ops[place + 1 :]]
                self.instead(node, ast.Compare(node.left, ops, node.comparators))
        self.generic_visit(node)

    def visit_BinOp(self, node: ast.BinOp) -> None:
        new = COUNTED.get(type(node.op))
        types = isinstance(node.op, ast.BitOr) and not self.depth
        if new and not types and not any(map(_text, (node.left, node.right))):
            self.instead(node, ast.BinOp(node.left, new(), node.right))
        self.generic_visit(node)

    def visit_BoolOp(self, node: ast.BoolOp) -> None:
        new = ast.Or() if isinstance(node.op, ast.And) else ast.And()
        self.instead(node, ast.BoolOp(new, node.values))
        self.generic_visit(node)

    def visit_UnaryOp(self, node: ast.UnaryOp) -> None:
        if isinstance(node.op, ast.Not | ast.Invert | ast.USub):
            self.instead(node, node.operand)
        self.generic_visit(node)

    def visit_IfExp(self, node: ast.IfExp) -> None:
        self._turned(node.test)
        self.generic_visit(node)

    def visit_While(self, node: ast.While) -> None:
        self.visit(node.test)
        self._body([*node.body, *node.orelse])

    def visit_comprehension(self, node: ast.comprehension) -> None:
        for test in node.ifs:
            self._turned(test)
        self.generic_visit(node)

    def visit_Constant(self, node: ast.Constant) -> None:
        value = node.value
        if isinstance(value, bool):
            self.instead(node, ast.Constant(not value))
        elif isinstance(value, int):
            self.instead(node, ast.Constant(value + 1))
            self.instead(node, ast.Constant(value - 1) if value else ast.Name("-1"))
        elif isinstance(value, float):
            self.instead(node, ast.Constant(value * 2 or 1.0))

    def visit_Call(self, node: ast.Call) -> None:
        name = _name(node.func)
        if name in SPEAKS or name.endswith("Error") or name == "Damaged":
            return
        if name in ("isinstance", "issubclass"):
            return self.visit(node.args[0])
        if name in TWINS:
            func = ast.parse(ast.unparse(node.func)[: -len(name)] + TWINS[name], mode="eval").body
            self.instead(node, ast.Call(func, node.args, node.keywords))
        if name in SWAPPED and len(node.args) >= 2 and ast.dump(node.args[-1]) != ast.dump(node.args[-2]):
            args = [*node.args[:-2], node.args[-1], node.args[-2]]
            self.instead(node, ast.Call(node.func, args, node.keywords))
        self.visit(node.func)
        for arg in node.args:
            self.visit(arg)
        for keyword in node.keywords:
            if keyword.arg not in QUIET:
                self.visit(keyword.value)

    def _turned(self, test: ast.expr) -> None:
        """A test that no other change turns into its contrary."""
        if not isinstance(test, ast.Compare | ast.UnaryOp | ast.BoolOp | ast.Constant):
            self.instead(test, ast.UnaryOp(ast.Not(), test))


def _name(func: ast.expr) -> str:
    return func.attr if isinstance(func, ast.Attribute) else func.id if isinstance(func, ast.Name) else ""


def _text(node: ast.expr) -> bool:
    return isinstance(node, ast.JoinedStr) or (isinstance(node, ast.Constant) and isinstance(node.value, str))


def changes(source: bytes) -> list[Change]:
    """Every change of a module, in the order of its lines."""
    places = _Places(source)
    places.visit(ast.parse(source))
    return list(_told(source, sorted(places.found, key=lambda one: (one.start, one.end))))


def _told(source: bytes, found: list[Change]) -> Iterator[Change]:
    """With what a reader sees of each."""
    alike: Counter[tuple[str, str, str]] = Counter()
    for one in found:
        head, tail = source.rfind(b"\n", 0, one.start) + 1, source.find(b"\n", one.end)
        tail = len(source) if tail < 0 else tail
        was = " ".join(source[head:tail].decode().split())
        now = " ".join(
            (source[head : one.start] + one.text.encode() + source[one.end : tail]).decode().split()
        )
        yield replace(one, was=was, now=now, nth=alike[one.scope, was, now])
        alike[one.scope, was, now] += 1


def drawn(found: list[Change], count: int, seed: int, module: str) -> list[Change]:
    """`count` of them; an edit elsewhere in the module leaves the choice as it is."""

    def lot(one: Change) -> bytes:
        place = f"{seed}\n{module}\n{one.scope}\n{one.was}\n{one.now}\n{one.nth}"
        return hashlib.sha256(place.encode()).digest()

    return sorted(sorted(found, key=lot)[:count], key=lambda one: (one.start, one.end))
