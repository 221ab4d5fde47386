"""Append-only JSON lines that check themselves: the one journal that records and costs are kept in.

Every line ends with a CRC-32 of what stands before it, so that no changed bit passes for a number. A process
writes whole lines and waits for the disk; one that is killed leaves at most a torn last line, which readers
leave out.
"""

from __future__ import annotations

import fcntl
import json
import os
import re
import secrets
import stat
import zlib
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from pruners.base import UserError

SUM = re.compile(rb', "crc": "([0-9a-f]{8})"\}$')
DIGEST = "digest"


def line(row: Mapping[str, Any]) -> bytes:
    """A row as it is written: JSON with sorted keys, and behind them the CRC-32 of that JSON."""
    body = json.dumps(row, sort_keys=True).encode()
    return b'%s, "crc": "%08x"}\n' % (body[:-1], zlib.crc32(body))


def parse(content: bytes, summed: bool) -> dict[str, Any]:
    """The row of a line without its line end.

    Args:
        summed: whether the line must have a checksum; one that has is held to it in any case.

    Raises:
        ValueError: it is no row, or its checksum is missing or wrong.
    """
    found = SUM.search(content)
    if found is None and summed:
        raise ValueError("its checksum is missing")
    body = content if found is None else content[: found.start()] + b"}"
    if found is not None and zlib.crc32(body) != int(found[1], 16):
        raise ValueError("its checksum is wrong")
    try:
        row = json.loads(body)
    except RecursionError:
        raise ValueError("nested too deeply") from None
    if not isinstance(row, dict):
        raise ValueError("not a record")
    return row


class Reader:
    """The rows of one journal file, in order; `offset` is behind the last whole line that was read.

    A file says in its first line which schema it has; if that line has a checksum, all lines must have one
    (journals of before schema 3 have none).

    Args:
        schemas: those that this version reads.
        mend: ends the sentence about another schema or a damaged line.
    """

    def __init__(self, path: Path, schemas: Iterable[int], mend: str) -> None:
        self.path, self.schemas, self.mend = path, tuple(schemas), mend
        self.offset = self.number = 0
        self.header: dict[str, Any] = {}
        self._summed = False

    def __iter__(self) -> Iterator[tuple[int, dict[str, Any]]]:
        """(line number, row) of every line behind `offset`, the header left out.

        Raises:
            UserError: another schema, or a damaged line; names file and line.
        """
        for lines in self.blocks(1):
            yield from self.rows(lines)

    def rows(self, lines: Iterable[bytes]) -> Iterator[tuple[int, dict[str, Any]]]:
        """(line number, row) of lines that `blocks` gave last.

        Raises:
            UserError: as `__iter__`.
        """
        for number, content in enumerate(lines, self.number + 1):
            yield number, self._row(content, number)

    def blocks(self, size: int) -> Iterator[list[bytes]]:
        """Whole lines behind `offset` with their ends, unchecked, about `size` bytes at a time; no header.

        Once the next ones are asked for, those before count as read.

        Raises:
            UserError: another schema, or what stands behind the last whole line is none that is being
                written.
        """
        if isinstance(self.path, Path) and not stat.S_ISREG(os.lstat(self.path).st_mode):
            raise UserError(f"{self.path} is a link or no file, and no journal of this run; take it away.")
        with self.path.open("rb") as file:
            if self.offset:
                file.seek(self.offset)
            while lines := file.readlines(size):
                torn = b"" if lines[-1].endswith(b"\n") else lines.pop()
                if lines and self.number == 0:
                    self._begin(lines.pop(0))
                if lines:
                    yield lines
                    self.number += len(lines)
                    self.offset += sum(map(len, lines))
                if torn:
                    # being written just now: what a whole line is a prefix of; anything else is damage
                    if SUM.search(torn[:-1]):
                        raise self._damaged("something stands behind its end", self.number + 1)
                    return

    @property
    def summed(self) -> bool:
        """Whether its lines must have checksums; known once `blocks` gave any."""
        return self._summed

    def _begin(self, content: bytes) -> None:
        header = self._row(content, 1)
        if header.get("schema") not in self.schemas:
            raise UserError(
                f"{self.path} has schema {header.get('schema')!r}, this version reads "
                f"{', '.join(map(str, self.schemas))}; {self.mend}."
            )
        self._summed = SUM.search(content[:-1]) is not None
        self.header, self.number, self.offset = header, 1, len(content)

    def _row(self, content: bytes, number: int) -> dict[str, Any]:
        try:
            return parse(content[:-1], self._summed)
        except ValueError as error:
            raise self._damaged(str(error), number) from None

    def _damaged(self, why: str, number: int) -> UserError:
        return UserError(f"{self.path}:{number} is damaged ({why}); {self.mend}.")


