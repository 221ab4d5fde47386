"""Code is part of a cell: an edit gives other cells, a comment does not, and one run never mixes two codes in
one cell."""

from __future__ import annotations

import ast
import importlib
import multiprocessing
import os
import shutil
import sys
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import ModuleType

import pytest

from harness.engine.runner import Plan, Way, prepare, run
from harness.store import code, records
from pruners import Pruner, UserError, get, load_plugin, parse, registry
from tests.fake_backbone import FakeBackbone, write_data

pytestmark = pytest.mark.usefixtures("no_figures")

PLUGIN = '''
"""A pruner."""
from dataclasses import dataclass
from pruners import ScorePruner, register

SIGN = 1

@register
@dataclass(frozen=True)
class Norm(ScorePruner):
    """Large features."""
    name = "norm"
    reference = "a test"

    def score(self, tokens):
        return SIGN * tokens.patches.norm(dim=1)
'''


@pytest.fixture(autouse=True)
def _forget_plugins(monkeypatch: pytest.MonkeyPatch) -> object:
    monkeypatch.setattr(code, "STARTED", float("inf"))  # files of these tests are younger than the process
    known = dict(registry.PRUNERS.known)
    yield
    registry.PRUNERS.known.clear()
    registry.PRUNERS.known.update(known)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_data(tmp_path_factory.mktemp("data"), images=20)


def loaded(path: Path, text: str) -> type[Pruner]:
    path.write_text(text)
    registry.PRUNERS.known.pop("norm", None)
    load_plugin(path)
    return get("norm")


def go(root: Path, folder: Path, pruners: str = "none,uniform,norm", **way: bool) -> FakeBackbone:
    plan = Plan(tuple(parse(pruners)), (8,), (("refcoco", "val"),), data=str(root))
    backbone = FakeBackbone()
    assert run(plan, backbone, prepare(plan, backbone), folder, Way(**way))  # type: ignore[arg-type]
    return backbone


# --- digests
# ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("old", "new", "same"),
    [
        ('"""A pruner."""', '"""Another text."""', True),
        ('"""Large features."""', "", True),
        ("SIGN = 1", "SIGN = 1  # a comment", True),
        ("SIGN = 1", "SIGN   =  (\n    1\n)", True),
        ("SIGN = 1", "SIGN = -1", False),
        ("norm(dim=1)", "norm(dim=1, p=1)", False),
        ("(dim=1)", "(\n            dim=1,\n        )", True),
    ],
)
def test_a_digest_is_of_what_runs(tmp_path: Path, old: str, new: str, same: bool) -> None:
    one = code.of_pruner(loaded(tmp_path / "one.py", PLUGIN))
    other = code.of_pruner(loaded(tmp_path / "other.py", PLUGIN.replace(old, new)))
    assert (one == other) is same


def test_a_module_that_a_plugin_imports_is_part_of_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(tmp_path))
    text = PLUGIN.replace("SIGN = 1", "from my_own_helper import SIGN")
    found = []
    for sign in ("1", "-1"):
        (tmp_path / "my_own_helper.py").write_text(f"SIGN = {sign}\n# {'x' * len(sign)}")
        sys.modules.pop("my_own_helper", None)
        found.append(code.of_pruner(loaded(tmp_path / "mine.py", text)))
    sys.modules.pop("my_own_helper")
    assert found[0] != found[1]


def test_a_mixin_and_a_base_are_part_of_it(tmp_path: Path) -> None:
    text = PLUGIN + "\n\nclass Mixin:\n    power = 1\n"
    plain = code.of_pruner(loaded(tmp_path / "a.py", text))
    child = text.replace("class Norm(ScorePruner)", "class Norm(FastV)").replace(
        "import ScorePruner", "import ScorePruner, get"
    )
    child = child.replace("SIGN = 1", "from pruners.fastv import FastV\nSIGN = 1")
    assert plain != code.of_pruner(loaded(tmp_path / "b.py", child))
    assert code.of_pruner(get("fastv")) != code.of_pruner(get("trim"))


