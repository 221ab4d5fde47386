"""Runs that grow: more pruners, budgets, images and splits into one folder compute what is missing, and
nothing twice."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch

from backbones.base import Grounded, Row
from backbones.glamm.backbone import GlammBackbone
from harness.engine.claims import Claims
from harness.engine.runner import Plan, Way, prepare, run
from harness.store import closing, records, run_folder, sweeps, tables
from harness.store.journal import digest
from pruners import UserError, load_plugin, registry
from reports import render
from tests.fake_backbone import FakeBackbone, write_data
from tests.faults.crew import finish, send, written
from tests.test_code import PLUGIN

pytestmark = pytest.mark.usefixtures("text_only")

IMAGES = 40  # twenty per split
SMALL = Plan("none,uniform", (8,), "refcoco:val", limit=3)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_data(tmp_path_factory.mktemp("data"), images=IMAGES)


@pytest.fixture
def small(root: Path) -> Plan:
    return replace(SMALL, data=str(root))


def counting() -> tuple[FakeBackbone, dict[tuple[str, int], int]]:
    """A backbone, and the rows that it grounds, by pruner and budget."""
    backbone, rows = FakeBackbone(), {}
    ground = backbone.ground_rows

    def counted(asked: Sequence[Row], share: bool = True) -> list[Grounded]:
        for row in asked:
            rows[row.pruner.name, row.budget] = rows.get((row.pruner.name, row.budget), 0) + 1
        return ground(asked, share)

    backbone.ground_rows = counted  # type: ignore[method-assign]
    return backbone, rows


def go(plan: Plan, folder: Path, **way: Any) -> tuple[list[int], dict[tuple[str, int], int]]:
    """Run a plan; images per call of the backbone, and the rows that it grounded."""
    backbone, rows = counting()
    assert run(plan, backbone, prepare(plan, backbone), folder, Way(**way))
    return backbone.encoded, rows


def results(folder: Path) -> pd.DataFrame:
    assert max(written(folder).values()) == 1, "no row stands twice"
    return records.load_records(folder)


def same_as_fresh(plan: Plan, folder: Path) -> None:
    """A folder that grew is the folder that the whole plan makes at once."""
    fresh = folder.with_name(f"{folder.name}-fresh")
    go(plan, fresh)
    pd.testing.assert_frame_equal(results(folder), results(fresh))
    pd.testing.assert_frame_equal(records.samples(folder), records.samples(fresh))
    assert records.failures(folder) == records.failures(fresh)
    assert run_folder.finished(folder)
    tables.verify(folder)


# expressions of the first 3 and 20 images of val: images with odd numbers have three, the others two
THREE, TWENTY = 8, 50
GROWTH: dict[str, tuple[dict[str, Any], dict[tuple[str, int], int], int]] = {
    "pruners": ({"pruners": "none,uniform,fastv"}, {("fastv", 8): THREE}, 3),
    "pruners alone": ({"pruners": "fastv"}, {("fastv", 8): THREE}, 3),
    "budgets": ({"budgets": (8, "50%")}, {("uniform", 32): THREE}, 3),
    "images": ({"limit": 20}, {("none", 64): TWENTY - THREE, ("uniform", 8): TWENTY - THREE}, 17),
    "all images": ({"limit": 0}, {("none", 64): TWENTY - THREE, ("uniform", 8): TWENTY - THREE}, 17),
    "splits": ({"datasets": "refcoco"}, {("none", 64): 7, ("uniform", 8): 7}, 3),
    "seeds": ({"pruners": "none,random", "seeds": 2}, {("random", 8): 2 * THREE}, 3),
    "two at once": (
        {"pruners": "none,uniform,fastv", "limit": 10},
        {("none", 64): 25 - THREE, ("uniform", 8): 25 - THREE, ("fastv", 8): 25},
        10,
    ),
}


@pytest.mark.parametrize("what", GROWTH)
def test_a_run_grows_by_what_is_missing(
    what: str, small: Plan, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    changes, rows, images = GROWTH[what]
    folder, larger = tmp_path / "run", replace(small, **changes)
    go(small, folder)
    before = results(folder)
    capfd.readouterr()
    encoded, grounded = go(larger, folder)
    assert set(grounded) == set(rows)
    # of a part's first image it is looked at what rounding changes, by rows that are not recorded
    assert all(rows[key] <= count <= 2 * rows[key] for key, count in grounded.items())
    assert sum(encoded) == images, "images are encoded once, and only those that lack results"
    assert "the run grows by" in capfd.readouterr().err
    after = results(folder)
    old = after.merge(before[["cell", "sample", "expression"]], on=["cell", "sample", "expression"])
    columns = [name for name in before if name != "data"]
    pd.testing.assert_frame_equal(old[columns], before[columns])
    union = (
        larger
        if what not in ("pruners alone", "seeds")
        else replace(larger, pruners=(*small.pruners, *larger.pruners))
    )
    same_as_fresh(union, folder)


@pytest.mark.parametrize("what", GROWTH)
def test_a_smaller_command_computes_nothing_and_the_tables_show_all(
    what: str, small: Plan, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "run"
    go(small, folder)
    go(replace(small, **GROWTH[what][0]), folder)
    held, told = results(folder), (folder / records.RUN).read_bytes()
    capfd.readouterr()
    assert go(small, folder) == ([], {})
    assert "nothing computed; --force starts anew" in capfd.readouterr().err
    assert told == (folder / records.RUN).read_bytes()
    pd.testing.assert_frame_equal(results(folder), held)


def test_what_other_commands_asked_is_not_computed_by_this_one(small: Plan, tmp_path: Path) -> None:
    """Its cells are complete, the run is not, and says so; the command that lacks results ends it."""
    folder = tmp_path / "run"
    go(small, folder)
    larger = replace(small, pruners=("none", "uniform", "fastv"))
    backbone, _ = counting()
    with pytest.raises(KeyboardInterrupt), pytest.MonkeyPatch.context() as patch:
        patch.setattr(backbone, "ground_rows", _stopped)
        run(larger, backbone, prepare(larger, backbone), folder)
    assert not run_folder.finished(folder)
    assert go(small, folder) == ([], {})
    assert not run_folder.finished(folder)
    assert "This run is unfinished" in render(folder)[0].read_text()
    assert set(go(replace(small, pruners=("fastv",)), folder)[1]) == {("fastv", 8)}
    same_as_fresh(larger, folder)


def _stopped(*_: object, **__: object) -> None:
    raise KeyboardInterrupt


def test_rows_of_unlike_numbers_of_images_are_named(small: Plan, tmp_path: Path) -> None:
    go(small, tmp_path)
    go(replace(small, pruners=("fastv",), limit=12), tmp_path)
    assert run_folder.finished(tmp_path)
    counts = results(tmp_path).groupby("pruner")["sample"].nunique()
    assert counts.to_dict() == {"none": 3, "uniform": 3, "fastv": 12}
    assert "rows rest on different numbers of expressions" in render(tmp_path)[0].read_text()


def test_two_runs_on_other_numbers_of_images_keep_their_rows(small: Plan, tmp_path: Path) -> None:
    """Their cells are the same ones, and so are the rows of the images that both have."""
    go(replace(small, limit=8), tmp_path / "a")
    go(replace(small, limit=12), tmp_path / "b")
    assert set(records.load_records(tmp_path / "a")["cell"]) == set(
        records.load_records(tmp_path / "b")["cell"]
    )
    together = render([tmp_path / "a", tmp_path / "b"], tmp_path / "out")[0].read_text()
    assert "tables differ in data" in together and "several of the runs" not in together
    alone = [render(tmp_path / name)[0].read_text() for name in "ab"]
    rows = [line for text in alone for line in text.splitlines() if line.startswith(("| none", "| uniform"))]
    assert rows == [line for line in together.splitlines() if line.startswith(("| none", "| uniform"))]


# --- seeds
# --------------------------------------------------------------------------------------------------------


def test_a_seed_is_part_of_the_cells_that_draw_alone(small: Plan, tmp_path: Path) -> None:
    plan = replace(small, pruners=("none", "uniform", "random"))
    go(plan, tmp_path)
    assert set(go(replace(plan, seed=2), tmp_path)[1]) == {("random", 8)}  # 2 is there, 3 and 4 are not
    frame = results(tmp_path)
    assert set(frame[frame["pruner"] == "random"]["seed"]) == {0, 1, 2, 3, 4}
    assert set(frame[frame["pruner"] != "random"]["seed"]) == {0}
    assert "random (5 seeds)" in render(tmp_path)[0].read_text()


# --- what does not fit
# --------------------------------------------------------------------------------------------


def test_a_sample_that_changed_is_refused(small: Plan, tmp_path: Path) -> None:
    root = Path(shutil.copytree(str(small.data), tmp_path / "data"))
    plan, folder = replace(small, data=str(root)), tmp_path / "run"
    go(plan, folder)
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    image = root / "Refer_Segm" / "coco_2014" / "train2014" / "2.png"
    shutil.copy(image.with_name("9.png"), image)
    for asked in (plan, replace(plan, limit=12), replace(plan, pruners=("fastv",))):
        with pytest.raises(
            UserError, match=r"refcoco:val:2 changed since .*run' recorded it .* new --out folder"
        ):
            go(asked, folder)
    go(replace(plan, limit=1), folder)  # reads no image that changed
    assert before == {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_an_image_that_was_broken_and_is_mended_is_refused(small: Plan, tmp_path: Path) -> None:
    root = Path(shutil.copytree(str(small.data), tmp_path / "data"))
    image = root / "Refer_Segm" / "coco_2014" / "train2014" / "2.png"
    sound = image.read_bytes()
    image.write_bytes(b"no image")
    plan, folder = replace(small, data=str(root)), tmp_path / "run"
    go(plan, folder)
    assert set(records.failures(folder)) == {"refcoco:val:2"}
    image.write_bytes(sound)
    with pytest.raises(UserError, match="refcoco:val:2 changed since"):
        go(plan, folder)


def test_other_images_under_the_same_name_are_refused(small: Plan, tmp_path: Path) -> None:
    go(small, tmp_path / "run")
    other = write_data(tmp_path / "data", images=4)
    plan, backbone = replace(small, data=str(other)), FakeBackbone()
    splits = [
        replace(split, samples=split.samples[1:], contents=split.contents[1:])
        for split in prepare(plan, backbone)
    ]
    with pytest.raises(
        UserError,
        match=r"holds other images of refcoco:val .refcoco:val:1 where this command has refcoco:val:2",
    ):
        run(plan, backbone, splits, tmp_path / "run")


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("fingerprint", "0" * 16, "its weights is"),
        ("dtype", "bfloat16", "its dtype is 'float32' and this one's 'bfloat16'"),
        ("attn", "eager", "its attention is"),
        ("name", "other", "its backbone is 'fake' and this one's 'other'"),
        ("answers", ("generated",), "its answers is"),
    ],
)
def test_another_setting_is_another_run(
    small: Plan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, value: Any, said: str
) -> None:
    go(small, tmp_path)
    monkeypatch.setattr(FakeBackbone, name, value, raising=False)
    with pytest.raises(UserError, match=f"holds another run: {said}"):
        go(replace(small, pruners=("fastv",)), tmp_path)


def test_a_run_of_schema_3_does_not_grow_and_is_still_shown(small: Plan, tmp_path: Path) -> None:
    go(small, tmp_path)
    frame, described = records.load_records(tmp_path), records.samples(tmp_path)
    as_schema_3(tmp_path)
    shown = records.load_records(tmp_path)
    pd.testing.assert_frame_equal(shown.drop(columns=NEW), frame.drop(columns=NEW))
    assert shown["data"].eq("da7a").all()
    pd.testing.assert_frame_equal(
        records.samples(tmp_path).drop(columns="content"), described.drop(columns="content")
    )
    text = render(tmp_path)[0].read_text()
    assert "unfinished" not in text and "seed 7" in text
    with pytest.raises(
        UserError, match="made by an earlier version, which a report still reads; give a new --out"
    ):
        go(replace(small, pruners=("fastv",)), tmp_path)


NEW = ["data", "positions", "answers", "budget_asked"]


def as_schema_3(folder: Path) -> None:
    """Rewrite a finished run as the version before wrote it."""
    for file in (folder / records.FOLDER).glob("*/*.jsonl"):
        rows = list(records.read_lines(file))
        file.unlink()
        file.write_bytes(
            b"".join(
                map(
                    journal_line,
                    [{"schema": 3}, *({k: v for k, v in row.items() if k != "content"} for row in rows)],
                )
            )
        )
    info = {
        k: v
        for k, v in json.loads((folder / records.RUN).read_text()).items()
        if k not in ("sweeps", "samples", "plan")
    }
    cells = {}
    for cell, entry in info["cells"].items():
        old = {k: v for k, v in entry.items() if k not in ("positions", "budget_asked")} | {"data": "da7a"}
        cells[cell] = old | {"setting": {k: v for k, v in entry["setting"].items() if k != "answers"}}
    info |= {"schema": 3, "cells": cells, "asked": {"seed": 7, "limit": 3, "cut_off": 0}}
    records.write_atomically(folder / records.RUN, info, run_folder.LOOSE)
    done = json.loads((folder / records.DONE).read_text()) | {
        "schema": 3,
        "cells": digest({"cells": sorted(cells)}),
    }
    for place in (folder / records.FOLDER).iterdir():
        table = place / "sample.parquet"
        pd.read_parquet(table).drop(columns="content").to_parquet(table)
        done["splits"][place.name]["sample.parquet"]["sha256"] = tables._sha256(table)
    records.write_atomically(folder / records.DONE, done)


def journal_line(row: dict[str, Any]) -> bytes:
    from harness.store import journal

    return journal.line(row)


# --- what fails, is edited, is killed, or happens at once
# ------------------------------------------------------------


def test_a_sample_that_failed_stays_failed_and_is_tried_under_new_cells(small: Plan, tmp_path: Path) -> None:
    root = Path(shutil.copytree(str(small.data), tmp_path / "data"))
    (root / "Refer_Segm" / "coco_2014" / "train2014" / "2.png").write_bytes(b"no image")
    plan, folder = replace(small, data=str(root)), tmp_path / "run"
    go(plan, folder)
    larger = replace(plan, pruners=("none", "uniform", "fastv"), limit=20)
    go(larger, folder)
    assert set(records.failures(folder)) == {"refcoco:val:2"}
    same_as_fresh(larger, folder)


def test_a_run_that_grows_is_never_half_closed(
    small: Plan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Old tables with an old done.json, or none: at no moment the one with the other's."""
    root = small.data
    plan = replace(small, datasets="refcoco", data=root)
    larger, folder = replace(plan, limit=20), tmp_path / "run"
    go(plan, folder)
    compact, made = tables.compact, []

    def killed_after_the_first(place: Path, rows: Any) -> Any:
        if made:
            raise KeyboardInterrupt
        made.append(place)
        assert not (folder / records.DONE).exists()
        return compact(place, rows)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(closing, "compact", killed_after_the_first)
        go(larger, folder)
    go(larger, tmp_path / "fresh")
    assert not run_folder.finished(folder)
    pd.testing.assert_frame_equal(records.load_records(folder), records.load_records(tmp_path / "fresh"))
    assert go(larger, folder) == ([], {})
    same_as_fresh(larger, folder)


