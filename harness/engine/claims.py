"""Who works on what: one byte and one lock per part of a split, so that any number of processes share a run.

A part is a few images under all cells of a sweep. Its byte says how far it is; whoever works on it holds a
lock on that byte. The kernel takes a lock away with its process, however that ended, so what a killed worker
left is free for the others.

A run that grew has several sweeps over the same parts: each has its states in a file of its own, and all take
their locks in that of the first, so that no two of them work on one part.
"""

from __future__ import annotations

import fcntl
import os
import struct
from contextlib import suppress
from pathlib import Path
from typing import Literal

from harness.store.sweeps import FIRST

PENDING, STARTED = b".", b"+"  # a finished part's byte is the digit of its failed samples
OPENING = 1 << 40  # byte that is locked while the file is made as long as it has to be; no part's
State = Literal["fresh", "abandoned"]


class Claims:
    """Claims of one split under one sweep. Locks are per process: one object per split and process.

    Args:
        path: file of the sweep's states, made if it is not there; the locks are in the one beside it that is
            called `claims`.
        parts: how many parts the split has; at most nine samples in each, so that a digit counts its
            failures.
    """

    def __init__(self, path: Path, parts: int) -> None:
        self.path, self.parts = path, parts
        self._locks = _open(path.with_name(FIRST))
        # a second descriptor of a file would take all locks on it away when it is closed
        self._file = self._locks if path.name == FIRST else _open(path)
        self._lock(OPENING, wait=True)
        if (size := os.fstat(self._file).st_size) < parts:
            os.pwrite(self._file, PENDING * (parts - size), size)
            os.fsync(self._file)
        self._unlock(OPENING)
        # what these have finished is in the records for whoever reads them from now on
        self._before = self._others()

    def _lock(self, part: int, wait: bool = False) -> bool:
        try:
            fcntl.lockf(self._locks, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB), 1, part)
        except (BlockingIOError, PermissionError):  # both mean that another process holds it
            return False
        return True

    def _unlock(self, part: int) -> None:
        fcntl.lockf(self._locks, fcntl.LOCK_UN, 1, part)

    def _set(self, part: int, state: bytes) -> None:
        os.pwrite(self._file, state, part)
        os.fsync(self._file)

    def take(self, part: int) -> State | None:
        """Claim a part: "fresh" if nobody has begun it since this object was made, None if it is taken or
        done, else "abandoned".

        A byte that is no state, as a damaged file has, says nothing, so the part counts as begun; so does one
        that another sweep has begun meanwhile.
        """
        if not self._lock(part):
            return None
        state = os.pread(self._file, 1, part)
        if state.isdigit():
            self._unlock(part)
            return None
        self._set(part, STARTED)
        return "fresh" if state == PENDING and not self._begun_elsewhere(part) else "abandoned"

    def _begun_elsewhere(self, part: int) -> bool:
        """Whether another sweep has begun a part since this object was made."""
        for name, states in self._others().items():
            now, before = (some[part : part + 1] for some in (states, self._before.get(name, b"")))
            if now not in (b"", PENDING) and not (now.isdigit() and now == before):
                return True
        return False

    def _others(self) -> dict[str, bytes]:
        """States of all parts under the other sweeps, by the names of their files."""
        found = {} if self._file == self._locks else {FIRST: os.pread(self._locks, self.parts, 0)}
        for other in self.path.parent.glob(f"{FIRST}-*"):
            if other != self.path:
                with suppress(OSError):  # a link, say, which is none of this run's
                    file = os.open(other, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
                    found[other.name] = os.pread(file, self.parts, 0)
                    os.close(file)
        return found

    def finish(self, part: int, failed: int) -> None:
        """Mark a claimed part as recorded, with so many failed samples, and let it go."""
        self._set(part, str(failed).encode())
        self._unlock(part)

    def reopen(self, part: int) -> None:
        """Take back that a part is done, because its records are not there."""
        self._set(part, STARTED)

    def states(self) -> bytes:
        """One byte per part."""
        return os.pread(self._file, self.parts, 0)

    def holder(self, part: int) -> int | None:
        """The process of this machine that has claimed a part, where the kernel tells."""
        flock = "hhqqi"  # type, whence, start, length, process
        with suppress(OSError, struct.error):
            asked = struct.pack(flock, fcntl.F_WRLCK, os.SEEK_SET, part, 1, 0)
            kind, *_, process = struct.unpack(flock, fcntl.fcntl(self._locks, fcntl.F_GETLK, asked))
            return int(process) if kind != fcntl.F_UNLCK and process > 0 else None
        return None

    @property
    def in_place(self) -> bool:
        """Whether the file is still where it was opened: a run folder can be moved or removed."""
        try:
            return os.path.samestat(os.fstat(self._file), os.stat(self.path))
        except FileNotFoundError:
            return False

    @property
    def open(self) -> list[int]:
        """Parts that are not recorded yet."""
        states = self.states().ljust(self.parts, PENDING)
        return [part for part in range(self.parts) if not states[part : part + 1].isdigit()]

    @property
    def done(self) -> bool:
        """Whether all parts are recorded."""
        return not self.open

    @property
    def failed(self) -> int:
        """Failed samples of all finished parts."""
        return sum(state - ord("0") for state in self.states() if bytes([state]).isdigit())

    def close(self) -> None:
        """Let go of every claim."""
        for file in {self._file, self._locks}:
            os.close(file)


def _open(path: Path) -> int:
    return os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o644)
