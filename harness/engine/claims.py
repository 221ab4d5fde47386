"""Claims: which process works on which part, where several processes share a run.

A part is a few media under all cells of a sweep. Its state says how far it is; whoever works on it holds a
lock on each of its media. The kernel takes a lock away with its process, however that ended, so what a killed
worker left is free for the others.

A run that grew has several sweeps, and one sweep's parts may be cut otherwise by other code or another order
of the splits: the states of each lie in a file of their own, and all take their locks in one file, so that no
two of them work on one medium.
"""

from __future__ import annotations

import fcntl
import os
import stat
import struct
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from harness.store.journal import digest
from harness.store.sweeps import LOCKS

# bytes of a part's state; that of a finished part is the number of its samples that failed
WIDTH = 4
PENDING, STARTED, MOST = b"." * WIDTH, b"+" * WIDTH, 10**WIDTH - 1
OPENING = 1 << 61  # byte that is locked while the file is made as long as it has to be; no medium's
HEX = 15  # digits of a medium's key that are the number of its byte
State = Literal["fresh", "abandoned"]


class Claims:
    """Claims of one sweep. Locks are per process: one object per run and process.

    Args:
        path: beginning of the name of the sweep's file of states, which is made if it is not there; what
            parts it is about ends the name. Locks are in the file beside it that is called `claims`.
        parts: keys of the media of each part, in hexadecimal digits.
        recorded: whether a file that is made here begins with parts of which something may be recorded.
    """

    def __init__(self, path: Path, parts: Sequence[Sequence[str]], recorded: bool = False) -> None:
        cut = digest({"parts": [list(keys) for keys in parts]})
        self.path, self._locked = path.with_name(f"{path.name}-{cut[:8]}"), path.with_name(LOCKS)
        self._bytes = [sorted({int(key[:HEX], 16) for key in keys}) for keys in parts]
        self._whole = WIDTH * len(parts)
        self._locks = _open(self._locked)
        # a second descriptor of a file would take all locks on it away when it is closed
        self._file = _open(self.path)
        try:
            self._lock(OPENING, wait=True)
            if (size := os.fstat(self._file).st_size) < self._whole:
                begun = STARTED if recorded or size else PENDING
                os.pwrite(self._file, (begun * len(parts))[size:], size)
                os.fsync(self._file)
            self._unlock(OPENING)
        except OSError:
            self.close()
            raise

    def _lock(self, byte: int, wait: bool = False) -> bool:
        try:
            fcntl.lockf(self._locks, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB), 1, byte)
        except (BlockingIOError, PermissionError):  # both mean that another process holds it
            return False
        return True

    def _unlock(self, byte: int) -> None:
        fcntl.lockf(self._locks, fcntl.LOCK_UN, 1, byte)

    def _lock_media(self, part: int) -> bool:
        """Lock all media of a part, or none."""
        held: list[int] = []
        for byte in self._bytes[part]:
            if not self._lock(byte):
                for one in held:
                    self._unlock(one)
                return False
            held.append(byte)
        return True

    def _let_go(self, part: int) -> None:
        for byte in self._bytes[part]:
            self._unlock(byte)

    def _set(self, part: int, state: bytes) -> None:
        os.pwrite(self._file, state, WIDTH * part)
        os.fsync(self._file)

    def take(self, part: int) -> State | None:
        """Claim a part: "fresh" if nothing of it can be recorded, None if it is taken or done, else
        "abandoned".

        What is no state, as a damaged file has, says nothing, so the part counts as begun; so does every part
        of a run that has other sweeps.
        """
        if not self._lock_media(part):
            return None
        state = os.pread(self._file, WIDTH, WIDTH * part)
        if state.isdigit():
            self._let_go(part)
            return None
        self._set(part, STARTED)
        return "fresh" if state == PENDING and not self.others else "abandoned"

    @property
    def others(self) -> bool:
        """Whether the run has states of other sweeps, or of parts that are cut otherwise."""
        for other in self.path.parent.glob(f"{LOCKS}*"):
            with suppress(OSError):
                facts = os.lstat(other)
                # a link is none of this run's; one that is empty was made for its locks
                if other != self.path and stat.S_ISREG(facts.st_mode) and facts.st_size:
                    return True
        return False

    def finish(self, part: int, failed: int) -> None:
        """Mark a claimed part as recorded, with so many failed samples, and let it go."""
        self._set(part, b"%0*d" % (WIDTH, min(failed, MOST)))
        self._let_go(part)

    def reopen(self, part: int) -> None:
        """Take back that a part is done, because its records are not there."""
        self._set(part, STARTED)

    def holder(self, part: int) -> int | None:
        """The process of this machine that has claimed a part, where the kernel tells."""
        flock = "hhqqi"  # type, whence, start, length, process
        for byte in self._bytes[part]:
            with suppress(OSError, struct.error):
                asked = struct.pack(flock, fcntl.F_WRLCK, os.SEEK_SET, byte, 1, 0)
                kind, *_, process = struct.unpack(flock, fcntl.fcntl(self._locks, fcntl.F_GETLK, asked))
                if kind != fcntl.F_UNLCK and process > 0:
                    return int(process)
        return None

    @property
    def in_place(self) -> bool:
        """Whether the files are still where they were opened: a run folder can be moved or removed."""
        try:
            return all(
                os.path.samestat(os.fstat(file), os.stat(path))
                for file, path in ((self._file, self.path), (self._locks, self._locked))
            )
        except FileNotFoundError:
            return False

    def _states(self) -> NDArray[np.uint8]:
        """(parts, WIDTH) bytes of all states."""
        found = os.pread(self._file, self._whole, 0).ljust(self._whole, PENDING[:1])
        return np.frombuffer(found, dtype=np.uint8).reshape(-1, WIDTH)

    @property
    def finished(self) -> NDArray[np.bool_]:
        """(parts,) bool: which are recorded."""
        states = self._states()
        digits: NDArray[np.bool_] = (states >= ord("0")) & (states <= ord("9"))
        return np.logical_and.reduce(digits, axis=1)  # type: ignore[no-any-return]

    @property
    def begun(self) -> NDArray[np.bool_]:
        """(parts,) bool: of which something may be recorded though they are not finished."""
        if self.others:
            return ~self.finished
        touched: NDArray[np.bool_] = (self._states() != np.frombuffer(PENDING, dtype=np.uint8)).any(axis=1)
        return touched & ~self.finished

    @property
    def open(self) -> list[int]:
        """Parts that are not recorded yet."""
        return np.flatnonzero(~self.finished).tolist()  # type: ignore[no-any-return]

    @property
    def done(self) -> bool:
        """Whether all parts are recorded."""
        return bool(self.finished.all())

    @property
    def failed(self) -> int:
        """Failed samples of all finished parts."""
        states = self._states()[self.finished].astype(np.int64) - ord("0")
        return int((states * 10 ** np.arange(WIDTH - 1, -1, -1)).sum())

    def close(self) -> None:
        """Let go of every claim."""
        for file in {self._file, self._locks}:
            os.close(file)


def _open(path: Path) -> int:
    return os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o644)