def test_a_growing_command_is_killed_and_goes_on(root: Path, small: Plan, tmp_path: Path) -> None:
    larger = replace(small, pruners=("none", "uniform", "fastv", "random"), limit=20)
    for number in range(2):
        folder, draw = tmp_path / str(number), random.Random(number)
        go(small, folder)
        for _ in range(2):
            process = send(root, folder, 0.25, plan=larger)
            time.sleep(draw.uniform(0.1, 0.7))
            os.kill(process.pid, signal.SIGKILL)  # type: ignore[arg-type]
            process.join()
        finish(root, folder, plan=larger)
        same_as_fresh(larger, folder)


@pytest.mark.parametrize("larger", ["more pruners", "other pruners", "more images"])
def test_a_run_grows_while_another_process_fills_it(
    root: Path, tmp_path: Path, small: Plan, larger: str
) -> None:
    torch.set_num_threads(1)
    plan = replace(small, limit=20, datasets="refcoco")
    changes: dict[str, Any] = {
        "more pruners": {"pruners": ("none", "uniform", "fastv")},
        "other pruners": {"pruners": ("fastv", "litelvlm")},
        "more images": {},
    }[larger]
    if larger == "more images":
        plan, changes = replace(plan, limit=12), {"limit": 20}
    folder = tmp_path / "run"
    process = send(root, folder, 0.3, plan=plan)
    while not list((folder / records.FOLDER).glob("*/*.jsonl")):
        assert process.is_alive()
        time.sleep(0.02)
    other = send(root, folder, 0.05, plan=replace(plan, **changes))
    for one in (process, other):
        one.join(60)
        assert one.exitcode == 0
    union = replace(plan, **changes)
    if larger == "other pruners":
        union = replace(union, pruners=(*plan.pruners, *union.pruners))
    same_as_fresh(union, folder)


