"""Bundles: a run is submitted and accepted; what is changed, incomplete or of a stranger's making is
refused in one sentence."""

from __future__ import annotations

import hashlib
import io
import itertools
import json
import platform
import re
import shutil
import sys
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow
import pytest
import yaml
from pyarrow import parquet

import pruners
from harness import cli
from harness.bundle import Bundle, accept, conformance, content, files, read, unpack
from harness.bundle.submit import submit
from harness.store import records, run_folder
from harness.store.journal import DIGEST, write_atomically
from pruners import registry
from pruners.base import UserError
from reports.gather import gather
from reports.site import render
from reports.tables import tables
from tests.fake_backbone import known, write_data

PLUGIN = '''"""A plugin."""
from dataclasses import dataclass
from typing import ClassVar
from pruners import ScorePruner, register

@register
@dataclass(frozen=True)
class Mine(ScorePruner):
    name: ClassVar[str] = "bundled"
    reference: ClassVar[str] = "Mine, https://example.org/paper"

    def score(self, view):
        return {score}
'''
GOOD, BAD = (
    "view.patches.norm(dim=-1)",
    "view.patches.norm(dim=-1) + __import__('torch').rand(len(view.patches))",
)


def command(patch: pytest.MonkeyPatch, *words: object) -> int:
    patch.setattr(sys, "argv", ["python -m harness", *map(str, words)])
    return cli.main()


def clean(folder: Path, **changed: Any) -> None:
    """What `run.json` says, with a commit that holds its code and other changes."""
    info = run_folder.run_info(folder)
    info["provenance"] |= {"commit": "ab" * 20, "dirty": False, "diff": None}
    write_atomically(folder / run_folder.RUN, info | changed, run_folder.LOOSE)


def sweep(folder: Path, root: Path, asked: str, *more: object) -> Path:
    """A small run of the fake backbone."""
    with pytest.MonkeyPatch.context() as patch:
        known(patch)
        words = ("--backbones", "fake", "--data", root, "--datasets", "refcoco:val", "--budgets", "8,24")
        words += ("--pruners", asked, "--costs", "off", "--out", folder, *more)
        assert command(patch, *words) == 0
    clean(folder)
    return folder


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_data(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, root: Path) -> Path:
    return sweep(tmp_path_factory.mktemp("runs") / "mine", root, "none,random,visionzip,fastv")


