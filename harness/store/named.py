"""The rows of some samples in a journal, whose other lines are passed over unread."""

from __future__ import annotations

import json
import os
import re
import stat
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from harness.store.journal import SUM, parse
from harness.store.records import JOURNAL
from harness.store.rows import validate
from harness.store.run_folder import SCHEMAS, run_info
from pruners.errors import UserError

SAMPLE = re.compile(rb'"sample": "((?:[^"\\]|\\.)*)"')  # the sample's id in a line


def encoded(sample: str) -> bytes:
    """A sample's id as it stands in a line."""
    return json.dumps(sample)[1:-1].encode()


def named_rows(
    path: Path,
    samples: Collection[bytes],
    cells: Mapping[str, Mapping[str, Any]],
    start: int = 0,
    stop: int | None = None,
) -> tuple[list[dict[str, Any]], int]:
    """The rows of some samples, checked, and where the last whole line that was looked at ends.

    Args:
        path: a journal of a split.
        samples: ids, as `encoded`.
        cells: what `run.json` says of every cell; read again for a cell that is not among them.
        start, stop: bytes between which lines are looked at; each is the end of one, or of the file.

    Raises:
        UserError: another schema, or a line of these samples is damaged; names file and line.
    """
    if not stat.S_ISREG(os.lstat(path).st_mode):
        raise UserError(f"{path} is a link or no file, and no journal of this run; take it away.")
    rows: list[dict[str, Any]] = []
    with path.open("rb") as file:
        head = file.readline()
        if not head.endswith(b"\n"):  # being written just now
            return rows, 0
        try:
            header = parse(head[:-1], False)
        except ValueError as error:
            raise UserError(f"{path}:1 is damaged ({error}); {JOURNAL}.") from None
        if header.get("schema") not in SCHEMAS:
            told = ", ".join(map(str, SCHEMAS))
            raise UserError(
                f"{path} has schema {header.get('schema')!r}, this version reads {told}; {JOURNAL}."
            )
        summed = SUM.search(head[:-1]) is not None
        end = max(start, len(head))
        file.seek(end)
        for content in file:
            if not content.endswith(b"\n") or (stop is not None and end >= stop):
                break
            end += len(content)
            found = SAMPLE.search(content)
            if found is None or found[1] not in samples:
                continue
            try:
                row = parse(content[:-1], summed)
                # another process may have begun another edition
                if row.get("status") != "sample" and str(row.get("cell")) not in cells:
                    cells = run_info(path.parent.parent.parent).get("cells", {})
                rows.append(validate(row, cells))
            except ValueError as error:
                raise UserError(f"{path}:{_number(path, end)} is damaged ({error}); {JOURNAL}.") from None
    return rows, end


def _number(path: Path, end: int) -> int:
    """Number of the line that ends at a byte."""
    with path.open("rb") as file:
        return file.read(end).count(b"\n")
