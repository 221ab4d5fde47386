"""`reproduce`, end to end: doctor, proof, sweep, table; with specs that are right and one that is wrong."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest

from harness import cli, metrics
from harness.engine.runner import Way, prepare, run
from harness.plan import Plan
from harness.reproduce.proof import prove
from harness.reproduce.spec import read_spec
from harness.store.records import load_records
from reports import figures, reproduced
from tests.fake_backbone import FakeBackbone, known, write_data
from tests.fake_video import FakeVideo, write_clips

IMAGES = 30  # of val
Scores = dict[tuple[int, str], float]
SPEC = """
title = "What the fake says of RefCOCO"
numbers = "fake.csv"
backbone = "fake"
protocol = "glamm"
beside = false
causes = ["the printed number was made up"]

[source]
title = "tests"
where = "this file"
seen = true

[metrics.ciou]
unit = "%"

[plan]
pruners = ["none", "uniform"]
budgets = [16]
datasets = "refcoco:val"

[proof]
images = 10

[band]
draw = "{draw}"

[[splits]]
name = "refcoco:val"
images = {images}
unknown = "the rest is not counted"
"""


@pytest.fixture
def call(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> Callable[..., tuple[int, str]]:
    monkeypatch.chdir(tmp_path)

    def run(*words: str | Path) -> tuple[int, str]:
        capsys.readouterr()
        monkeypatch.setattr("sys.argv", ["harness", "reproduce", *map(str, words)])
        code = cli.main()
        told = capsys.readouterr()
        return code, told.out + told.err

    return run


@pytest.fixture
def loaded(monkeypatch: pytest.MonkeyPatch) -> list[object]:
    monkeypatch.setattr(figures, "draw_figures", lambda *_: [])  # half a second each, and nobody looks
    return known(monkeypatch)  # type: ignore[return-value]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_data(tmp_path_factory.mktemp("data"), images=2 * IMAGES)


@pytest.fixture(scope="module")
def scores(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Scores:
    """What was measured with the protocol's draws of two seeds."""
    found = {}
    for seed in (0, 7):
        plan = Plan(
            pruners=("none", "uniform"),
            budgets=("16",),
            datasets="refcoco:val",
            protocol="glamm",
            data=str(data),
            seed=seed,
        )
        backbone, folder = FakeBackbone(), tmp_path_factory.mktemp("measured")
        assert run(plan, backbone, prepare(plan, backbone), folder)
        frame = load_records(folder)
        for pruner in plan.pruners:
            value = metrics.get("ciou").value(frame[frame["pruner"] == pruner])
            found[seed, pruner] = 100 * value
    assert found[0, "none"] != found[7, "none"]
    return found


def printed(scores: Scores, folder: Path, seed: int = 0, off: float = 0.0, draw: str = "same") -> Path:
    """A spec with the numbers of a seed, falsified by so many points."""
    lines = ["pruner,budget,refcoco val,source"]
    for pruner, budget in (("none", ""), ("uniform", "16")):
        lines.append(f"{pruner},{budget},{scores[seed, pruner] + off:.1f},tests")
    (folder / "fake.csv").write_text("\n".join(lines) + "\n")
    (folder / "fake.toml").write_text(SPEC.format(draw=draw, images=IMAGES))
    return folder / "fake.toml"


def test_a_right_spec_holds_and_its_numbers_are_written(
    call: Callable[..., tuple[int, str]], loaded: list[object], data: Path, scores: Scores, tmp_path: Path
) -> None:
    spec = printed(scores, tmp_path)
    code, told = call(spec, "--data", data, "--out", "out")
    assert code == 0, told
    assert "ok     refcoco:val: 30 images" in told and "as the spec expects" in told
    assert "on 10 of 30 images" in told and "The table holds here: 2 of 2" in told
    rows = pd.read_csv("out/reproduced.csv")
    assert list(rows["verdict"]) == ["holds", "holds"]
    content = json.loads(Path("out/reproduced.json").read_text())
    frame = load_records("out/run")
    ours = 100 * metrics.get("ciou").value(frame[frame["pruner"] == "uniform"])
    assert content["cells"][1]["ours"] == pytest.approx(ours)
    assert content["proof"][0]["images"] == 10
    # again: what is there is not computed again
    page = Path("out/reproduced.md").read_text()
    asked = sum(len(one.grounded) for one in loaded)  # type: ignore[attr-defined]
    code, again = call(spec, "--data", data, "--out", "out")
    assert code == 0 and sum(len(one.grounded) for one in loaded) == asked  # type: ignore[attr-defined]
    assert page in again and Path("out/reproduced.md").read_text() == page


