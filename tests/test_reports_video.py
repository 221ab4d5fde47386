"""Reports of clips: ranked by J&F, with what the language model saw, the answers without [SEG], and the form
of papers beside their numbers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from harness import metrics
from harness.engine.runner import Plan, prepare, run
from harness.metrics import bootstrap as statistics
from harness.metrics.video import means_of
from harness.store import records
from pruners import UserError, parse
from reports import columns, figures, page, publication
from reports import render as write
from reports.gather import gather
from reports.leaderboard import per_seed
from reports.tables import tables
from tests.a_run import box, run_lengths, some_rows, store
from tests.fake_video import FakeVideo, write_clips

SPLITS = (("ref-davis17", "val"), ("mevis", "valid_u"))
TITLES = ["J", "F", "J&F"]


@pytest.fixture(autouse=True)
def text_only(monkeypatch: pytest.MonkeyPatch) -> None:
    """As in the tests of other reports: pages and figures have their own."""
    monkeypatch.setattr(statistics, "FEWEST", 2)
    monkeypatch.setattr(figures, "draw_figures", lambda runs, tables, folder: [])
    monkeypatch.setattr(page, "page", lambda runs, tables: page.Page("", {}, ()))


def render(*folders: Path, **options: Any) -> str:
    """The leaderboard's text."""
    return write(list(folders), **options)[0].read_text(encoding="utf-8")


def table_below(text: str, heading: str = "") -> list[dict[str, str]]:
    """The first table behind a heading, line by line."""
    lines = text[text.index(heading) :].splitlines()
    start = next(place for place, line in enumerate(lines) if line.startswith("|"))
    found = []
    for line in lines[start:]:
        if not line.startswith("|"):
            break
        found.append([cell.strip() for cell in line.strip("|").split("|")])
    return [dict(zip(found[0], cells, strict=True)) for cells in found[2:]]


def clip_row(
    dataset: str, pruner: str, budget: int, place: int, score: float, said: int = 1, seed: int = 0
) -> dict[str, Any]:
    """One answer about a clip of two frames: J is `score`, F a tenth more, and half of both by identity."""
    whole = [10**4] * 2
    parts = {"j_inner": [round(10**4 * score)] * 2} | {
        name: [round(10**4 * (score + 0.1))] * 2 for name in ("f_hits", "f_found")
    }
    curves = parts | {name: whole for name in ("j_outer", "f_drawn", "f_edge")}
    j, f = means_of(curves)
    inner = round(100 * score) if said else 0
    return {
        "backbone": "videoglamm",
        "dataset": dataset,
        "split": "valid" if dataset == "ref-youtube-vos" else "val",
        "protocol": "videoglamm",
        "pruner": pruner,
        "budget": budget,
        "seed": seed,
        "cell": f"{dataset}{pruner}{budget}{seed}",
        "sample": f"{dataset}:{'valid' if dataset == 'ref-youtube-vos' else 'val'}:{place // 2}",
        "cluster": f"clip{place // 2}",
        "expression": place,
        "place": place % 2,
        "of": 2,
        "status": "ok",
        "tokens_final": 2 * budget,
        "tokens_mean": 2.0 * budget,
        "intersection": inner,
        "union": 100,
        "iou": inner / 100,
        "coverage": 0.5,
        "frames": 2,
        "views": 2,
        "tokens_llm": 3400,
        "code": "",
        "kept": records.pack_tokens(np.arange(2 * budget), 2 * 576),
        "mask": " ".join([run_lengths(box(4, 6)), run_lengths(box(5, 6))]),
        "seg_said": said,
        "seg_logprob": -0.25 if said else None,
        "wrote": "It is [SEG]." if said else "I see nothing.",
        "measures": {
            "j": j,
            "f": f,
            "j_fixed": score / 2,
            "f_fixed": f / 2,
            "j_rest": 0,
            "f_rest": 0,
            "n_rest": 0,
        },
        "curves": curves,
    }


def clip_rows(dataset: str = "ref-davis17") -> list[dict[str, Any]]:
    """Of six clips with two expressions: everything, and two methods at two budgets, the one better."""
    found = []
    for pruner, budget, score in (
        ("none", 576, 0.8),
        ("litelvlm", 196, 0.7),
        ("vispruner", 196, 0.6),
        ("litelvlm", 81, 0.5),
        ("vispruner", 81, 0.4),
    ):
        for place in range(12):
            said = int(not (pruner == "vispruner" and place in (3, 7)))
            found.append(clip_row(dataset, pruner, budget, place, score - 0.0123 * place, said))
    return found


