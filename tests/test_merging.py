"""Several runs as one report: times of two machines are marked, what does not draw has no seeds, and what
parts tables is named with its option and both values."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from harness import cost
from harness.cost.store import COSTS
from harness.store.provenance import machine
from reports import comparable, costs, figures, machines, page, report
from reports.gather import gather
from reports.tables import tables
from tests.a_run import some_rows, store
from tests.test_terminal import prices

HERE = {
    "device": "cpu",
    "device_name": "cpu",
    "processor": "Xeon, 2 cores",
    "host": "aa",
    "threads": 1,
    "clock": "wall time",
}


@pytest.fixture(autouse=True)
def text_only(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pages and figures have their own tests."""
    monkeypatch.setattr(figures, "draw_figures", lambda runs, tables, folder: [])
    monkeypatch.setattr(page, "page", lambda runs, tables: page.Page("", {}, ()))


def timed(monkeypatch: pytest.MonkeyPatch, **by_folder: pd.DataFrame) -> None:
    monkeypatch.setattr(cost, "load_costs", lambda folder: by_folder[Path(folder).name])


def two(tmp_path: Path) -> list[Path]:
    """A run of litelvlm, and one of the rest."""
    rows = some_rows()
    return [
        store(tmp_path / "a", [row for row in rows if row["pruner"] == "litelvlm"], run="aaaa"),
        store(tmp_path / "b", [row for row in rows if row["pruner"] != "litelvlm"], run="bbbb"),
    ]


