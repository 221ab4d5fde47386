"""How a run is done."""

from __future__ import annotations

from dataclasses import dataclass, field

from harness.engine.ranks import Place
from pruners.base import UserError


@dataclass(frozen=True)
class Way:
    """How a run is done; nothing here changes a record.

    Attributes:
        share: False does everything anew for every cell, to compare with.
        workers: processes that read images ahead.
        processes: that evaluate, of one thread each, forked from this one; None for as many as torch has
            threads, where the model is small enough to gain by it. Under a launcher, this one alone.
        max_failures: share of the samples that may fail before the run stops; one may always.
        keep_code: go on with cells that other code began, and mark the rows.

    Raises:
        UserError: a number makes no sense.
    """

    share: bool = True
    workers: int = 0
    max_failures: float = 0.01
    place: Place = field(default_factory=Place)
    keep_code: bool = False
    processes: int | None = 1

    def __post_init__(self) -> None:
        if not 0 <= self.max_failures <= 1:
            raise UserError(
                f"--max-failures {self.max_failures} is no share; give 0.01 for one sample in a hundred."
            )
        if self.workers < 0:
            raise UserError(f"--workers {self.workers} is negative; give a number of processes, or 0.")
        if self.processes is not None and self.processes < 1:
            raise UserError(f"processes={self.processes} evaluate nothing; give 1 or more, or None.")
