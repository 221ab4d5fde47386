"""The leaderboard: layout of the published tables, exact numbers, and what it says when rows do not
compare."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from harness import cost, metrics
from harness.metrics import bootstrap as statistics
from harness.store.journal import write_atomically
from harness.store.rows import pack_tokens
from pruners import UserError
from reports import __main__ as command
from reports import columns, costs, diagnosis, figures, gather, page, publication
from reports import render as write
from reports.leaderboard import MINI_WARNING
from reports.tables import tables
from tests.a_run import COLUMNS, LINES, a_row, some_rows, store

OVERLAP = [one.name for one in metrics.made_of(("intersection", "union"))]


def render(folder: Path, *more: Path, **options: Any) -> str:
    """The leaderboard's text."""
    return write([folder, *more], **options)[0].read_text(encoding="utf-8")


@pytest.fixture(autouse=True)
def text_only(monkeypatch: pytest.MonkeyPatch) -> None:
    """The page has its own tests; figures take a second each and are drawn where bytes are compared.

    The run that is written by hand has two images per split, which are too few for an interval elsewhere.
    """
    monkeypatch.setattr(statistics, "FEWEST", 2)
    monkeypatch.setattr(figures, "draw_figures", lambda runs, tables, folder: [])
    monkeypatch.setattr(page, "page", lambda runs, tables: page.Page("", {}, ()))


@pytest.fixture
def rows() -> list[dict[str, Any]]:
    return some_rows()


def cells_of(text: str) -> list[list[str]]:
    return [
        [cell.strip() for cell in line.strip("|").split("|")]
        for line in text.splitlines()
        if line.startswith("|")
    ]


def test_groups_and_rows_stand_as_in_the_published_tables(rows: list[dict[str, Any]], tmp_path: Path) -> None:
    text = render(store(tmp_path, rows))
    header, _, *body = cells_of(text)
    assert header[:7] == [
        "method",
        "refcoco val",
        "refcoco testA",
        "refcoco+ val",
        "refcocog val",
        "Avg.",
        "Rel. %",
    ]
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
    counts = {"intersection": [80 + k for k in range(4)], "union": [100 + k for k in range(4)]}
    expected = {name: metrics.get(name).value(counts) for name in OVERLAP}
    assert {key: one[key] for key in expected} == pytest.approx(expected)
    assert (one["images"], one["expressions"]) == (2, 4)


def test_the_footer_says_what_a_reader_needs(rows: list[dict[str, Any]], tmp_path: Path) -> None:
    sample = f"{rows[0]['dataset']}:{rows[0]['split']}:9"
    bad = {
        **rows[0],
        "sample": sample,
        "status": "failed",
        "reason": "broken file",
        "expression": -1,
        "of": 1,
    }
    text = render(store(tmp_path, [*rows, bad]))
    for word in (
        "Protocol each",
        "seed 7",
        "float32",
        "sdpa",
        "cpu",
        "a1b2",
        "c3d4",
        "0123456789",
        "local changes",
    ):
        assert word in text
    assert "torch 2.9.1" in text
    assert "refcoco+ val 2 / 4" in text
    assert f"Failed samples: 1; {sample}: broken file." in text
    assert MINI_WARNING in text
    assert "Not comparable" not in text
    assert "unfinished" not in text


def test_the_warning_is_for_the_mini_alone(rows: list[dict[str, Any]], tmp_path: Path) -> None:
    assert MINI_WARNING not in render(store(tmp_path, [row | {"backbone": "glamm"} for row in rows]))


def test_a_table_without_an_upper_bound_has_no_relative_column_of_numbers(
    rows: list[dict[str, Any]], tmp_path: Path
) -> None:
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


