"""One TOML reader for settings and specs: bounded in size, and every fault is one kind of error.

Importing this module imports nothing heavy.
"""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any

MOST_BYTES = 2**20  # hundreds of times what a person writes


def load_toml(path: Path) -> dict[str, Any]:
    """The content of a TOML file in UTF-8.

    Raises:
        OSError: it cannot be opened.
        ValueError: it is larger than MOST_BYTES, no UTF-8, no TOML, or nested too deeply.
    """
    with path.open("rb") as file:
        content = file.read(MOST_BYTES + 1)
    if len(content) > MOST_BYTES:
        raise ValueError(f"it has more than {MOST_BYTES >> 20} MiB")
    try:
        return tomllib.loads(content.decode("utf-8"))
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
