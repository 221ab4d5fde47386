"""The same rows as Parquet, once a run is complete: written once, and held to what `done.json` says of
them; and what tables become in pandas."""

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
import pyarrow as pa
import pyarrow.compute as pc

from harness.store.blocks import SCHEMAS, Tables
from harness.store.rows import OPTIONAL, STATUS, image_of
from harness.store.run_folder import FOLDER, SCHEMA, done_info
from pruners.base import UserError

ROWS_AT_ONCE = 20_000
CLOSED = "`python -m harness rebuild {folder}` makes it again from the run's journals"
SINGLE = ("kept", "mask", "truth")  # texts that hardly any row shares with another; others are dictionaries


def compact(place: Path, tables: Iterable[Tables]) -> dict[str, dict[str, Any]]:
    """Write the rows of a complete split as Parquet, one file per status.

    Args:
        tables: as `harness.store.records.Journals.tables` gives them.

    Returns:
        For every file its `rows` and its `sha256`.
    """
    from pyarrow import parquet

    partial = {status: place / f"{status}.{secrets.token_hex(4)}" for status in STATUS}
    counts: Counter[str] = Counter()
    try:
        writers = {
            status: parquet.ParquetWriter(
                partial[status],
                schema.with_metadata({"schema": str(SCHEMA)}),
                compression="zstd",
                write_page_checksum=True,
            )
            for status, schema in SCHEMAS.items()
        }
        waiting: dict[str, list[pa.Table]] = {status: [] for status in STATUS}

        def write(status: str) -> None:
            if waiting[status]:
                writers[status].write_table(pa.concat_tables(waiting[status]).combine_chunks())
            waiting[status] = []

        for some in tables:
            for status, table in some.items():
                counts[status] += len(table)
                waiting[status].append(table)
                if sum(map(len, waiting[status])) >= ROWS_AT_ONCE:
                    write(status)
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


def read_table(
    folder: Path, file: Path, facts: Mapping[str, Any], status: str, columns: Sequence[str]
) -> pa.Table:
    """Some columns of the rows of a table, repeated texts as dictionaries; what its schema did not have yet
    is filled in.

    Raises:
        UserError: as `verify`.
    """
    from pyarrow import parquet

    _table(folder, file, facts)
    there = parquet.read_schema(file).names
    held = [name for name in columns if name in there]
    texts = repeated(SCHEMAS[status], held)
    with parquet.ParquetFile(file, read_dictionary=texts, page_checksum_verification=True) as opened:
        table = opened.read([*held, *([] if "sample" in held else ["sample"])])
    for name in columns:
        if name not in held:
            table = table.append_column(SCHEMAS[status].field(name), _missing(table, name, status))
    return table.select(list(columns))


def _missing(table: pa.Table, name: str, status: str) -> pa.Array:
    """What stands for a column that a table's schema did not have."""
    kind = SCHEMAS[status].field(name).type
    if name == "cluster":
        return pa.array([image_of(sample) for sample in table["sample"].to_pylist()], kind)
    value = OPTIONAL[status][name]
    return pa.array([list(value.items()) if isinstance(value, dict) else value] * len(table), kind)


def repeated(schema: pa.Schema, columns: Iterable[str]) -> list[str]:
    """Those columns that are kept as dictionaries: a number for each row, and every text once."""
    return [name for name in columns if pa.types.is_string(schema.field(name).type) and name not in SINGLE]


def coded(table: pa.Table) -> pa.Table:
    """A table with its repeated texts as dictionaries."""
    for name in repeated(table.schema, table.column_names):
        table = table.set_column(table.column_names.index(name), name, pc.dictionary_encode(table[name]))
    return table


def frame_of(tables: list[pa.Table]) -> pd.DataFrame:
    """Tables of one schema below each other in pandas: repeated texts as categories in the order of the
    alphabet, a column for each of the `measures`, and `curves` as dicts, where there are any.

    Args:
        tables: which are taken out of the list, since a million rows should not be held twice.
    """
    parts = [_unfolded(table) for table in tables if len(table)]
    tables.clear()
    if not parts:
        return pd.DataFrame()
    table = pa.concat_tables(parts, promote_options="default").unify_dictionaries()
    parts.clear()
    curves = table.column_names.index("curves") if "curves" in table.column_names else None
    pairs = None if curves is None else table.column(curves).to_pylist()
    if curves is not None:
        table = table.remove_column(curves)
    frame: pd.DataFrame = table.to_pandas(split_blocks=True, self_destruct=True)
    for name in frame.columns[frame.dtypes == "category"]:
        texts = frame[name].cat
        frame[name] = texts.reorder_categories(sorted(texts.categories))
    if pairs is not None:
        frame["curves"] = pd.Series([dict(row or ()) for row in pairs], index=frame.index, dtype=object)
    return frame


def plain(frame: pd.DataFrame) -> pd.DataFrame:
    """A frame whose categories are texts again."""
    named = frame.columns[frame.dtypes == "category"]
    return frame.astype({name: frame[name].cat.categories.dtype for name in named})


def together(frames: Sequence[pd.DataFrame]) -> pd.DataFrame:
    """Frames below each other; what is a category in all of them stays one."""
    if len(frames) == 1:
        return frames[0].reset_index(drop=True)
    for name in frames[0].columns[frames[0].dtypes == "category"]:
        if all(name in frame and frame[name].dtype == "category" for frame in frames):
            texts = sorted(set().union(*(frame[name].cat.categories for frame in frames)))
            frames = [frame.assign(**{name: frame[name].cat.set_categories(texts)}) for frame in frames]
    return pd.concat(frames, ignore_index=True)


def _unfolded(table: pa.Table) -> pa.Table:
    """A table with dictionaries, a column of float64 for each of its measures, and without maps that are
    empty in all rows."""
    table = coded(table)
    for name in ("measures", "curves"):
        if name not in table.column_names:
            continue
        maps = table[name].combine_chunks()
        if not len(maps) or not len(maps.keys):
            table = table.drop_columns(name)
        elif name == "measures":
            table = table.drop_columns(name)
            for key, values in _columns(maps).items():
                table = table.append_column(key, values)
    return table


def _columns(maps: pa.MapArray) -> dict[str, pa.Array]:
    """Maps of numbers as a column for each name, null where a row has none of that name."""
    lengths = np.diff(np.asarray(maps.offsets))
    rows = np.repeat(np.arange(len(maps)), lengths)
    first = maps.offsets[0].as_py()
    names = maps.keys.slice(first, len(rows)).dictionary_encode()
    values = np.asarray(maps.items.slice(first, len(rows)), dtype=np.float64)
    found = {}
    for number, name in enumerate(names.dictionary.to_pylist()):
        mine = np.asarray(names.indices) == number
        column = np.full(len(maps), np.nan)
        column[rows[mine]] = values[mine]
        found[name] = pa.array(column)
    return dict(sorted(found.items()))


def batches_of(
    folder: Path, file: Path, facts: Mapping[str, Any], columns: Sequence[str], at_once: int
) -> Iterator[pa.Table]:
    """Some columns of a table, a few rows at a time.

    Raises:
        UserError: as `verify`.
    """
    from pyarrow import parquet

    _table(folder, file, facts)
    with parquet.ParquetFile(file, page_checksum_verification=True) as opened:
        for batch in opened.iter_batches(at_once, columns=list(columns)):
            yield pa.Table.from_batches([batch])


def intact(file: Path, facts: Mapping[str, Any]) -> bool:
    """Whether a table is the one that was written."""
    return file.is_file() and _sha256(file) == facts["sha256"]