def test_the_command_renders_again(
    rows: list[dict[str, Any]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = render(store(tmp_path, rows))
    (tmp_path / "leaderboard.md").unlink()
    capsys.readouterr()
    assert command.main([str(tmp_path), "--full"]) == 0
    assert text in capsys.readouterr().out
    assert (tmp_path / "leaderboard.md").read_text() == text
    assert command.main([str(tmp_path / "nowhere")]) == 2
    assert capsys.readouterr().err.count("\n") == 1
    assert command.main([]) == 2
    assert command.main(["--help"]) == 0


def test_several_runs_are_one_report(rows: list[dict[str, Any]], tmp_path: Path) -> None:
    whole = render(store(tmp_path / "whole", rows))
    lite = store(tmp_path / "a", [row for row in rows if row["pruner"] == "litelvlm"], run="aaaa")
    rest = store(tmp_path / "b", [row for row in rows if row["pruner"] != "litelvlm"], run="bbbb")
    merged = render(rest, lite, out=tmp_path / "out")
    assert cells_of(merged) == cells_of(whole)
    assert "run aaaa" in merged
    assert "run bbbb" in merged
    assert not (rest / "leaderboard.md").exists()


def test_results_that_two_runs_share_count_once_and_are_told(
    rows: list[dict[str, Any]], tmp_path: Path
) -> None:
    first = store(tmp_path / "a", rows)
    text = render(first, store(tmp_path / "b", rows), out=tmp_path / "out")
    assert f"{len(rows)} results are in several of the runs. They agree." in text
    assert "refcoco+ val 2 / 4" in text
    other = [row | {"intersection": row["intersection"] - 1} for row in rows[:3]] + rows[3:]
    text = render(first, store(tmp_path / "c", other), out=tmp_path / "out")
    assert "They disagree on 3 of them; the run named first is shown." in text
    assert cells_of(text) == cells_of(render(first))


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"setting": {"device": "cuda"}}, r"device \(cpu / cuda\)"),
        ({"setting": {"dtype": "bfloat16"}}, r"precision \(float32 / bfloat16\)"),
        ({"setting": {"attn": "eager"}}, r"attention implementation \(sdpa / eager\)"),
        ({"setting": {"fingerprint": "ffff"}}, r"weights \(a1b2 / ffff\)"),
        ({"data": "d2"}, r"data \(\w{8} / \w{8}\)"),
    ],
)
def test_rows_that_differ_in_a_setting_are_parted_and_told_why(
    changed: dict[str, Any], words: str, rows: list[dict[str, Any]], tmp_path: Path
) -> None:
    other = [row | {"cell": row["cell"] + "x"} for row in rows]
    text = render(
        store(tmp_path / "a", rows), store(tmp_path / "b", other, run="e5f6", **changed), out=tmp_path / "out"
    )
    assert re.search(f"tables differ in {words} and are not ranked together", text)
    titles = [line for line in text.splitlines() if line.startswith("# ")]
    assert len(titles) == len(set(titles)) == 2
    assert "differ in" not in render(store(tmp_path / "a", rows))


def test_only_a_split_that_differs_parts(rows: list[dict[str, Any]], tmp_path: Path) -> None:
    """Runs of other splits, and the same data under another setting, do not differ in data."""
    here = [row for row in rows if row["dataset"] == "refcoco"]
    there = [row for row in rows if row["dataset"] != "refcoco"]
    text = render(
        store(tmp_path / "a", here, data="d1"), store(tmp_path / "b", there, data="d2"), out=tmp_path / "out"
    )
    assert "differ in" not in text
    assert len([line for line in text.splitlines() if line.startswith("# ")]) == 1
    other = [row | {"cell": row["cell"] + "x"} for row in here]
    text = render(
        store(tmp_path / "a", here),
        store(tmp_path / "c", other, setting={"dtype": "float64"}),
        out=tmp_path / "out",
    )
    assert "differ in precision" in text
    assert "differ in data" not in text


def test_protocols_are_parted_and_told_why(rows: list[dict[str, Any]], tmp_path: Path) -> None:
    more = [row | {"protocol": "glamm", "cell": row["cell"] + "g"} for row in rows]
    assert "differ in protocol (each / glamm) and are not ranked together" in render(
        store(tmp_path, rows + more)
    )


def test_budgets_that_count_differently_are_parted(rows: list[dict[str, Any]], tmp_path: Path) -> None:
    mean = [
        row
        | {
            "pruner": "fastv(budget='mean')",
            "cell": row["cell"] + "m",
            "tokens_final": 12,
            "tokens_mean": 64.0,
            "kept": pack_tokens(np.arange(12), 576),
        }
        for row in rows
        if (row["pruner"], row["budget"]) == ("fastv(layer=3)", 64)
    ]
    plain = store(tmp_path / "a", rows)
    text = render(plain, store(tmp_path / "b", mean, kind="mean", run="e5f6"), out=tmp_path / "out")
    assert "differ in what a budget counts (final / mean)" in text
    final, other = text.split("# glamm-mini, protocol each, what a budget counts mean")
    assert "budget='mean'" not in final.split("what a budget counts final")[1]
    names = [line[0] for line in cells_of(other)]
    assert "fastv(layer=3)" not in names
    # even tokens are of both kinds
    assert {"none", "fastv(budget='mean')", "litelvlm", "random (3 seeds)"} <= set(names)
    text = render(plain, store(tmp_path / "c", mean, kind="label", run="e5f7"), out=tmp_path / "out")
    other = text.split("# glamm-mini, protocol each, what a budget counts label")[1]
    # and a label is nothing that anything else could be compared with
    assert [line[0] for line in cells_of(other)][2:] == [
        *("**Upper bound, all 576 tokens**", "none", "**Label 64**", "fastv(budget='mean')")
    ]


