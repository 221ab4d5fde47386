"""The engine: cells and their identity, one encoding per image, records that survive being killed."""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Callable
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from PIL import Image

from harness.engine.cells import SEEDS, Cell, Setting, expand
from harness.engine.runner import IMAGES_AT_ONCE, Plan, Way, identity, prepare, run
from harness.store import editions, journal, records
from harness.store.provenance import collect
from harness.store.run_folder import SCHEMA
from pruners import Cut, ImpossibleBudget, Selection, UserError, VisualTokens, checks, parse
from pruners.random import Random
from reports import render
from tests.fake_backbone import LAYERS, SIDE, FakeBackbone, write_data

pytestmark = pytest.mark.usefixtures("no_figures")

PATCHES = SIDE * SIDE
SOME = "none,fastv,litelvlm,random,oracle,uniform"
SETTING = Setting("fake", "fa4e", "each", "float32", "sdpa", "cpu")
CELL = Cell(SETTING, "refcoco", "val", "fastv", (("layer", 2),), 8, 0)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_data(tmp_path_factory.mktemp("data"))


def plan_of(root: Path, pruners: str = SOME, **changes: Any) -> Plan:
    pairs = (("refcoco", "val"), ("refcoco", "testA"))
    return Plan(tuple(parse(pruners)), (8, 24), pairs, data=str(root), **changes)


def start(plan: Plan, folder: Path, **settings: Any) -> FakeBackbone:
    backbone = FakeBackbone(**settings)
    run(plan, backbone, prepare(plan, backbone), folder)
    return backbone


def files(folder: Path) -> list[Path]:
    return sorted((folder / records.FOLDER).glob("*/*.jsonl"))


def lines(folder: Path) -> list[str]:
    """Every row that any process wrote; one that was written twice is there twice."""
    return sorted(
        json.dumps(row, sort_keys=True) for file in files(folder) for row in records.read_lines(file)
    )


def unfinish(folder: Path) -> None:
    """As if the process had been killed before it closed the run."""
    (folder / records.DONE).unlink()
    for table in (folder / records.FOLDER).glob("*/*.parquet"):
        table.unlink()


# --- cells
# --------------------------------------------------------------------------------------------------------


def test_identity_is_stable_and_every_field_is_part_of_it() -> None:
    assert CELL.id == replace(CELL).id
    assert len(CELL.id) == 16
    other = {str: "another", int: 99, tuple: (("layer", 3),)}
    changed = [
        replace(CELL, **{f.name: other[type(getattr(CELL, f.name))]})
        for f in fields(Cell)
        if f.name not in ("setting", "own_positions")
    ]
    changed += [
        replace(CELL, setting=replace(SETTING, **{f.name: 9 if f.name == "draws" else "another"}))
        for f in fields(Setting)
    ]
    assert len({cell.id for cell in [CELL, *changed]}) == 1 + len(changed) == 19


def test_identity_does_not_change_between_versions() -> None:
    assert CELL.id == "befafb76be80f0d7"


def test_expansion() -> None:
    lines = expand(parse("none,fastv(layer=3),random"), (8, 24), 5, (SIDE, SIDE), LAYERS)
    assert [(line.name, line.budget, line.seed) for line in lines] == [
        ("none", PATCHES, 0),
        ("fastv(layer=3)", 8, 0),
        ("fastv(layer=3)", 24, 0),
        *(("random", budget, 5 + k) for budget in (8, 24) for k in range(SEEDS)),
    ]
    drawn = [line.pruner for line in lines if line.name == "random"]
    assert all(isinstance(pruner, Random) for pruner in drawn)
    assert [pruner.parameters()["seed"] for pruner in drawn] == [5, 6, 7, 5, 6, 7]


@pytest.mark.parametrize(
    ("text", "seed", "seeds"),
    [
        ("random", 5, [5, 6, 7]),
        ("random(seed=7)", 0, [7]),
        ("random(seed=7)", 5, [7]),
        ("random(seed=0)", 5, [0]),
        ("random,random(seed=7)", 0, [0, 1, 2, 7]),
        ("random(seed=1),random", 0, [1, 0, 2]),
        ("random(seed=7),random(seed=8),random(seed=7)", 0, [7, 8]),
    ],
)
def test_a_written_seed_runs_alone_and_the_option_moves_the_others(
    text: str, seed: int, seeds: list[int]
) -> None:
    lines = expand(parse(text), (8,), seed, (SIDE, SIDE), LAYERS)
    assert [line.seed for line in lines] == seeds == [line.pruner.parameters()["seed"] for line in lines]
    assert {line.name for line in lines} == {"random"}