@pytest.fixture(scope="module")
def bundle(run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("bundles") / "mine.zip"
    submit(run, path)
    return path


@pytest.fixture
def copy(run: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(run, tmp_path / "copy"))


def test_a_run_is_submitted_and_accepted(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "new" / "a.zip"
    assert command(monkeypatch, "submit", run, "--out", out) == 0
    told = capsys.readouterr().out
    assert "4 methods (fastv, none, random, visionzip)" in told and "marked" not in told and str(out) in told
    assert command(monkeypatch, "submit", "--check", out, out) == 0
    assert capsys.readouterr().out.count("accepted") == 2
    again = tmp_path / "b.zip"
    submit(run, again)
    assert out.read_bytes() == again.read_bytes(), "the same run gives the same bytes"


def test_a_bundle_gives_the_tables_of_its_run(run: Path, bundle: Path, tmp_path: Path) -> None:
    """Same rows, same digits, same intervals."""
    (ours,), (theirs,) = (
        tables(gather([folder])) for folder in (run, unpack(read(bundle), tmp_path / "run"))
    )
    assert len(ours.lines) == 7
    for one, other in zip(ours.lines, theirs.lines, strict=True):
        assert (one.pruner, one.budget, one.tokens_mean) == (other.pruner, other.budget, other.tokens_mean)
        assert one.average == other.average and one.scores == other.scores
        assert {kind: said.q for kind, said in one.against.items()} == pytest.approx(
            {kind: said.q for kind, said in other.against.items()}, nan_ok=True
        )
    assert ours.group.facts == theirs.group.facts


def test_a_bundle_names_no_machine_no_path_and_no_text(run: Path, bundle: Path, root: Path) -> None:
    frame = records.load_records(run)
    with zipfile.ZipFile(bundle) as file:
        assert sorted(file.namelist()) == ["bundle.json", "results.parquet"]
        raw = file.read("bundle.json")
        held = parquet.read_table(io.BytesIO(file.read("results.parquet")))
    values = " ".join(str(value) for name in held.column_names for value in held.column(name).to_pylist())
    for hidden in (str(run), str(root), platform.node(), *frame["text"], *frame["cluster"]):
        assert hidden not in raw.decode() and hidden not in values
    assert not {"mask", "kept", "text", "image", "wrote"} & set(held.column_names)
    assert b'"host"' not in raw and b'"command"' not in raw


def test_methods_say_where_they_are_from(run: Path, bundle: Path) -> None:
    """Recorded with every cell, and again at submission."""
    info = run_folder.run_info(run)
    assert {cell["reference"] for cell in info["cells"].values() if cell["pruner"] == "fastv"} == {
        pruners.get("fastv").reference
    }
    said = read(bundle).facts["methods"]["fastv"]
    assert said["own"] and said["conformance"]["passed"] == list(conformance.CHECKS)
    assert said["reference"] == pruners.get("fastv").reference and said["stage"] == "layer"


# -- what is refused at submission


def refused(run: Path, tmp_path: Path, **given: Any) -> str:
    with pytest.raises(UserError) as caught:
        submit(run, tmp_path / "never.zip", **given)
    assert not (tmp_path / "never.zip").exists() and "\n" not in str(caught.value)
    return str(caught.value)


def test_unfinished_runs_are_refused(copy: Path, tmp_path: Path) -> None:
    (copy / "done.json").unlink()
    assert "not finished" in refused(copy, tmp_path)
    assert "no run.json" in refused(tmp_path, tmp_path)


def test_damaged_records_are_refused(copy: Path, tmp_path: Path) -> None:
    (table,) = copy.glob("records/*/ok.parquet")
    table.write_bytes(table.read_bytes()[:-1])
    assert "damaged" in refused(copy, tmp_path)


@pytest.mark.parametrize("facts", [{"dirty": True, "diff": "1234"}, {"commit": None, "dirty": None}], ids=str)
def test_code_that_no_commit_holds_is_refused_or_marked(
    copy: Path, tmp_path: Path, facts: dict[str, Any]
) -> None:
    info = run_folder.run_info(copy)
    clean(copy)
    info["provenance"] |= facts
    write_atomically(copy / run_folder.RUN, info, run_folder.LOOSE)
    assert "--allow-dirty" in refused(copy, tmp_path)
    assert any(line.startswith("marked dirty") for line in submit(copy, tmp_path / "a.zip", allow_dirty=True))


def test_a_part_of_a_split_is_refused_or_marked(root: Path, tmp_path: Path) -> None:
    part = sweep(tmp_path / "part", root, "none,uniform", "--limit", 2)
    assert "--limit 2" in refused(part, tmp_path)
    assert any(line.startswith("marked subset") for line in submit(part, tmp_path / "a.zip", subset=True))


def test_a_run_without_none_is_refused(root: Path, tmp_path: Path) -> None:
    assert "no row `none` of refcoco:val" in refused(sweep(tmp_path / "run", root, "uniform"), tmp_path)


def test_other_code_and_failures_are_refused(bundle: Path) -> None:
    facts = read(bundle).facts
    for changed, word in (
        ({"other_code": ["fastv"]}, "--keep-code"),
        ({"failed": {"refcoco:val": 1}}, "1 % may"),
        ({"finished": False}, "not finished"),
    ):
        (why,) = accept.comparable(Bundle(facts | changed, pd.DataFrame()))
        assert word in why


def test_a_plugin_needs_its_source_and_has_to_conform(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(registry.PRUNERS, "known", dict(registry.PRUNERS.known))
    path = tmp_path / "bundled_plugin.py"
    path.write_text(PLUGIN.replace("{score}", GOOD))
    run = sweep(tmp_path / "run", root, "none,bundled", "--plugin", path)
    assert "--by" in refused(run, tmp_path)
    given = {"by": "Some One", "url": "https://example.org/source", "licence": "MIT"}
    assert "an https address" in refused(run, tmp_path, **given | {"url": "ftp://example.org"})
    told = submit(run, tmp_path / "a.zip", **given)
    assert "bundled is by Some One, source at https://example.org/source (MIT)" in told
    assert not read(tmp_path / "a.zip").facts["methods"]["bundled"]["own"]
    registry.PRUNERS.known.pop("bundled")
    assert "--plugin" in refused(run, tmp_path, **given)
    path.write_text(PLUGIN.replace("{score}", BAD))
    monkeypatch.setattr("harness.store.code._sources", lambda cls: {})  # whatever its age and digest
    pruners.load_plugin(path)
    monkeypatch.setattr("harness.store.code.of_pruner", lambda cls: _sources(run)[cls.name])
    assert "bundled does not conform" in refused(run, tmp_path, **given)


def _sources(run: Path) -> dict[str, str]:
    return {cell["pruner"]: cell["source"] for cell in run_folder.run_info(run)["cells"].values()}


def test_a_method_that_was_edited_since_is_refused(copy: Path, tmp_path: Path) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("harness.store.code.of_pruner", lambda cls: "other")
        assert "is not the one that ran" in refused(copy, tmp_path)


def test_every_method_of_the_package_conforms_to_what_is_asked_of_others() -> None:
    for name in ("uniform", "downsample", "oracle", "litelvlm"):
        assert conformance.conform(pruners.get(name)()) == list(conformance.CHECKS)


# -- what is refused of a stranger's file

Change = Callable[[dict[str, Any], pd.DataFrame], Any]  # in place, or the rows anew


def forged(path: Path, bundle: Path, change: Change) -> Path:
    """A bundle whose maker knows how digests are made."""
    held = read(bundle)
    facts, rows = json.loads(json.dumps(held.facts)), held.rows.copy()
    changed = change(facts, rows)
    rows = changed if isinstance(changed, pd.DataFrame) else rows
    whole, raw = files.sealed(Bundle({name: facts[name] for name in facts if name != DIGEST}, rows))
    return zipped(path, {"bundle.json": json.dumps(whole.facts).encode(), "results.parquet": raw})


def zipped(path: Path, members: dict[str, bytes]) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
        for name, raw in members.items():
            file.writestr(name, raw)
    return path


def members(bundle: Path) -> dict[str, bytes]:
    with zipfile.ZipFile(bundle) as file:
        return {name: file.read(name) for name in file.namelist()}


def why(path: Path) -> str:
    with pytest.raises(UserError) as caught:
        accept.accept(path)
    assert "\n" not in str(caught.value) and str(path) in str(caught.value)
    return str(caught.value)


def first(facts: dict[str, Any], name: str = "visionzip") -> dict[str, Any]:
    return next(cell for cell in facts["cells"].values() if cell["pruner"] == name)


def renamed(facts: dict[str, Any], rows: pd.DataFrame, **changed: Any) -> None:
    """Change every cell of visionzip, and keep its digests right."""
    cells = {}
    new = {}
    for cell, entry in facts["cells"].items():
        entry |= changed if entry["pruner"] == "visionzip" else {}
        new[cell] = content.cell_id(entry)
        cells[new[cell]] = entry
    facts["cells"] = cells
    rows["cell"] = rows["cell"].map(new)


def dearer(facts: dict[str, Any], rows: pd.DataFrame) -> None:
    """Every budget one token larger than what ran."""
    for entry in facts["cells"].values():
        entry |= {"budget": entry["budget"] + 1, "sent": entry["sent"] + 1}
    renamed(facts, rows)


def none_lost(facts: dict[str, Any], rows: pd.DataFrame) -> pd.DataFrame:
    lost = {cell for cell, entry in facts["cells"].items() if entry["pruner"] == "none"}
    facts["cells"] = {cell: entry for cell, entry in facts["cells"].items() if cell not in lost}
    del facts["methods"]["none"]
    return rows[~rows["cell"].isin(lost)]


FORGED: dict[str, tuple[Change, str]] = {
    "more pixels in common than in all": (
        lambda facts, rows: rows.__setitem__("intersection", rows["union"] + 1),
        "its intersection is",
    ),
    "more tokens than the budget": (
        lambda facts, rows: rows.__setitem__("tokens_final", rows["tokens_final"] + 1),
        "cannot be",
    ),
    "another budget in a cell": (lambda facts, rows: first(facts).update(budget=9), "another digest"),
    "another budget, with its digest": (dearer, "where the budget is"),
    "another source, with its digest": (lambda f, r: renamed(f, r, source="00"), "differ in source"),
    "no none": (none_lost, "no row `none`"),
    "dirty and not marked": (lambda facts, rows: facts["code"].update(dirty=True), "it is marked []"),
    "a limit and not marked": (lambda facts, rows: facts["plans"][0].update(limit=3), "it is marked []"),
    "a path": (lambda facts, rows: facts.update(by="/home/alice/run"), "a path of somebody's machine"),
    "a path in a sample": (
        lambda facts, rows: rows.__setitem__("sample", "refcoco:val:/home/alice/1"),
        "a path of somebody's machine",
    ),
    "a medium by its name": (lambda facts, rows: rows.__setitem__("medium", "a/b.jpg"), "no digest"),
    "another schema": (lambda facts, rows: facts.update(schema=99), "it has schema '99'"),
    "a fact that nobody knows": (lambda facts, rows: facts.update(score=99.0), "'score'"),
    "a fact less": (lambda facts, rows: facts.pop("licence"), "nothing of 'licence'"),
    "a kind that nobody knows": (lambda f, r: renamed(f, r, kind="best"), "'best' for 'kind'"),
    "a clip that fills the memory": (
        lambda facts, rows: rows.__setitem__("frames", 10**15),
        "and may be 1 to 10000",
    ),
    "views that fill the memory": (
        lambda facts, rows: rows.__setitem__("views", 10**15),
        "and may be 1 to 100",
    ),
    "a run that is a way out": (lambda facts, rows: facts.update(run="../../ab"), "which is no digest"),
    "an expression less": (lambda facts, rows: rows.iloc[1:], "do not compare"),
    "a result twice": (
        lambda facts, rows: rows.__setitem__("expression", rows["expression"].iloc[0]),
        "stand there twice",
    ),
    "no conformance": (
        lambda facts, rows: facts["methods"]["fastv"]["conformance"].update(passed=[]),
        "did not pass",
    ),
    "a stranger's method": (
        lambda facts, rows: facts["methods"]["fastv"].update(own=False),
        "nobody says where its source is",
    ),
    "a failure": (lambda facts, rows: facts["failed"].update({"refcoco:val": 3}), "samples failed"),
    "costs of nothing": (
        lambda facts, rows: facts.update(
            costs={"header": {}, "lines": [{"kind": "round"}], "conventions": {}}
        ),
        "costs",
    ),
}


@pytest.mark.parametrize("name", FORGED)
def test_forged_bundles_are_refused(name: str, bundle: Path, tmp_path: Path) -> None:
    change, word = FORGED[name]
    assert word in why(forged(tmp_path / "a.zip", bundle, change))


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The way to every value of a JSON, of lists and of alike things the first."""
    if path:
        yield path
    if isinstance(value, dict):
        for name in list(value)[: 2 if path[-1:] in (("cells",), ("methods",), ("files",)) else None]:
            yield from places(value[name], (*path, name))
    elif isinstance(value, list) and value:
        yield from places(value[0], (*path, 0))


def test_whatever_a_fact_becomes_is_refused_or_taken(bundle: Path) -> None:
    """Never another error: every fact of a bundle becomes something else in turn."""
    held = read(bundle)
    odd = itertools.cycle([None, [], {}, "x", -1, 1.5, True, [[]], {"x": None}, 10**30])
    tried, strange = 0, []
    for path in places(held.facts):
        facts = json.loads(json.dumps(held.facts))
        at = facts
        for name in path[:-1]:
            at = at[name]
        before, value = at[path[-1]], next(odd)
        at[path[-1]] = value
        why_not = accept.problem(Bundle(facts, held.rows))
        tried += 1
        if why_not is None and value != before:
            strange.append((path, value))
    assert tried > 100
    # what no number hangs on, and what a run may truly say of itself
    free = {"plans", "environment", "time", "run", "by", "url", "licence", "digest", "code", "results"}
    free |= {"continued", "schema", "failed"}
    assert not [one for one in strange if one[0][0] not in free], strange


def test_a_bundle_as_it_is_passes_the_forge(bundle: Path, tmp_path: Path) -> None:
    """What refuses the others is their change, not the way in which they are made."""
    assert accept.accept(forged(tmp_path / "a.zip", bundle, lambda facts, rows: None))


def test_changed_files_are_refused(bundle: Path, tmp_path: Path) -> None:
    path, held = tmp_path / "a.zip", members(bundle)
    facts = json.loads(held["bundle.json"])
    changed = json.dumps(facts | {"by": "another"}).encode()
    assert "its digest is another" in why(zipped(path, held | {"bundle.json": changed}))
    raw = bytearray(held["results.parquet"])
    raw[len(raw) // 2] ^= 1
    assert "SHA-256 is another" in why(zipped(path, held | {"results.parquet": bytes(raw)}))
    path.write_bytes(bundle.read_bytes()[:-40])
    assert "no zip" in why(path)
    assert "cannot be read" in why(tmp_path / "absent.zip")
    constant = held["bundle.json"].replace(b'"threads": 1', b'"threads": NaN')
    assert "no number of JSON" in why(zipped(path, held | {"bundle.json": constant}))


@pytest.mark.parametrize("name", ["../../evil.json", "/etc/passwd", "more.pkl", "bundle.json/../x"])
def test_other_files_and_traversal_are_refused(name: str, bundle: Path, tmp_path: Path) -> None:
    assert repr(name) in why(zipped(tmp_path / "a.zip", members(bundle) | {name: b"x"}))
    assert not (tmp_path.parent / "evil.json").exists()


def test_bombs_are_refused(bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Sizes are looked at before anything is unpacked, and while it is."""
    monkeypatch.setitem(files.LARGEST, "bundle.json", 100_000)
    bomb = zipped(tmp_path / "a.zip", members(bundle) | {"bundle.json": b" " * 10_000_000})
    assert bomb.stat().st_size < 100_000 and "unpacks to more" in why(bomb)
    monkeypatch.setattr(files, "MOST_ROWS", 10)
    assert "unpack to more" in why(bundle)


def test_other_columns_and_long_texts_are_refused(bundle: Path, tmp_path: Path) -> None:
    held = members(bundle)
    table = parquet.read_table(io.BytesIO(held["results.parquet"]))

    def with_table(changed: pyarrow.Table) -> Path:
        raw = io.BytesIO()
        parquet.write_table(changed, raw)
        facts = json.loads(held["bundle.json"])
        del facts[DIGEST]
        facts["results"]["sha256"] = hashlib.sha256(raw.getvalue()).hexdigest()
        facts[DIGEST] = content.content_digest(facts)
        return zipped(
            tmp_path / "a.zip", {"bundle.json": json.dumps(facts).encode(), "results.parquet": raw.getvalue()}
        )

    assert accept.accept(with_table(table))
    assert "['iou']" in why(with_table(table.append_column("iou", pyarrow.array([1.0] * len(table)))))
    long = pyarrow.array(["refcoco:val:" + "1" * 300] * len(table))
    place = table.column_names.index("sample")
    assert "more than 200 letters" in why(with_table(table.set_column(place, "sample", long)))
    counts = table.column("union").cast(pyarrow.float64())
    place = table.column_names.index("union")
    assert "its columns are not those" in why(with_table(table.set_column(place, "union", counts)))


def test_paths_are_told_from_addresses_and_shares() -> None:
    for text in (
        "https://arxiv.org/abs/2412.01818",
        "24/32",
        "backbones/glamm/model.py",
        "a ~ b",
        "it is 3/4",
    ):
        assert content.without_paths(text) == text
    for text in (
        "/home/alice/x",
        "at /data/x.",
        "checkpoint='/mnt/a'",
        "~/runs",
        r"C:\Users\a",
        "file:///a/b",
    ):
        assert content.NO_PATH in content.without_paths(text)


# -- the workflow that takes them

WORKFLOW = Path(__file__).parent.parent / ".github" / "workflows" / "board.yml"


def test_the_workflow_checks_with_least_rights() -> None:
    """What a pull request brings is read with the right to read, by the code of the branch that takes it."""
    text = WORKFLOW.read_text()
    content = yaml.load(text, yaml.BaseLoader)
    assert content["permissions"] == {"contents": "read"} and "pull_request_target" not in text
    rights = {name: job["permissions"] for name, job in content["jobs"].items() if "permissions" in job}
    assert rights == {"publish": {"pages": "write", "id-token": "write"}}
    assert content["jobs"]["check"]["if"] == "github.event_name == 'pull_request'"
    assert content["jobs"]["site"]["if"] == "github.event_name != 'pull_request'"
    assert content["jobs"]["publish"]["needs"] == "site"
    steps = [step for job in content["jobs"].values() for step in job["steps"]]
    assert all(re.fullmatch(r"actions/[\w-]+@v\d+", step["uses"]) for step in steps if "uses" in step)
    run = "\n".join(step["run"] for step in steps if "run" in step)
    assert "${{" not in run, "nothing that a stranger writes becomes part of a script"
    commands = re.findall(r"python -m harness (\w+)(?: (--\w+))?", run)
    assert set(commands) == {("submit", "--check"), ("site", "")}


def test_what_the_board_holds_is_accepted_and_shown(tmp_path: Path) -> None:
    """As the workflow does it."""
    board = Path(__file__).parent.parent / "board"
    held = sorted(board.glob("*.zip"))
    assert held and all(accept.accept(path) for path in held)
    assert render([board], tmp_path / "site").size < 500_000
