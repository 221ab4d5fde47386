"""The leaderboard on a terminal: it fits, its rows can be told apart, and what forbids a comparison stays."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from harness import cli, cost
from harness.metrics import bootstrap as statistics
from reports import Report, figures, page, report, terminal
from reports import __main__ as command
from tests.a_run import some_rows, store
from tests.test_reports_video import clip_rows, stored

LONG = "litelvlm(combine='union', context_share={})"


def text_only(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pages and figures have their own tests."""
    monkeypatch.setattr(statistics, "FEWEST", 2)
    monkeypatch.setattr(figures, "draw_figures", lambda runs, tables, folder: [])
    monkeypatch.setattr(page, "page", lambda runs, tables: page.Page("", {}, ()))


@pytest.fixture(autouse=True)
def _text_only(monkeypatch: pytest.MonkeyPatch) -> None:
    text_only(monkeypatch)


def prices(names: list[str], **facts: Any) -> pd.DataFrame:
    timed = {"backbone": "glamm-mini", "prefill_ms": 9.0, "speedup_prefill": 2.5, "speedup_total": 1.02}
    rows = [{"pruner": name, "budget": 64} | timed | {"note": "no speed-up"} | facts for name in names]
    return pd.DataFrame(rows)


def with_long_names() -> list[dict[str, Any]]:
    """Rows of four methods whose texts differ in their middle or at their end alone."""
    rows = some_rows()
    for share in (0.25, 0.5, 0.75):
        rows += [
            row | {"pruner": LONG.format(share), "cell": f"{row['cell']}{share}"}
            for row in rows
            if row["pruner"] == "litelvlm"
        ]
    return rows


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Report:
    with pytest.MonkeyPatch.context() as patched:
        text_only(patched)
        patched.setattr(cost, "load_costs", lambda folder: prices(["litelvlm", "oracle"]))
        return report(store(tmp_path_factory.mktemp("run"), with_long_names()))


@pytest.mark.parametrize("columns", [40, 60, 80, 100, 140, 200])
def test_it_fits_and_its_rows_can_be_told_apart(made: Report, columns: int) -> None:
    lines = made.text(columns=columns).splitlines()
    assert max(len(line) for line in lines if not line.startswith("report: ")) <= columns
    start = next(place for place, line in enumerate(lines) if line.startswith("method"))
    body = lines[start + 1 : lines.index("", start)]
    at64 = body[next(place for place, line in enumerate(body) if "Retain 64" in line) + 1 :]
    names = [line.split("  ")[0] for line in at64]
    assert len(set(names)) == len(names) == 7
    legend = lines[lines.index("", start) + 1 :]
    assert 3 <= len(legend[: legend.index("")]) <= terminal.LEGEND


def test_narrow_terminals_lose_what_is_least_useful(made: Report) -> None:
    heads = {
        columns: next(line for line in made.text(columns=columns).splitlines() if line.startswith("method"))
        for columns in (40, 80, 140)
    }
    assert heads[80].split() == ["method", "Avg.", *["95", "%", "Rel.", "%", "not", "apart", "from", "total"]]
    assert heads[140].split()[-1] == "total" and "prefill" in heads[140] and "gIoU" in heads[140]
    assert heads[40].split() == ["method", "Avg."]
    told = made.text(columns=80)
    assert "here without gIoU, tokens, mean over layers, prefill" in " ".join(told.split())


def test_a_speed_up_that_is_none_stands_in_brackets(made: Report) -> None:
    (line,) = [line for line in made.text(columns=140).splitlines() if line.startswith("oracle ")]
    assert line.split()[-2:] == ["2.50", "(1.02)"]
    assert "in brackets: not beyond chance" in made.text(columns=140)


@pytest.mark.parametrize("room", [8, 12, 20])
def test_shortened_texts_stay_apart(room: int) -> None:
    texts = [f"method(a={a}, b={b}, c=1)" for a in range(10) for b in range(10)] + ["method", "metho…1"]
    short = terminal.shortened(texts, room)
    assert len(set(short.values())) == len(texts) and max(map(len, short.values())) <= room
    assert short["method"] == "method"


def test_a_warning_that_forbids_comparison_is_kept_and_said_once(tmp_path: Path) -> None:
    rows = some_rows()
    other = [row | {"protocol": "glamm", "cell": row["cell"] + "g"} for row in rows]
    text = report(store(tmp_path, [*rows[:-1], *other], finished=False)).text(columns=100)
    assert "Not comparable" in text and text.count("is unfinished") == 1
    assert "glamm-mini: tables differ in protocol (--protocol each and glamm): not ranked together." in text
    assert text.count("\nmethod ") == 2
    assert "does not tell which method wins" in " ".join(text.split())


def test_clips_show_what_papers_do_as_far_as_it_fits(tmp_path: Path) -> None:
    made = report(stored(tmp_path, clip_rows()))
    wide = made.text(columns=140)
    head = next(line for line in wide.splitlines() if line.startswith("method"))
    assert {"J", "F", "tokens"} <= set(head.split()) and "LLM tokens" in head and "[SEG] said %" in head
    assert "Avg.: J&F in percent" in wide
    narrow = made.text(columns=80).partition("report: ")[0]
    assert max(map(len, narrow.splitlines())) <= 80


def test_the_command_prints_it_in_a_pipe_too_and_all_of_it_if_asked(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = store(tmp_path, some_rows())
    monkeypatch.delenv("COLUMNS", raising=False)
    assert command.main([str(folder)]) == 0
    told = capsys.readouterr().out
    assert (
        told.count("\nmethod ") == 1
        and max(map(len, told.replace(str(folder), "").splitlines())) <= terminal.PIPE
    )
    assert str(folder) in told and "leaderboard.md" in told
    monkeypatch.setenv("COLUMNS", "64")
    assert command.main([str(folder)]) == 0
    assert max(map(len, capsys.readouterr().out.replace(str(folder), "").splitlines())) <= 64
    assert command.main([str(folder), "--full"]) == 0
    told = capsys.readouterr().out
    assert (folder / "leaderboard.md").read_text() in told and str(folder / "leaderboard.json") in told


def test_options_are_seen_before_anything_loads(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["python -m harness", "cost", "--export", "table.xls"])
    assert cli.main() == 2
    told = capsys.readouterr().err
    assert "give a file that ends in .csv, .json, .md, .tex" in told and told.count("\n") == 1
