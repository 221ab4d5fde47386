"""The board's site in a real Chromium: filters, deep links, pages of methods and runs, from a folder and on a
phone, whatever a stranger's bundle says of itself."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import pytest

from harness.bundle import accept, pack, write
from harness.cost.store import COSTS
from harness.metrics import bootstrap
from harness.store import run_folder
from harness.store.journal import Journal, write_atomically
from pruners.base import UserError
from reports.__main__ import main as command
from reports.site import render
from tests.a_run import LINES, some_rows, store
from tests.browser import PROGRAM, Opened, chromium, opened

EVIL = '"><img src=x onerror=document.title=1><script>document.title=2</script>'
REFERENCE = 'javascript:alert(1) <b>paper</b> https://example.org/p"onmouseover="document.title=3'
in_browser = pytest.mark.skipif(PROGRAM is None, reason="no Chromium here: apt-get install chromium")


def some_costs(folder: Path) -> None:
    """Projected costs of every row."""
    shape = {"layers": 5, "width": 128, "heads": 4, "key_heads": 4, "head_width": 32, "inner": 352}
    header = {"schema": 2, "costs": "projected", "backbone": "glamm-mini", "text": 100, "element": 4}
    header |= {"shape": shape | {"vocabulary": 647}, "device": "cpu", "dtype": "float32", "attn": "sdpa"}
    header |= {
        "fingerprint": "a1b2",
        "host": "secret-host",
        "processor": "a processor, 2 cores",
        "threads": 1,
    }
    lines = [
        {
            "kind": "counts",
            "pruner": pruner,
            "budget": budget,
            "lengths": [100 + budget] * 5,
            "macs": {"prefill": 10**6 * budget},
            "peak": {"prefill": 10**6},
        }
        for pruner, budget, _ in LINES
    ]
    journal = Journal(folder / COSTS, header)
    journal.append(lines)
    journal.close()


def told(folder: Path, **of_pruners: str) -> None:
    """Write down where methods are from, as runs do."""
    info = run_folder.run_info(folder)
    for cell in info["cells"].values():
        cell["reference"] = of_pruners.get(cell["pruner"].partition("(")[0], REFERENCE)
    write_atomically(folder / run_folder.RUN, info, run_folder.LOOSE)


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Two runs that do not compare, and a stranger's bundle that joins the first one."""
    place = tmp_path_factory.mktemp("runs")
    forced = store(place / "forced", some_rows(), text="SECRET TEXT", run="aaaa1111")
    some_costs(forced)
    told(forced, fastv="FastV, ECCV 2024, https://arxiv.org/abs/2403.06764")
    said = [row | {"seg_said": 1} for row in some_rows()]
    generated = store(place / "generated", said, setting={"answers": "generated"}, run="bbbb2222")
    rows = [
        row | {"pruner": EVIL, "cell": row["cell"] + "x"}
        for row in some_rows()
        if row["pruner"] == "litelvlm"
    ]
    stranger = store(place / "stranger", rows, text=EVIL, run="cccc3333")
    told(stranger)
    (place / "board").mkdir()
    write(pack(stranger, by=EVIL, url="https://example.org/source", licence=EVIL), place / "board" / "c.zip")
    return [forced, generated, place / "board"]


