"""The leaderboard: layout of the published tables, exact numbers, and what it says when rows do not compare."""

from __future__ import annotations

import json
from itertools import product
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from harness import metrics, records
from pruners import UserError
from reports import __main__ as command
from reports.leaderboard import MINI_WARNING, render

COLUMNS = (("refcocog", "val"), ("refcoco", "testA"), ("refcoco", "val"), ("refcoco+", "val"))
LINES = (
    ("none", 576, (0,)),
    ("litelvlm", 64, (0,)),
    ("fastv(layer=3)", 64, (0,)),
    ("oracle", 64, (0,)),
    ("random", 64, (0, 1, 2)),
    ("fastv(layer=3)", 192, (0,)),
    ("random", 192, (0, 1, 2)),
)


def a_row(column: tuple[str, str], pruner: str, budget: int, seed: int, place: int) -> dict[str, Any]:
    rank = [line[:2] for line in LINES].index((pruner, budget))
    return {
        "backbone": "glamm-mini",
        "dataset": column[0],
        "split": column[1],
        "protocol": "each",
        "pruner": pruner,
        "budget": budget,
        "seed": seed,
        "cell": f"{column}{pruner}{budget}{seed}",
        "sample": f"{column[0]}:{column[1]}:{place // 2}",
        "expression": place,
        "place": place % 2,
        "of": 2,
        "status": "ok",
        "tokens_final": budget,
        "tokens_mean": 336.0 if "fastv" in pruner else float(budget),
        "intersection": 90 - 10 * rank + seed + place,
        "union": 100 + place,
        "iou": (90 - 10 * rank + seed + place) / (100 + place),
        "coverage": 0.5,
        "kept": "",
        "mask": "",
    }


def store(folder: Path, rows: list[dict[str, Any]], finished: bool = True) -> Path:
    place = records.split_folder(folder, "any", "split")
    place.mkdir(exist_ok=True, parents=True)
    content = [{"schema": records.SCHEMA}, *rows]
    (place / "0.jsonl").write_text("".join(json.dumps(row) + "\n" for row in content))
    setting = {"fingerprint": "a1b2", "dtype": "float32", "attn": "sdpa", "device": "cpu"}
    info = {
        "run": "c3d4",
        "asked": {"seed": 7},
        "cells": {"x": {"setting": setting}},
        "provenance": {"commit": "0123456789abcdef", "dirty": True, "packages": {"torch": "2.9.1"}},
    }
    (folder / records.RUN).write_text(json.dumps(info))
    if finished:
        (folder / records.DONE).write_text("{}")
    return folder


@pytest.fixture
def rows() -> list[dict[str, Any]]:
    return [
        a_row(column, pruner, budget, seed, place)
        for column, (pruner, budget, seeds), place in product(COLUMNS, LINES, range(4))
        for seed in seeds
    ]


def cells_of(text: str) -> list[list[str]]:
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines() if line.startswith("|")]


def test_groups_and_rows_stand_as_in_the_published_tables(rows: list[dict[str, Any]], tmp_path: Path) -> None:
    text = render(store(tmp_path, rows))
    header, _, *body = cells_of(text)
    assert header[:7] == ["method", "refcoco val", "refcoco testA", "refcoco+ val", "refcocog val", "Avg.", "Rel. %"]
    assert [line[0] for line in body] == [
        "**Upper bound, all 576 tokens**",
        "none",
        "**Retain 192 tokens**",
        "fastv(layer=3)",
        "random (3 seeds)",
        "**Retain 64 tokens**",
        "litelvlm",
        "fastv(layer=3)",
        "oracle",  # controls after methods
        "random (3 seeds)",
    ]
    assert (tmp_path / "leaderboard.md").read_text() == text


