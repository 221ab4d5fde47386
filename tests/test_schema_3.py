"""A run of before schema 4 (`tests/runs/schema-3`, five images of two splits): read and reported as then."""

from __future__ import annotations

import shutil
from pathlib import Path

import pandas as pd
import pytest

from harness.engine.runner import Plan, prepare, run
from harness.store import records, tables
from harness.store.run_folder import DONE, finished, run_info
from pruners import UserError, parse
from reports import render
from reports.gather import gather
from tests.a_run import a_row, store
from tests.fake_backbone import FakeBackbone

pytestmark = pytest.mark.usefixtures("text_only")

FIXTURE = Path(__file__).parent / "runs" / "schema-3"


@pytest.fixture
def old(tmp_path: Path) -> Path:
    return Path(shutil.copytree(FIXTURE, tmp_path / "old"))


def test_its_rows_are_read_and_what_they_lack_is_filled_in(old: Path) -> None:
    assert run_info(old)["schema"] == 3 and finished(old)
    frame, asked = records.load_records(old), records.samples(old)
    assert len(frame) == 156 and list(frame) == [*records.COLUMNS, *records.FROM_RUN]
    assert (frame["cluster"] == frame["sample"].str.rpartition(":")[2]).all()
    assert frame["cluster"].nunique() == 5  # the two splits share their images
    assert (frame["frames"] == 1).all() and (frame["views"] == 1).all() and frame["tokens_llm"].isna().all()
    assert (asked["group"] == "").all() and asked["content"].isna().all()
    assert tables.verify(old) is None


def test_journals_and_tables_say_the_same(old: Path) -> None:
    frame, asked = records.load_records(old), records.samples(old)
    (old / DONE).unlink()
    for table in (old / "records").glob("*/*.parquet"):
        table.unlink()
    pd.testing.assert_frame_equal(records.load_records(old), frame)
    pd.testing.assert_frame_equal(records.samples(old), asked)


def test_lost_tables_are_made_again_from_the_journals(old: Path) -> None:
    frame = records.load_records(old)
    next((old / "records").glob("*/ok.parquet")).unlink()
    assert records.rebuild_tables(old)
    pd.testing.assert_frame_equal(records.load_records(old), frame)


def test_its_report_is_that_of_its_time(old: Path, tmp_path: Path) -> None:
    render(old, tmp_path / "out")
    for name in ("leaderboard.csv", "differences.csv"):
        now, then = (pd.read_csv(folder / name) for folder in (tmp_path / "out", FIXTURE))
        # said since schemas 5 and 6
        now = now.drop(columns=["answers", "draws", "model", "tokens_llm"], errors="ignore")
        pd.testing.assert_frame_equal(now, then, rtol=1e-12)
    now, then = ((folder / "leaderboard.md").read_text() for folder in (tmp_path / "out", FIXTURE))
    assert now == then


def test_it_is_not_gone_on_with(old: Path) -> None:
    plan = Plan(tuple(parse("none,uniform")), (64,), (("refshapes", "val"),), limit=1)
    backbone = FakeBackbone()
    info = (old / "run.json").read_text()
    with pytest.raises(UserError, match=r"holds another run|was made by an earlier version"):
        run(plan, backbone, prepare(plan, backbone), old)
    assert (old / "run.json").read_text() == info


def test_rows_of_both_schemas_about_one_image_are_drawn_together(tmp_path: Path) -> None:
    """Of the number alone nobody can say which image is meant; a later row about the same sample can."""

    def a_run(name: str, pruner: str, dataset: str, cluster: str) -> Path:
        rows = [
            a_row((dataset, "val"), pruner, 64 if pruner != "none" else 576, 0, place) for place in range(8)
        ]
        return store(
            tmp_path / name,
            [row | ({"cluster": f"{cluster}{row['sample'][-1]}.jpg"} if cluster else {}) for row in rows],
        )

    new, before, plus = (
        a_run("new", "none", "refcoco", "train2014/"),
        a_run("before", "litelvlm", "refcoco", ""),
        a_run("plus", "oracle", "refcoco+", ""),
    )
    images = {f"train2014/{k}.jpg" for k in range(4)}
    assert set(gather([before, plus]).frame["cluster"]) == {"0", "1", "2", "3"}
    assert set(gather([new, before]).frame["cluster"]) == images
    assert set(gather([new, before, plus]).frame["cluster"]) == images
    assert set(gather([new, plus]).frame["cluster"]) == images
    other = a_run("other", "none", "mine", "mine/")  # the same numbers, other images
    frame = gather([new, other, before, plus]).frame
    told = frame.groupby("dataset")["cluster"].unique().map(set).to_dict()
    assert told["refcoco"] == told["refcoco+"] == images
    assert told["mine"] == {f"mine/{k}.jpg" for k in range(4)}


def test_an_interval_is_the_same_whether_clusters_are_numbers_or_files(tmp_path: Path) -> None:
    """COCO's file names sort otherwise than the numbers that stood for them."""
    found = []
    for name in ("numbers", "files"):
        rows = [
            a_row(("refcoco", "val"), "none", 576, 0, place)
            | {"sample": f"refcoco:val:{7 + 3 * (place // 2)}"}
            | ({"cluster": f"train2014/{7 + 3 * (place // 2):012}.jpg"} if name == "files" else {})
            for place in range(16)
        ]
        render(store(tmp_path / name, rows))
        found.append((tmp_path / name / "differences.csv").read_text())
    assert found[0] == found[1] and "nan" not in found[0]
