"""Which results a split has already, whoever wrote them."""

from __future__ import annotations

from collections.abc import Iterable

from harness.engine.cells import Job
from harness.store.records import Journals
from harness.store.rows import description


class Recorded:
    """The keys of a split's rows; reads on where it stopped."""

    def __init__(self, journals: Journals) -> None:
        self._journals = journals
        self._places: dict[tuple[str, str], set[int]] = {}
        self._of: dict[tuple[str, str], int] = {}
        self._failed: set[tuple[str, str]] = set()

    @property
    def failures(self) -> set[tuple[str, str]]:
        """(cell, sample) that are recorded as failed."""
        return self._failed

    def update(self) -> None:
        """Read what was written since the last time."""
        for _, row in self._journals.new():
            pair = row["cell"], row["sample"]
            self._places.setdefault(pair, set()).add(row["place"])
            self._of[pair] = row["of"]
            if row["status"] == "failed":
                self._failed.add(pair)

    def __contains__(self, key: tuple[str, str, int]) -> bool:
        return key[2] in self._places.get(key[:2], ())

    def has_of(self, sample: str, cells: Iterable[str]) -> bool:
        """Whether anything of a sample is there."""
        return any((cell, sample) in self._of for cell in cells)

    def complete(self, job: Job, sample: str) -> bool:
        """Whether a cell has all rows of a sample, and the sample is described if it could be read."""
        cell = job.cell.id
        if not self._whole(cell, sample):
            return False
        return (cell, sample) in self._failed or self._whole(description(job.cell.setting.code), sample)

    def _whole(self, cell: str, sample: str) -> bool:
        pair = cell, sample
        return pair in self._of and len(self._places[pair]) >= self._of[pair]
