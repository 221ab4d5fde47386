"""Kept patches on the page lie where the run's backbone saw them."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from harness.store import records, run_folder
from harness.store.journal import write_atomically
from reports import render
from tests.a_run import some_rows, store
from tests.browser import PROGRAM, chromium, opened

pytest.importorskip("playwright", reason="the page is tested with playwright: pip install -e '.[test]'")
# of 24 x 24: a third each way
CORNER = np.array([24 * row + column for row in range(8) for column in range(8)])
CROPPED = [0.0, 0.125, 1.0, 0.875]  # the central square of 48 x 64 pixels


def page(folder: Path, geometry: str | None) -> Path:
    """The report of a run whose litelvlm keeps the upper left corner."""
    rows = [
        row | ({"kept": records.pack_tokens(CORNER, 576)} if row["pruner"] == "litelvlm" else {})
        for row in some_rows()
        if (row["dataset"], row["split"]) == ("refcoco", "val") and row["budget"] in (64, 576)
    ]
    store(folder, rows)
    info: dict[str, Any] = json.loads((folder / "run.json").read_text())
    for cell in info["cells"].values():
        cell |= {"geometry": geometry} if geometry else {}
    write_atomically(folder / "run.json", info, run_folder.LOOSE)
    return next(path for path in render(folder) if path.name == "report.html")


@pytest.mark.parametrize(
    ("geometry", "regions"),
    [
        (None, [CROPPED]),  # runs of before geometries were recorded are GLaMM's
        ("centre-crop", [CROPPED]),
        ("whole", [[0.0, 0.0, 1.0, 1.0]]),
        ("regions", []),
    ],
)
def test_the_page_says_what_the_patches_cover(
    geometry: str | None, regions: list[list[float]], tmp_path: Path
) -> None:
    text = page(tmp_path, geometry).read_text(encoding="utf-8")
    block = re.search(r'<script type="application/json" id="data">(.*?)</script>', text, re.S)
    assert block is not None
    answers = json.loads(block[1])["pictures"]["answers"]
    assert answers and all(one["regions"] == regions for part in answers.values() for one in part)


@pytest.mark.skipif(PROGRAM is None, reason="no Chromium here: apt-get install chromium")
@pytest.mark.parametrize(
    ("geometry", "bright"), [("centre-crop", [12, 22]), ("whole", [3, 12]), ("regions", [3, 12, 22, 60])]
)
def test_what_is_not_kept_is_dark(geometry: str, bright: list[int], tmp_path: Path) -> None:
    """Columns of the tenth row of pixels, of which the corner holds some; without regions nothing is
    dimmed."""
    pixels = """() => { const cards = [...document.querySelectorAll('#cards .card')];
      const canvas = cards.find((card) => card.innerText.startsWith('litelvlm')).querySelector('canvas');
      return [...canvas.getContext('2d').getImageData(0, 10, canvas.width, 1).data]; }"""
    with chromium() as browser:
        one = opened(browser, page(tmp_path, geometry))
        one.page.locator("#picker select[name=budget]").select_option("64")
        for name in ("prediction", "truth"):
            one.page.locator("#picker .chip", has_text=name).click()
        one.page.wait_for_function("document.querySelector('#cards canvas').width > 0")
        row = one.page.evaluate(pixels)
        levels = {x: row[4 * x] for x in (3, 12, 22, 60)}
        assert one.complaints == []
    assert [x for x, value in levels.items() if value > max(levels.values()) / 2] == bright
