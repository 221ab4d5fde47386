"""The documentation: its Python runs, its commands have the options that they are given, and its links lead
somewhere."""

from __future__ import annotations

import doctest
import importlib
import re
import shlex
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import typer
from pycocotools import mask as coco

from backbones.registry import BACKBONES, FACTS
from harness import cli
from pruners import load_plugin, plugins, registry
from tests.fake_backbone import FakeBackbone

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]


def blocks(page: Path, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", page.read_text(), re.MULTILINE | re.DOTALL)


def commands() -> list[str]:
    """What follows the harness's name in every line of the pages that calls it, by python or a launcher;
    comments left out."""
    lines = (
        line.partition("  #")[0]
        for page in PAGES
        for block in blocks(page, "sh")
        for line in block.splitlines()
    )
    found = (re.search(r"(?:-m|--module) harness\b(.*)", line) for line in lines)
    return sorted({match[1].strip() for match in found if match})


def test_the_examples_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Python page and records page, one after the other; the run of the first is read by the second."""
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {"__name__": "example"}
    code = blocks(ROOT / "docs" / "python.md", "python")
    assert len(code) >= 3
    for block in code:
        exec(compile(block, "docs/python.md", "exec"), names)
    assert (tmp_path / "try.png").stat().st_size > 10_000
    assert "litelvlm" in capsys.readouterr().out
    (tmp_path / "results" / "runs").mkdir(parents=True)
    (tmp_path / "run").rename(tmp_path / "results" / "runs" / "mine")
    for block in blocks(ROOT / "docs" / "records.md", "python"):
        exec(compile(block, "docs/records.md", "exec"), names)
    assert "cIoU" in capsys.readouterr().out
    row, prediction, asked, kept = (names[name] for name in ("row", "prediction", "asked", "kept"))
    target = asked.set_index(["sample", "expression"]).loc[(row["sample"], row["expression"])]  # type: ignore[attr-defined,index]
    truth = (
        coco.decode(
            {"size": [int(target["height"]), int(target["width"])], "counts": target["truth"].encode()}
        )
        == 1
    )
    assert (prediction & truth).sum() == row["intersection"]  # type: ignore[operator,index]
    assert kept.sum() == row["tokens_final"]  # type: ignore[attr-defined,index]


def test_the_columns_of_the_records_page_are_those_of_the_store() -> None:
    from harness.store.records import COLUMNS, FROM_RUN

    table = (ROOT / "docs" / "records.md").read_text().split("`samples`: one row")[0]
    told = {
        name
        for line in re.findall(r"^\| (`.*?) \|", table, re.MULTILINE)
        for name in re.findall(r"`(\w+)`", line)
    }
    assert told == {*COLUMNS, *FROM_RUN}


def test_the_pruners_of_the_guide_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry.PRUNERS, "known", dict(registry.PRUNERS.known))
    code = blocks(ROOT / "docs" / "adding-a-pruner.md", "python")
    assert len(code) == 5
    image = np.random.default_rng(0).integers(0, 256, (40, 40, 3), dtype=np.uint8)
    for number, block in enumerate(code):
        path = tmp_path / f"plugin{number}.py"
        path.write_text(block)
        (name,) = load_plugin(path)
        assert FakeBackbone().ground(image, "the red star", pruner=name, budget=16).kept.sum() == 16


def test_the_backbone_of_the_guide_registers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(BACKBONES, "known", dict(BACKBONES.known))
    (block,) = blocks(ROOT / "docs" / "adding-a-backbone.md", "python")
    (tmp_path / "mine.py").write_text(block)
    assert plugins.import_plugin(tmp_path / "mine.py")["backbone"] == ["mine"]
    table = (ROOT / "docs" / "adding-a-backbone.md").read_text()
    assert all(f"| `{fact}` |" in table for fact in FACTS if fact not in ("name", "reference"))


@pytest.mark.parametrize("command", commands())
def test_commands_have_the_options_that_they_are_given(command: str) -> None:
    words = shlex.split(command)
    known: Any = typer.main.get_command(cli.app)
    if words and words[0] in known.commands:
        known = known.commands[words[0]]
    options = {
        option for parameter in known.params for option in (*parameter.opts, *parameter.secondary_opts)
    }
    assert {word for word in words if word.startswith("--")} <= options


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#\s]+)\)", page.read_text()):
        assert target.startswith("https://") or (page.parent / target).exists(), target


def with_examples() -> list[str]:
    """Modules whose docstrings hold examples."""
    files = [
        file
        for room in ("pruners", "backbones", "harness", "reports")
        for file in (ROOT / room).rglob("*.py")
    ]
    return sorted(
        ".".join(file.relative_to(ROOT).with_suffix("").parts) for file in files if ">>> " in file.read_text()
    )


@pytest.mark.parametrize("name", with_examples())
def test_examples_in_docstrings(name: str) -> None:
    found = doctest.testmod(importlib.import_module(name))
    assert found.attempted and not found.failed