def test_a_row_without_all_columns_has_no_average(rows: list[dict[str, Any]], tmp_path: Path) -> None:
    text = render(
        store(tmp_path, [row for row in rows if row["pruner"] != "litelvlm" or row["dataset"] != "refcocog"])
    )
    header, _, *body = cells_of(text)
    line = dict(zip(header, next(line for line in body if line[0] == "litelvlm"), strict=True))
    assert (line["refcocog val"], line["Avg."], line["Rel. %"]) == ("-", "-", "-")
    assert "rows without an Avg. lack columns" in text


def spread(rows: list[dict[str, Any]], images: int) -> list[dict[str, Any]]:
    """The same rows with many images whose luck differs from image to image but not from pruner to pruner."""
    found = []
    for row in rows:
        if row["expression"] == 0:
            rank = [line[:2] for line in LINES].index((row["pruner"], row["budget"]))
            for number in range(images):
                luck = (37 * number) % 50
                noise = (13 * number + 7 * rank + 5 * row["seed"]) % 9 - 4
                sample = f"{row['dataset']}:{row['split']}:{number}"
                base = {"random": 58, "litelvlm": 58}.get(row["pruner"], 80 - 3 * rank)
                fact = {
                    "sample": sample,
                    "expression": number,
                    "place": 0,
                    "of": 1,
                    "union": 200,
                    "intersection": base + luck + noise,
                }
                found.append(row | fact)
    return found


def test_marks_tell_what_cannot_be_told_apart(rows: list[dict[str, Any]], tmp_path: Path) -> None:
    header, _, *body = cells_of(render(store(tmp_path, spread(rows, 30)), baseline="litelvlm"))
    at64 = [
        dict(zip(header, line, strict=True))
        for line in body[body.index(next(b for b in body if "Retain 64" in b[0])) :]
    ]
    marked = {line["method"]: line["not apart from"] for line in at64}
    assert marked["litelvlm"] == "random"
    assert marked["fastv(layer=3)"] == ""  # the best that does not see the truth
    assert marked["random (3 seeds)"] == ""
    differences = {line["method"]: line["vs litelvlm"] for line in at64}
    assert differences["litelvlm"] == ""
    assert float(differences["fastv(layer=3)"].split()[0]) == pytest.approx(8, abs=0.2)
    assert differences["fastv(layer=3)"].endswith("*")
    assert not differences["random (3 seeds)"].endswith("*")
    frame = pd.read_csv(tmp_path / "differences.csv")
    one = frame[(frame["pruner"] == "fastv(layer=3)") & (frame["budget"] == 64)].set_index(
        ["against", "column"]
    )
    names = [" ".join(column) for column in COLUMNS]
    assert one.loc[("baseline", "Avg."), "value"] == pytest.approx(
        one.loc["baseline"].loc[names, "value"].mean()
    )
    assert (one["low"] <= one["value"]).all()
    assert (one["value"] <= one["high"]).all()
    assert one.loc[("random", "Avg."), "q"] >= one.loc[("random", "Avg."), "p"]


def test_an_average_over_splits_of_the_same_images_is_as_wide_as_one_of_them(tmp_path: Path) -> None:
    """RefCOCO and RefCOCO+ ask about the same images; that is half as much to learn as from others."""
    generator = np.random.default_rng(3)
    easy = generator.integers(10, 95, 60)

    def width(name: str, image_of: dict[str, int]) -> float:
        rows = [
            a_row((dataset, "val"), "none", 576, 0, 2 * k)
            | {
                "sample": f"{dataset}:val:{first + k}",
                "intersection": int(value),
                "union": 100,
                "place": 0,
                "of": 1,
            }
            for dataset, first in image_of.items()
            for k, value in enumerate(easy)
        ]
        (table,) = tables(gather.gather([store(tmp_path / name, rows)]))
        average = table.lines[0].average
        assert average is not None
        return average.high - average.low

    same, others = (
        width("same", {"refcoco": 0, "refcoco+": 0}),
        width("others", {"refcoco": 0, "refcoco+": 1000}),
    )
    assert same / others == pytest.approx(2**0.5, rel=0.1)