def test_numbers_follow_from_the_counts(rows: list[dict[str, Any]], tmp_path: Path) -> None:
    header, _, *body = cells_of(render(store(tmp_path, rows)))
    table = {line[0]: dict(zip(header, line, strict=True)) for line in body}
    union = sum(100 + k for k in range(4))
    none = 100 * sum(90 + k for k in range(4)) / union
    lite = 100 * sum(80 + k for k in range(4)) / union
    assert table["none"]["refcoco val"] == table["none"]["Avg."] == f"{none:.1f}"
    assert table["none"]["Rel. %"] == "100.0"
    assert table["litelvlm"]["Avg."] == f"{lite:.1f}"
    assert table["litelvlm"]["Rel. %"] == f"{100 * lite / none:.1f}"
    seeds = [100 * sum(50 + seed + k for k in range(4)) / union for seed in range(3)]
    assert table["random (3 seeds)"]["Avg."] == f"{seeds[1]:.1f} ±{(seeds[2] - seeds[0]) / 2:.1f}"
    assert table["litelvlm"]["tokens"] == table["litelvlm"]["mean over layers"] == "64"
    assert (table["fastv(layer=3)"]["tokens"], table["fastv(layer=3)"]["mean over layers"]) == ("64", "336")
    frame = pd.read_csv(tmp_path / "leaderboard.csv")
    assert len(frame) == len(COLUMNS) * sum(len(seeds) for _, _, seeds in LINES)
    one = frame[(frame["pruner"] == "litelvlm") & (frame["dataset"] == "refcoco+")].iloc[0]
    expected = metrics.scores([80 + k for k in range(4)], [100 + k for k in range(4)])
    assert {key: one[key] for key in expected} == pytest.approx(expected)
    assert (one["images"], one["expressions"]) == (2, 4)


def test_the_footer_says_what_a_reader_needs(rows: list[dict[str, Any]], tmp_path: Path) -> None:
    bad = {**rows[0], "sample": "refcoco:val:9", "status": "failed", "reason": "broken file", "expression": -1, "of": 1}
    text = render(store(tmp_path, [*rows, bad]))
    for word in ("Protocol each", "seed 7", "float32", "sdpa", "cpu", "a1b2", "c3d4", "0123456789", "local changes"):
        assert word in text
    assert "torch 2.9.1" in text
    assert "refcoco+ val 2 / 4" in text
    assert "Failed samples: 1; refcoco:val:9: broken file." in text
    assert MINI_WARNING in text
    assert "Not comparable" not in text
    assert "unfinished" not in text


def test_the_warning_is_for_the_mini_alone(rows: list[dict[str, Any]], tmp_path: Path) -> None:
    assert MINI_WARNING not in render(store(tmp_path, [row | {"backbone": "glamm"} for row in rows]))


def test_a_table_without_an_upper_bound_has_no_relative_column_of_numbers(rows: list[dict[str, Any]], tmp_path: Path) -> None:
    header, _, *body = cells_of(render(store(tmp_path, [row for row in rows if row["pruner"] != "none"])))
    assert body[0][0] == "**Retain 192 tokens**"
    assert {line[header.index("Rel. %")] for line in body} == {"-", ""}


def test_rows_that_do_not_compare_are_called_so(rows: list[dict[str, Any]], tmp_path: Path) -> None:
    text = render(store(tmp_path, rows[:-1], finished=False))
    assert "unfinished" in text
    assert "Not comparable" in text
    assert "refcoco+ val (3 to 4)" in text


def test_two_protocols_are_two_tables(rows: list[dict[str, Any]], tmp_path: Path) -> None:
    more = [row | {"protocol": "glamm", "cell": row["cell"] + "g"} for row in rows]
    text = render(store(tmp_path, rows + more))
    assert "# glamm-mini, protocol each" in text
    assert "# glamm-mini, protocol glamm" in text


def test_nothing_to_show(rows: list[dict[str, Any]], tmp_path: Path) -> None:
    bad = {**rows[0], "status": "failed", "reason": "broken file", "expression": -1, "of": 1}
    with pytest.raises(UserError, match=r"no evaluated sample \(1 failed: broken file\)"):
        render(store(tmp_path, [bad]))


def test_the_command_renders_again(rows: list[dict[str, Any]], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = render(store(tmp_path, rows))
    (tmp_path / "leaderboard.md").unlink()
    capsys.readouterr()
    assert command.main([str(tmp_path)]) == 0
    assert text in capsys.readouterr().out
    assert (tmp_path / "leaderboard.md").read_text() == text
    assert command.main([str(tmp_path / "nowhere")]) == 2
    assert capsys.readouterr().err.count("\n") == 1
    assert command.main([]) == 2
    assert command.main(["--help"]) == 0
