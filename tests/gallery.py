"""`python -m tests.gallery REPORT.html FOLDER`: the screenshots of the gallery."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from tests.browser import chromium, opened


def main(report: Path, folder: Path) -> None:
    """The leaderboard by day, masks by night, and a phone."""
    folder.mkdir(parents=True, exist_ok=True)
    with chromium() as browser:
        _shot(opened(browser, report, 1280, 860).page, "header", folder / "leaderboard-light.png")
        page = opened(browser, report, 1280, 780, "dark").page
        for name, value in (("budget", "64"), ("kind", "median")):
            page.locator(f"#picker select[name={name}]").select_option(value)
        _shot(page, "#masks", folder / "masks-dark.png")
        _shot(opened(browser, report, 390, 844, phone=True).page, "#budget", folder / "budget-phone.png")


def _shot(page: Any, section: str, path: Path) -> None:
    page.locator(section).evaluate("node => node.scrollIntoView({behavior: 'instant'})")
    page.wait_for_timeout(500)
    page.screenshot(path=path)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