def test_a_wrong_spec_stops_at_the_proof_and_names_the_causes(
    call: Callable[..., tuple[int, str]], loaded: list[object], data: Path, scores: Scores, tmp_path: Path
) -> None:
    spec = printed(scores, tmp_path, off=40.0)
    code, told = call(spec, "--data", data, "--out", "out")
    assert code == 1
    assert "differs" in told and "usual causes, the likeliest first:" in told
    assert told.index("1. the printed number was made up") < told.index("2. the files are not those")
    assert "stopped before anything else ran" in told and not Path("out/run").exists()
    code, told = call(spec, "--data", data, "--out", "out", "--anyway")
    assert code == 1 and "The table does not hold here: 0 of 2 numbers hold, 2 differ" in told
    assert "The set-up was not proven" in Path("out/reproduced.md").read_text()


def test_numbers_of_other_draws_lie_in_the_band_that_the_draw_is_worth(
    call: Callable[..., tuple[int, str]], loaded: list[object], data: Path, scores: Scores, tmp_path: Path
) -> None:
    spec = printed(scores, tmp_path, seed=7, draw="other")
    code, told = call(spec, "--data", data, "--out", "out")
    content = json.loads(Path("out/reproduced.json").read_text())
    assert 0 < content["draw"]["ciou"] <= 1
    assert (tmp_path / "out" / "proof" / "seed-2").is_dir(), "three seeds"
    assert all(cell["parts"]["draw"] > 0 for cell in content["cells"])
    assert code == 0 and "does not hold" not in told
    assert "measured with 3 seeds" in told


def test_other_data_than_the_spec_expects_are_refused(
    call: Callable[..., tuple[int, str]], loaded: list[object], data: Path, scores: Scores, tmp_path: Path
) -> None:
    spec = printed(scores, tmp_path)
    spec.write_text(spec.read_text().replace(f"images = {IMAGES}", "images = 31"))
    code, told = call(spec, "--data", data, "--out", "out")
    assert code == 2 and not Path("out").exists()
    assert "refcoco:val has 30 images" in told and "the spec expects 31 images" in told
    assert "go on with --anyway" in told
    code, told = call(spec, "--data", data, "--out", "out", "--anyway")
    assert "is not known, so their intervals are those of other images" in told


def test_a_part_of_the_images_is_told_apart_from_all(
    call: Callable[..., tuple[int, str]], loaded: list[object], data: Path, scores: Scores, tmp_path: Path
) -> None:
    spec = printed(scores, tmp_path)
    code, told = call(spec, "--data", data, "--out", "out", "--limit", "7")
    assert "Only the first 7 images of each split were asked." in told
    for cell in json.loads(Path("out/reproduced.json").read_text())["cells"]:
        assert cell["low"] < cell["difference"] < cell["high"]
    code, told = call(spec, "--data", data, "--out", "out")
    assert code == 0 and "on 10 of 30 images" in told and "The table holds here: 2 of 2" in told, "it grows"
    code, told = call(spec, "--data", data, "--out", "few", "--limit", "3")
    assert code == 0 and "Nothing can be told of the table here" in told and "3 images are too few" in told


