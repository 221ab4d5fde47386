"""The documentation: its Python runs, its commands parse as the command line parses them, its links lead
somewhere, and its figures name their command."""

from __future__ import annotations

import configparser
import doctest
import importlib
import importlib.util
import re
import shlex
import sys
import tomllib
import unicodedata
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import typer
import yaml
from pycocotools import mask as coco

import backbones
from backbones.mini import GlammMini
from backbones.registry import BACKBONES, FACTS
from harness import cli
from harness.cost import measure
from harness.data.registry import sets
from harness.metrics.registry import metrics
from harness.plan import Plan
from harness.store import code
from pruners import load_plugin, plugins, registry
from tests import site
from tests.fake_backbone import FakeBackbone

ROOT = Path(__file__).parent.parent
CARDS = sorted((ROOT / "backbones").rglob("README.md"))
GUIDES = [ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md"]
PAGES = [ROOT / "README.md", *GUIDES, *sorted((ROOT / "docs").glob("*.md")), *CARDS]
READS_A_RUN = [page for name in ("costs", "export") if (page := ROOT / "docs" / f"{name}.md").exists()]
FENCE = re.compile(r"^(<!-- quick -->\n)?```(\w*)\n(.*?)^```", re.MULTILINE | re.DOTALL)
# what pages show of data that a reader has
ELSEWHERE = {"refcoco", "refcoco+", "refcocog", "grefcoco", "reasonseg", "ref-davis17", "ref-youtube-vos"}
ELSEWHERE |= {"mevis", "mine", "all"}
# what a block of Python says that cannot run here, and what it lacks
NEEDS = {
    "published_of(": "an official checkpoint and RefCOCO",
    "import wandb": "an account, and a package that nothing here needs",
    "from datasets import": "an account, and a package that nothing here needs",
}


def named(page: Path) -> str:
    """A page as the repository knows it."""
    return page.relative_to(ROOT).as_posix()


def blocks(page: Path, language: str) -> list[str]:
    """What stands in the page's fences of a language."""
    return [text for _, name, text in FENCE.findall(page.read_text()) if name == language]


def words(line: str) -> list[str]:
    """The command of a line, without its comment and what stands before it on the line."""
    return shlex.split(line, comments=True)


def all_lines() -> Iterator[tuple[Path, str]]:
    """Every command that a page prints: the lines of its shell blocks, and code in its sentences."""
    for page in PAGES:
        text = page.read_text()
        for block in blocks(page, "sh"):
            for line in block.splitlines():
                for part in line.split(" && ") if not line.lstrip().startswith("#") else []:
                    yield page, part.strip()
        prose = FENCE.sub("", text)
        for found in re.findall(r"`([^`]+)`", prose):
            if re.match(r"(python -m|pytest|tox|pip install|torchrun|deepspeed) ", found):
                yield page, " ".join(found.split())


def commands() -> list[tuple[str, str]]:
    """(page, what follows the harness's name) of every line that calls it, by python or a launcher."""
    pairs = ((page, re.search(r"(?:-m|--module) harness\b(.*)", line)) for page, line in all_lines())
    found = {(named(page), match[1].strip()) for page, match in pairs if match}
    return sorted(found)


def quick() -> list[tuple[Path, list[str]]]:
    """The shell blocks that their page marks as quick, as lines."""
    return [
        (page, text.splitlines())
        for page in PAGES
        for mark, name, text in FENCE.findall(page.read_text())
        if mark and name == "sh"
    ]


def write_down(page: Path, folder: Path) -> None:
    """The Python files that a page tells its reader to write."""
    for block in blocks(page, "python"):
        if found := re.match(r"# (\w+\.py)\n", block):
            (folder / found[1]).write_text(block)


@pytest.fixture
def _as_before(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """What plugins register is forgotten, and the code's age is not asked."""
    monkeypatch.setattr(code, "STARTED", float("inf"))
    kinds = (registry.PRUNERS, BACKBONES, metrics, sets)
    before = [dict(kind.known) for kind in kinds]
    yield
    for kind, kept in zip(kinds, before, strict=True):
        kind.known.clear()
        kind.known.update(kept)


@pytest.fixture
def desk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where a reader stands: the files that pages tell him to write, and the repository's tests."""
    for page in PAGES:
        write_down(page, tmp_path)
    (tmp_path / "mine.toml").write_text('budgets = [64, "33%"]\nbatch-size = 8\n')
    (tmp_path / "tests").symlink_to(ROOT / "tests")
    monkeypatch.chdir(tmp_path)
    return tmp_path


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


@pytest.mark.parametrize(("page", "command"), commands())
def test_commands_parse(page: str, command: str, desk: Path, _as_before: None) -> None:
    """As the command line reads them, whatever they name included; nothing runs."""
    asked = words(command.replace("<name>", "uniform"))
    known: Any = typer.main.get_command(cli.app)
    if asked and asked[0] in known.commands:
        known = known.commands[asked.pop(0)]
    if not asked and any(parameter.required for parameter in known.params):
        return  # a sentence that names the command alone
    given = known.make_context(
        "harness", [word for word in asked if word not in ("--help", "--version")]
    ).params
    write_down(ROOT / page, desk)
    for plugin in given.get("plugin") or []:
        load_plugin(Path(plugin))
    fields = {
        name: given[option]
        for name, option in (
            *((name, name) for name in ("pruners", "budgets", "positions", "answers", "protocol", "costs")),
            *((name, name) for name in ("backbones", "device", "dtype", "attn", "limit", "seed", "seeds")),
            *(("budgets", "budget"), ("backbones", "backbone")),
        )
        if given.get(option) not in (None, "")
    }
    plan = Plan(**fields)
    assert plan.chosen()
    families = [backbones.one(text) for text in plan.backbones]
    assert all(plan.protocol is None or plan.protocol in one.protocols for one in families)
    for part in str(given.get("datasets") or "all").split(","):
        name = part.partition(":")[0]
        assert name in ELSEWHERE or name in {held for one in sets.all() for held in one.names(None)}, part


def test_quick_commands_run(
    desk: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], _as_before: None
) -> None:
    """One session of a reader, in the pages' order."""
    monkeypatch.setattr(GlammMini, "load", cache(GlammMini.load))  # once for all commands
    monkeypatch.setattr(measure, "ROUNDS", 2)  # of 12, which steady a median and nothing else
    session = quick()
    assert len(session) >= 5
    for page, line in [(page, line) for page, lines in session for line in lines]:
        write_down(page, desk)
        asked = words(line)
        assert asked[:3] == ["python", "-m", "harness"], line
        monkeypatch.setattr(sys, "argv", ["python -m harness", *asked[3:]])
        assert cli.main() == 0, (line, capsys.readouterr().err)
        capsys.readouterr()
    names: dict[str, Any] = {}
    for page in READS_A_RUN:
        for block in blocks(page, "python"):  # of the run that the session left
            if not any(word in block for word in NEEDS):
                exec(compile(block, named(page), "exec"), names)
    assert set(names["costs"]["pruner"]) == {"none", "random", "litelvlm", "vispruner"}
    assert len(names["raw"]) and set(names["EXPLAIN"]) & set(names["costs"].columns)


def test_other_commands_are_there() -> None:
    """Modules, files of tests, environments and extras that pages name."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    tox = configparser.ConfigParser(interpolation=None)
    tox.read(ROOT / "tox.ini")
    for page, line in all_lines():
        asked = words(line)
        if asked[:2] == ["python", "-m"] and asked[2].split(".")[0] in ("tests", "backbones"):
            asked[2] = asked[2].rstrip(".")
            assert importlib.util.find_spec(asked[2]), (named(page), line)
        if asked[:1] == ["pytest"]:
            files = [word for word in asked[1:] if word.endswith(".py") and word.startswith("tests/")]
            assert all((ROOT / file).exists() for file in files), (named(page), line)
        if asked[:2] == ["tox", "-e"]:
            environments = {"oldest", "newest", *(name.removeprefix("testenv:") for name in tox.sections())}
            assert set(asked[2].split(",")) <= environments, (named(page), line)
        for extra in re.findall(r"(?:\.|groundprune)\[(\w+)\]", line):
            assert extra in project["optional-dependencies"], (named(page), line)


def test_all_python_compiles_and_what_does_not_run_is_named() -> None:
    run = ("python", "records", "adding-a-pruner", "adding-a-backbone", "adding-a-dataset", "adding-a-metric")
    tested = {
        ROOT / "README.md",
        ROOT / "docs/joining-the-board.md",
        *READS_A_RUN,
        *(ROOT / "docs" / f"{name}.md" for name in run),
    }
    for page in PAGES:
        for block in blocks(page, "python"):
            compile(block, named(page), "exec")
            assert page in tested or any(word in block for word in NEEDS), named(page)


@pytest.mark.parametrize(("page", "most"), [("README.md", 16), ("docs/joining-the-board.md", 30)])
def test_the_pruner_of_a_page_runs(page: str, most: int, tmp_path: Path, _as_before: None) -> None:
    (block,) = blocks(ROOT / page, "python")
    assert len(block.rstrip().splitlines()) <= most
    (tmp_path / "norm.py").write_text(block)
    (name,) = load_plugin(tmp_path / "norm.py")
    image = np.random.default_rng(0).integers(0, 256, (40, 40, 3), dtype=np.uint8)
    assert FakeBackbone().ground(image, "the red star", pruner=name, budget=16).kept.sum() == 16


def test_the_first_screen() -> None:
    """What it is, a picture and two lines come before anything else; long tables stand elsewhere."""
    lines = (ROOT / "README.md").read_text().splitlines()
    assert len(lines) <= 150
    picture = next(place for place, line in enumerate(lines) if line.startswith("!["))
    fence = next(place for place, line in enumerate(lines) if line.startswith("```sh"))
    assert picture < fence < 12 and lines[fence] == "```sh"
    inside = lines[fence + 1 : lines.index("```", fence + 1)]
    typed = [line for line in inside if not line.startswith("#")]
    assert len(typed) == 2 and "-m harness" in typed[0] and typed[1].endswith("pytest")


# -- figures

UNIT = r"(?:%|(?:ms|s|h|points?|GB|[MG]iB|seconds|minutes|hours)\b|[TG]MAC|TFLOP)"
FIGURE = re.compile(rf"(?<![\w.-])[+-]?\d[\d.,]*[ -]?{UNIT}")
LEVELS = {"95 %", "5 %"}  # of intervals and false discoveries
RULES = {  # sections whose figures are limits that the code sets
    ("docs/gate.md", "What rounding explains"),
    ("docs/gate.md", "What is compared"),
    ("docs/real-lisa.md", "What goes wrong"),
    ("docs/scale.md", "What it says meanwhile"),
}


@pytest.mark.parametrize("page", PAGES, ids=named)
def test_figures_have_their_command(page: Path) -> None:
    """A section that tells a measured figure, in a sentence or a table, says what measures it."""
    text = re.sub(r"<!-- board: .*?<!-- end of board -->", "", page.read_text(), flags=re.DOTALL)
    text = FENCE.sub(lambda found: found[0].replace("\n#", "\n //"), text)  # comments are no headings
    for section in re.split(r"^(?=#+ )", text, flags=re.MULTILINE):
        title = section.split("\n")[0].lstrip("# ")
        lines = FENCE.sub("", section).splitlines()
        told = re.sub(r"`[^`]*`", "", "\n".join(line for line in lines if not line.startswith("|")))
        figures = [found for found in FIGURE.findall(told) if found not in LEVELS]
        figures += [line for line in lines if line.startswith("|") and re.search(r"\d\.\d", line)]
        if figures and (named(page), title) not in RULES:
            assert re.search(r"python -m |pytest ", section), (title, figures)


def test_printed_costs_are_those_of_the_publication() -> None:
    """The table of costs.md beside the published one: what stands as printed was printed."""
    published = pd.read_csv(ROOT / "reports" / "published" / "efficiency.csv").set_index(["pruner", "budget"])
    rows = re.findall(r"^\| (\w+) \| (\d+) \|(.*)\|$", (ROOT / "docs" / "costs.md").read_text(), re.MULTILINE)
    shown = {(name, int(budget)): [cell.strip() for cell in rest.split("|")] for name, budget, rest in rows}
    assert set(shown) == set(published.index)
    for key, (_, flops, printed, error, stored, stored_printed, stored_error) in shown.items():
        assert float(printed) == published.loc[key, "flops_t"]
        assert float(stored_printed) == published.loc[key, "activation_gb"]
        for ours, theirs, told in ((flops, printed, error), (stored, stored_printed, stored_error)):
            # both are rounded to two digits, the error is of the whole ones
            off = 100 * (float(ours) / float(theirs) - 1)
            assert abs(off - float(told.removesuffix(" %"))) <= 100 * 0.005 / float(theirs) + 0.05


# -- links


def plain(page: Path) -> str:
    """A page without its fences."""
    return FENCE.sub("", page.read_text())


def anchors(page: Path) -> set[str]:
    """The headings' anchors that a forge and mkdocs agree on."""
    found = set()
    for title in re.findall(r"^#+ (.+)$", plain(page), re.MULTILINE):
        text = re.sub(r"[`*]|\[([^\]]*)\]\([^)]*\)", r"\1", title)
        kept = re.sub(r"[^\w\s-]", "", unicodedata.normalize("NFKD", text)).strip().lower()
        forge, site_s = re.sub(r"\s", "-", kept), re.sub(r"[-\s]+", "-", kept)
        if forge == site_s:
            found.add(forge)
    return found


@pytest.mark.parametrize("page", PAGES, ids=named)
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", plain(page)):
        if target.startswith("https://"):
            continue
        path, _, anchor = target.partition("#")
        there = (page.parent / path).resolve() if path else page
        assert there.exists() and there.is_relative_to(ROOT), target
        if anchor:
            assert anchor in anchors(there), target


def test_the_site_has_every_page_and_no_link_out_of_it() -> None:
    settings = yaml.load((ROOT / "mkdocs.yml").read_text(), yaml.BaseLoader)
    assert settings["strict"] == "true"
    listed: list[str] = []

    def gather(nodes: Any) -> None:
        for node in nodes.values() if isinstance(nodes, dict) else nodes:
            listed.append(node) if isinstance(node, str) else gather(node)

    gather(settings["nav"])
    pages = {page.name for page in (ROOT / "docs").glob("*.md")} | set(site.PAGES.values())
    assert sorted(listed) == sorted(pages)
    for name in pages:
        file = ROOT / site.HOME.get(name, f"docs/{name}")
        turned = FENCE.sub("", site.turned(file.read_text(), name))
        for target in re.findall(r"\]\(([^)#\s]+)[^)]*\)", turned):
            there = (Path("/site") / name).parent / target
            inside = there.resolve().relative_to("/site").as_posix()
            if not target.startswith("https://"):
                assert inside in pages or (ROOT / "docs" / inside).is_file(), (name, target)


def test_links_are_turned_for_the_site() -> None:
    turned = (
        "[a](own-data.md#x) [card](../backbones/mini/README.md) [code](../tests/sample_plugin/) [b](#here)"
    )
    assert site.turned(turned, "faq.md") == "[a](own-data.md#x) [card](cards/glamm-mini.md) code [b](#here)"
    fenced = "```sh\n[a](docs/faq.md)\n```\n![p](docs/images/x.png) [f](docs/faq.md)"
    assert site.turned(fenced, "index.md").endswith("```\n![p](images/x.png) [f](faq.md)")
    assert site.turned("[home](../../README.md)", "cards/glamm-mini.md") == "[home](../index.md)"


def test_the_site_is_built_by_what_its_extra_names() -> None:
    extra = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]["docs"]
    tox = configparser.ConfigParser(interpolation=None)
    tox.read(ROOT / "tox.ini")
    wanted = [line for line in tox["testenv:docs"]["deps"].split() if not line.startswith(("-c", "{"))]
    assert wanted == [text.split(">=")[0] for text in extra]
    assert "mkdocs build --strict" in tox["testenv:docs"]["commands"]


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
