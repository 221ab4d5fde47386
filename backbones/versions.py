"""The packages that this project needs: the ranges that were tested, and what is installed here."""

from __future__ import annotations

import sys
import tomllib
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path

from packaging.requirements import Requirement

PROJECT = "groundprune"
SOURCE = Path(__file__).parent.parent / "pyproject.toml"


@dataclass(frozen=True)
class Installed:
    """A package that this project needs.

    Attributes:
        found: the installed version, None where there is none.
    """

    wanted: Requirement
    found: str | None

    @property
    def tested(self) -> bool:
        """Whether this version lies in the tested range."""
        return self.found is not None and self.wanted.specifier.contains(self.found, prereleases=True)

    def __str__(self) -> str:
        """One sentence: what is there, which range was tested, and the line that mends it."""
        if self.found is None:
            return f"package {self.wanted.name} is not installed; pip install '{self.wanted}'"
        return (
            f"{self.wanted.name} {self.found} is outside the range that was tested "
            f"({self.wanted.specifier}): "
            f"it may work, and digits may differ; pip install '{self.wanted}'"
        )


def requirements() -> list[Requirement]:
    """What the project needs without extras, from its source folder or from the installed package."""
    if SOURCE.is_file():
        texts = tomllib.loads(SOURCE.read_text(encoding="utf-8"))["project"]["dependencies"]
    else:
        texts = [text for text in requires(PROJECT) or [] if "extra ==" not in text]
    return [Requirement(text) for text in texts]


def installed_versions() -> list[Installed]:
    """Every package that the project needs."""
    found = []
    for wanted in requirements():
        try:
            found.append(Installed(wanted, version(wanted.name)))
        except PackageNotFoundError:
            found.append(Installed(wanted, None))
    return found


def untested() -> list[Installed]:
    """Packages that are missing or outside their tested range."""
    return [one for one in installed_versions() if not one.tested]


def warn() -> None:
    """A line on stderr for every package outside its tested range."""
    for one in untested():
        print(f"warning: {one}", file=sys.stderr)
