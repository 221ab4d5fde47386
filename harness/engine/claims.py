"""Who works on what: one byte and one lock per part of a split, so that any number of processes share a run.

A part is a few images under all cells. Its byte says how far it is; whoever works on it holds a lock on that
byte. The kernel takes a lock away with its process, however that ended, so what a killed worker left is free
for the others.
"""

from __future__ import annotations

import fcntl
import os
import struct
from contextlib import suppress
from pathlib import Path
from typing import Literal

PENDING, STARTED = b".", b"+"  # a finished part's byte is the digit of its failed samples
State = Literal["fresh", "abandoned"]


class Claims:
    """Claims of one split. Locks are per process: one object per file and process.

    Args:
        path: the file, made if it is not there.
        parts: how many parts the split has; at most nine samples in each, so that a digit counts its
            failures.
    """

    def __init__(self, path: Path, parts: int) -> None:
        self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o644)
        self.path, self.parts = path, parts
        self._lock(parts, wait=True)
        if (size := os.fstat(self._file).st_size) < parts:
            os.pwrite(self._file, PENDING * (parts - size), size)
            os.fsync(self._file)
        self._unlock(parts)

    def _lock(self, part: int, wait: bool = False) -> bool:
        try:
            fcntl.lockf(self._file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB), 1, part)
        except (BlockingIOError, PermissionError):  # both mean that another process holds it
            return False
        return True

    def _unlock(self, part: int) -> None:
        fcntl.lockf(self._file, fcntl.LOCK_UN, 1, part)

    def _set(self, part: int, state: bytes) -> None:
        os.pwrite(self._file, state, part)
        os.fsync(self._file)

    def take(self, part: int) -> State | None:
        """Claim a part: "fresh" if nobody has begun it, None if it is taken or done, else "abandoned".

        A byte that is no state, as a damaged file has, says nothing, so the part counts as begun.
        """
        if not self._lock(part):
            return None
        state = os.pread(self._file, 1, part)
        if state.isdigit():
            self._unlock(part)
            return None
        self._set(part, STARTED)
        return "fresh" if state == PENDING else "abandoned"

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
            kind, *_, process = struct.unpack(flock, fcntl.fcntl(self._file, fcntl.F_GETLK, asked))
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
        os.close(self._file)