KEYS = [f"{k:015x}0" for k in range(40)]


def test_where_a_run_has_other_sweeps_every_part_is_looked_at_again(tmp_path: Path) -> None:
    first = Claims(tmp_path / "claims-1", [[one] for one in KEYS[:4]])
    assert (first.others, first.take(0)) == (False, "fresh")
    first.finish(0, 2)
    other = Claims(tmp_path / "claims-2", [KEYS[:2], KEYS[2:4], KEYS[4:6]])
    assert first.others and other.others
    assert [first.take(1), other.take(2)] == ["abandoned", "abandoned"]
    first.finish(1, 12)
    assert other.take(0) == "abandoned"
    assert first.take(0) is None, "done"
    other.finish(0, 0)
    assert (first.failed, other.failed, other.open) == (14, 0, [1, 2])
    assert other.begun.tolist() == [False, True, True], "nobody knows what the other one recorded"


def test_links_and_pipes_beside_claims_are_nobodys(tmp_path: Path) -> None:
    one = Claims(tmp_path / "claims-1", [KEYS[:2]])
    os.mkfifo(tmp_path / "claims-pipe")
    (tmp_path / "claims-link").symlink_to(one.path)
    assert one.take(0) == "fresh"


def test_a_medium_is_held_under_one_sweep_alone(tmp_path: Path) -> None:
    """Parts of two sweeps are cut otherwise; a lock goes with its process."""
    ready = os.pipe()
    if not (child := os.fork()):
        try:
            Claims(tmp_path / "claims-1", [[one] for one in KEYS[:4]]).take(1)
            os.write(ready[1], b"x")
            signal.pause()
        finally:
            os._exit(1)
    try:
        assert os.read(ready[0], 1) == b"x"
        other = Claims(tmp_path / "claims-2", [KEYS[:2], KEYS[2:4]])
        assert (other.take(0), other.holder(0), other.holder(1)) == (None, child, None)
        assert other.take(1) == "abandoned"
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
    assert other.take(0) == "abandoned"


