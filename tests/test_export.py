"""Tables as files: typed, strict, quoted, whole; LaTeX that is balanced, and bold where a row is apart."""

from __future__ import annotations

import json
import math
import re
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pandas as pd
import pytest

from harness import cli, cost, metrics
from harness.cost import roofline
from harness.cost.placements import Placed, Placements
from harness.metrics import bootstrap as statistics
from harness.metrics.bootstrap import Estimate
from pruners.base import UserError
from reports import __main__ as command
from reports import export, figures, latex, page, report, sheets
from reports.export import Column, Sheet
from reports.study import Paired, Study
from tests.a_run import some_rows, store
from tests.test_docs import ROOT, blocks
from tests.test_reports import spread
from tests.test_reports_video import clip_rows, stored
from tests.test_terminal import prices


@pytest.fixture(autouse=True)
def text_only(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pages and figures have their own tests."""
    monkeypatch.setattr(statistics, "FEWEST", 2)
    monkeypatch.setattr(figures, "draw_figures", lambda runs, tables, folder: [])
    monkeypatch.setattr(page, "page", lambda runs, tables: page.Page("", {}, ()))


def odd() -> Sheet:
    frame = pd.DataFrame(
        {
            "method": ['=cmd|"/c calc"!A1', "a, b\n|c", "+1", "plain_%&#{}~^\\$"],
            "value": [0.1 + 0.2, math.nan, math.inf, -1.5],
            "count": pd.array([1, 2, None, 4], dtype="Int64"),
            "known": [True, False, None, True],
        }
    )
    return Sheet("Odd & ends", frame, {name: Column(f"what {name} is", "ms") for name in frame}, ["It is."])


def strict(text: str) -> Any:
    def refuse(name: str) -> None:
        raise AssertionError(f"{name} is no JSON")

    return json.loads(text, parse_constant=refuse)


def test_csv_keeps_numbers_and_disarms_formulas(tmp_path: Path) -> None:
    path = tmp_path / "new" / "odd.csv"
    export.write([odd()], path)
    frame = pd.read_csv(path)
    assert frame["value"][0] == 0.1 + 0.2 and np.isnan(frame["value"][1]) and frame["value"][3] == -1.5
    assert list(frame["method"]) == ['\'=cmd|"/c calc"!A1', "a, b\n|c", "'+1", "plain_%&#{}~^\\$"]
    assert list(path.parent.iterdir()) == [path]  # no partial file stays


def test_json_is_strict_and_says_what_columns_are() -> None:
    told = strict(export.json_text(odd()))
    assert [row["value"] for row in told["rows"]] == [0.1 + 0.2, None, None, -1.5]
    assert [row["count"] for row in told["rows"]] == [1, 2, None, 4]
    assert [row["known"] for row in told["rows"]] == [True, False, None, True]
    assert told["columns"]["value"] == {"meaning": "what value is", "unit": "ms"} and told["notes"] == [
        "It is."
    ]


def test_a_file_is_whole_or_as_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "odd.csv"
    export.write([odd()], path)
    before = path.read_bytes()

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(UserError, match="No space left on device"):
        export.write([odd()], path)
    assert path.read_bytes() == before and list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("a.xlsx", "ends in .xlsx, which is no format"),
        ("a.xls", "a file that ends in .csv, .json, .md, .tex.\n"),
        ("a", "ends in nothing, which is no format"),
        ("a.jsno", "Did you mean '.json'?"),
        ("folder.csv", "cannot be written"),
        ("file/a.csv", "cannot be written"),
    ],
)
def test_a_wrong_file_is_refused_before_anything_runs(
    name: str, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "folder.csv").mkdir()
    (tmp_path / "file").touch()
    path = str(tmp_path / name)
    monkeypatch.setattr(sys, "argv", ["python -m harness", "--backbones", "no such", "--export", path])
    assert cli.main() == 2
    error = capsys.readouterr().err
    assert said in error and "no such" not in error and error.count("\n") == 1
    assert command.main([str(tmp_path / "no run"), "--export", path]) == 2
    assert said in capsys.readouterr().err


# --- LaTeX


def check_latex(text: str) -> list[list[str]]:
    """The cells of every row of a table's text, held to what LaTeX asks for: groups and environments that
    close, and rows as wide as the tabular says."""
    bare = re.sub(r"\\.", "", re.sub(r"(?<!\\)%.*", "", text.replace("\\\\", "")))
    depth = 0
    for sign in bare:
        depth += {"{": 1, "}": -1}.get(sign, 0)
        assert depth >= 0
    assert depth == 0 and not re.search(
        r"[#^_~]", re.sub(r"\\(label|cmidrule)\S*", "", bare.replace("$", ""))
    )
    opened: list[str] = []
    for kind, name in re.findall(r"\\(begin|end)\{(\w+\*?)\}", text):
        if kind == "begin":
            opened.append(name)
        else:
            assert opened.pop() == name
    assert not opened
    rows = []
    wide = 0
    for line in text.splitlines():
        if found := re.search(r"\\begin\{tabular\}\{@\{\}([lr]+)@\{\}\}", line):
            wide = len(found[1])
        if line.endswith(r"\\"):
            cells = re.split(r"(?<!\\) & ", line.removesuffix(r" \\"))
            spans = [int(n[1]) if (n := re.match(r"\\multicolumn\{(\d+)\}", cell)) else 1 for cell in cells]
            assert sum(spans) == wide, line
            rows.append(cells)
    assert "$" not in bare.replace("$$", "").replace("$", "", 2 * bare.count("$") // 2)
    return rows


def test_names_of_any_letters_are_typeset() -> None:
    rows = check_latex(export.tex(odd()))
    assert rows[-1][0] == r"plain\_\%\&\#\{\}\textasciitilde{}\textasciicircum{}\textbackslash{}\$"
    assert rows[2][0] == r"a, b \textbar{}c" and rows[2][1] == "-"


def test_bold_is_what_is_apart_from_all_others(tmp_path: Path) -> None:
    report(store(tmp_path / "apart", spread(some_rows(), 30)), latex=True)
    text = (tmp_path / "apart" / "leaderboard.tex").read_text()
    rows = check_latex(text)
    bold = [row for row in rows if r"\textbf" in " ".join(row)]
    # at 64: by 8 points, with the same images; the oracle does not count. At 192 by more
    assert [row[0] for row in bold] == ["fastv(layer=3)"] * 2
    assert all(sum(r"\textbf" in cell for cell in row) == 1 for row in bold)
    assert (
        r"\caption{glamm-mini, protocol each. cIoU in percent" in text
        and r"\label{tab:glamm-mini-each-1}" in text
    )
    assert "Bold: the best Avg. of a budget, where it differs significantly" in text and r"\toprule" in text
    few = [row for row in spread(some_rows(), 30) if int(row["sample"].rpartition(":")[2]) < 3]
    report(store(tmp_path / "few", few), latex=True)
    assert r"\textbf" not in (tmp_path / "few" / "leaderboard.tex").read_text()


def test_a_paper_table_holds_intervals_and_costs_and_clips_their_scores(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clips = tmp_path / "clips.tex"
    export.write([report(stored(tmp_path / "clips", clip_rows())).sheet()], clips)
    heads = [row for row in check_latex(clips.read_text()) if row[0] == "method"]
    assert {"Avg.", r"95 \%", "J", "F", "LLM tokens"} <= set(heads[0])
    monkeypatch.setattr(cost, "load_costs", lambda folder: prices(["litelvlm"], macs_measured=3.2e9))
    export.write([report(store(tmp_path / "run", some_rows())).sheet()], tmp_path / "run.tex")
    rows = check_latex((tmp_path / "run.tex").read_text())
    head = next(row for row in rows if row[0] == "method")
    line = dict(zip(head, next(row for row in rows if row[0] == "litelvlm"), strict=True))
    assert re.fullmatch(r"[\d.]+ to [\d.]+", line[r"95 \%"])
    assert (line["MACs G"], line["prefill ms"], line["total"]) == ("3.20", "9.0", "1.02")
    assert latex.slug("A_b c/d") == "a-b-c-d"


# --- leaderboards


def test_a_run_folder_holds_the_table_as_json(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cost, "load_costs", lambda folder: prices(["litelvlm"], activation_peak=5 * 2**20))
    folder = store(tmp_path, some_rows())
    made = report(folder)
    assert folder / "leaderboard.json" in made.written
    told = strict((folder / "leaderboard.json").read_text())
    rows = {(row["method"], row["budget"]): row for row in told["rows"]}
    (table,) = made.tables
    assert list(rows) == [(line.pruner, line.budget) for line in table.lines]
    lite, line = rows["litelvlm", 64], next(line for line in table.lines if line.pruner == "litelvlm")
    assert line.average is not None
    assert lite["average_percent"] == pytest.approx(100 * line.average.value)
    assert lite["average_low_percent"] <= lite["average_percent"] <= lite["average_high_percent"]
    assert lite["refcoco val_percent"] == pytest.approx(100 * line.scores["refcoco", "val"].value)
    assert (lite["speedup_total"], lite["no_speedup"]) == (1.02, "no speed-up")
    assert lite["activation_peak_bytes"] == 5 * 2**20
    assert (rows["random", 64]["seeds"], rows["none", 576]["kind"], lite["kind"]) == (3, "bound", "method")
    assert rows["oracle", 64]["sees_truth"] is True and rows["none", 576]["apart_from_best"] is None
    assert told["columns"].keys() == lite.keys() and told["columns"]["prefill_ms"]["unit"] == "ms"
    assert told["columns"]["average_percent"]["unit"] == "%"
    assert any("does not tell which method wins" in note for note in told["notes"])


@pytest.mark.parametrize("suffix", list(export.WRITERS))
def test_the_report_exports(suffix: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder, path = store(tmp_path / "run", some_rows()), tmp_path / f"board{suffix}"
    assert command.main([str(folder), "--export", str(path)]) == 0
    assert f"export: {path}" in capsys.readouterr().out
    text = path.read_text()
    assert "litelvlm" in text
    if suffix == ".csv":
        frame = pd.read_csv(path)
        assert frame["average_percent"].dtype == float and frame["budget"].dtype == int
        assert frame["sees_truth"].dtype == bool
    if suffix == ".md":
        assert "**Retain 64 tokens**" in text and "- Avg.: mean of the columns" in text


def run(monkeypatch: pytest.MonkeyPatch, *words: object) -> int:
    monkeypatch.setattr(sys, "argv", ["python -m harness", *map(str, words)])
    return cli.main()


def test_projected_costs_export(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    words = ("cost", "--backbone", "glamm-mini", "--pruners", "none,fastv", "--budgets", 64)
    assert run(monkeypatch, *words, "--export", tmp_path / "cost.json") == 0
    told = strict((tmp_path / "cost.json").read_text())
    fastv = {row["pruner"]: row for row in told["rows"]}["fastv"]
    assert fastv["tokens_final"] == 64 and fastv["flops_paper"] > 1e6 and fastv["flops_printed"] is None
    assert told["columns"]["activation_peak_bytes"]["unit"] == "bytes"
    assert run(monkeypatch, *words, "--export", tmp_path / "cost.tex") == 0
    assert len(check_latex((tmp_path / "cost.tex").read_text())) == 4
    assert run(monkeypatch, *words, "--sweep", "--export", tmp_path / "sweep.csv") == 0
    frame = pd.read_csv(tmp_path / "sweep.csv")
    saved = frame.filter(like="saved: ").sum(axis=1)
    assert (frame["alone"] - saved == frame["shared"]).all()


def test_the_list_exports(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert run(monkeypatch, "list", "--export", tmp_path / "list.json") == 0
    rows = {(row["list"], row["name"]): row for row in strict((tmp_path / "list.json").read_text())["rows"]}
    assert rows["pruner", "nuwa"]["runs_on_glamm-mini"] is True
    assert rows["pruner", "nuwa"]["runs_on_videoglamm-mini"] is False
    assert {"backbone", "data set", "metric", "pruner"} == {kind for kind, _ in rows}


def test_studies_export(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = Placed("grid", 576, 144, 2304, 10**12, 3 * 10**12, 0.02, True)
    rows = (whole, Placed("postpool", 196, why="more than the 144 tokens of a frame"))
    found = Placements("videoglamm-3.8b", 16, 0, 100, 4096, 64, whole, rows, roofline.gpu("h100"))
    monkeypatch.setattr("harness.cost.placements.compare", lambda *given: found)
    words = ("study", "placements", "--out", tmp_path / "study")
    assert run(monkeypatch, *words, "--export", tmp_path / "study.csv") == 0
    frame = pd.read_csv(tmp_path / "study.csv")
    assert frame["llm_macs"][0] == 10**12 and frame["prefill_seconds"][0] == 0.02
    assert np.isnan(frame["llm_macs"][1]) and frame["why"][1].startswith("more than")
    one, other = Estimate(0.5, 0.4, 0.6, 0.1, 9), Estimate(0.1, -0.1, 0.2, 0.3, 9)
    pairs = (Paired("litelvlm", 64, (one, one), other, 0.3),)
    study = Study("positions", "glamm-mini", "glamm", metrics.get("ciou"), pairs, other, 9)
    export.write([sheets.study_sheet(study)], tmp_path / "positions.json")
    told = strict((tmp_path / "positions.json").read_text())
    assert told["rows"][0]["compact"] == 50 and told["rows"][0]["said_percent"] is None
    assert told["columns"]["difference"]["unit"] == "points" and told["notes"] == [study.sentence]


def test_the_gate_exports_every_cell_and_not_an_acceptance(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from harness.gate import check
    from tests.test_gate_comparison import frame

    before, after = (
        pd.concat([frame(val=[fallen]), frame(val=[70]).assign(pruner="same")]) for fallen in (60, 20)
    )
    found = check.compare(before, after, {})
    monkeypatch.setattr(check, "check", lambda path, plugins: found)
    assert run(monkeypatch, "gate", "--export", tmp_path / "gate.json") == 1
    rows = strict((tmp_path / "gate.json").read_text())["rows"]
    assert [row["result"] for row in rows] == ["failed", "same"] and len(rows) == found.cells
    assert rows[0]["why"] and rows[0]["ciou_now"] < rows[0]["ciou_before"]
    assert run(monkeypatch, "gate", "--accept", "why", "--export", tmp_path / "gate.csv") == 2
    assert "give one of the two" in capsys.readouterr().err


# --- the page


def faked(name: str, monkeypatch: pytest.MonkeyPatch, **members: Any) -> ModuleType:
    module = ModuleType(name)
    for key, value in members.items():
        setattr(module, key, value)
    monkeypatch.setitem(sys.modules, name, module)
    return module


def test_the_page_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its Python, in order, with stand-ins for packages that are not needed here."""
    monkeypatch.chdir(tmp_path)
    report(store(tmp_path / "results" / "runs" / "mine", some_rows()))
    logged: list[Any] = []
    pushed: list[Any] = []

    class Run:
        def log(self, row: Any) -> None:
            logged.append(row)

        def finish(self) -> None:
            logged.append("finished")

    class Dataset:
        @staticmethod
        def from_pandas(frame: pd.DataFrame, preserve_index: bool = True) -> Any:
            pushed.append(frame)
            return Dataset()

        def push_to_hub(self, name: str, **options: Any) -> None:
            pushed.append((name, options))

    init: Callable[..., Run] = lambda **facts: Run()  # noqa: E731
    faked("wandb", monkeypatch, init=init, Table=lambda dataframe: dataframe)
    faked("datasets", monkeypatch, Dataset=Dataset)
    code = blocks(ROOT / "docs" / "export.md", "python")
    assert len(code) >= 3
    names: dict[str, object] = {"__name__": "example"}
    for block in code:
        lines = [line for line in block.splitlines() if line.strip() and not line.startswith("#")]
        assert len(lines) <= 7
        exec(compile(block, "docs/export.md", "exec"), names)
    assert logged[-1] == "finished" and len(logged[0]["leaderboard"]) == 7
    assert len(pushed[0]) == 7 and pushed[1][1] == {"private": True}
