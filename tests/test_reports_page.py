"""The page in a real Chromium: it opens from a folder, asks for nothing, and does what its controls
promise."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from harness import cost
from harness.metrics import bootstrap
from harness.store.journal import write_atomically
from reports import diagnosis, page, render
from tests.a_run import some_rows, store
from tests.browser import PROGRAM, Opened, chromium, opened

HOSTILE = '</script><img src="http://example.org/x.png" onerror="document.title=1">'
COSTS = [
    ("none", 576, 9e9, 30.0),
    ("litelvlm", 64, 3e9, 9.0),
    ("fastv(layer=3)", 64, 5e9, 14.0),
    ("fastv(layer=3)", 192, 6e9, 18.0),
]

pytest.importorskip("playwright", reason="the page is tested with playwright: pip install -e '.[test]'")
in_browser = pytest.mark.skipif(PROGRAM is None, reason="no Chromium here: apt-get install chromium")


def some_costs(folder: Path) -> pd.DataFrame:
    """As `harness.cost.load`."""
    rows = [
        {
            "backbone": "glamm-mini",
            "pruner": pruner,
            "budget": budget,
            "macs_measured": macs,
            "prefill_ms": ms,
            "note": "",
        }
        | {"prefill_ms_p5": ms - 1, "prefill_ms_p95": ms + 1, "stage.vision_ms": 20.0, "stage.prefill_ms": ms}
        for pruner, budget, macs, ms in COSTS
    ]
    return pd.DataFrame(rows)


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cost, "load_costs", some_costs)
        patch.setattr(bootstrap, "FEWEST", 2)  # as many images as it has per split
        folder = store(tmp_path_factory.mktemp("run"), some_rows(), text=HOSTILE)
        (folder / diagnosis.FOLDER).mkdir()
        (folder / diagnosis.FOLDER / "sink.svg").write_text(
            '<svg xmlns="http://www.w3.org/2000/svg" width="90" height="40"/>'
        )
        told = {
            "backbone": "glamm-mini",
            "fingerprint": "a1b2",
            "verdict": HOSTILE,
            "figures": {"sink": "a <caption>"},
        }
        write_atomically(folder / diagnosis.FOLDER / diagnosis.SUMMARY, told | {"schema": diagnosis.SCHEMA})
        written = render(folder, folder / "out")
    return next(path for path in written if path.name == "report.html")


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


def methods(page: Any) -> list[str]:
    """Names of the rows that can be seen, from top to bottom."""
    return [
        row.inner_text() for row in page.locator(".board tbody tr[data-line] th").all() if row.is_visible()
    ]


def cells(page: Any, column: str) -> list[float]:
    found = page.locator(f".board td[data-column='{column}']").all()
    return [float(cell.inner_text().split()[0]) for cell in found if cell.is_visible()]


def test_one_file_that_names_no_other(report: Path) -> None:
    text = report.read_text(encoding="utf-8")
    assert report.stat().st_size < 5_000_000
    assert not re.search(r"""(src|href)\s*=\s*["']?(https?:|//|\.|/)""", text)
    assert "default-src 'none'" in text
    assert HOSTILE not in text
    block = re.search(r'<script type="application/json" id="data">(.*?)</script>', text, re.S)
    assert block is not None
    assert {item["text"] for item in json.loads(block[1])["pictures"]["items"]} == {HOSTILE}


@pytest.mark.parametrize(
    ("titles", "headline"),
    [
        (["mini, protocol each"], "mini, protocol each"),
        (["mini, protocol each, counts final", "mini, protocol each, counts mean"], "mini, protocol each"),
        (["m(a=1, b=2), protocol each", "m(a=1, b=3), protocol each"], None),
        (["m(a=1, b=2), data x", "m(a=1, b=2), data y"], "m(a=1, b=2)"),
        (["mini, protocol each", "maxi, protocol each", "mini, protocol each"], None),
    ],
)
def test_the_headline_says_once_what_all_tables_are_of(titles: list[str], headline: str | None) -> None:
    assert page.headline(titles) == (headline or " · ".join(dict.fromkeys(titles)))


