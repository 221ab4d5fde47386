"""`python -m tests.gallery REPORT.html FOLDER`: the screenshots of the gallery."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from PIL import Image

from tests.browser import chromium, opened


def main(report: Path, folder: Path) -> None:
    """The leaderboard and what it costs by day, masks by night, a phone, and of clips one amid its way."""
    folder.mkdir(parents=True, exist_ok=True)
    with chromium() as browser:
        _shot(opened(browser, report, 1280, 860).page, "header", folder / "leaderboard-light.png")
        page = opened(browser, report, 1280, 780, "dark").page
        for name, value in (("budget", "64"), ("kind", "median")):
            page.locator(f"#picker select[name={name}]").select_option(value)
        _shot(page, "#masks", folder / "masks-dark.png")
        _shot(opened(browser, report, 390, 844, phone=True).page, "#budget", folder / "budget-phone.png")
        page = opened(browser, report, 1280, 600).page
        if page.locator("#cost").is_visible():
            _shot(page, "#cost", folder / "cost-light.png")
        page = opened(browser, report, 1280, 820).page
        if page.locator("#clip").is_visible():
            page.get_by_label("Frame of the clip").focus()
            for _ in range(5):
                page.keyboard.press("ArrowRight")
            _shot(page, "#masks", folder / "clip-light.png")


def _shot(page: Any, section: str, path: Path) -> None:
    page.locator(section).evaluate("node => node.scrollIntoView({behavior: 'instant'})")
    page.wait_for_timeout(500)
    page.screenshot(path=path)
    with Image.open(
        path
    ) as shot:  # 256 colours are enough for a page, at half the size; rare ones, as the masks', must stay
        few = shot.convert("RGB").quantize(
            256, method=Image.Quantize.MAXCOVERAGE, kmeans=2, dither=Image.Dither.NONE
        )
    few.save(path, optimize=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