def test_impossible_budgets_stop_the_run_before_anything_is_read(root: Path) -> None:
    plan = plan_of(root / "not there")
    with pytest.raises(UserError, match="0 is no count of visual tokens"):
        replace(plan, budgets=(8, 0))
    with pytest.raises(ImpossibleBudget, match=f"cannot keep {PATCHES + 1} tokens"):
        prepare(replace(plan, budgets=(8, PATCHES + 1)), FakeBackbone())


def test_identity_of_a_run_follows_the_data(root: Path, tmp_path: Path) -> None:
    plan = plan_of(root)
    backbone = FakeBackbone()
    known = identity(prepare(plan, backbone))
    assert known == identity(prepare(plan, backbone))
    assert known != identity(prepare(replace(plan, limit=1), backbone))
    assert known != identity(prepare(replace(plan, seed=1), backbone))
    moved = write_data(tmp_path)
    assert known == identity(prepare(replace(plan, data=str(moved)), backbone))
    next((moved / "Refer_Segm" / "coco_2014" / "train2014").iterdir()).write_bytes(b"other pixels")
    assert known != identity(prepare(replace(plan, data=str(moved)), backbone))


def test_a_plan_checks_itself(root: Path) -> None:
    with pytest.raises(UserError, match="--limit -1"):
        plan_of(root, limit=-1)


def test_a_protocol_that_the_backbone_does_not_have_is_told_before_anything_is_read(root: Path) -> None:
    with pytest.raises(UserError, match=r"fake has no protocol 'eech'.*'each'"):
        prepare(plan_of(root / "not there", protocol="eech"), FakeBackbone())


# --- records
# ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("protocol", ["each", "glamm"])
def test_a_run_has_one_record_per_cell_and_expression(root: Path, tmp_path: Path, protocol: str) -> None:
    plan = plan_of(root, protocol=protocol)
    start(plan, tmp_path)
    frame = records.load_records(tmp_path)
    assert set(records.COLUMNS) <= set(frame.columns)
    assert (tmp_path / records.DONE).exists()
    per_cell = frame.groupby("cell").size()
    cells_per_split = 1 + 2 * 4 + 2 * SEEDS
    assert len(per_cell) == 2 * cells_per_split
    expressions = {"val": 8, "testA": 7}  # images 1 to 3 have 3, 2, 3 and images 4 to 6 have 2, 3, 2
    assert set(
        frame.groupby(["split", "cell"]).size().reset_index()[["split", 0]].itertuples(index=False, name=None)
    ) == set(expressions.items())
    assert not frame.duplicated(["cell", "sample", "expression"]).any()
    assert (frame["intersection"] <= frame["union"]).all()
    assert frame["union"].dtype == "int64"
    expected = (frame["intersection"] / frame["union"]).where(frame["union"] > 0, 1.0)
    pd.testing.assert_series_equal(frame["iou"], expected, check_names=False)
    budgets = frame[frame["pruner"] != "none"].groupby("pruner")["tokens_final"].unique()
    assert all(sorted(found) == [8, 24] for found in budgets)
    fastv = frame[(frame["pruner"] == "fastv") & (frame["budget"] == 8)]
    assert set(fastv["tokens_mean"]) == {(2 * PATCHES + 2 * 8) / LAYERS}


def test_masks_follow_the_selection(root: Path, tmp_path: Path) -> None:
    start(plan_of(root), tmp_path)
    frame = records.load_records(tmp_path)
    counts = {key: tuple(part["union"]) for key, part in frame.groupby(["split", "pruner", "budget", "seed"])}
    assert len(set(counts.values())) == len(counts)


def test_every_image_is_encoded_once(root: Path, tmp_path: Path) -> None:
    backbone = start(plan_of(root), tmp_path)
    assert sum(backbone.encoded) == 6