def stored(folder: Path, rows: list[dict[str, Any]], **options: Any) -> Path:
    setting = {"answers": "generated", "model": "placement grid, 16 frames"}
    return store(folder, rows, setting=setting, **options)


def mean(rows: list[dict[str, Any]], pruner: str, budget: int, name: str) -> float:
    values = [row["measures"][name] for row in rows if (row["pruner"], row["budget"]) == (pruner, budget)]
    return 100 * sum(values) / len(values)


def test_clips_are_ranked_by_the_mean_of_both(tmp_path: Path) -> None:
    rows = clip_rows()
    folder = stored(tmp_path / "run", rows)
    text = render(folder)
    lines = {(line["method"]): line for line in table_below(text)}
    best = table_below(text)[3]
    assert best["method"] == "litelvlm"
    j, f = (mean(rows, "litelvlm", 196, name) for name in "jf")
    assert best["ref-davis17 val"] == best["Avg."] == f"{(j + f) / 2:.1f}"
    assert (best["J"], best["F"]) == (f"{j:.1f}", f"{f:.1f}")
    assert best["J&F, own object"] == f"{(j + f) / 4:.1f}"
    assert "cIoU" not in best and "gIoU" not in best  # sums over all frames are no score of clips
    assert best["LLM tokens"] == "3400" and best["tokens"] == "196"
    assert lines["vispruner"]["without [SEG]"] == "2" and best["without [SEG]"] == "0"
    assert lines["vispruner"]["[SEG] said %"] == f"{100 * 10 / 12:.1f}"
    assert "- data set and split: J&F in percent: the mean of J and F, so every expression weighs" in text
    assert "draws clips again" in text and "Samples (clips / expressions): ref-davis17 val 6 / 12" in text
    for name in columns.OF_CLIPS:
        assert f"- {name}: " in text
    csv = per_seed(gather([folder]).frame)
    line = csv[(csv["pruner"] == "vispruner") & (csv["budget"] == 81)].iloc[0]
    assert line["j"] == pytest.approx(mean(rows, "vispruner", 81, "j") / 100)  # no sum
    assert line["j&f"] == pytest.approx((line["j"] + line["f"]) / 2) and line["tokens_llm"] == 3400
    assert "ciou" not in csv or csv["ciou"].isna().all()


def test_any_metric_of_clips_can_rank_and_none_of_images(tmp_path: Path) -> None:
    folder = stored(tmp_path / "run", clip_rows())
    (table,) = tables(gather([folder]), metric="f")
    assert table.metric.name == "f" and [one.name for one in table.beside] == ["j", "j&f", "j&f_fixed"]
    assert "as papers print it" not in render(folder, metric="f")
    with pytest.raises(UserError, match="--metric ciou is measured on images alone, which no run here has"):
        render(folder, metric="ciou")
    image = store(tmp_path / "image", some_rows())
    with pytest.raises(UserError, match="--metric j&f is measured on videos alone, which no run here has"):
        render(image, metric="j&f")
    other = stored(tmp_path / "other", clip_rows("mevis"))
    with pytest.raises(UserError, match="--metric j&f_fixed is measured on ref-davis17 alone"):
        render(other, metric="j&f_fixed")


def test_runs_of_images_and_of_clips_are_one_report(tmp_path: Path) -> None:
    image, clip = store(tmp_path / "image", some_rows()), stored(tmp_path / "clip", clip_rows())
    first, second = tables(gather([image, clip]))
    assert (first.metric.name, second.metric.name) == ("ciou", "j&f")
    assert [one.name for one in first.beside] == ["giou"]
    (alone,) = tables(gather([image]))
    assert [line.average for line in first.lines] == [line.average for line in alone.lines]
    text = render(image, clip)
    assert "was not measured" not in text
    assert "LLM tokens" not in table_below(text)[0] and "without [SEG]" not in table_below(text)[0]
    assert "- data set and split where it is J&F: J&F in percent" in text
    assert "Samples (images or clips / expressions)" in text


