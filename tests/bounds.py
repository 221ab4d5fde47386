"""The two ends of the dependency ranges: `python -m tests.bounds oldest|newest FILE` writes what pip should
install there.

Oldest: every lower bound of pyproject.toml, exactly. Newest: whatever is served, above the upper bounds too,
so that a release that breaks something is noticed; torch alone stays at its locked version, since other
builds are for other machines.
"""

from __future__ import annotations

import re
import sys
import tomllib
from pathlib import Path

ROOT = Path(__file__).parent.parent
# of the extra `test`; the rest of it are tools that the locked set alone runs
RUNS_TESTS = ("pytest", "pytest-xdist", "hypothesis")


def ranges() -> dict[str, str]:
    """Lower bound of every direct dependency by name."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    wanted = [*project["dependencies"], *project["optional-dependencies"]["test"]]
    bounds = dict(text.split(",")[0].split(">=") for text in wanted)
    optional = {text.split(">=")[0] for text in project["optional-dependencies"]["test"]} - set(RUNS_TESTS)
    return {name: low for name, low in bounds.items() if name not in optional}


def locked() -> dict[str, str]:
    """Exact version of every package of the locked set by its normalised name."""
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    return {normal(name): version for name, version in (line.split("==") for line in lines if "==" in line)}


def normal(name: str) -> str:
    """A package's name as registries compare it."""
    return re.sub(r"[-_.]+", "-", name).lower()


def lines(end: str) -> list[str]:
    """Requirements of one end."""
    if end == "oldest":
        return [f"{name}=={low}" for name, low in ranges().items()]
    return [f"torch=={locked()['torch']}" if name == "torch" else name for name in ranges()]


if __name__ == "__main__":
    if len(sys.argv) != 3 or sys.argv[1] not in ("oldest", "newest"):
        raise SystemExit(__doc__)
    Path(sys.argv[2]).write_text("\n".join(lines(sys.argv[1])) + "\n", encoding="utf-8")