@pytest.mark.parametrize(
    "other", [{"threads": 8}, {"host": "bb"}, {"processor": "Ryzen"}, {"device_name": "H200"}]
)
def test_times_of_two_machines_are_marked_and_named(
    other: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    timed(monkeypatch, a=prices(["litelvlm"], **HERE), b=prices(["oracle"], **HERE | other))
    made = report(two(tmp_path), tmp_path / "out")
    text = (tmp_path / "out" / "leaderboard.md").read_text()
    (lite,) = [line for line in text.splitlines() if line.startswith("| litelvlm ")]
    (oracle,) = [line for line in text.splitlines() if line.startswith("| oracle ")]
    assert "9.0 [a]" in lite and "2.50 [a]" in lite and "[b]" not in lite
    assert "9.0 [b]" in oracle and "1.02 [b]" in oracle and "[a]" not in oracle
    (note,) = [line for line in text.splitlines() if "do not compare between them" in line]
    assert "[a] cpu, Xeon, 2 cores, host aa, 1 thread, wall time (run aaaa)" in note and "(run bbbb)" in note
    assert str(next(iter(other.values()))) in note
    assert "[b]" in made.text(columns=140) and "do not compare between them" in made.text(columns=140)
    rows = json.loads((tmp_path / "out" / "leaderboard.json").read_text())["rows"]
    assert {row["method"]: row["machine"] for row in rows if row["machine"]} == {
        "litelvlm": "a",
        "oracle": "b",
    }
    measured = costs.of_one_machine(costs.costs_of(made.runs.costs, made.tables[0]))
    assert measured["litelvlm", 64]["prefill_ms"] == 9.0 and "prefill_ms" not in measured["oracle", 64]


def test_one_machine_and_rows_without_times_are_not_marked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    projected = pd.DataFrame(
        [{"backbone": "glamm-mini", "pruner": "oracle", "budget": 64, "macs_projected": 1e9}]
    )
    for b in (prices(["oracle"], **HERE), projected.assign(**HERE | {"host": "bb"})):
        timed(monkeypatch, a=prices(["litelvlm"], **HERE), b=b)
        report(two(tmp_path), tmp_path / "out")
        text = (tmp_path / "out" / "leaderboard.md").read_text()
        assert "[a]" not in text and "do not compare between" not in text


def test_an_older_ledger_is_known_by_what_its_run_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    timed(monkeypatch, a=prices(["litelvlm"]), b=prices(["oracle"]))
    rows = some_rows()
    folders = []
    for name, threads in (("a", 1), ("b", 8)):
        mine = [row for row in rows if (row["pruner"] == "litelvlm") == (name == "a")]
        facts = {"commit": "c", "packages": {}, "device_name": "cpu", "threads": threads}
        folders.append(store(tmp_path / name, mine, run=name * 4, provenance=facts))
    notes = gather(folders).notes
    assert any("[a] cpu, 1 thread (run aaaa); [b] cpu, 8 threads (run bbbb)" in note for note in notes)
    assert "Runs aaaa and bbbb were made with different threads (1 and 8)" in notes[0]


def test_letters_do_not_end(tmp_path: Path) -> None:
    rows = [prices(["none"], **HERE | {"host": str(k)}).assign(run=k) for k in range(28)]
    marked, _ = machines.lettered(pd.concat(rows), [str(k) for k in range(28)])
    assert marked[machines.LETTER].tolist()[:2] + marked[machines.LETTER].tolist()[-3:] == [
        "a",
        "b",
        "z",
        "aa",
        "ab",
    ]
    assert machines.is_time("stage.text_ms") and not machines.is_time("macs_measured")


def test_a_ledger_says_which_machine_it_is_of() -> None:
    facts = machine()
    assert facts.keys() == {"processor", "host"} and "cores" in facts["processor"] and len(facts["host"]) == 8
    assert COSTS == "costs.jsonl" and set(cost.store.MACHINE) >= facts.keys()


def of_seed(rows: list[dict[str, Any]], seed: int) -> list[dict[str, Any]]:
    """The rows as a run with --seed records them that names it in every cell."""
    return [row | {"seed": row["seed"] + seed, "cell": f"{row['cell']} of {seed}"} for row in rows]


def test_what_does_not_draw_has_no_seeds(tmp_path: Path) -> None:
    rows = some_rows()
    folders = [store(tmp_path / str(seed), of_seed(rows, seed), run=str(seed) * 4) for seed in (0, 7)]
    runs = gather(folders)
    (table,) = tables(runs)
    seeds = {line.pruner: len(line.seeds) for line in table.lines}
    assert seeds == {"none": 1, "fastv(layer=3)": 1, "litelvlm": 1, "oracle": 1, "random": 6}
    alone = {(line.pruner, line.budget): line for line in tables(gather(folders[:1]))[0].lines}
    for line in table.lines:
        if line.pruner != "random":
            assert line.average == alone[line.pruner, line.budget].average
            assert line.counts == alone[line.pruner, line.budget].counts  # not counted twice
    fixed = sum(row["pruner"] != "random" for row in rows)
    assert any(
        note.startswith(f"{fixed} results are in several of the runs. They agree") for note in runs.notes
    )
    assert "none (2 seeds)" not in report(folders, tmp_path / "out").text()


def test_other_draws_of_a_protocol_are_another_table_and_name_the_seed(tmp_path: Path) -> None:
    folders = [
        store(tmp_path / str(seed), of_seed(some_rows(), seed), run=str(seed) * 4, setting={"draws": seed})  # type: ignore[dict-item]
        for seed in (0, 7)
    ]
    text = report(folders, tmp_path / "out").text(columns=200)
    assert "tables differ in the draws of the protocol (--seed 0 and 7): not ranked together" in text
    assert "2 seeds" not in text and text.count("\nmethod ") == 2


@pytest.mark.parametrize(
    ("plans", "named"),
    [
        (({"limit": 4}, {"limit": 12}), "--limit 4 and 12"),
        (({"limit": 4}, {"limit": 0}), "--limit 4 and 0 (all)"),
        (({"limit": 4, "data": "/one"}, {"limit": 4, "data": "/two"}), "--data /one and /two"),
    ],
)
def test_what_parts_tables_is_named_with_its_option(
    plans: tuple[dict[str, Any], dict[str, Any]], named: str, tmp_path: Path
) -> None:
    rows = some_rows()
    folders = [
        store(tmp_path / str(k), rows, data=f"d{k}", run=str(k) * 4, plan={"seed": 0} | plan)
        for k, plan in enumerate(plans)
    ]
    made = report(folders, tmp_path / "out")
    text = (tmp_path / "out" / "leaderboard.md").read_text()
    assert f"other images, expressions or masks ({named})." in text
    assert f"glamm-mini: tables differ in data ({named}): not ranked together." in made.text(columns=200)


def test_samples_that_were_edited_are_counted(tmp_path: Path) -> None:
    known = [{"refcoco:val": [["refcoco:val:0", "x"], ["refcoco:val:1", end]]} for end in "yz"]
    groups = [
        comparable.Group(
            {"backbone": "b"}, pd.DataFrame({"run": [k], "dataset": "d", "split": "s", "data": str(k)})
        )
        for k in range(2)
    ]
    for group in groups:
        group.facts.update(dict.fromkeys(comparable.WORDS, "same"))
    runs = [{"plan": {"limit": 4}, "samples": samples} for samples in known]
    (told,) = comparable.why(groups, runs, brief=True)
    assert "1 of 2 samples were edited, first refcoco:val:1" in told


@pytest.mark.parametrize(("fact", "values"), [("dtype", "float32 and bfloat16"), ("device", "cpu and cuda")])
def test_settings_are_named_by_their_options(fact: str, values: str, tmp_path: Path) -> None:
    one, two = values.split(" and ")
    folders = [
        store(
            tmp_path / value,
            [row | {"cell": row["cell"] + value} for row in some_rows()],
            setting={fact: value},
        )
        for value in (one, two)
    ]
    report(folders, tmp_path / "out")
    assert f"(--{fact} {values})." in (tmp_path / "out" / "leaderboard.md").read_text()