def test_tower_choices_are_made_once_per_image_unless_they_read_the_text(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[tuple[str, str]] = []
    for pruner in parse("uniform,litelvlm"):
        original: Callable[..., Any] = type(pruner).select

        def counted(
            self: Any, tokens: VisualTokens, budget: int, original: Callable[..., Any] = original
        ) -> Any:
            calls.append((self.name, tokens.sample))
            return original(self, tokens, budget)

        monkeypatch.setattr(type(pruner), "select", counted)
    start(replace(plan_of(root, "uniform,litelvlm"), budgets=(8,)), tmp_path)
    # of the first image it is looked at whether choices repeat, and what rounding changes
    assert calls.count(("uniform", "refcoco:val:2")) == 1
    assert calls.count(("litelvlm", "refcoco:val:2")) == 2  # its expressions


def test_run_twice_gives_the_same_records(root: Path, tmp_path: Path) -> None:
    for name in "ab":
        start(plan_of(root), tmp_path / name)
    assert lines(tmp_path / "a") == lines(tmp_path / "b")


@pytest.mark.parametrize("size", [1, 7, 1000])
def test_batch_size_changes_nothing(root: Path, tmp_path: Path, size: int) -> None:
    start(plan_of(root), tmp_path / "a")
    backbone = start(plan_of(root), tmp_path / "b", batch_size=size)
    assert max(backbone.grounded) <= size
    assert lines(tmp_path / "a") == lines(tmp_path / "b")


# --- going on after a stop
# ----------------------------------------------------------------------------------------


def test_a_finished_run_returns_at_once(root: Path, tmp_path: Path) -> None:
    start(plan_of(root), tmp_path)
    backbone = start(plan_of(root), tmp_path)
    assert backbone.encoded == []


def test_killed_at_any_byte_a_run_goes_on_to_the_same_records(root: Path, tmp_path: Path) -> None:
    plan = plan_of(root, "none,random")
    start(plan, tmp_path / "whole")
    wanted = records.load_records(tmp_path / "whole")
    content = files(tmp_path / "whole")[0].read_bytes()
    draw = random.Random(0)
    header = content.index(b"\n") + 1
    for number, size in enumerate(
        [0, 5, header, header + 1, len(content) - 1, *(draw.randrange(len(content)) for _ in range(15))]
    ):
        folder = tmp_path / str(number)
        shutil.copytree(tmp_path / "whole", folder)
        unfinish(folder)
        files(folder)[0].write_bytes(content[:size])
        start(plan, folder)
        assert lines(folder) == lines(tmp_path / "whole"), f"killed after {size} bytes"
        pd.testing.assert_frame_equal(records.load_records(folder), wanted)
        assert (folder / records.DONE).exists()


def test_finished_images_are_not_done_again(tmp_path: Path) -> None:
    root = write_data(tmp_path / "data", images=4 * IMAGES_AT_ONCE)
    plan = replace(plan_of(root, "none"), datasets=(("refcoco", "val"),))  # two parts
    assert start(plan, tmp_path / "run").encoded == [IMAGES_AT_ONCE, IMAGES_AT_ONCE]
    (file,) = files(tmp_path / "run")
    file.write_bytes(file.read_bytes()[:-30])  # the last row is torn
    unfinish(tmp_path / "run")
    assert start(plan, tmp_path / "run").encoded == [1], "of a part that was torn, the images that lack rows"


def test_another_run_in_the_folder_is_refused(root: Path, tmp_path: Path) -> None:
    start(plan_of(root), tmp_path)
    before = lines(tmp_path)
    with pytest.raises(UserError, match="holds another run: its protocol is 'each' and this one's 'glamm'"):
        start(plan_of(root, protocol="glamm"), tmp_path)
    assert lines(tmp_path) == before


def test_a_damaged_middle_is_named_and_not_skipped(root: Path, tmp_path: Path) -> None:
    start(plan_of(root, "none"), tmp_path)
    unfinish(tmp_path)
    file = files(tmp_path)[0]
    rows = file.read_bytes().split(b"\n")
    for broken in (b"\x00\x00\x00", b"[1]", b'{"cell": "half a record"}'):
        file.write_bytes(b"\n".join([*rows[:3], broken, *rows[4:]]))
        with pytest.raises(UserError, match=rf"{file.name}:4 is damaged"):
            records.load_records(tmp_path)
        with pytest.raises(UserError, match=rf"{file.name}:4 is damaged"):
            start(plan_of(root, "none"), tmp_path)
    file.write_bytes(b"\n".join([*rows[:3], *rows[4:]]))  # what the message says
    start(plan_of(root, "none"), tmp_path)
    assert len(records.load_records(tmp_path)) == 15


def test_another_schema_is_refused(root: Path, tmp_path: Path) -> None:
    start(plan_of(root, "none"), tmp_path)
    unfinish(tmp_path)
    file = files(tmp_path)[0]
    file.write_text(file.read_text().replace(f'"schema": {SCHEMA}, "crc": ', '"schema": 99, "sum": ', 1))
    with pytest.raises(UserError, match="schema 99"):
        records.load_records(tmp_path)


def test_no_records_and_damaged_run_info(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no records"):
        records.load_records(tmp_path)
    (tmp_path / records.RUN).write_text("{")
    with pytest.raises(UserError, match="damaged"):
        records.run_info(tmp_path)


# --- what goes wrong
# ----------------------------------------------------------------------------------------------


def test_an_unreadable_image_is_recorded_and_the_run_goes_on(tmp_path: Path) -> None:
    root = write_data(tmp_path / "data")
    (root / "Refer_Segm" / "coco_2014" / "train2014" / "2.png").write_bytes(b"no image")
    start(plan_of(root), tmp_path / "run")
    failed = records.failures(tmp_path / "run")
    assert list(failed) == ["refcoco:val:2"]
    assert "cannot be read" in failed["refcoco:val:2"]
    frame = records.load_records(tmp_path / "run")
    assert set(frame["sample"]) == {f"refcoco:{'val' if k <= 3 else 'testA'}:{k}" for k in (1, 3, 4, 5, 6)}
    assert start(plan_of(root), tmp_path / "run").encoded == []


def test_an_image_that_cannot_be_encoded_costs_only_itself(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    backbone = FakeBackbone()
    original = backbone._encode
    first = backbone.preprocess(prepare(plan_of(root), backbone)[0].samples[0].image())

    def encode(pixels: Any) -> Any:
        if pixels.grounding.equal(first.grounding):
            raise RuntimeError("no usable pixels")
        return original(pixels)

    monkeypatch.setattr(backbone, "_encode", encode)
    plan = plan_of(root)
    run(plan, backbone, prepare(plan, backbone), tmp_path)
    assert records.failures(tmp_path) == {"refcoco:val:1": "RuntimeError('no usable pixels')"}
    assert records.load_records(tmp_path)["sample"].nunique() == 5


@pytest.mark.parametrize(
    ("select", "message"),
    [
        (
            lambda tokens, budget: 1 / 0,
            r"uniform \(.*uniform.py:\d+\) failed on refcoco:val:1 at 8 tokens with ZeroDivisionError",
        ),
        (
            lambda tokens, budget: tokens.text_embeds,
            "reads .*text_embeds.*, which its `needs` do not declare",
        ),
        (lambda tokens, budget: tokens.patches, "returned Tensor where a Selection is asked"),
        (lambda tokens, budget: Selection(torch.randperm(64)[:budget]), "draws from a global random state"),
        (
            lambda tokens, budget: Selection(tokens.patches.zero_()[:budget, 0].long()),
            "changes tokens.patches in place",
        ),
    ],
)
def test_a_pruner_that_fails_stops_the_run(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, select: Callable[..., Any], message: str
) -> None:
    pruner = type(parse("uniform")[0])
    monkeypatch.setattr(pruner, "select", lambda self, tokens, budget: select(tokens, budget))
    monkeypatch.setattr(checks, "_watched", set())
    with pytest.raises(UserError, match=message):
        start(plan_of(root, "uniform"), tmp_path)
    assert not (tmp_path / records.DONE).exists()


def test_a_layer_pruner_that_fails_stops_the_run(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pruner = type(parse("fastv")[0])
    monkeypatch.setattr(checks, "_watched", set())
    monkeypatch.setattr(pruner, "cut", lambda self, tokens, count: Selection(torch.arange(count) // 2))
    with pytest.raises(UserError, match="chose visual token 0 2 times"):
        start(plan_of(root, "fastv"), tmp_path / "twice")
    monkeypatch.setattr(pruner, "cut", lambda self, tokens, count: Selection(torch.randperm(64)[:count]))
    with pytest.raises(UserError, match="global random state"):
        start(plan_of(root, "fastv(layer=3)"), tmp_path / "draw")
    monkeypatch.setattr(pruner, "cuts", lambda self, budget, patches, layers: (Cut(2, budget + 1),))
    with pytest.raises(UserError, match="ends at 9 tokens where 8 were asked"):
        start(plan_of(root, "fastv"), tmp_path / "stated")
    assert not (tmp_path / "stated").exists(), "a false statement is refused before anything runs"


def test_a_pruner_that_misses_its_budget_stops_the_run(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pruner = type(parse("uniform")[0])
    original = pruner.select
    monkeypatch.setattr(pruner, "select", lambda self, tokens, budget: original(self, tokens, budget - 1))
    with pytest.raises(UserError, match="kept 7 tokens where 8 were asked"):
        start(plan_of(root, "uniform"), tmp_path)


def test_questions_beyond_the_text_tower_are_counted_and_said(
    root: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        FakeBackbone, "cut_off", lambda self, questions: sum("other" in question for question in questions)
    )
    start(plan_of(root, "none,uniform"), tmp_path / "blind")
    assert "longer than" not in capfd.readouterr().err
    start(plan_of(root, "none,litelvlm"), tmp_path / "run")
    assert "3 questions are longer than the text tower takes" in capfd.readouterr().err
    assert "3 questions are longer than the text tower takes" in render(tmp_path / "run")[0].read_text()


def test_a_full_disk_is_one_sentence_and_loses_nothing(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(number: int) -> None:
        raise OSError(28, "No space left on device")

    plan = plan_of(root, "none")
    monkeypatch.setattr(journal.os, "fsync", full)
    with pytest.raises(UserError, match="No space left"):
        start(plan, tmp_path)
    monkeypatch.undo()
    start(plan, tmp_path)
    assert len(records.load_records(tmp_path)) == 15


def test_provenance_says_where_the_numbers_come_from(root: Path, tmp_path: Path) -> None:
    start(plan_of(root), tmp_path)
    info = json.loads((tmp_path / records.RUN).read_text())
    assert info["plan"]["budgets"] == ["8", "24"]
    assert info["provenance"]["packages"]["torch"]
    assert {"commit", "dirty", "command", "python", "platform", "time"} <= info["provenance"].keys()
    assert set(info["cells"]) == set(records.load_records(tmp_path)["cell"])
    assert [len(known) for known in info["samples"].values()] == [3, 3]
    described = records.samples(tmp_path).set_index("sample")["content"]
    assert all(
        described[sample].eq(content).all() for known in info["samples"].values() for sample, content in known
    )


def test_going_on_with_other_code_is_written_down(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = plan_of(root, "none")
    start(plan, tmp_path)
    unfinish(tmp_path)
    start(plan, tmp_path)
    assert "continued" not in records.run_info(tmp_path)
    unfinish(tmp_path)
    monkeypatch.setattr(editions, "collect", lambda device: collect(device) | {"commit": "another"})
    start(plan, tmp_path)
    (part,) = records.run_info(tmp_path)["continued"]
    assert part["changed"] == ["commit"]
    assert "went on after a change of commit" in render(tmp_path)[0].read_text()


def test_an_image_that_is_swapped_while_a_run_goes_on_becomes_no_number(tmp_path: Path) -> None:
    own = write_data(tmp_path / "data")
    plan = plan_of(own, "none")
    backbone = FakeBackbone()
    splits = prepare(plan, backbone)
    victim = splits[0].samples[0]
    Image.new("RGB", (victim.width, victim.height), "red").save(victim.frames[0])
    assert run(plan, backbone, splits, tmp_path / "run", Way(max_failures=1.0))
    told = {sample: why for sample, why in records.failures(tmp_path / "run").items()}
    assert victim.id in told and "was changed while the run went on" in told[victim.id]
    assert set(records.load_records(tmp_path / "run")["sample"]).isdisjoint(told)
