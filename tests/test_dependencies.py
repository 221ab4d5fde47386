"""What is imported is declared, every range has two ends, the locked set lies inside, and versions outside
are said."""

from __future__ import annotations

import ast
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest
from packaging.requirements import Requirement

import backbones
from backbones import versions
from pruners import UserError
from tests.bounds import ROOT, lines, locked, normal

OURS = {"harness", "pruners", "backbones", "reports", "tests"}
# modules that are not named as their package
NAMES = {
    "PIL": "pillow",
    "flash_attn": "flash-attn",
    "mmcv": "mmcv-lite",
    "cv2": "opencv-python-headless",
    "yaml": "pyyaml",
}


def declared(*extras: str) -> dict[str, Requirement]:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    texts = [
        *project["dependencies"],
        *(text for extra in extras for text in project["optional-dependencies"][extra]),
    ]
    return {normal(found.name): found for found in map(Requirement, texts)}


def imported(*folders: str) -> Iterator[tuple[str, Path]]:
    for path in (path for folder in folders for path in (ROOT / folder).rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
                names = [node.module]
            for name in names:
                yield name, path


@pytest.mark.parametrize(
    ("folders", "extras"),
    [
        (("harness", "pruners", "backbones", "reports"), ("flash", "mmcv", "reasonseg", "video")),
        (("tests",), ("test", "docs")),
    ],
)
def test_what_is_imported_is_declared(folders: tuple[str, ...], extras: tuple[str, ...]) -> None:
    tops = {name.split(".")[0] for name, _ in imported(*folders)} - OURS - set(sys.stdlib_module_names)
    known = declared(*extras)
    assert {top for top in tops if normal(NAMES.get(top, top)) not in known} <= {
        "sample_backbone",
        "sample_pruner",
    }


def test_the_inside_of_foreign_classes_is_known_to_the_parts_alone() -> None:
    inner = [
        (name, path)
        for name, path in imported(*sorted(OURS - {"tests"}))
        if name.startswith(("transformers.models", "transformers.cache"))
    ]
    assert inner == []
    words = (
        "._attn_implementation",
        ".self_attn",
        ".embed_tokens",
        "rotary_emb",
        ".encoder.layers",
        ".prompt_encoder.",
    )
    for folder in ("backbones", "harness"):
        for path in (ROOT / folder).rglob("*.py"):
            if path.parent.name != "parts" and path.name != "keys.py":  # official names are mapped in keys.py
                assert not [word for word in words if word in path.read_text()], path


def test_every_range_has_two_ends_and_holds_the_locked_version() -> None:
    exact = locked()
    every = declared("test", "distributed", "docs", "flash", "mmcv", "reasonseg", "video")
    for name, wanted in every.items():
        assert {one.operator for one in wanted.specifier} == {">=", "<"}, name
        if name in declared("test", "distributed", "docs"):
            assert wanted.specifier.contains(exact[name]), name
    for line in lines("oldest"):
        assert declared("test")[normal(line.split("==")[0])].specifier.contains(line.split("==")[1])
    assert {line.split("==")[0] for line in lines("newest")} == {
        line.split("==")[0] for line in lines("oldest")
    }


def test_a_version_outside_its_range_is_said(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    real = versions.version
    monkeypatch.setattr(versions, "version", lambda name: "99.1" if name == "transformers" else real(name))
    assert backbones.load("glamm-mini").grid == (24, 24), "no refusal"
    (said,) = [line for line in capsys.readouterr().err.splitlines() if "transformers" in line]
    assert said.startswith("warning: transformers 99.1 is outside the range that was tested (")
    assert f"pip install '{declared()['transformers']}'" in said


def test_an_interface_that_changed_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    def changed(*_: object) -> None:
        raise AttributeError("module 'transformers' has no attribute 'LlamaModel'")

    monkeypatch.setattr(backbones.get("glamm-mini"), "load", changed)
    real = versions.version
    with (
        monkeypatch.context() as patch,
        pytest.raises(UserError, match=r"'LlamaModel'.*transformers 99.1 is outside"),
    ):
        patch.setattr(versions, "version", lambda name: "99.1" if name == "transformers" else real(name))
        backbones.load("glamm-mini")
    monkeypatch.setattr(versions, "installed_versions", list)
    with pytest.raises(AttributeError):  # a fault of ours stays one
        backbones.load("glamm-mini")
