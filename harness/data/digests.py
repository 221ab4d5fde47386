"""SHA-256 of a data folder's files, computed by one process and kept for all commands that follow.

A file counts as the same while its size, its inode and its times of writing and of change are: the last of
these cannot be set back where a file system keeps it, so that a copy with an old date is seen. What a run
decodes is hashed again when it is decoded, see `harness.engine.prefetch`.
"""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Callable, Iterable
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

from harness.data.sample import MISSING, file_digest
from harness.store.journal import Journal, Reader, alone
from pruners.errors import UserError

SCHEMA = 1
FOLDER = "digests"  # below the folder of generated data
# seconds: a file may be written again within one tick of its clock, so that one written just now is not kept
SETTLED = 2.0
Stamp = tuple[int, int, int, int]  # size in bytes, time of writing and of change in nanoseconds, inode


class FileDigests:
    """Digests of files, by path; a `harness.data.sample.FileDigest`.

    Args:
        place: file that they are kept in; None keeps them for this process alone. One that cannot be read or
            written is as good as none.
    """

    def __init__(self, place: Path | None) -> None:
        self._place = place
        self._known: dict[str, tuple[Stamp, bytes]] = {}
        self._reader: Reader | None = None

    def __call__(self, path: Path) -> bytes:
        """SHA-256 of a file's bytes; MISSING if it cannot be read."""
        found = self._kept(path)
        return file_digest(path) if found is None else found

    def learn(self, paths: Iterable[Path], advance: Callable[[], None] = lambda: None) -> None:
        """Read the files that nobody has read before; while one process does, the others wait for what it
        finds.

        Args:
            advance: is called behind every file that is known.
        """
        self._look()
        lacking = []
        for path in paths:
            if self._kept(path) is None:
                lacking.append(path)
            else:
                advance()
        if not lacking:
            return
        if self._place is None:
            self._read(lacking, advance)
            return
        held = False
        with ExitStack() as stack:
            with suppress(OSError):  # a folder that may not be written
                self._place.parent.mkdir(parents=True, exist_ok=True)
                stack.enter_context(alone(self._place.with_suffix(".lock")))
                held = True
                self._look()
            rows = self._read(lacking, advance)
            if rows and held:
                with suppress(OSError):
                    self._write(rows)

    def _kept(self, path: Path) -> bytes | None:
        known = self._known.get(str(path))
        return known[1] if known is not None and known[0] == _stamp(path) else None

    def _read(self, paths: Iterable[Path], advance: Callable[[], None]) -> list[dict[str, Any]]:
        """Digests of files that are not known by now, as rows to keep."""
        rows = []
        for path in paths:
            before = _stamp(path)
            if before is not None and self._kept(path) is None:
                digest = file_digest(path)
                # one that is written meanwhile is looked at again by the next who asks
                if digest != MISSING and _stamp(path) == before:
                    self._known[str(path)] = before, digest
                    if time.time() - max(before[1:3]) / 1e9 > SETTLED:
                        rows.append({"file": str(path), "stamp": list(before), "sha256": digest.hex()})
            advance()
        return rows

    def _look(self) -> None:
        """Read what others have kept since the last time; a damaged file is removed."""
        if self._place is None:
            return
        try:
            if self._reader is None:
                self._reader = Reader(self._place, (SCHEMA,), "it is made anew")
            for _, row in self._reader:
                size, written, changed, inode = row["stamp"]
                self._known[row["file"]] = (size, written, changed, inode), bytes.fromhex(row["sha256"])
        except OSError:
            self._reader = None
        except (UserError, KeyError, TypeError, ValueError):
            self._reader, self._known = None, {}
            with suppress(OSError):
                self._place.unlink()

    def _write(self, rows: list[dict[str, Any]]) -> None:
        """Keep rows; the caller is alone."""
        assert self._place is not None
        offset = self._reader.offset if self._reader is not None else 0
        if not offset:
            self._place.unlink(missing_ok=True)
        journal = Journal(self._place, {"schema": SCHEMA}, offset)
        try:
            journal.append(rows)
        finally:
            journal.close()


def _stamp(path: Path) -> Stamp | None:
    try:
        found = os.stat(path)
    except OSError:
        return None
    return found.st_size, found.st_mtime_ns, found.st_ctime_ns, found.st_ino


def digests_of(root: str | Path | None, cache: Path) -> FileDigests:
    """The digests of a data folder's files; of generated data without one.

    Args:
        cache: the folder of generated data.
    """
    name = (
        "generated" if root is None else hashlib.sha256(str(Path(root).resolve()).encode()).hexdigest()[:16]
    )
    return FileDigests(cache / FOLDER / f"{name}.jsonl")