def test_of_states_that_are_made_anew_all_may_be_recorded(tmp_path: Path) -> None:
    keys = [KEYS[:2], KEYS[2:3], KEYS[3:4]]
    one = Claims(tmp_path / "claims-1", keys, recorded=True)
    assert one.take(0) == "abandoned"
    one.path.write_bytes(b"....0")
    cut = Claims(tmp_path / "claims-1", keys)
    assert [cut.take(0), cut.take(1)] == ["fresh", "abandoned"], "cut in the middle of a state"
    one.path.write_bytes(b"....x0x0++++")
    assert Claims(tmp_path / "claims-1", keys).begun.tolist() == [False, True, True]
    assert Claims(tmp_path / "claims-1", keys[:2]).path != one.path, "other parts have other states"


def test_files_that_were_put_in_the_place_of_claims_are_noticed(tmp_path: Path) -> None:
    for name in ("path", "_locked"):
        one = Claims(tmp_path / "claims-1", [KEYS[:2]])
        assert one.in_place
        getattr(one, name).unlink()
        assert not one.in_place
        Claims(tmp_path / "claims-1", [KEYS[:2]])
        assert not one.in_place


@pytest.mark.parametrize("then", ["another sweep", "other order", "parts cut otherwise"])
def test_a_sweep_that_is_gone_on_with_after_others_doubles_no_row(
    root: Path, tmp_path: Path, then: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, datasets = tmp_path / "run", "refcoco:val,refcoco:testA"
    first = replace(SMALL, datasets=datasets, limit=12, data=str(root))
    process = send(root, folder, 0.2, plan=first)
    while sum(written(folder).values() or [0]) < 20:
        assert process.is_alive()
        time.sleep(0.02)
    process.kill()
    process.join()
    if then == "another sweep":
        go(replace(first, pruners=("none", "fastv(layer=1)")), folder)
    elif then == "other order":
        go(replace(first, datasets="refcoco:testA,refcoco:val"), folder)
    else:
        monkeypatch.setattr("harness.engine.splits.IMAGES_AT_ONCE", 3)
    go(first, folder)
    assert max(written(folder).values()) == 1


def test_a_run_that_grew_after_an_edit_shows_what_was_asked_last_of_every_pruner(
    small: Plan, tmp_path: Path, capfd: pytest.CaptureFixture[str], plugin: Callable[[str], None]
) -> None:
    folder, asked = tmp_path / "run", replace(small, pruners=("none", "norm"))
    plugin(PLUGIN)
    go(asked, folder)
    before = results(folder)
    plugin(PLUGIN.replace("SIGN = 1", "SIGN = -1"))
    assert set(go(replace(small, pruners=("uniform",)), folder)[1]) == {("uniform", 8)}
    pd.testing.assert_frame_equal(
        results(folder)[lambda f: f["pruner"] != "uniform"].reset_index(drop=True), before
    )
    capfd.readouterr()
    assert set(go(asked, folder)[1]) == {("norm", 8)}
    assert "norm: source changed since" in capfd.readouterr().err
    same_as_fresh(replace(small, pruners=("none", "norm", "uniform")), folder)
    plugin(PLUGIN)
    assert go(asked, folder) == ([], {})
    assert "back to the code of" in capfd.readouterr().err
    frame = results(folder)
    pd.testing.assert_frame_equal(frame[frame["pruner"] != "uniform"].reset_index(drop=True), before)


def test_with_keep_code_new_cells_join_the_old_ones_and_are_marked(
    small: Plan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    go(small, tmp_path)
    from harness.engine import splits

    of_backbone = splits.code.of_backbone
    monkeypatch.setattr(splits.code, "of_backbone", lambda cls: of_backbone(cls)[::-1])
    larger = replace(small, pruners=("none", "uniform", "fastv"))
    assert set(go(larger, tmp_path, keep_code=True)[1]) == {("fastv", 8)}
    frame = results(tmp_path)
    assert frame["evaluation"].nunique() == 1
    assert set(frame["pruner"][frame["code"] != ""]) == {"fastv"}
    assert "computed by other code than the rest of their rows" in render(tmp_path)[0].read_text()
    assert set(go(larger, tmp_path)[1]) == {("none", 64), ("uniform", 8), ("fastv", 8)}
    assert (results(tmp_path)["code"] == "").all()


@pytest.fixture
def plugin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Registers a text as the pruner `norm`."""
    from harness.store import code

    monkeypatch.setattr(code, "STARTED", float("inf"))
    monkeypatch.setattr(registry.PRUNERS, "known", dict(registry.PRUNERS.known))

    def load(text: str) -> None:
        (tmp_path / "norm.py").write_text(text)
        registry.PRUNERS.known.pop("norm", None)
        load_plugin(tmp_path / "norm.py")

    return load


# --- what run.json says
# -------------------------------------------------------------------------------------------


def test_a_run_says_which_plans_made_it(small: Plan, tmp_path: Path) -> None:
    go(small, tmp_path)
    go(replace(small, limit=12), tmp_path)  # asks for all that the first did
    go(replace(small, pruners=("fastv",), limit=12), tmp_path)
    go(small, tmp_path)
    info = records.run_info(tmp_path)
    plans = [Plan.from_json(plan) for plan in sweeps.plans_of(info)]
    assert [(plan.pruners, plan.limit) for plan in plans] == [(("none", "uniform"), 12), (("fastv",), 12)]
    assert info["plan"] == plans[-1].to_json()
    assert len(info["sweeps"]) == 3


@pytest.mark.parametrize(
    "change",
    [
        lambda info: info["sweeps"][0]["images"].update({"refcoco:val": 99}),
        lambda info: info["sweeps"][0]["cells"].append("f" * 16),
        lambda info: info["sweeps"][0].pop("plan"),
        lambda info: info["samples"].update({"refcoco:val": [["a"]]}),
        lambda info: info.update(sweeps=3),
    ],
)
def test_a_run_json_whose_sweeps_cannot_be_is_damaged(
    small: Plan, tmp_path: Path, change: Callable[[Any], None]
) -> None:
    go(small, tmp_path)
    info = json.loads((tmp_path / records.RUN).read_text())
    change(info)
    records.write_atomically(tmp_path / records.RUN, info, run_folder.LOOSE)
    with pytest.raises(UserError, match=r"run.json' is damaged"):
        records.load_records(tmp_path)


def test_costs_of_a_run_that_grew_are_of_all_its_rows(
    glamm: GlammBackbone, root: Path, tmp_path: Path
) -> None:
    from harness import cost
    from harness.cost import kinds

    plan = Plan("uniform", (64,), "refcoco:val", data=str(root), limit=1)
    rows = []
    for asked in (plan, replace(plan, pruners=("fastv(layer=1)",), limit=2), plan):
        splits = prepare(asked, glamm)
        run(asked, glamm, splits, tmp_path)
        kinds.write_costs("projected", asked, splits, glamm, tmp_path)
        rows.append(set(cost.load_costs(tmp_path)["pruner"]))
    assert rows == [{"none", "uniform"}, *2 * [{"none", "uniform", "fastv(layer=1)"}]]
    assert len(list(tmp_path.glob("costs.*.jsonl"))) == 1  # the smaller command computed nothing
