"""`study`: both answers of one question in pairs; numbers on paper, a sentence, a figure."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from pruners import UserError
from reports.study import frame_of, markdown, study, write_study
from tests.a_run import COLUMNS, a_row, store

IMAGES = 12
BETTER = 7  # pixels of 100 that the second answer has more


def rows_of(pruner: str, more: int, mark: str = "", **facts: Any) -> list[dict[str, Any]]:
    """One expression on each of twelve images in two columns."""
    found = []
    for column in COLUMNS[1:3]:
        for place in range(IMAGES):
            row = a_row(column, pruner, 576 if pruner == "none" else 64, 0, 0)
            row |= {"sample": f"{column[0]}:{column[1]}:{place}", "expression": place, "of": 1, "place": 0}
            inner = 60 + place % 3 + (more + place % 2 if mark else 0)
            row |= {"intersection": inner, "union": 100, "iou": inner / 100, "cell": row["cell"] + mark}
            found.append(row | facts)
    return found


@pytest.fixture
def positions(tmp_path: Path) -> Path:
    """litelvlm both ways, the second better; none and fastv once."""
    rows = [*rows_of("none", 0), *rows_of("litelvlm", 0), *rows_of("litelvlm", BETTER, "kept")]
    folder = store(tmp_path / "run", rows)
    return folder


def with_positions(folder: Path) -> None:
    from harness.store import run_folder
    from harness.store.journal import write_atomically

    info = run_folder.run_info(folder)
    for name, cell in info["cells"].items():
        cell["positions"] = "kept" if name.endswith("kept") else "compact"
    write_atomically(folder / run_folder.RUN, info, run_folder.LOOSE)
    done = run_folder.done_info(folder)
    done["cells"] = run_folder.cells_digest(info["cells"])
    write_atomically(folder / run_folder.DONE, done)


def test_differences_are_paired(positions: Path, tmp_path: Path) -> None:
    with_positions(positions)
    found = study([positions], "positions")
    (pair,) = found.pairs
    assert pair.pruner == "litelvlm" and pair.budget == 64, "none was asked one way alone"
    assert pair.values[0].value == pytest.approx(0.61) and pair.values[1].value == pytest.approx(0.685)
    assert pair.difference.value == pytest.approx(0.075) and found.mean.value == pytest.approx(0.075)
    assert pair.difference.low > 0.065 and pair.difference.high < 0.085, "pairs know no noise of images"
    assert pair.q < 0.05
    assert "score +7.5 cIoU points" in found.sentence and "1 are better and 0 worse" in found.sentence
    assert "+7.5 (" in markdown(found) and "*" in markdown(found)

    written = write_study(found, tmp_path / "out", "python -m harness study positions")
    assert [path.name for path in written] == ["study.md", "study.csv", "positions.svg", "positions.png"]
    page = written[0].read_text()
    assert found.sentence in page and "`python -m harness study positions`" in page
    pd.testing.assert_frame_equal(pd.read_csv(written[1]), frame_of(found), check_dtype=False)


def test_answers_of_two_runs_and_how_often_seg_is_said(tmp_path: Path) -> None:
    forced = store(tmp_path / "forced", rows_of("litelvlm", 0))
    own = rows_of("litelvlm", BETTER, "own", seg_said=1, seg_logprob=-0.5, wrote="It is [SEG]")
    own[0] |= {"seg_said": 0, "seg_logprob": None, "wrote": "It is", "intersection": 0, "iou": 0.0}
    generated = store(tmp_path / "generated", own, setting={"answers": "generated"}, run="e5f6")
    found = study([forced, generated], "answers")
    (pair,) = found.pairs
    assert pair.said == pytest.approx(1 - 1 / (2 * IMAGES))
    assert "[SEG] is said in 95.8 to 95.8 %" in found.sentence and "[SEG] said %" in markdown(found)


def test_nothing_to_compare(positions: Path) -> None:
    with pytest.raises(UserError, match="No method was run with positions compact and kept here"):
        study([positions], "positions")