@in_browser
def test_it_opens_from_a_folder_without_complaint_or_request(one: Opened, report: Path) -> None:
    assert set(one.requests) == {report.resolve().as_uri()}
    assert one.complaints == []
    assert one.page.title().startswith("glamm-mini, protocol each")
    assert one.page.locator("#said").inner_text().startswith(f"“{HOSTILE}”")
    assert one.page.locator("img").count() == 1  # the diagnosis' figure
    assert one.page.evaluate("document.querySelector('#why img').naturalWidth") == 90
    assert one.page.locator("#why .verdict").inner_text() == HOSTILE
    assert one.page.locator("#why figcaption").inner_text() == "a <caption>"
    for section in ("budget", "cost", "stages", "masks", "why", "notes"):
        assert one.page.locator(f"#{section}").is_visible()


@in_browser
def test_sorting_changes_the_order_within_a_budget_and_over_all(one: Opened) -> None:
    page = one.page
    assert methods(page) == [
        "none",
        "fastv(layer=3)",
        "random (3 seeds)",
        "litelvlm",
        "fastv(layer=3)",
        "oracle",
        "random (3 seeds)",
    ]
    page.get_by_role("button", name="refcoco val", exact=True).click()
    page.get_by_role("button", name="refcoco val", exact=True).click()
    assert page.locator("th[aria-sort=ascending]").inner_text().split() == ["refcoco", "val"]
    assert methods(page)[1:3] == ["random (3 seeds)", "fastv(layer=3)"]
    page.locator("label", has_text="group by budget").click()
    shown = cells(page, "refcoco val")
    assert shown == sorted(shown)
    assert len(shown) == 7
    page.get_by_role("button", name="refcoco val", exact=True).click()
    assert methods(page)[0] == "none"


@in_browser
def test_filters_change_what_is_shown(one: Opened) -> None:
    page = one.page
    page.get_by_label("Method").fill("FAST")
    assert methods(page) == ["fastv(layer=3)", "fastv(layer=3)"]
    assert page.locator("output").inner_text() == "2 of 7 rows"
    page.locator(".chip", has_text="192").click()
    assert len(methods(page)) == 1
    assert not page.locator("tr.heading", has_text="Retain 192").is_visible()
    page.get_by_label("Method").fill("")
    page.locator(".chip", has_text="controls").click()
    assert methods(page) == ["litelvlm", "fastv(layer=3)"]


@in_browser
def test_a_number_gives_its_record_by_mouse_and_by_keyboard(one: Opened) -> None:
    page = one.page
    cell = page.locator("tr[data-line='3'] td[data-column='refcoco val']")
    cell.hover()
    assert "litelvlm" in page.locator("#tip").inner_text()
    cell.click()
    text = page.locator("dialog").inner_text()
    counted = sum(80 + place for place in range(4)), sum(100 + place for place in range(4))
    for word in (
        "litelvlm · 64 tokens",
        f"{counted[0]} in intersections of {counted[1]} in unions",
        "2 / 4",
        "a1b2",
        "c3d4",
        "minus random",
    ):
        assert word in text
    page.keyboard.press("Escape")
    assert not page.locator("dialog").is_visible()
    page.keyboard.press("ArrowRight")
    page.keyboard.press("ArrowDown")
    page.keyboard.press("Enter")
    assert "fastv(layer=3) · 64 tokens" in page.locator("dialog").inner_text()
    assert "refcoco testA" in page.locator("dialog").inner_text()


@in_browser
def test_every_control_is_reached_with_the_tab_key(one: Opened) -> None:
    page = one.page
    seen = set()
    for _ in range(90):
        page.keyboard.press("Tab")
        seen.add(
            page.evaluate(
                "(n => n.name || n.id || n.tagName + (n.dataset.column ? ' number' : "
                "''))(document.activeElement)"
            )
        )
    assert seen >= {
        "theme",
        "find",
        "budget",
        "controls",
        "grouped",
        "BUTTON",
        "TD number",
        "svg",
        "pruner",
        "kind",
        "kept",
        "mask",
        "truth",
    }


