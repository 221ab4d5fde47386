"""Clips on the page: frames under a slider, with the masks, the patches of the nearest view, and curves."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from backbones.parts.clips import BETWEEN
from harness.engine.runner import Plan, Way, prepare, run
from harness.metrics.video import frames_of
from harness.store import records
from harness.store.rows import validate
from harness.store.run_folder import run_info
from pruners import parse
from reports import gallery, render
from reports.clips import clip_answer, nearest_view, points
from tests.browser import PROGRAM, Opened, chromium, opened
from tests.fake_backbone import SIDE
from tests.fake_video import FakeVideo, write_clips

FRAMES = 15  # more than pictures are kept of
SHOWN = [0, 1, 3, 4, 5, 6, 8, 9, 10, 11, 13, 14]  # of the shortest clip

pytest.importorskip("playwright", reason="the page is tested with playwright: pip install -e '.[test]'")
in_browser = pytest.mark.skipif(PROGRAM is None, reason="no Chromium here: apt-get install chromium")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = write_clips(tmp_path_factory.mktemp("clips"), 3, FRAMES)
    plan = Plan(tuple(parse("none,uniform,oracle")), (16,), (("ref-davis17", "val"),), data=str(root))
    backbone, place = FakeVideo(), tmp_path_factory.mktemp("runs") / "run"
    assert run(plan, backbone, prepare(plan, backbone), place, Way())
    return place


@pytest.fixture(scope="module")
def report(folder: Path) -> Path:
    return next(path for path in render(folder) if path.name == "report.html")


def pictures(page: Path) -> dict[str, Any]:
    text = page.read_text(encoding="utf-8")
    block = re.search(r'<script type="application/json" id="data">(.*?)</script>', text, re.S)
    assert block is not None
    found: dict[str, Any] = json.loads(block[1])["pictures"]
    return found


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with chromium() as one:
        yield one


@pytest.fixture(scope="module")
def one(browser: Any, report: Path) -> Opened:
    return opened(browser, report)


@pytest.fixture(autouse=True)
def fresh(request: pytest.FixtureRequest) -> None:
    if "one" in request.fixturenames:
        request.getfixturevalue("one").page.reload()


def canvases(page: Any) -> list[str]:
    found: list[str] = page.evaluate(
        "() => [...document.querySelectorAll('#cards canvas')].map(c => c.toDataURL())"
    )
    return found


def until(page: Any, words: str) -> None:
    """Look again until it is so; playwright's own waiting evaluates text, which the page's policy forbids."""
    for _ in range(200):
        if page.evaluate(words):
            return
        page.wait_for_timeout(25)
    raise AssertionError(f"{words} never came to be")


def at(page: Any, frame: int) -> None:
    until(page, f"document.querySelector('#clip').dataset.frame === '{frame}'")


def near_the_end(page: Any) -> None:
    until(page, "Number(document.querySelector('#clip').dataset.frame) > 12")


# --- what the page holds
# ------------------------------------------------------------------------------------------------------


def test_an_item_has_its_frames_and_an_answer_what_it_is_in_each(folder: Path, report: Path) -> None:
    frame, asked, found = records.load_records(folder), records.samples(folder), pictures(report)
    assert (found["of"], found["clips"]) == (0, 3)
    truths = asked.set_index(["sample", "expression"])["truth"]
    keys = ["pruner", "sample", "expression"]
    rows = {
        key: row
        for key, row in zip(
            frame[keys].itertuples(index=False, name=None), frame.to_dict("records"), strict=True
        )
    }
    for name, answers in found["answers"].items():
        item = found["items"][int(name.split(":")[2])]
        numbers = [shown["number"] for shown in item["frames"]]
        truth = truths[item["sample"], item["expression"]].split(BETWEEN)
        assert [shown["truth"] for shown in item["frames"]] == [truth[k] for k in numbers]
        assert len(numbers) == 12 and len({shown["image"] for shown in item["frames"]}) == 12
        assert {one["pruner"] for one in answers} == {"none", "uniform", "oracle"}
        for one in answers:
            row = rows[one["pruner"], item["sample"], item["expression"]]
            masks = row["mask"].split(BETWEEN)
            assert one["masks"] == [masks[k] for k in numbers] and "mask" not in one
            j, f = frames_of(row["curves"])
            assert one["j"] == [round(100 * value, 1) for value in j] and len(one["f"]) == len(f)
            kept = records.kept_tokens(row["kept"], 2 * SIDE * SIDE).reshape(2, -1)
            first, last = map(int, row["shown"].split())
            assert one["seen"] == [first if k - first <= last - k else last for k in numbers]
            for text, seen in zip(one["keeps"], one["seen"], strict=True):
                assert np.array_equal(records.kept_tokens(text, SIDE * SIDE), kept[int(seen == last)])
    assert {len(item["points"]) for item in found["items"]} <= {FRAMES, FRAMES + 1, FRAMES + 2}


def test_frames_that_views_cannot_show_are_refused(folder: Path) -> None:
    cells = run_info(folder)["cells"]
    row = next(row for row in records.rows_of(next((folder / "records").iterdir())) if row["status"] == "ok")
    assert row["shown"] == f"0 {row['frames'] - 1}"
    assert validate(row | {"shown": ""}, cells)["shown"] == ""  # of before it was recorded
    del row["shown"]
    assert validate(dict(row), cells)["shown"] == ""
    for wrong in ("0", "0 3 5", f"0 {row['frames']}", "0 -1", "0,3", "0 x"):
        with pytest.raises(ValueError, match=r"views show"):
            validate(row | {"shown": wrong}, cells)


def test_best_and_worst_are_those_of_j_and_f(folder: Path, report: Path) -> None:
    frame, found = records.load_records(folder), pictures(report)
    for _, budget, pruner, kind, place in found["picks"]:
        here = frame[(frame["pruner"] == pruner) & (frame["budget"] == budget)]
        mean = (here["j"] + here["f"]) / 2
        item = found["items"][place]
        mine = mean[(here["sample"] == item["sample"]) & (here["expression"] == item["expression"])].item()
        if kind in ("best", "worst"):
            assert mine == (mean.max() if kind == "best" else mean.min())


def test_frames_count_as_pictures_and_as_masks(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = sorted((folder / "images").iterdir())
    clip = sum(
        path.stat().st_size
        for path in files
        if path.name.split("@")[0].split(".")[0] == files[0].stem.split("@")[0]
    )
    monkeypatch.setattr(gallery, "BYTES", clip)
    few = pictures(next(path for path in render(folder, folder.parent / "few") if path.suffix == ".html"))
    assert len(few["images"]) <= 12 and few["clips"] == 1
    monkeypatch.setattr(gallery, "ANSWERS", 3 * 12)  # one item: three answers of twelve frames
    (answers,) = pictures(
        next(path for path in render(folder, folder.parent / "fewer") if path.suffix == ".html")
    )["answers"].values()
    assert len(answers) == 3


def test_the_nearest_view_is_that_of_the_nearest_frame() -> None:
    assert [nearest_view((0, 7, 14), frame) for frame in (0, 3, 4, 7, 10, 11, 14)] == [0, 0, 7, 7, 7, 14, 14]
    assert points(5, [0, 4]) == [0, 1, 2, 3, 4]
    long = points(10_000, [0, 3, 9_999])
    assert {0, 3, 9_999} <= set(long) and len(long) <= 203


def a_row(shown: str, views: int) -> dict[str, Any]:
    kept = np.zeros((views, 4), dtype=bool)
    kept[np.arange(views), np.arange(views)] = True
    return {
        "mask": "0 1 2",
        "grid": "2x2",
        "views": views,
        "shown": shown,
        "kept": records.pack_tokens(np.flatnonzero(kept), kept.size),
        "tokens_final": views,
    }


def test_a_frame_that_is_seen_twice_keeps_what_either_view_keeps() -> None:
    found = clip_answer(a_row("0 2 2", 3), 1, [0, 1, 2], [0, 1, 2])
    assert found["seen"] == [0, 0, 2]
    assert [records.kept_tokens(text, 4).tolist() for text in found["keeps"]] == [
        [True, False, False, False],
        [True, False, False, False],
        [False, True, True, False],
    ]
    assert found["means"] is found["j"] is None


def test_without_a_word_of_the_frames_that_were_seen_no_patch_is_shown() -> None:
    found = clip_answer(a_row("", 3), 1, [0, 2], [0])
    assert found["seen"] is found["keeps"] is None and found["masks"] == ["0", "2"] and found["patches"] == 3


def test_a_score_of_another_mask_is_said_to_be_one() -> None:
    row = a_row("0 1", 2) | {"j": 0.5, "f": 0.25, "j_fixed": 0.1, "f_fixed": 0.25}
    assert clip_answer(row, 1, [0], [0])["matched"] is True
    assert clip_answer(row | {"j_fixed": 0.5}, 1, [0], [0])["matched"] is False
    assert clip_answer(row, 1, [0], [0])["means"] == [37.5, 50.0, 25.0]


def test_a_picture_that_is_gone_takes_its_frame_along_alone(folder: Path, tmp_path: Path) -> None:
    gone = sorted((folder / "images").glob("*@1.jpg"))[0]
    content = gone.read_bytes()
    gone.unlink()
    try:
        found = pictures(next(path for path in render(folder, tmp_path) if path.suffix == ".html"))
    finally:
        gone.write_bytes(content)
    numbers = [[shown["number"] for shown in item["frames"]] for item in found["items"]]
    assert any(1 not in one and len(one) == 11 for one in numbers) and any(1 in one for one in numbers)


# --- what the page does
# ------------------------------------------------------------------------------------------------------


@in_browser
def test_keys_move_the_clip_and_picture_mask_and_words_follow(one: Opened) -> None:
    page = one.page
    slider = page.get_by_label("Frame of the clip")
    at(page, 0)
    assert slider.get_attribute("max") == "11"
    before = canvases(page)
    assert len(before) == 4
    slider.focus()
    page.keyboard.press("ArrowRight")
    at(page, SHOWN[1])
    after = canvases(page)
    assert all(old != new for old, new in zip(before, after, strict=True))
    page.keyboard.press("End")
    near_the_end(page)
    page.keyboard.press("Home")
    at(page, 0)
    assert canvases(page) == before
    page.locator("#cards button").first.focus()
    page.keyboard.press("ArrowRight")
    at(page, SHOWN[1])
    assert canvases(page) == after
    words = page.locator("#clip .told").inner_text()
    assert words.startswith("frame 1 of 0 to ") and words.endswith("nearest frame that the model saw: 0")
    assert slider.get_attribute("aria-valuetext") == words
    assert re.search(r"here J \d+\.\d, F \d+\.\d", page.locator("#cards button").first.inner_text())
    assert one.complaints == []


@in_browser
def test_what_the_nearest_view_drops_is_dark(one: Opened) -> None:
    """The share of the pixels that stay bright is that of the kept patches, and another view has others."""
    page = one.page
    page.locator("#picker select[name=pruner]").select_option("oracle")
    for name in ("prediction", "truth"):
        page.locator("#picker .chip", has_text=name).click()
    at(page, 0)
    place = [text.split("\n")[0] for text in page.locator("#cards .card").all_inner_texts()].index("oracle")
    dark = f"""() => {{ const c = document.querySelectorAll('#cards canvas')[{place}];
      const d = c.getContext('2d').getImageData(0, 0, c.width, c.height).data;
      return Array.from({{ length: d.length / 4 }}, (_, k) => d[4 * k] + d[4 * k + 1] + d[4 * k + 2]); }}"""
    page.locator("#picker .chip", has_text="kept tokens").click()
    bright = np.array(page.evaluate(dark), dtype=float)
    page.locator("#picker .chip", has_text="kept tokens").click()
    shown = np.array(page.evaluate(dark), dtype=float)
    kept = (shown > 0.6 * bright).reshape(SIDE, 3, SIDE, 4).all(axis=(1, 3))
    found = page.evaluate("JSON.parse(document.getElementById('data').textContent).pictures")
    pick = next(one for one in found["picks"] if one[2] == "oracle" and one[3] == "best")
    (answer,) = [a for a in found["answers"][f"{pick[0]}:{pick[1]}:{pick[4]}"] if a["pruner"] == "oracle"]
    assert np.array_equal(kept.ravel(), records.kept_tokens(answer["keeps"][0], SIDE * SIDE))
    assert answer["keeps"][0] != answer["keeps"][-1]
    page.get_by_label("Frame of the clip").focus()
    page.keyboard.press("End")
    near_the_end(page)
    later = np.array(page.evaluate(dark), dtype=float)
    page.locator("#picker .chip", has_text="kept tokens").click()
    bright = np.array(page.evaluate(dark), dtype=float)
    kept = (later > 0.6 * bright).reshape(SIDE, 3, SIDE, 4).all(axis=(1, 3))
    assert np.array_equal(kept.ravel(), records.kept_tokens(answer["keeps"][-1], SIDE * SIDE))


@in_browser
def test_the_curve_has_a_line_for_every_pruner_and_takes_clicks(one: Opened) -> None:
    page = one.page
    svg = page.locator("#clip svg")
    at(page, 0)
    assert svg.get_attribute("role") == "img" and "in frame 0: none " in svg.get_attribute("aria-label")
    assert svg.locator(".line").count() == svg.locator(".mark").count() == 3
    assert svg.locator("path.chosen").count() == 1
    left = float(svg.locator(".now").get_attribute("x1"))
    box = svg.bounding_box()
    svg.click(position={"x": box["width"] - 14, "y": 40})
    near_the_end(page)
    assert float(page.locator("#clip svg .now").get_attribute("x1")) > left + 0.8 * (box["width"] - 50)


@in_browser
def test_it_plays_and_stops(one: Opened) -> None:
    page = one.page
    page.get_by_role("button", name="Play the clip").click()
    until(page, "Number(document.querySelector('#clip').dataset.frame) > 0")
    page.get_by_role("button", name="Pause the clip").click()
    stopped = page.get_by_label("Frame of the clip").input_value()
    page.wait_for_timeout(900)
    assert page.get_by_label("Frame of the clip").input_value() == stopped
    page.locator("#picker select[name=pruner]").select_option("uniform")
    page.locator("#cards button").first.click()
    text = page.locator("dialog").inner_text()
    assert "J&F in percent" in text and re.search(r"tokens of 2 views", text)


@in_browser
def test_a_clip_of_the_list_of_samples_has_its_frames(browser: Any, report: Path) -> None:
    one = opened(browser, report)
    page = one.page
    page.goto("about:blank")
    page.goto(f"{report.resolve().as_uri()}#?order=low&a=uniform")
    until(page, "document.querySelectorAll('#list tr[data-place]').length > 0")
    assert "J&F in percent" in page.locator("#found").inner_text()
    scores = [float(text) for text in page.locator("#list td.key-value").all_inner_texts()]
    assert scores == sorted(scores)
    page.locator("#list tr[data-place]").first.click()
    until(page, "document.querySelectorAll('dialog.sample canvas[data-place]').length === 4")
    text = page.locator("dialog.sample button.card", has_text="uniform").inner_text()
    assert f"J&F {scores[0]:.1f}" in text
    shots = "() => [...document.querySelectorAll('dialog.sample canvas')].map(c => c.toDataURL())"
    before = page.evaluate(shots)
    page.locator("dialog.sample input[name=frame]").focus()
    page.keyboard.press("ArrowRight")
    until(page, f"document.querySelector('dialog.sample .clip').dataset.frame === '{SHOWN[1]}'")
    assert all(old != new for old, new in zip(before, page.evaluate(shots), strict=True))
    assert "frame 1 of 0 to " in page.locator("dialog.sample .told").inner_text()
    page.keyboard.press("Escape")
    until(page, "!document.querySelector('dialog.sample')")
    assert one.complaints == []
    page.context.close()


@in_browser
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_phone_swipes_and_needs_no_sideways_scrolling(browser: Any, report: Path, scheme: str) -> None:
    phone = opened(browser, report, 390, 844, scheme, phone=True)
    page = phone.page
    at(page, 0)
    assert page.evaluate("document.documentElement.scrollWidth") == 390
    assert page.evaluate("document.querySelector('#clip svg').getBoundingClientRect().right") <= 390
    page.locator("#cards").evaluate("node => node.scrollIntoView({behavior: 'instant', block: 'center'})")
    box = page.locator("#cards .card").nth(1).bounding_box()
    x, y = box["x"] + 30, box["y"] + 40
    session = page.context.new_cdp_session(page)

    def send(kind: str, points: list[dict[str, float]]) -> None:
        session.send("Input.dispatchTouchEvent", {"type": kind, "touchPoints": points})

    send("touchStart", [{"x": x, "y": y}])
    for step in range(1, 7):
        send("touchMove", [{"x": x + 12 * step, "y": y}])
    send("touchEnd", [])
    at(page, 4)  # three steps of 24 px
    assert not page.locator("dialog").is_visible()
    assert phone.complaints == []


def test_images_are_ranked_by_iou_and_clips_by_j_and_f() -> None:
    frame = pd.DataFrame(
        {"iou": [0.5, 0.7], "sample": ["a", "b"], "expression": [0, 0], "pruner": "none", "budget": 4}
    )
    assert gallery._choose(frame)["best"] == ("b", 0)
    assert gallery._choose(frame.assign(j=[0.9, 0.1], f=[0.9, 0.1]))["best"] == ("a", 0)