def test_the_form_of_papers_stands_beside_printed_numbers(tmp_path: Path) -> None:
    rows = clip_rows() + clip_rows("ref-youtube-vos") + clip_rows("mevis")
    folder = stored(tmp_path / "run", rows, plan={"seed": 7, "limit": 6})
    text = render(folder)
    for dataset, heading, name in (
        ("ref-davis17", "## ref-davis17 val as", "ref-davis-17"),
        ("ref-youtube-vos", "## ref-youtube-vos valid as", "refer-youtube-vos"),
    ):
        mine = [row for row in rows if row["dataset"] == dataset]
        printed = publication.read_published(name)
        lines = table_below(text, heading)
        assert [(line["method"], line["K"]) for line in lines] == [
            ("none", "all"),
            ("litelvlm", "196"),
            ("vispruner", "196"),
            ("litelvlm", "81"),
            ("vispruner", "81"),
        ]
        for line in lines:
            budget = 576 if line["method"] == "none" else int(line["K"])
            same = (printed["pruner"] == line["method"]) & (
                (printed["budget"] == budget) | (line["method"] == "none")
            )
            (twin,) = printed[same].to_dict("records")
            j, f = (mean(mine, line["method"], budget, fact) for fact in "jf")
            for title, ours in zip(TITLES, (j, f, (j + f) / 2), strict=True):
                assert line[title] == f"{ours:.1f} ({ours - twin[title]:+.1f})"
            whole = sum(mean(mine, "none", 576, fact) for fact in "jf")
            assert line["Rel. %"] == f"{100 * (j + f) / whole:.1f}"
            assert line["LLM tokens"] == "3400"
            assert ("J&F, own object" in line) == (dataset == "ref-davis17")
    mevis = table_below(text, "## mevis val as")
    assert all("(" not in line["J&F"] for line in mevis) and len(mevis) == 5
    assert "Ref-DAVIS-17 table of the slides" in text and "only the first 6 clips of each split" in text
    forced = store(
        tmp_path / "forced",
        [row | {"seg_said": None, "wrote": ""} for row in rows],
        setting={"answers": "forced"},
    )
    other = render(forced)
    assert all("(" not in line["J&F"] for line in table_below(other, "## ref-davis17 val as"))
    assert "without [SEG]" not in table_below(other)[0]
    assert "were made with protocol videoglamm and generated answers, and stand beside no row" in other


def test_another_placement_is_another_table(tmp_path: Path) -> None:
    one = stored(tmp_path / "grid", clip_rows())
    direct = [row | {"cell": "d" + row["cell"], "tokens_llm": 2320} for row in clip_rows()]
    setting = {"answers": "generated", "model": "placement direct, 16 frames"}
    other = store(tmp_path / "direct", direct, setting=setting)
    found = tables(gather([one, other]))
    assert [table.lines[0].tokens_llm for table in found] == [3400.0, 2320.0]
    text = render(one, other)
    assert (
        "tables differ in the model's settings (placement grid, 16 frames / placement direct, 16 frames)"
        in text
    )


def test_splits_without_masks_have_no_row(tmp_path: Path) -> None:
    hidden = [
        row | {"measures": {}, "curves": {}, "intersection": 0, "union": 0, "iou": 1.0}
        for row in clip_rows("ref-youtube-vos")
    ]
    text = render(stored(tmp_path / "both", clip_rows() + hidden))
    assert "The masks of ref-youtube-vos valid are not there: its 60 answers have no score and no row" in text
    assert "ref-youtube-vos valid" not in table_below(text)[0] and "was not measured" not in text
    with pytest.raises(UserError, match="The masks of ref-youtube-vos valid are not there, so nothing was"):
        render(stored(tmp_path / "hidden", hidden))


def test_a_run_of_clips_becomes_a_report(tmp_path: Path) -> None:
    """From the engine on, with numbers that follow from its records."""
    root, folder = write_clips(tmp_path / "data"), tmp_path / "run"
    backbone = FakeVideo()
    plan = Plan(tuple(parse("none,uniform,random")), (16,), SPLITS, data=str(root))
    assert run(plan, backbone, prepare(plan, backbone), folder)
    frame: pd.DataFrame = records.load_records(folder)
    (table,) = tables(gather([folder]))
    line = next(line for line in table.lines if line.pruner == "uniform")
    for column in SPLITS:
        part = frame[(frame["dataset"] == column[0]) & (frame["pruner"] == "uniform")]
        assert line.scores[column].value == pytest.approx((part["j"].mean() + part["f"].mean()) / 2)
        assert line.others["j"][column] == metrics.get("j").value(part)
    assert line.silent == int((frame[frame["pruner"] == "uniform"]["seg_said"] == 0).sum()) > 0
    assert line.tokens_llm == frame[frame["pruner"] == "uniform"]["tokens_llm"].mean()
    assert "## mevis valid_u as papers print it" in render(folder)