@in_browser
def test_charts_tell_and_hide(one: Opened) -> None:
    page = one.page
    chart = page.locator("#budget svg").first
    marks = "g .mark:not(.still)"
    assert chart.locator(marks).count() == 6
    ticks = {tick.text_content(): tick.get_attribute("x") for tick in chart.locator(".tick").all()}
    assert set(ticks) == {"64", "192"}
    places = {
        re.search(r"\(([\d.]+)", mark.get_attribute("transform"))[1] for mark in chart.locator(marks).all()
    }
    assert places == set(ticks.values())  # every mark stands at its budget
    chart.focus()
    page.keyboard.press("ArrowRight")
    assert re.search(r"fastv\(layer=3\) · 64 tokens\s+Avg\. \d", page.locator("#tip").inner_text())
    page.keyboard.press("Enter")
    assert "fastv(layer=3) · 64 tokens" in page.locator("dialog").inner_text()
    page.keyboard.press("Escape")
    page.locator("#budget .legend button", has_text="oracle").first.click()
    assert page.locator("#budget figure").first.locator(f"{marks}:visible").count() == 5
    assert page.locator("#cost figure").count() == 4  # accuracy against cost, cost against budget
    assert page.locator("#stages .bar").count() == 2 * len(COSTS)


@in_browser
def test_masks_follow_the_choice_and_the_layers(one: Opened) -> None:
    page = one.page
    picture = "() => [...document.querySelectorAll('#cards canvas')].map(c => c.toDataURL())"
    page.wait_for_function("document.querySelector('#cards canvas').width > 0")
    assert page.locator("#cards .card b").all_inner_texts() == ["image", "none", "fastv(layer=3)", "random"]
    before = page.evaluate(picture)
    page.locator("#picker .chip", has_text="prediction").click()
    without = page.evaluate(picture)
    assert without[0] == before[0]
    assert without[1:] != before[1:]
    page.locator("#picker select[name=budget]").select_option("64")
    assert page.locator("#cards .card b").all_inner_texts() == [
        "image",
        "none",
        "litelvlm",
        "fastv(layer=3)",
        "oracle",
        "random",
    ]
    page.locator("#picker select[name=kind]").select_option("worst")
    assert "expression 0" in page.locator("#said").inner_text()
    page.locator("#cards button").nth(1).click()
    text = page.locator("dialog").inner_text()
    assert "litelvlm · 64 tokens" in text
    assert "80 in the intersection of 100 in the union" in text


@in_browser
def test_run_lengths_are_read_as_pycocotools_reads_them(one: Opened) -> None:
    """The painted truth has as many pixels as the mask that was written."""
    page = one.page
    for name in ("kept tokens", "truth"):
        page.locator("#picker .chip", has_text=name).click()
    count = """() => { const c = document.querySelectorAll('#cards canvas')[1];
      const d = c.getContext('2d').getImageData(0, 0, c.width, c.height).data; let n = 0;
      for (let i = 0; i < d.length; i += 4) n += d[i] > d[i + 1] + 60; return n; }"""
    assert page.evaluate(count) == 16 * 20


@in_browser
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_phone_needs_no_sideways_scrolling_of_the_page(browser: Any, report: Path, scheme: str) -> None:
    phone = opened(browser, report, 390, 844, scheme, phone=True)
    paper = "getComputedStyle(document.body).backgroundColor"
    assert phone.page.evaluate("document.documentElement.scrollWidth") == 390
    before = phone.page.evaluate(paper)
    assert (before == "rgb(21, 24, 27)") == (scheme == "dark")
    phone.page.locator("#theme").tap()
    assert phone.page.evaluate(paper) != before
    assert phone.complaints == []


def test_without_scripts_the_table_is_still_there(report: Path) -> None:
    text = report.read_text(encoding="utf-8")
    body = text[: text.index('id="data"')]
    assert body.count('<tr data-line="') == 7
    assert "Upper bound, all 576 tokens" in body
