"""The browser of samples on the page: what its parts hold, and what it does in a real Chromium, with parts in
the page and beside it."""

from __future__ import annotations

import base64
import json
import re
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pandas as pd
import pytest

from harness.store import records
from pruners import UserError
from reports import gather, page, render, samples
from reports.tables import tables
from tests import a_run
from tests.browser import PROGRAM, Opened, chromium, opened

pytest.importorskip("playwright", reason="the page is tested with playwright: pip install -e '.[test]'")
in_browser = pytest.mark.skipif(PROGRAM is None, reason="no Chromium here: apt-get install chromium")
HOSTILE = (
    '</script><script>document.title="run"</script><img src=x onerror="document.title=1">\u2028"); run("'
)
WORST = ("refcoco:val:1", 2)  # of litelvlm at 64 tokens, where all others do well


def some_rows() -> list[dict[str, Any]]:
    rows = a_run.some_rows()
    for row in rows:
        if (row["pruner"], row["budget"], row["sample"], row["expression"]) == ("litelvlm", 64, *WORST):
            row["intersection"] = 3
    return rows


def make_run(folder: Path) -> Path:
    """A run of 16 expressions, each with words of its own, one of them hostile; refcoco+ has no pictures."""
    described = a_run.sample_rows

    def with_words(rows: list[dict[str, Any]], place: Path, text: str) -> list[dict[str, Any]]:
        found = described(rows, place, text)
        for row in found:
            row["text"] = f"the {['red', 'green', 'blue', 'grey'][row['expression']]} {row['split']} thing"
            if row["sample"].startswith("refcocog:") and row["expression"] == 3:
                row["text"] = HOSTILE
            if row["dataset"] == "refcoco+":
                row["image"] = ""
        return found

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(a_run, "sample_rows", with_words)
        return a_run.store(folder, some_rows())


@pytest.fixture(scope="session")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_run(tmp_path_factory.mktemp("samples") / "run")


