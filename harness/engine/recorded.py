"""Which results a split has already, whoever wrote them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from harness.engine.cells import Job
from harness.store.named import encoded, named_rows
from harness.store.rows import description


class Recorded:
    """The keys of some samples' rows in a split's journals; other rows are passed over without being parsed.

    Args:
        place: the split's folder.
        cells: what `run.json` says of every cell.
    """

    def __init__(self, place: Path, cells: Mapping[str, Mapping[str, Any]]) -> None:
        self._place, self._cells = place, cells
        self._offsets: dict[Path, int] = {}  # up to which every journal was looked through for `_known`
        self._known: set[bytes] = set()
        self._places: dict[tuple[str, str], set[int]] = {}
        self._of: dict[tuple[str, str], int] = {}
        self._failed: set[tuple[str, str]] = set()

    @property
    def failures(self) -> set[tuple[str, str]]:
        """(cell, sample) that are recorded as failed."""
        return self._failed

    def look(self, samples: Iterable[str]) -> None:
        """Read what is recorded of these samples, and what was written since of those of before."""
        new = set(map(encoded, samples)) - self._known
        self._known |= new
        for path in sorted(self._place.glob("*.jsonl")):
            seen = self._offsets.get(path, 0)
            if new and seen:
                self._note(named_rows(path, new, self._cells, 0, seen)[0])
            if path.lstat().st_size != seen:
                rows, self._offsets[path] = named_rows(path, self._known, self._cells, seen)
                self._note(rows)

    def _note(self, rows: Iterable[Mapping[str, Any]]) -> None:
        for row in rows:
            pair = row["cell"], row["sample"]
            self._places.setdefault(pair, set()).add(row["place"])
            self._of[pair] = row["of"]
            if row["status"] == "failed":
                self._failed.add(pair)

    def __contains__(self, key: tuple[str, str, int]) -> bool:
        return key[2] in self._places.get(key[:2], ())

    def complete(self, job: Job, sample: str) -> bool:
        """Whether a cell has all rows of a sample, which was looked for, and the sample is described if it
        could be read."""
        cell = job.cell.id
        if not self._whole(cell, sample):
            return False
        return (cell, sample) in self._failed or self._whole(description(job.cell.setting.code), sample)

    def _whole(self, cell: str, sample: str) -> bool:
        pair = cell, sample
        return pair in self._of and len(self._places[pair]) >= self._of[pair]