def test_an_edit_of_one_pruner_is_none_of_another(tmp_path: Path) -> None:
    """All built-in pruners import `pruners.base` and register; none is part of another."""
    for name in ("fastv", "trim", "random"):
        assert set(code._sources(get(name))) == {f"pruners.{name}"}


def test_a_class_without_a_file_is_never_taken_for_the_same_again() -> None:
    """What it rests on, helpers and globals, cannot be known."""

    def made() -> type[Pruner]:
        names: dict[str, object] = {"__name__": "nowhere"}
        exec(PLUGIN.replace("@register\n", ""), names)
        return names["Norm"]  # type: ignore[return-value]

    one, other = made(), made()
    assert code.of_pruner(one) == code.of_pruner(one)
    assert code.of_pruner(one) != code.of_pruner(other)


@pytest.mark.parametrize("how", ["lazy", "by name", "relative", "data", "parent"])
def test_whatever_a_plugin_rests_on_is_part_of_it(tmp_path: Path, how: str) -> None:
    """In processes of their own, as an edit between two runs has it."""
    package = tmp_path / "groundprune_demo"
    package.mkdir()
    text = PLUGIN.replace("SIGN = 1", "")
    body = {
        "lazy": "        from loose_helper import SIGN\n",
        "by name": "        import importlib\n        SIGN = importlib.import_module('loose_helper').SIGN\n",
        "relative": "        from .helper import SIGN\n",
        "data": "        import json, pathlib\n"
        "        SIGN = json.loads((pathlib.Path(__file__).parent / 'sign.json').read_text())\n",
        "parent": "        import groundprune_demo.helper\n        SIGN = groundprune_demo.SIGN\n",
    }[how]
    text = text.replace("    def score(self, tokens):\n", "    def score(self, tokens):\n" + body)
    (package / "pruner.py").write_text(text)
    found = []
    for sign in ("1", "-1"):
        (package / "__init__.py").write_text(f"SIGN = {sign}\n")
        (package / "helper.py").write_text(f"SIGN = {sign}\n")
        (package / "sign.json").write_text(sign)
        (tmp_path / "loose_helper.py").write_text(f"SIGN = {sign}\n")
        if how in ("lazy", "by name"):
            (tmp_path / "loose.py").write_text(text)
        module = "loose" if how in ("lazy", "by name") else "groundprune_demo.pruner"
        found.append(in_a_fork(partial(imported, tmp_path, module)))
    assert found[0] != found[1]


def imported(folder: Path, module: str) -> str:
    """Digest of a plugin that lies in a folder of modules."""
    sys.dont_write_bytecode = True  # two edits of one length within a second would pass for one
    sys.path.insert(0, str(folder))
    registry.PRUNERS.known.pop("norm", None)
    return code.of_pruner(importlib.import_module(module).Norm)


def in_a_fork(work: Callable[[], str]) -> str:
    """What a function gives in a process that has imported this project and nothing else."""
    fork = multiprocessing.get_context("fork")
    ours, theirs = fork.Pipe(duplex=False)
    process = fork.Process(target=lambda: theirs.send(work()))
    process.start()
    theirs.close()  # an end of the process is then an end of the file
    try:
        return ours.recv()
    finally:
        process.join()


def test_a_changed_default_is_another_edition_of_the_same_run(root: Path, tmp_path: Path) -> None:
    text = PLUGIN.replace('    name = "norm"', '    power: int = 1\n    name = "norm"').replace(
        "dim=1)", "dim=1) ** self.power"
    )
    loaded(tmp_path / "mine.py", text)
    go(root, tmp_path / "run")
    loaded(tmp_path / "mine.py", text.replace("power: int = 1", "power: int = -1"))
    go(root, tmp_path / "run")
    go(root, tmp_path / "fresh")
    assert records.load_records(tmp_path / "run").equals(records.load_records(tmp_path / "fresh"))


