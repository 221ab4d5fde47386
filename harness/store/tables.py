"""The same rows as Parquet, once a run is complete: written once, and held to what `done.json` says of
them."""

from __future__ import annotations

import hashlib
import os
import secrets
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from harness.store.rows import KEYS, OPTIONAL, STATUS, image_of
from harness.store.run_folder import FOLDER, SCHEMA, done_info
from pruners.base import UserError

ROWS_AT_ONCE = 20_000
CLOSED = "`python -m harness rebuild {folder}` makes it again from the run's journals"


def compact(place: Path, rows: Iterable[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Write the rows of a complete split as Parquet, one file per status.

    Returns:
        For every file its `rows` and its `sha256`.
    """
    import pyarrow
    from pyarrow import parquet

    schemas = {
        status: pyarrow.schema(
            [(name, _type(kind)) for name, kind in (KEYS | fields).items()],
            metadata={"schema": str(SCHEMA)},
        )
        for status, fields in STATUS.items()
    }
    partial = {status: place / f"{status}.{secrets.token_hex(4)}" for status in STATUS}
    counts: Counter[str] = Counter()
    try:
        writers = {
            status: parquet.ParquetWriter(
                partial[status], schema, compression="zstd", write_page_checksum=True
            )
            for status, schema in schemas.items()
        }
        waiting: dict[str, list[dict[str, Any]]] = {status: [] for status in STATUS}

        def write(status: str) -> None:
            counts[status] += len(waiting[status])
            writers[status].write_table(pyarrow.Table.from_pylist(waiting[status], schema=schemas[status]))
            waiting[status] = []

        for row in rows:
            if "measures" in row:  # Arrow's maps are lists of pairs
                row = row | {name: list(row[name].items()) for name in ("measures", "curves")}
            waiting[row["status"]].append(row)
            if len(waiting[row["status"]]) >= ROWS_AT_ONCE:
                write(row["status"])
        for status, writer in writers.items():
            write(status)
            writer.close()
        found = {}
        for status, path in partial.items():
            with path.open("rb+") as file:
                os.fsync(file.fileno())
            found[f"{status}.parquet"] = {"rows": counts[status], "sha256": _sha256(path)}
        for status, path in partial.items():
            path.replace(place / f"{status}.parquet")
        return found
    finally:
        for path in partial.values():
            path.unlink(missing_ok=True)


def _type(kind: str) -> Any:
    """Arrow's type of a field."""
    import pyarrow

    match kind:
        case "measures":
            return pyarrow.map_(pyarrow.string(), pyarrow.float64())
        case "curves":
            return pyarrow.map_(pyarrow.string(), pyarrow.list_(pyarrow.int64()))
    return getattr(pyarrow, kind)()


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def verify(path: str | Path) -> None:
    """Hold a finished run to what `done.json` wrote of it.

    Raises:
        UserError: a table is missing, or is not the one that was written.
    """
    folder = Path(path)
    for name, tables in done_info(folder).get("splits", {}).items():
        for table, facts in tables.items():
            _table(folder, folder / FOLDER / name / table, facts)


def _table(folder: Path, file: Path, facts: Mapping[str, Any]) -> None:
    if not file.is_file():
        raise UserError(f"{str(file)!r} is missing; {CLOSED.format(folder=folder)}.")
    if _sha256(file) != facts["sha256"]:
        raise UserError(
            f"{str(file)!r} is damaged (it is not the file that the run wrote); "
            f"{CLOSED.format(folder=folder)}."
        )


def read_table(folder: Path, file: Path, facts: Mapping[str, Any], status: str) -> pd.DataFrame:
    """The rows of a table; what its schema did not have yet is filled in.

    Raises:
        UserError: as `verify`.
    """
    from pyarrow import parquet

    _table(folder, file, facts)
    frame: pd.DataFrame = parquet.read_table(file, page_checksum_verification=True).to_pandas()
    for name, value in OPTIONAL[status].items():
        if name not in frame:
            frame[name] = frame["sample"].map(image_of) if name == "cluster" else [value] * len(frame)
    return frame


def batches_of(
    folder: Path, file: Path, facts: Mapping[str, Any], columns: Sequence[str], at_once: int
) -> Iterator[pd.DataFrame]:
    """Some columns of a table, a few rows at a time.

    Raises:
        UserError: as `verify`.
    """
    from pyarrow import parquet

    _table(folder, file, facts)
    with parquet.ParquetFile(file, page_checksum_verification=True) as opened:
        for batch in opened.iter_batches(at_once, columns=list(columns)):
            yield batch.to_pandas()


def measures(frame: pd.DataFrame) -> pd.DataFrame:
    """A column of float64 for each that metrics of others fill, NaN where they did not."""
    if not frame["measures"].map(len).any():
        return pd.DataFrame(index=frame.index)
    rows = [dict(row) for row in frame["measures"]]
    names = sorted({name for row in rows for name in row})
    return pd.DataFrame(
        {name: [float(row.get(name, np.nan)) for row in rows] for name in names}, index=frame.index
    )


def intact(file: Path, facts: Mapping[str, Any]) -> bool:
    """Whether a table is the one that was written."""
    return file.is_file() and _sha256(file) == facts["sha256"]