def test_a_baseline_without_a_row_is_a_users_mistake(rows: list[dict[str, Any]], tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"'litelvm' has no row; .*Did you mean 'litelvlm'"):
        render(store(tmp_path, rows), baseline="litelvm")


def test_the_same_records_give_the_same_bytes(
    rows: list[dict[str, Any]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """In this process and in one that orders sets otherwise."""
    monkeypatch.undo()  # with page and figures
    folder = store(tmp_path / "run", rows)
    words = [str(folder), "--baseline", "litelvlm", "--latex", "--full", "--out"]
    seed = "2" if os.environ.get("PYTHONHASHSEED") == "1" else "1"
    told = subprocess.run(
        [sys.executable, "-m", "reports", *words, str(tmp_path / "other")],
        check=True,
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHONHASHSEED": seed},
    ).stdout
    assert not command.main([*words, str(tmp_path / "own")])
    own = capsys.readouterr().out
    assert own.replace(str(tmp_path / "own"), str(tmp_path / "other")) == told
    found = [
        {path.name: path.read_bytes() for path in (tmp_path / name).rglob("*") if path.is_file()}
        for name in ("other", "own")
    ]
    assert found[0] == found[1]
    assert {"leaderboard.md", "leaderboard.csv", "differences.csv", "leaderboard.tex", "report.html"} < found[
        0
    ].keys()
    assert {name.rpartition(".")[2] for name in found[0]} >= {"svg", "png"}
    assert all(name in told for name in found[0])


def test_latex_escapes_and_marks_no_best_of_a_tie(rows: list[dict[str, Any]], tmp_path: Path) -> None:
    write(store(tmp_path, rows), latex=True)
    text = (tmp_path / "leaderboard.tex").read_text()
    assert r"Rel. \%" in text
    assert r"$\pm$" in text
    assert r"\textbf" not in text  # two images tell nothing apart


def test_published_numbers_stand_beside_the_same_backbone_and_splits_only(
    rows: list[dict[str, Any]], tmp_path: Path
) -> None:
    ours = [row | {"backbone": "glamm", "protocol": "glamm"} for row in rows]
    text = render(store(tmp_path / "glamm", ours, plan={"seed": 7, "limit": 2}))
    block = text[text.index("## Published numbers beside ours") :]
    header, _, *body = cells_of(block)
    table = {(line[0], line[1]): dict(zip(header, line, strict=True)) for line in body}
    none = 100 * sum(90 + k for k in range(4)) / sum(100 + k for k in range(4))
    lite = 100 * sum(80 + k for k in range(4)) / sum(100 + k for k in range(4))
    assert table[("none", "576")]["refcoco val"] == f"{none:.1f} ({none - 79.5:+.1f})"
    assert table[("litelvlm", "64")]["refcocog val"] == f"{lite:.1f} ({lite - 56.1:+.1f})"
    assert len(table) == 2  # a pruner with other parameters is another pruner
    assert "only the first 2 images of each split" in block
    assert "2605.13178" in block
    alone = render(store(tmp_path / "each", [row | {"protocol": "each"} for row in ours]))
    assert "## Published numbers" not in alone
    assert "were made with protocol glamm and forced answers, and stand beside no row of this table" in alone
    assert "Published" not in render(store(tmp_path / "mini", rows))


def test_published_tables_are_whole_and_add_up() -> None:
    tables = {path.stem: publication.read_published(path.stem) for path in publication.FOLDER.glob("*.csv")}
    assert {"refcoco", "ref-davis-17", "refer-youtube-vos"} <= tables.keys()
    assert all(table["source"].notna().all() for table in tables.values())
    refcoco = tables["refcoco"]
    columns = [name for name in refcoco if name.startswith("refcoco")]
    assert len(columns) == 8
    assert len(refcoco) == 10
    # printed averages come from more digits than printed columns, cut or rounded: 0.1 is the most that they
    # may be off
    assert np.abs(refcoco[columns].mean(axis=1) - refcoco["Avg."]).max() < 0.1
    assert np.abs(100 * refcoco["Avg."] / refcoco["Avg."][0] - refcoco["Rel. %"]).max() < 0.15
    for name in ("ref-davis-17", "refer-youtube-vos"):
        video = tables[name]
        assert np.abs((video["J"] + video["F"]) / 2 - video["J&F"]).max() < 0.051
        assert np.abs(100 * video["J&F"] / video["J&F"][0] - video["Rel. %"]).max() < 0.15


def test_the_page_of_columns_says_what_the_footer_says(rows: list[dict[str, Any]], tmp_path: Path) -> None:
    written = (Path(__file__).parent.parent / "docs" / "columns.md").read_text(encoding="utf-8")
    assert written == columns.page(), "run `python -m reports.columns > docs/columns.md`"
    own = [row | {"seg_said": 1, "seg_logprob": -0.5, "wrote": "[SEG]"} for row in rows]
    folder = store(tmp_path, own, setting={"answers": "generated"}, schedule="576 x 2, 64 x 30")
    text = render(folder, baseline="litelvlm")
    assert "| 576 x 2, 64 x 30 |" in text
    for name, meaning in columns.COLUMNS.items():
        assert f"- {name}: {meaning}" in text
    shown = {name for line in cells_of(text)[:1] for name in line}
    known = {*columns.COLUMNS, *(" ".join(column) for column in COLUMNS), "vs litelvlm"}
    assert shown <= known


def test_costs_stand_behind_the_scores_in_units_for_reading(
    rows: list[dict[str, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    facts = {
        "backbone": "glamm-mini",
        "pruner": "litelvlm",
        "budget": 64,
        "macs_measured": 3.21e9,
        "activation_peak": 5 * 2**20,
    }
    timed = {
        "prefill_ms": 9.04,
        "prefill_ms_p5": 8.5,
        "prefill_ms_p95": 11.0,
        "speedup_prefill": 1.618,
        "note": "no speed-up",
    }
    parts = {"stage.total_ms": 30.0, "stage.text_ms": 2.0}
    monkeypatch.setattr(cost, "load_costs", lambda folder: pd.DataFrame([facts | timed | parts]))
    text = render(store(tmp_path, rows))
    header, _, *body = cells_of(text)
    table = {line[0]: dict(zip(header, line, strict=True)) for line in body}
    lite, oracle = table["litelvlm"], table["oracle"]
    assert header[-5:] == ["MACs G", "activation peak MiB", "prefill ms", "speed-up prefill", "note"]
    assert [lite[name] for name in header[-5:]] == ["3.21", "5.0", "9.0 (8.5 to 11.0)", "1.62", "no speed-up"]
    assert [oracle[name] for name in header[-5:]] == ["-", "-", "-", "-", ""]
    assert f"- MACs G: {cost.EXPLAIN['macs_measured']}" in text
    (record,) = costs.costs_of(
        cost.load_costs(tmp_path).assign(run=0), tables(gather.gather([tmp_path]))[0]
    ).values()
    assert costs.stages(record) == {"text": 2.0}  # the total is no stage
    assert record[costs.MACS] == 3.21e9


def test_a_diagnosis_of_the_runs_weights_is_told_and_one_of_others_is_not(
    rows: list[dict[str, Any]], tmp_path: Path
) -> None:
    folder = store(tmp_path / "run", rows)
    told = {"backbone": "glamm-mini", "fingerprint": "a1b2", "verdict": "It holds.", "figures": {}}
    (folder / diagnosis.FOLDER).mkdir()
    write_atomically(folder / diagnosis.FOLDER / diagnosis.SUMMARY, told | {"schema": diagnosis.SCHEMA})
    text = render(folder, out=tmp_path / "out")
    assert "It holds. Numbers and figures: [diagnosis.md](../run/diagnosis/diagnosis.md)." in text
    other = told | {"schema": diagnosis.SCHEMA, "fingerprint": "beef"}
    write_atomically(folder / diagnosis.FOLDER / diagnosis.SUMMARY, other)
    text = render(folder)
    assert "It holds" not in text
    assert "is of other weights (beef) and left out" in text


def test_one_image_in_a_split_has_no_interval_and_says_so(rows: list[dict[str, Any]], tmp_path: Path) -> None:
    text = render(store(tmp_path, [row for row in rows if row["expression"] < 2]))
    header, _, *body = cells_of(text)
    table = {line[0]: dict(zip(header, line, strict=True)) for line in body}
    assert table["litelvlm"]["95 %"] == "-"
    assert table["fastv(layer=3)"]["not apart from"] == "random?, best?"
    assert "no row can be told apart" in text


def test_help_loads_nothing_heavy() -> None:
    code = (
        "import sys, reports.__main__, harness.cli; print({'matplotlib', 'jinja2', 'scipy', "
        "'playwright'} & sys.modules.keys())"
    )
    told = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert told.stdout.strip() == "set()"