def test_two_codes_of_one_name_are_two_rows_of_a_report(root: Path, tmp_path: Path) -> None:
    for k, text in enumerate((PLUGIN, PLUGIN.replace("SIGN = 1", "SIGN = -1"))):
        loaded(tmp_path / "mine.py", text)
        go(root, tmp_path / f"run{k}")
    from reports import render

    page = render([tmp_path / "run0", tmp_path / "run1"], tmp_path / "out")[0].read_text()
    assert "norm was computed by 2 sources" in page
    assert len([line for line in page.splitlines() if line.startswith("| norm #")]) == 2
    assert len([line for line in page.splitlines() if line.startswith("| uniform")]) == 1


def test_everything_that_an_evaluation_imports_is_part_of_its_digest_or_known_not_to_matter() -> None:
    """A new module of the way from pixels to counts must be listed, here or there."""
    deciding = set(code.evaluation())
    harmless = {*code.HARMLESS, "pruners/__init__.py", "pruners/registry.py"}
    seen: set[str] = set()
    left = [
        "harness/engine/evaluate.py",
        "harness/engine/prefetch.py",
        "harness/engine/cells.py",
        "backbones/__init__.py",
        "backbones/glamm/backbone.py",
        "backbones/lisa/backbone.py",
        "backbones/videoglamm/backbone.py",
    ]
    while left:
        name = left.pop()
        if name in seen:
            continue
        seen.add(name)
        for node in ast.walk(ast.parse((code.HOME / name).read_text())):
            modules = [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            modules += (
                [f"{node.module}.{alias.name}" for alias in node.names]
                if isinstance(node, ast.ImportFrom)
                else []
            )
            for module in modules:
                path = Path(*module.split("."))
                for file in (path.with_suffix(".py"), path / "__init__.py"):
                    known = file.as_posix()
                    # pruners have digests of their own, generated data their fingerprint
                    own = known.startswith("pruners/") and known not in deciding
                    made = "refshapes" in known or "refclips" in known
                    if (code.HOME / file).is_file() and not own and not made:
                        left.append(known)
    engine = {
        "harness/__init__.py",
        "harness/store/__init__.py",
        "harness/store/code.py",
        "harness/data/refshapes/__init__.py",
    }
    assert seen - deciding - harmless - engine == set()


def test_two_places_of_one_code_are_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("backbones", "harness", "pruners"):
        shutil.copytree(
            code.HOME / name, tmp_path / name, ignore=shutil.ignore_patterns("weights", "__pycache__")
        )
    here = code.evaluation()
    monkeypatch.setattr(code, "HOME", tmp_path)
    monkeypatch.setattr(code, "STARTED", float("inf"))
    assert code.evaluation.__wrapped__() == here
    file = tmp_path / "harness" / "metrics" / "masks.py"
    file.write_text(file.read_text() + "\n# a comment\n")
    assert code.evaluation.__wrapped__() == here
    file.write_text(file.read_text().replace("FOREGROUND = 1", "FOREGROUND = 2"))
    changed = code.evaluation.__wrapped__()
    assert {name for name in here if here[name] != changed[name]} == {"harness/metrics/masks.py"}


def test_a_process_that_is_older_than_its_code_does_not_claim_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(code, "STARTED", 0.0)
    with pytest.raises(UserError, match="edited after this process began"):
        code.evaluation.__wrapped__()


def test_what_another_process_is_compiling_is_no_edit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Python and pytest write what they compile under a name that is no .pyc, and rename it."""
    source, compiled = tmp_path / "some_package" / "__init__.py", tmp_path / "some_package" / "__pycache__"
    compiled.mkdir(parents=True)
    source.write_text("SIGN = 1\n")
    package = ModuleType("some_package")
    package.__path__ = [str(source.parent)]
    before = code._package.__wrapped__(package)
    os.utime(source, (0, 0))
    (compiled / "__init__.cpython-312.pyc.140").write_bytes(b"half of it")
    monkeypatch.setattr(code, "STARTED", 1.0)
    assert code._package.__wrapped__(package) == before
    os.utime(source)
    with pytest.raises(UserError, match="edited after this process began"):
        code._package.__wrapped__(package)


# --- runs
# ---------------------------------------------------------------------------------------------------------


def test_after_an_edit_only_the_cells_concerned_run_again(
    root: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    loaded(tmp_path / "mine.py", PLUGIN)
    go(root, tmp_path / "run")
    before = records.load_records(tmp_path / "run")
    written = sum(1 for _ in records.rows_of(next((tmp_path / "run" / records.FOLDER).iterdir())))
    loaded(tmp_path / "mine.py", PLUGIN.replace("SIGN = 1", "SIGN = -1"))
    capfd.readouterr()
    backbone = go(root, tmp_path / "run")
    assert "norm: source changed since" in capfd.readouterr().err
    after = records.load_records(tmp_path / "run")
    assert backbone.grounded
    place = next((tmp_path / "run" / records.FOLDER).iterdir())
    assert sum(1 for _ in records.rows_of(place)) == written + (before["pruner"] == "norm").sum()
    same = before["pruner"] != "norm"
    assert before[same].reset_index(drop=True).equals(after[after["pruner"] != "norm"].reset_index(drop=True))
    assert set(before[~same]["cell"]).isdisjoint(after["cell"])
    loaded(tmp_path / "mine.py", PLUGIN.replace("SIGN = 1", "SIGN = -1"))
    go(root, tmp_path / "fresh")
    fresh = records.load_records(tmp_path / "fresh")
    assert fresh.equals(after)


def test_an_edit_that_is_taken_back_finds_its_rows_again(root: Path, tmp_path: Path) -> None:
    for text in (PLUGIN, PLUGIN.replace("SIGN = 1", "SIGN = -1")):
        loaded(tmp_path / "mine.py", text)
        go(root, tmp_path / "run")
    loaded(tmp_path / "mine.py", PLUGIN)
    backbone = go(root, tmp_path / "run")
    assert backbone.encoded == []
    go(root, tmp_path / "fresh")
    assert records.load_records(tmp_path / "fresh").equals(records.load_records(tmp_path / "run"))


def test_a_run_that_is_only_shown_says_so(
    root: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    go(root, tmp_path / "run", "none")
    assert "nothing computed" not in capfd.readouterr().err
    assert go(root, tmp_path / "run", "none").encoded == []
    assert "nothing computed; --force starts anew" in capfd.readouterr().err


def test_keep_code_goes_on_with_the_old_cells_and_marks_the_rows(root: Path, tmp_path: Path) -> None:
    loaded(tmp_path / "mine.py", PLUGIN)
    go(root, tmp_path / "run")
    cells = set(records.load_records(tmp_path / "run")["cell"])
    (tmp_path / "run" / records.DONE).unlink()
    (journal,) = (tmp_path / "run" / records.FOLDER).glob("*/*.jsonl")
    lines = journal.read_bytes().splitlines(keepends=True)
    journal.write_bytes(b"".join(lines[: 2 * len(lines) // 3]))
    loaded(tmp_path / "mine.py", PLUGIN.replace("SIGN = 1", "SIGN = -1"))
    go(root, tmp_path / "run", keep_code=True)
    frame = records.load_records(tmp_path / "run")
    assert set(frame["cell"]) == cells
    marked = frame[frame["code"] != ""]
    assert 0 < len(marked) < len(frame)
    assert set(marked["pruner"]) == {"norm"}
    from reports import render

    assert "computed by other code than the rest of their rows" in render(tmp_path / "run")[0].read_text()


def test_identity_of_what_was_asked_leaves_the_code_out() -> None:
    from tests.test_harness import CELL

    edited = replace(CELL, source="s", setting=replace(CELL.setting, code="c"))
    assert edited.id != CELL.id
    assert edited.asked == CELL.asked
    assert replace(CELL, budget=9).asked != CELL.asked
