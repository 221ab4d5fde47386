"""Boards of the documents: what stands there is what the summaries say, and a summary is what a run says."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

import backbones
from harness import Plan
from harness.engine import runner
from harness.store.records import load_records
from tests import boards
from tests.fake_backbone import FakeBackbone, known, write_data

NAMES = sorted(path.stem for path in boards.SUMMARIES.glob("*.json"))


def test_documents_print_what_the_summaries_say() -> None:
    for path, text in boards.renewed():
        assert path.read_text() == text, f"{path}: give python -m tests.boards"
        assert (
            text.count("<!-- board: ")
            == text.count("<!-- end of board -->")
            == len(boards.BLOCK.findall(text))
        )


def test_every_board_has_a_summary_that_is_printed_with_its_command() -> None:
    assert sorted(boards.BOARDS) == NAMES
    printed = "".join(path.read_text() for path in boards.documents())
    for name in NAMES:
        assert re.search(rf"<!-- board: \S*{name}[ +]", printed), name
        assert f"`{boards.BOARDS[name].command}`, code " in printed


@pytest.mark.parametrize("name", NAMES)
def test_a_summary_says_where_it_comes_from(name: str) -> None:
    summary = json.loads((boards.SUMMARIES / f"{name}.json").read_text())
    assert summary["command"] == boards.BOARDS[name].command
    assert re.fullmatch("[0-9a-f]{40}", summary["made"]["commit"])
    assert summary["made"]["time"].startswith("20")
    for table in summary["tables"]:
        assert table["kind"] in boards.KINDS
        assert table["columns"][:2] == [boards.HEADING, "method"]
        assert {len(row) for row in table["rows"]} == {len(table["columns"])}
        keys = [tuple(row[:2]) for row in table["rows"]]
        assert len(keys) == len(set(keys))
    bound = next(row for row in boards.read(name)["tables"][0]["rows"] if row["method"] == boards.BOUND)
    assert bound.get("Rel. %", "100.0") == "100.0"


def test_a_changed_figure_is_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = (boards.ROOT / "README.md").read_text()
    (tmp_path / "README.md").write_text(text.replace("| none | 91", "| none | 92", 1))
    monkeypatch.setattr(boards, "documents", lambda: [tmp_path / "README.md"])
    monkeypatch.setattr(boards, "ROOT", tmp_path)
    monkeypatch.setattr(boards, "EMBEDDED", tmp_path / "embedded.csv")
    assert boards.main(["--check"]) == (1 if "| none | 91" in text else 0)
    assert boards.main([]) == 0 and (tmp_path / "README.md").read_text() == text


def test_a_run_becomes_a_summary_and_a_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its figures are those of the records; another run, or an unfinished one, is refused."""
    known(monkeypatch)
    root = write_data(tmp_path / "data", images=6)
    asked = {"backbones": "fake", "pruners": "none,random,visionzip", "budgets": "8,4", "costs": "off"}
    asked |= {"datasets": "refcoco:val", "data": str(root)}
    board = boards.Board("--budgets 8,4", asked)
    monkeypatch.setattr(boards, "BOARDS", {"toy": board, "other": boards.Board("", asked | {"seed": 1})})
    monkeypatch.setattr(boards, "SUMMARIES", tmp_path / "boards")
    monkeypatch.setattr(boards, "ROOT", tmp_path)
    monkeypatch.setattr(boards, "EMBEDDED", tmp_path / "embedded.csv")
    document = tmp_path / "README.md"
    document.write_text("# toy\n\n<!-- board: toy scores -->\nold\n<!-- end of board -->\n\nbelow\n")
    monkeypatch.setattr(boards, "documents", lambda: [document])
    (tmp_path / "boards").mkdir()
    run = tmp_path / "run"
    plan, backbone = Plan(**asked).on("fake"), FakeBackbone()
    assert runner.run(plan, backbone, runner.prepare(plan, backbone), run)
    assert boards.main(["toy", str(run), "--seconds", "7", "--machine", "a toy"]) == 0
    made = json.loads((tmp_path / "boards" / "toy.json").read_text())["made"]
    assert made["seconds"] == 7 and made["weights"] == "fa4e" * 4 and made["packages"]["torch"]
    text = document.read_text()
    assert text.startswith("# toy\n\n<!-- board: toy scores -->\n\n`python -m harness --budgets 8,4`, code ")
    assert "7 s on a toy.\n\n| method | refcoco val |" in text
    assert text.endswith("|\n\n<!-- end of board -->\n\nbelow\n")
    frame = load_records(run)
    frame = frame[(frame["pruner"] == "visionzip") & (frame["budget"] == 8)]
    score = f"{100 * frame['intersection'].sum() / frame['union'].sum():.1f}"
    assert "| **Retain 8 tokens** |  |" in text
    assert f"| visionzip | {score} | {score} |" in text
    with pytest.raises(SystemExit, match="was asked something else \\(seed: 0, not 1\\); make one with:"):
        boards.main(["other", str(run)])
    (run / "done.json").unlink()
    with pytest.raises(SystemExit, match="unfinished"):
        boards.main(["toy", str(run)])


@pytest.mark.parametrize("name", sorted(boards.BOARDS))
def test_a_board_asks_what_its_command_says(name: str) -> None:
    board = boards.BOARDS[name]
    words = board.options.split()
    given = {option.removeprefix("--"): value for option, value in zip(words[::2], words[1::2], strict=True)}
    given.pop("costs", None)  # which change no score
    assert given == board.plan
    plan = Plan(**board.plan)
    assert plan.pairs_of(backbones.one(plan.backbones[0]))
