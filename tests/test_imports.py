"""Imports run one way: what evaluates and what renders knows backbones by what they can, not by their
family."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parent.parent
PARTS = {"parts"}  # of backbones: shared by families, so open to all


def families() -> set[str]:
    """Folders of backbones that hold a model family."""
    found = {path.parent.name for path in (ROOT / "backbones").glob("*/__init__.py")}
    return found - PARTS


def imported(path: Path) -> Iterator[str]:
    """Full names of all that a file imports anywhere."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def test_no_family_is_imported_by_the_harness_or_the_reports() -> None:
    assert families() >= {"glamm", "lisa", "mini"}
    found = set()
    for path in (path for room in ("harness", "reports") for path in sorted((ROOT / room).rglob("*.py"))):
        for name in imported(path):
            parts = name.split(".")
            if parts[0] == "backbones" and len(parts) > 1 and parts[1] in families():
                found.add(path.relative_to(ROOT).as_posix())
    assert not found


def test_what_families_share_imports_none_of_them() -> None:
    for path in sorted((ROOT / "backbones" / "parts").glob("*.py")):
        of = {name.split(".")[1] for name in imported(path) if name.startswith("backbones.")}
        assert not of & families(), path


def test_backbones_do_not_import_what_uses_them() -> None:
    for path in sorted((ROOT / "backbones").rglob("*.py")):
        if not {"training", "mini_training"} & set(path.parts):
            assert not [name for name in imported(path) if name.split(".")[0] in ("harness", "reports")], path


def test_what_is_rendered_or_commanded_is_known_to_no_room_below() -> None:
    for room in ("data", "metrics", "store", "engine", "cost", "gate", "bundle", "reproduce"):
        for path in sorted((ROOT / "harness" / room).rglob("*.py")):
            for name in imported(path):
                assert not name.startswith(("reports", "harness.commands")), (path, name)


def test_pruners_import_torch_and_themselves() -> None:
    for path in sorted((ROOT / "pruners").rglob("*.py")):
        for name in imported(path):
            assert name.split(".")[0] not in ("backbones", "harness", "reports", "transformers"), (path, name)