@pytest.fixture(scope="session")
def inside(recorded: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    render(recorded, out := tmp_path_factory.mktemp("inside"))
    return out / "report.html"


@pytest.fixture(scope="session")
def beside(recorded: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(page, "SIZE", 1)
        patch.setattr(samples, "SCORES", 40)  # several parts of the list
        patch.setattr(samples, "PART", 20_000)
        render(recorded, out := tmp_path_factory.mktemp("beside"))
    return out / "report.html"


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with chromium() as one:
        yield one


@pytest.fixture
def one(browser: Any, inside: Path) -> Iterator[Opened]:
    found = opened(browser, inside)
    yield found
    found.page.context.close()


def part(text: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(zlib.decompress(base64.b64decode(text)))
    return found


def parts_in(path: Path) -> dict[str, dict[str, Any]]:
    """Parts of a page, in it or beside it."""
    found = re.findall(
        r'<script type="text/plain" id="part-([\w-]+)">([^<]*)</script>', path.read_text(encoding="utf-8")
    )
    for file in (path.parent / samples.FOLDER).glob("*.js"):
        whole = re.fullmatch(r'groundprunePart\("([\w-]+)","([A-Za-z0-9+/=]*)"\)\n', file.read_text("ascii"))
        assert whole is not None and file.stem == whole[1]
        found.append(whole.groups())  # type: ignore[arg-type]
    return {name: part(text) for name, text in found}


def go(page: Any, path: Path, **state: Any) -> None:
    """Open the page at a state that its address tells."""
    words = "&".join(
        f"{name}={quote(str(one))}"
        for name, value in state.items()
        for one in (value if isinstance(value, list) else [value])
    )
    page.goto("about:blank")
    page.goto(f"{path.resolve().as_uri()}#?{words}")
    until(page, "document.querySelector('#samples').dataset.ready > 0")


def until(page: Any, words: str) -> None:
    """Look again until it is so."""
    for _ in range(200):
        if page.evaluate(words):
            return
        page.wait_for_timeout(25)
    raise AssertionError(f"{words} never came to be")


def listed(page: Any) -> list[str]:
    """Names of the samples in the list, from top to bottom."""
    found: list[str] = page.locator("#list tbody th small").all_inner_texts()
    return found


def column(page: Any, place: int) -> list[str]:
    found: list[str] = page.locator(f"#list tbody tr[data-place] td:nth-of-type({place})").all_inner_texts()
    return found


def painted(page: Any, number: int) -> None:
    until(
        page, f"document.querySelectorAll('dialog.sample canvas[data-place]').length === {number}"
    )  # the picture and a card for each answer


# --- what the parts hold
# ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("where", ["inside", "beside"])
def test_every_score_and_mask_is_that_of_the_records(
    where: str, recorded: Path, request: pytest.FixtureRequest
) -> None:
    path = request.getfixturevalue(where)
    found, frame = parts_in(path), records.load_records(recorded)
    runs = gather.gather([recorded])
    lists = [found[name] for name in sorted(found) if name.startswith("list")]
    assert sum(len(one["sample"]) for one in lists) == 16 == 4 * len(a_run.COLUMNS)
    shown = 0
    for number, table in enumerate(tables(runs)):
        lines = samples.lines_of(table)
        means = table.group.frame.groupby(["sample", "expression", "pruner", "budget"])["iou"].mean()
        for one in lists:
            scores = iter(one["scores"][number])
            for sample, expression in zip(one["sample"], one["expression"], strict=True):
                for line in lines:
                    key = (sample, expression, line.pruner, line.budget)
                    assert next(scores) == (round(1000 * means[key]) if key in means else -1)
                    shown += 1
    assert shown >= 16 * len(a_run.LINES)
    places = [(one["first"] + k, row) for one in lists for k, row in enumerate(_rows(one))]
    for at, row in places:
        held = found[f"masks-{row['part']}"]
        mine = frame[(frame["sample"] == row["sample"]) & (frame["expression"] == row["expression"])]
        first = mine[mine["seed"] == 0].set_index("cell")
        assert set(held["answers"][str(at)]) == set(first.index)
        for cell, answer in held["answers"][str(at)].items():
            assert answer["mask"] == first["mask"][cell]
            assert answer["intersection"] == first["intersection"][cell]
        item = held["items"][str(at)]
        assert (item["height"], item["width"]) == (a_run.HEIGHT, a_run.WIDTH)
        assert (item["image"] is None) == row["sample"].startswith("refcoco+")


def _rows(one: dict[str, Any]) -> list[dict[str, Any]]:
    names = ("sample", "expression", "text", "part", "picture")
    return [dict(zip(names, row, strict=True)) for row in zip(*(one[name] for name in names), strict=True)]


def test_what_does_not_fit_the_page_lies_beside_it(inside: Path, beside: Path, recorded: Path) -> None:
    assert [path.name for path in inside.parent.iterdir() if path.name == samples.FOLDER] == []
    files = {path.name for path in (beside.parent / samples.FOLDER).iterdir()}
    assert {"list-0.js", "list-1.js", "masks-0.js", "masks-1.js", "picture-0.jpg"} <= files
    assert "data:image/jpeg" in inside.read_text() and "data:image/jpeg" not in beside.read_text()
    assert "script-src 'unsafe-inline'\"" in inside.read_text()
    # a report that fits takes away what an earlier one left, and nothing else
    mine = beside.parent / samples.FOLDER / "mine.jpg"
    mine.write_text("kept")
    assert samples.write_beside(beside.parent, {"list-0": "eA=="}, ()) == [beside.parent / samples.FOLDER]
    assert {path.name for path in mine.parent.iterdir()} == {"mine.jpg", "list-0.js"}
    mine.unlink()
    assert samples.write_beside(beside.parent, {}, ()) == [] and not mine.parent.exists()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(page, "SIZE", 1)
        patch.setattr(samples, "SCORES", 40)
        patch.setattr(samples, "PART", 20_000)
        render(recorded, beside.parent)
    assert {path.name for path in mine.parent.iterdir()} == files


def test_links_in_a_foreign_run_lead_nowhere(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    mine, run = tmp_path / "mine" / "list-0.js", tmp_path / "run"
    mine.write_text("mine")
    (run / samples.FOLDER).mkdir(parents=True)
    (run / samples.FOLDER / "list-0.js").symlink_to(mine)
    samples.write_beside(run, {"list-0": "eA=="}, ())
    assert mine.read_text() == "mine" and "eA==" in (run / samples.FOLDER / "list-0.js").read_text()
    other = tmp_path / "other"
    other.mkdir()
    (other / samples.FOLDER).symlink_to(mine.parent)
    with pytest.raises(UserError, match="is a link"):
        samples.write_beside(other, {}, ())
    assert mine.read_text() == "mine"


def test_a_page_stays_below_its_size_however_many_samples(tmp_path: Path) -> None:
    rows = [row for row in some_rows() if (row["dataset"], row["split"]) == ("refcoco", "val")]
    many = []
    for k in range(12):
        for row in rows:
            at = 4 * k + row["expression"]
            many.append(row | {"sample": f"refcoco:val:{at // 2}", "expression": at})
    folder = a_run.store(tmp_path / "many", many)
    few = a_run.store(tmp_path / "few", rows)
    made = {run: (runs := gather.gather([run]), tables(runs)) for run in (few, folder)}
    size = len(page.page(*made[few]).text.encode()) + 2_000
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(page, "SIZE", size)
        fits, does_not = page.page(*made[few]), page.page(*made[folder])
    assert not fits.parts and not fits.pictures and does_not.parts
    assert len(does_not.text.encode()) <= size


def test_masks_beyond_the_room_are_left_out_and_their_scores_are_not(
    recorded: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gather, "HELD", 0)
    runs = gather.gather([recorded])
    found = samples.collect(runs, tables(runs), {}, {})
    assert (found.count, found.painted) == (16, 12)  # those with a picture stay
    lists = part(found.parts["list-0"])
    gone = {sample.split(":")[0] for sample, at in zip(lists["sample"], lists["part"], strict=True) if at < 0}
    assert gone == {"refcoco+"}


def test_no_text_of_the_data_is_in_a_script(inside: Path, beside: Path) -> None:
    for path in (inside, beside):
        assert HOSTILE not in path.read_text(encoding="utf-8")
    for file in (beside.parent / samples.FOLDER).glob("*.js"):
        assert file.read_bytes().isascii() and b"<" not in file.read_bytes()


def test_the_room_for_masks_goes_to_the_splits_in_turn() -> None:
    frame = pd.DataFrame(
        {"dataset": ["a"] * 3 + ["b"] * 3, "split": "val", "sample": ["a0", "a1", "a2", "b0", "b1", "b2"]}
    )
    held, left = gather._held(frame, pd.Series(10, index=frame["sample"]), {"b2"}, 45)
    assert sorted(held) == ["a0", "a1", "b0", "b2"] and left == 5


# --- what the page does
# ------------------------------------------------------------------------------------------------------


@in_browser
def test_words_data_and_order_choose_what_is_listed(one: Opened, inside: Path) -> None:
    page = one.page
    go(page, inside, budget=64)
    assert page.locator("#found").inner_text().startswith("16 of 16 expressions")
    assert set(column(page, 1)) == {"64"}
    page.get_by_label("Search").fill("GREEN testA")
    until(page, "document.querySelectorAll('#list tr[data-place]').length === 1")
    assert listed(page) == ["refcoco:testA:0, expression 1"]
    page.get_by_label("Search").fill("")
    page.locator("#browse select[name=set]").select_option("refcoco:val")
    until(page, "document.querySelectorAll('#list tr[data-place]').length === 4")
    page.locator("#browse select[name=order]").select_option("lossof")
    page.locator("#browse select[name=one]").select_option("litelvlm")
    until(page, "document.querySelector('#list thead').innerText.includes('loss of litelvlm')")
    assert listed(page)[0] == "{}, expression {}".format(*WORST)
    losses = [float(text.replace("−", "-")) for text in column(page, 2)]
    assert losses == sorted(losses, reverse=True) and losses[0] > 80
    page.locator("#browse select[name=order]").select_option("over")
    page.locator("#browse select[name=one]").select_option("fastv(layer=3)")
    page.locator("#browse select[name=other]").select_option("litelvlm")
    until(page, "document.querySelector('#list thead').innerText.includes('fastv(layer=3) − litelvlm')")
    gains = [float(text.replace("−", "-")) for text in column(page, 2)]
    assert gains == sorted(gains, reverse=True) and gains[0] > 50 > 0 > gains[1]
    assert "where fastv(layer=3) wins over litelvlm" in page.locator("#found").inner_text()
    page.locator("#browse select[name=at]").select_option("192")
    until(page, "document.querySelector('#list tr[data-place] td').innerText === '192'")
    assert "litelvlm" not in page.locator("#list thead").inner_text()  # which has no row there
    assert one.complaints == []


@in_browser
def test_an_address_brings_everything_back_and_the_back_button_leads_back(one: Opened, inside: Path) -> None:
    page = one.page
    go(page, inside, budget=64, order="over", a="litelvlm", b="random", set="refcoco:val", q="blue")
    assert page.get_by_label("Search").input_value() == "blue"
    values = {
        name: page.locator(f"#browse select[name={name}]").input_value() for name in ("set", "at", "order")
    }
    assert values == {"set": "refcoco:val", "at": "64", "order": "over"}
    assert listed(page) == ["{}, expression {}".format(*WORST)]
    before = page.url
    page.locator("#list tr[data-place]").click()
    painted(page, 6)
    assert f"open={quote(WORST[0], safe='')}%2F{WORST[1]}" in page.url
    shared = page.url
    page.go_back()
    until(page, "!document.querySelector('dialog.sample')")
    assert page.url == before
    page.locator("#browse select[name=at]").select_option("192")
    until(page, "document.querySelector('#list tr[data-place] td').innerText === '192'")
    page.go_back()
    until(page, "document.querySelector('#list tr[data-place] td').innerText === '64'")
    page.goto("about:blank")
    page.goto(shared)
    painted(page, 6)
    dialog = page.locator("dialog.sample")
    assert "“the blue val thing”" in dialog.inner_text() and "IoU 2.9" in dialog.inner_text()
    assert one.complaints == []


@in_browser
def test_a_number_leads_to_its_worst_samples_and_a_sample_to_its_number(one: Opened, inside: Path) -> None:
    page = one.page
    page.locator("tr[data-line='3'] td[data-column='refcoco val']").click()
    page.locator("#record a", has_text="worst samples").click()
    until(page, "document.querySelectorAll('#list tr[data-place]').length === 4")
    assert not page.locator("#record").is_visible()
    scores = [float(text) for text in column(page, 2)]
    assert listed(page)[0] == "{}, expression {}".format(*WORST) and scores == sorted(scores)
    assert page.locator("#browse select[name=one]").input_value() == "litelvlm"
    page.locator("#list tr[data-place]").first.click()
    painted(page, 6)
    page.locator("dialog.sample button.card", has_text="litelvlm").click()
    assert "3 in the intersection of 102 in the union" in page.locator("#record").inner_text()
    page.locator("#record button", has_text="The number that it counts in").click()
    assert page.locator("#record").inner_text().startswith("litelvlm · 64 tokens")
    assert "in intersections of" in page.locator("#record").inner_text()


@in_browser
def test_keys_move_in_the_list_and_between_samples(one: Opened, inside: Path) -> None:
    page = one.page
    go(page, inside, budget=64)
    page.locator("#list tr[data-place='0']").focus()
    page.keyboard.press("ArrowDown")
    page.keyboard.press("ArrowDown")
    page.keyboard.press("Enter")
    painted(page, 6)
    said = "document.querySelector('dialog.sample h3 + small').innerText"
    assert "3 of 16 in the list" in page.evaluate(said)
    page.keyboard.press("ArrowRight")
    until(page, f"{said}.includes('4 of 16')")
    page.keyboard.press("ArrowLeft")
    page.keyboard.press("ArrowLeft")
    until(page, f"{said}.includes('2 of 16')")
    assert page.get_by_role("button", name="Next sample").is_enabled()
    page.keyboard.press("Escape")
    until(page, "!document.querySelector('dialog.sample')")
    assert page.evaluate("document.activeElement.dataset.place") == "1"
    page.keyboard.press("End")
    assert page.evaluate("document.activeElement.dataset.place") == "15"
    assert page.locator("#list table").get_attribute("aria-rowcount") == "17"
    assert page.evaluate("document.activeElement.getAttribute('aria-rowindex')") == "17"


@in_browser
def test_columns_can_be_put_away_and_the_address_remembers(one: Opened, inside: Path) -> None:
    page = one.page
    go(page, inside, budget=64)
    heads = "[...document.querySelectorAll('#list thead th')].map((one) => one.innerText)"
    assert page.evaluate(heads)[:3] == ["expression", "budget", "none"]
    page.locator("#browse summary").click()
    page.locator("#browse .menu label", has_text="oracle").click()
    until(page, "!document.querySelector('#list thead').innerText.includes('oracle')")
    page.keyboard.press("Escape")
    page.locator(".board .menu summary").click()
    page.locator(".board .menu label", has_text="Rel. %").click()
    assert not page.get_by_role("button", name="Rel. %").is_visible()
    assert page.locator(".board tbody tr[data-line='3'] td").first.inner_text() == "64"  # the budget
    page.reload()
    until(page, "document.querySelector('#samples').dataset.ready > 0")
    assert not page.get_by_role("button", name="Rel. %").is_visible()
    assert "oracle" not in page.evaluate(heads)
    page.get_by_role("button", name="refcoco val", exact=True).click()
    page.locator(".board .chip", has_text="192").click()
    state = page.url
    page.goto("about:blank")
    page.goto(state)
    assert page.locator("th[aria-sort=descending]").first.inner_text().split() == ["refcoco", "val"]
    assert not page.locator("tr.heading", has_text="Retain 192").is_visible()
    page.go_back()
    assert one.complaints == []


@in_browser
@pytest.mark.parametrize("where", ["inside", "beside"])
def test_hostile_words_are_words(where: str, browser: Any, request: pytest.FixtureRequest) -> None:
    path = request.getfixturevalue(where)
    one = opened(browser, path)
    go(one.page, path, budget=64, q="onerror")
    assert one.page.locator("#list th b").text_content() == HOSTILE
    one.page.locator("#list tr[data-place]").click()
    painted(one.page, 6)
    assert one.page.locator("dialog.sample h3").text_content() == f"“{HOSTILE}”"
    assert one.page.title().startswith("glamm-mini")
    for order in ("</script>", "constructor"):
        go(one.page, path, q=HOSTILE, order=order, a=HOSTILE, open=HOSTILE, set="__proto__", table=HOSTILE)
        assert one.page.locator("#browse select[name=order]").input_value() == ""
    assert one.page.title().startswith("glamm-mini") and one.complaints == []
    one.page.context.close()


@in_browser
def test_parts_and_pictures_are_read_from_beside_the_page_when_asked_for(browser: Any, beside: Path) -> None:
    one = opened(browser, beside)
    page, folder = one.page, beside.parent.resolve().as_uri()
    assert not [name for name in one.requests if "/list-" in name]
    go(page, beside, budget=64, q="refcoco:val")
    read = [name for name in one.requests if "/list-" in name]
    assert len(set(read)) > 1 and not [name for name in one.requests if "/masks-" in name]
    page.locator("#list tr[data-place]").first.click()
    painted(page, 6)
    assert [name for name in one.requests if "/masks-" in name]
    assert all(name.startswith((folder, "about:", "data:")) for name in one.requests)
    until(page, "[...document.querySelectorAll('#list img')].some((image) => image.naturalWidth > 0)")
    shot = page.locator("dialog.sample canvas").first.screenshot()
    assert shot and one.complaints == []
    go(page, beside, budget=64, set="refcoco+:val", open="refcoco+:val:0/0")
    painted(page, 6)
    text = page.locator("dialog.sample").inner_text()
    assert f"stand on grey, {a_run.WIDTH} × {a_run.HEIGHT} pixels" in text
    size = "(one => [one.width, one.height])(document.querySelector('dialog.sample canvas'))"
    assert page.evaluate(size) == [a_run.WIDTH, a_run.HEIGHT]
    grey = (
        "[...document.querySelector('dialog.sample canvas').getContext('2d').getImageData(0, 0, 1, 1).data]"
    )
    assert page.evaluate(grey) == [138, 143, 148, 255]
    page.context.close()


@in_browser
def test_a_page_without_the_folder_beside_it_says_so(browser: Any, beside: Path, tmp_path: Path) -> None:
    (alone := tmp_path / "report.html").write_bytes(beside.read_bytes())
    one = opened(browser, alone)
    one.page.goto("about:blank")
    one.page.goto(f"{alone.as_uri()}#?budget=64")
    until(one.page, "document.querySelector('#found').innerText.includes('not beside this page')")
    assert one.page.locator(".board tbody tr[data-line]").count() == 7
    one.page.context.close()


@in_browser
def test_a_long_list_draws_what_is_seen(browser: Any, tmp_path: Path) -> None:
    rows = []
    for k in range(600):
        for pruner, budget in (("none", 576), ("litelvlm", 64)):
            row = a_run.a_row(("refcoco", "val"), pruner, budget, 0, k % 4)
            rows.append(row | {"sample": f"refcoco:val:{k}", "expression": k, "intersection": k % 90})
    described = a_run.sample_rows(rows[:8], tmp_path, "the left one")[0]
    asked = [
        described | {"sample": f"refcoco:val:{k}", "expression": k, "image": "", "text": f"thing {k}"}
        for k in range(600)
    ]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(a_run, "sample_rows", lambda *_: asked)
        runs = gather.gather([a_run.store(tmp_path, rows)])
    made = page.page(runs, tables(runs))
    (path := tmp_path / "report.html").write_text(made.text, encoding="utf-8")
    samples.write_beside(tmp_path, made.parts, made.pictures)
    one = opened(browser, path)
    go(one.page, path, budget=64)
    count = "document.querySelectorAll('#list tbody tr').length"
    assert one.page.evaluate(count) < 40
    one.page.locator("#list tr[data-place='0']").focus()
    one.page.keyboard.press("End")
    assert one.page.evaluate("document.activeElement.dataset.place") == "599"
    assert one.page.locator("#list tr[data-place='599'] b").inner_text() == "thing 599"
    assert one.page.evaluate(count) < 40
    high = one.page.evaluate("document.querySelector('#list').scrollHeight")
    assert 600 * 54 <= high < 600 * 54 + 80  # rows do not jump
    drawn = """async () => { const list = document.querySelector('#list'), start = performance.now();
      for (let k = 0; k < 40; k++) { list.scrollTop = k * 750; await new Promise(requestAnimationFrame); }
      return (performance.now() - start) / 40; }"""
    assert one.page.evaluate(drawn) < 100  # ms a frame, of a loaded machine without a graphics card
    one.page.context.close()


@in_browser
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_phone_needs_no_sideways_scrolling(browser: Any, inside: Path, scheme: str) -> None:
    phone = opened(browser, inside, 390, 844, scheme, phone=True)
    go(phone.page, inside, budget=64, order="over", a="litelvlm", b="fastv(layer=3)")
    assert phone.page.evaluate("document.documentElement.scrollWidth") == 390
    phone.page.locator("#list tr[data-place]").first.tap()
    painted(phone.page, 6)
    box = phone.page.locator("dialog.sample").bounding_box()
    assert box["x"] == 0 and box["width"] == 390
    wide = "(one => one.scrollWidth <= one.clientWidth)(document.querySelector('dialog.sample'))"
    assert phone.page.evaluate(wide) and phone.complaints == []
    phone.page.context.close()