def test_the_measures_of_clips_are_columns_of_one_split(tmp_path: Path) -> None:
    """J, F and J&F of the same clips, asked again on a sample and held against the print."""
    root, backbone = write_clips(tmp_path / "data", count=6), FakeVideo()
    plan = Plan(
        pruners=("none", "uniform"),
        budgets=("16",),
        datasets="ref-davis17:val",
        answers=("generated",),
        data=str(root),
    )
    assert run(plan, backbone, prepare(plan, backbone), tmp_path / "run")
    frame, columns = load_records(tmp_path / "run"), {"j": "J", "f": "F", "j&f": "J&F"}
    lines = ["pruner,budget,J,F,J&F,source"]
    for pruner, budget in (("none", ""), ("uniform", "16")):
        mine = frame[frame["pruner"] == pruner]
        values = [f"{100 * metrics.get(name).value(mine):.1f}" for name in columns]
        lines.append(",".join([pruner, budget, *values, "tests"]))
    (tmp_path / "fake.csv").write_text("\n".join(lines) + "\n")
    told = "\n".join(f'"{name}" = {{ unit = "%", column = "{one}" }}' for name, one in columns.items())
    text = SPEC.format(draw="other", images=6).replace('[metrics.ciou]\nunit = "%"', f"[metrics]\n{told}")
    text = text.replace("refcoco:val", "ref-davis17:val").replace('"glamm"', '"each"')
    (tmp_path / "fake.toml").write_text(text)
    spec, same = read_spec(tmp_path / "fake.toml"), {"ref-davis17:val": True}
    asked = replace(spec.plan, data=str(root), answers=("generated",))
    proof = prove(spec, asked, backbone, tmp_path / "proof", same, Way())
    assert proof.stands and proof.draws == 1 and [one.metric for one in proof.cells] == list(columns)
    assert not any(proof.draw.values()), "nothing is drawn"
    cells = reproduced.cells_of(spec, [tmp_path / "run"], same, proof.draw)
    assert [cell.column for cell in cells] == ["J", "J", "F", "F", "J&F", "J&F"]
    assert {cell.judged.verdict for cell in cells} == {"holds"}
    wrong = replace(spec, splits=())
    others = reproduced.cells_of(wrong, [tmp_path / "run"], {}, proof.draw)
    assert all(cell.judged.high > cell.judged.low for cell in others), "nobody knows that they are the same"


def test_data_that_are_not_here_are_named(
    call: Callable[..., tuple[int, str]], loaded: list[object], data: Path, scores: Scores, tmp_path: Path
) -> None:
    spec = printed(scores, tmp_path)
    code, told = call(spec)
    assert code == 2 and "error: Not here: data refcoco" in told
    code, told = call(spec, "--dry-run")
    assert code == 0 and "| data refcoco" in told and "no " in told


def test_several_processes_are_refused_with_what_to_do(
    call: Callable[..., tuple[int, str]],
    loaded: list[object],
    data: Path,
    scores: Scores,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    spec = printed(scores, tmp_path)
    for name, value in (("RANK", "0"), ("WORLD_SIZE", "2"), ("LOCAL_RANK", "0")):
        monkeypatch.setenv(name, value)
    code, told = call(spec, "--data", data, "--out", "out")
    assert code == 2 and "--from out/plan.json --out out/run" in told
    written = Plan.from_json(json.loads(Path("out/plan.json").read_text()))
    assert replace(written, data=None).datasets == "refcoco:val" and written.protocol == "glamm"


def test_the_list_names_every_table_and_what_it_lacks(call: Callable[..., tuple[int, str]]) -> None:
    code, told = call()
    lines = {line.split("|")[1].strip(): line for line in told.splitlines() if line.startswith("| ")}
    assert code == 0
    assert set(lines) >= {
        "embedded",
        "litelvlm-refcoco",
        "litelvlm-efficiency",
        "ref-davis17",
        "refer-youtube-vos",
        "lisa-refcoco",
    }
    assert lines["embedded"].rstrip(" |").endswith("yes")
    assert "checkpoint" in lines["litelvlm-refcoco"] and "projected alone" in lines["litelvlm-efficiency"]
    code, told = call("litelvlm-refcocos")
    assert code == 2 and "'litelvlm-refcoco'" in told


def test_a_dry_run_runs_nothing_and_says_how_large_and_how_long(call: Callable[..., tuple[int, str]]) -> None:
    code, told = call("embedded-small", "--dry-run", "--out", "out")
    assert code == 0 and not Path("out").exists()
    assert "| data refshapes" in told and "to fetch: 0 B in 0 files" in told
    assert re.search(r"GPU memory: \d\.\d GiB \(\d\.\d of weights, \d\.\d alive", told)
    assert re.search(r"4 rows of 4 images .*: .* at its peak rate, .* at 30% of it", told)


def test_more_images_than_printed_are_refused(call: Callable[..., tuple[int, str]]) -> None:
    code, told = call("embedded", "--limit", "13")
    assert code == 2 and "--limit 13 is more than the 12 images per split" in told


def test_a_part_of_our_own_table_comes_out_again(call: Callable[..., tuple[int, str]]) -> None:
    """The shipped model on generated scenes: data by their fingerprint, numbers to the printed digit."""
    code, told = call("embedded-small", "--out", "out")
    assert code == 0, told
    assert "and fingerprint as the spec expects" in told
    assert "The table holds here: 12 of 12 numbers hold, 0 differ." in told
