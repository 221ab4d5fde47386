"""A real Chromium without a window, that tells what a page asked of the network and complained of."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

PROGRAM = next(
    (path for name in ("chromium", "chromium-browser", "google-chrome") if (path := shutil.which(name))), None
)


@dataclass
class Opened:
    """A page and what happened in it."""

    page: Any
    requests: list[str] = field(default_factory=list)
    complaints: list[str] = field(default_factory=list)


@contextmanager
def chromium() -> Iterator[Any]:
    """The browser; one at a time."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as play:
        browser = play.chromium.launch(executable_path=PROGRAM, args=["--no-sandbox", "--disable-gpu"])
        yield browser
        browser.close()


def opened(
    browser: Any, path: Path, width: int = 1280, height: int = 900, scheme: str = "light", phone: bool = False
) -> Opened:
    """Open a file in a window of its own.

    Args:
        scheme: 'light' or 'dark', what the reader prefers.
        phone: touch, and two pixels per point.
    """
    context = browser.new_context(
        viewport={"width": width, "height": height},
        color_scheme=scheme,
        has_touch=phone,
        is_mobile=phone,
        device_scale_factor=2 if phone else 1,
    )
    context.set_default_timeout(10_000)
    one = Opened(context.new_page())
    one.page.on("request", lambda request: one.requests.append(request.url))
    one.page.on(
        "console",
        lambda message: one.complaints.append(message.text) if message.type in ("error", "warning") else None,
    )
    one.page.on("pageerror", lambda error: one.complaints.append(str(error)))
    one.page.goto(path.resolve().as_uri())
    return one