class Journal:
    """Appends rows to one file; it is made with the first row.

    Args:
        header: first line, with its `schema`.
        offset: where the last whole line of a file ends that is there already; what is torn behind it is cut
            off.
    """

    def __init__(self, path: Path, header: Mapping[str, Any], offset: int = 0) -> None:
        self.path, self._header, self._offset = path, header, offset
        self._file: Any = None

    def append(self, rows: Iterable[Mapping[str, Any]]) -> None:
        """Write rows and wait until the disk has them."""
        content = b"".join(map(line, rows))
        if self._file is None:
            if self._offset:
                os.truncate(self.path, self._offset)
            else:
                content = line(self._header) + content
            self._file = self.path.open("ab" if self._offset else "xb")
        self._file.write(content)
        self._file.flush()
        os.fsync(self._file.fileno())

    def close(self) -> None:
        """Close the file; what `append` wrote is on the disk already."""
        if self._file is not None:
            with suppress(OSError):
                self._file.close()


@contextmanager
def alone(path: Path) -> Iterator[None]:
    """An exclusive file lock on `path`: of all processes one is inside; the kernel frees it with the process
    that held it."""
    with path.open("ab") as file:
        fcntl.lockf(file, fcntl.LOCK_EX)
        yield


def digest(content: Mapping[str, Any], without: Iterable[str] = ()) -> str:
    """16 hex digits of the canonical JSON of a mapping, `without` some of its keys."""
    import hashlib

    left = {name: value for name, value in content.items() if name not in (DIGEST, *without)}
    text = json.dumps(left, sort_keys=True, separators=(",", ":"), default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def write_atomically(
    path: Path, content: Mapping[str, Any], without: Iterable[str] = (), only_new: bool = False
) -> None:
    """Write a JSON file that is either whole or not there, with a digest of its content.

    Args:
        without: keys that the digest leaves out.
        only_new: leave one that is there already as it is.
    """
    text = json.dumps({**content, DIGEST: digest(content, without)}, indent=2, sort_keys=True) + "\n"
    with _aside(path, text) as partial:
        if only_new:
            with suppress(FileExistsError):
                os.link(partial, path)
        else:
            partial.replace(path)


def write_text(path: Path, text: str) -> None:
    """Write a file that is either as before or whole; where it is a link, what it leads to."""
    path = path.resolve()
    with _aside(path, text) as partial:
        partial.replace(path)


@contextmanager
def _aside(path: Path, text: str) -> Iterator[Path]:
    """A file beside a path that holds a text, on the disk; it goes if it was not renamed."""
    partial = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    try:
        with partial.open("w", encoding="utf-8", newline="\n") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        yield partial
    finally:
        partial.unlink(missing_ok=True)


def read_whole(path: Path, mend: str, without: Iterable[str] = ()) -> dict[str, Any]:
    """What `write_atomically` wrote; empty if the file is not there.

    Raises:
        UserError: it is damaged; `mend` ends the sentence.
    """
    try:
        raw = path.read_bytes()
    except FileNotFoundError:
        return {}
    except OSError as error:
        raise UserError(f"{str(path)!r} cannot be read ({error.strerror}); {mend}.") from None
    try:
        content = json.loads(raw)
        if not isinstance(content, dict):
            raise ValueError(f"a {type(content).__name__} where names and values are expected")
        if DIGEST in content and content[DIGEST] != digest(content, without):
            raise ValueError("its digest is wrong")
        if DIGEST not in content and content.get("schema"):
            raise ValueError("its digest is missing")
    except (ValueError, RecursionError) as error:
        raise UserError(f"{str(path)!r} is damaged ({error}); {mend}.") from None
    return content
