"""Which of the three data sets a data folder holds."""

from __future__ import annotations

from pathlib import Path

from harness.data.video import davis, mevis, youtube

KNOWN = {module.NAME: module for module in (davis, youtube, mevis)}


def names(root: Path | None) -> list[str]:
    """Those that are there."""
    return [name for name, module in KNOWN.items() if module.found(root) is not None]


def hint(root: Path) -> str:
    """What to tell who gave a data folder without data."""
    if not root.is_dir():
        return ""
    places = ", ".join(f"'{root / module.FOLDERS[0]}'" for module in KNOWN.values())
    return f" Video is {places}."