@pytest.fixture(scope="module")
def site(runs: list[Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("site") / "below" / "some" / "path"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(bootstrap, "FEWEST", 2)  # as many images as it has per split
        patch.setattr(accept, "problem", lambda bundle: None)  # text stays text whatever was let through
        made = render(runs, out)
    assert made.size == sum(path.stat().st_size for path in out.rglob("*.*") if path.is_file())
    assert made.size < 400_000, "pages grow with rows, not with data"
    return out


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with chromium() as one:
        yield one


def shown(one: Opened) -> list[str]:
    """Methods of the rows that can be seen, from top to bottom."""
    rows = one.page.locator("tr[data-row]").all()
    return [row.locator("th a").inner_text() for row in rows if row.is_visible()]


def at(browser: Any, site: Path, page: str, **how: Any) -> Opened:
    one = opened(browser, site / page.partition("#")[0], **how)
    if "#" in page:
        one.page.goto((site / page.partition("#")[0]).resolve().as_uri() + "#" + page.partition("#")[2])
        one.page.reload()
    return one


@in_browser
def test_filters_write_the_address_and_read_it(browser: Any, site: Path) -> None:
    one = at(browser, site, "index.html")
    page = one.page
    everything = shown(one)
    assert page.locator("article.board").count() == 2, "answers differ, so rows are not ranked together"
    assert len(everything) == 2 * 7 + 1 - everything.count("nothing") and everything.count("litelvlm") == 2
    page.select_option("select[name=answers]", "generated")
    page.select_option("select[name=budget]", "192")
    assert shown(one) == ["none", "fastv(layer=3)", "random"]
    assert "answers=generated" in page.url and "budget=192" in page.url
    page.fill("input[name=find]", "fas")
    assert shown(one) == ["fastv(layer=3)"]
    again = at(browser, site, "index.html#" + page.url.partition("#")[2])
    assert shown(again) == ["fastv(layer=3)"] and again.page.input_value("input[name=find]") == "fas"
    again.page.click("button[type=reset]")
    again.page.wait_for_timeout(50)
    assert len(shown(again)) == len(everything) and "#" not in again.page.url
    again.page.evaluate("location.hash = 'backbone=nothing&budget=64&controls=0'")
    again.page.wait_for_timeout(50)
    assert "random" not in shown(again) and "litelvlm" in shown(again), "an unknown backbone is none chosen"
    again.page.evaluate("location.hash = 'find=nothing-like-it'")
    again.page.wait_for_timeout(50)
    assert shown(again) == [] and again.page.locator("#nothing").is_visible()
    assert not one.complaints and not again.complaints


@in_browser
def test_a_split_ranks_by_its_own_column(browser: Any, site: Path) -> None:
    one = at(browser, site, "index.html#data=refcoco+val&budget=64&answers=forced")
    page = one.page
    assert page.locator("#t1 [data-head]").inner_text() == "refcoco val"
    rows = [row for row in page.locator("#t1 tr[data-row]").all() if row.is_visible()]
    scores = [float(row.locator("[data-score]").inner_text()) for row in rows]
    own = [float(row.locator("td[data-of='refcoco val']").inner_text()) for row in rows]
    exact = [json.loads(row.get_attribute("data-scores") or "")["refcoco val"][0] for row in rows]
    relative = [float(row.locator("[data-relative]").inner_text()) for row in rows]
    assert relative == pytest.approx([100 * score / exact[0] for score in exact], abs=0.051)
    assert not any(badge.is_visible() for badge in page.locator("#t1 [data-close] .badge").all())
    assert scores == own and " to " in rows[0].locator("[data-between]").inner_text()
    ranked = [(row.locator("[data-rank]").inner_text(), score) for row, score in zip(rows, own, strict=True)]
    ranks = [(int(rank), score) for rank, score in ranked if rank]
    assert [rank for rank, _ in ranks] == list(range(1, len(ranks) + 1)) and len(ranks) == 3
    assert [score for _, score in ranks] == sorted((score for _, score in ranks), reverse=True)


@in_browser
def test_pages_of_a_method_and_a_run(browser: Any, site: Path) -> None:
    one = at(browser, site, "index.html")
    page = one.page
    page.locator("th a", has_text="fastv").first.click()
    assert page.title() == "fastv" and "/methods/fastv.html" in page.url
    text = page.locator("main").inner_text()
    assert "inside the language model" in text and "where the language model's layers can be changed" in text
    assert page.locator("a[href='https://arxiv.org/abs/2403.06764']").count() == 1
    assert page.locator("figure").count() == 3, "accuracy in both tables, and the cost that one has"
    assert page.locator("figure .spread").count() > 0 and "multiply-adds" in text
    assert page.locator("main a[href*='runs/aaaa1111']").count() > 0
    page.locator("main a[href*='runs/aaaa1111']").first.click()
    assert "0123456789abcdef with local changes" in page.locator("main").inner_text()
    assert (
        "torch 2.9.1" in page.locator("main").inner_text()
        and "dirty" in page.locator(".note").first.inner_text()
    )
    with page.expect_download() as download:
        page.get_by_role("link", name="CSV").click()
    assert "fastv(layer=3)" in Path(download.value.path()).read_text()
    page.locator("nav a").click()
    assert page.url.endswith("index.html") and not one.complaints
    assert all(address.startswith("file:") for address in one.requests)


@in_browser
@pytest.mark.parametrize(
    "page", ["index.html", "methods/fastv.html", "runs/*.html", "methods/x*.html", "methods/*evil*"]
)
def test_phone_and_dark(browser: Any, site: Path, page: str) -> None:
    """No sideways scroll at 390 px, and dark is dark; a button turns it."""
    for path in sorted(site.glob(page)):
        name = path.relative_to(site).as_posix()
        phone = at(browser, site, name, width=390, height=844, phone=True)
        assert phone.page.evaluate("document.documentElement.scrollWidth") <= 390, name
        dark = at(browser, site, name, scheme="dark")
        paper = "getComputedStyle(document.body).backgroundColor"
        assert dark.page.evaluate(paper) == "rgb(21, 24, 27)"
        dark.page.click("#theme")
        assert dark.page.evaluate(paper) == "rgb(251, 250, 248)"
        assert not dark.complaints and not phone.complaints
        dark.page.context.close()
        phone.page.context.close()


@in_browser
def test_what_strangers_say_is_text(browser: Any, site: Path) -> None:
    pages = [path.relative_to(site).as_posix() for path in sorted(site.rglob("*.html"))]
    hostile = [name for name in pages if "onerror" in (site / name).read_text()]
    assert len(hostile) >= 3, "the index, the method's page and the run's"
    for name in hostile:
        one = at(browser, site, name)
        assert one.page.title() not in ("1", "2", "3")
        assert one.page.locator("img, script:not([src]), b:text-is('paper')").count() == 0
        links = one.page.evaluate("[...document.querySelectorAll('a')].map((a) => a.href)")
        assert all(re.match(r"(file|https?):", link) for link in links)
        assert not one.complaints
        assert all(address.startswith("file:") for address in one.requests)
        one.page.context.close()
    for name in pages:
        text = (site / name).read_text()
        assert "default-src 'none'" in text and not re.search(r"""(src|href)=["']?(//|http:)""", text)


def test_a_site_tells_no_more_than_bundles(site: Path) -> None:
    for path in site.rglob("*.*"):
        text = path.read_text()
        assert "SECRET" not in text and "secret-host" not in text and "/tmp/" not in text, path


def test_every_link_leads_somewhere(site: Path) -> None:
    count = 0
    for path in site.rglob("*.html"):
        for target in re.findall(r'(?:href|src)="([^"#:]+)"', path.read_text()):
            assert (path.parent / unquote(target)).is_file(), (path, target)
            count += 1
    assert count > 40


def test_downloads_are_the_tables(site: Path) -> None:
    (path,) = site.glob("runs/aaaa1111*.json")
    rows = json.loads(path.read_text())["rows"]
    assert {(row["method"], row["budget"]) for row in rows} == {(name, budget) for name, budget, _ in LINES}
    assert all(row["macs_projected"] == 1e6 * row["budget"] for row in rows)


def test_the_same_runs_give_the_same_bytes(
    runs: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle = runs[2]
    with pytest.raises(UserError, match="is refused"):
        render([bundle], tmp_path / "never")
    monkeypatch.setattr(accept, "problem", lambda bundle: None)
    render([bundle], tmp_path / "a")
    (tmp_path / "a" / "methods" / "gone.html").write_text("of a site before")
    made = render([bundle, bundle], tmp_path / "a")
    assert "given twice and shown once" in made.text() and "KiB together" in made.text()
    again = {path.relative_to(tmp_path / "a"): path.read_bytes() for path in (tmp_path / "a").rglob("*.*")}
    assert command(["site", str(bundle), "--out", str(tmp_path / "a")]) == 0
    first = {path.relative_to(tmp_path / "a"): path.read_bytes() for path in (tmp_path / "a").rglob("*.*")}
    assert first.pop(Path("index.html")) != again.pop(Path("index.html")), "which says what was given twice"
    assert first == again


def test_what_is_no_board_is_refused(runs: list[Path], tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").touch()
    with pytest.raises(UserError, match=r"'thesis.tex', which is no part of a site"):
        render(runs[:1], tmp_path / "mine")
    with pytest.raises(UserError, match="holds no run and no bundle"):
        render([tmp_path / "mine"], tmp_path / "out")
    with pytest.raises(UserError, match="is not there"):
        render([tmp_path / "absent"], tmp_path / "out")
    broken = Path(shutil.copy(runs[2] / "c.zip", tmp_path / "c.zip"))
    broken.write_bytes(broken.read_bytes()[:200])
    with pytest.raises(UserError, match="no zip"):
        render([broken], tmp_path / "out")
    assert not (tmp_path / "out").exists()
