"""Thousands of rows of a journal at once, as Arrow tables.

What a row may say is decided in one place, `harness.store.rows.validate`, row by row. Here the same
conditions stand on whole columns, and answer one question alone: whether that check surely passes for every
row of a block of lines. Where it may not (another schema, a clip, anything odd) there is no table, and
whoever asked checks the block row by row, which accepts it or names the fault and its line.
"""

from __future__ import annotations

import base64
import math
import zlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray
from pyarrow import json

from harness.store.rows import (
    KEYS,
    LARGEST,
    NUMBERS_OR_NONE,
    OF_CELL,
    STATUS,
    validate,
)

END = b', "crc": "%08x"}\n'
LENGTH = len(END % 0)
PLACES = 2**15  # of a row among those of its sample that a key's number has room for
PARSED = 2**22  # bytes that a thread parses at a time; a longer line is looked at alone
NESTED = 1_000  # brackets of a line; a parser that calls itself for each has a stack for as many
EXACT = 2**53  # integers below it are the same as float64
# what products and float64 hold exactly
SMALL = {"views": 2**16, "budget": 2**31, "tokens_final": 2**31, "tokens_llm": EXACT}
CELL_FACTS = ("backbone", "protocol", "pruner", "budget", "seed")
Tables = dict[str, pa.Table]  # by status, with the fields that `harness.store.rows.STATUS` names
Cells = Mapping[str, Mapping[str, Any]]


def _type(kind: str) -> pa.DataType:
    match kind:
        case "measures":
            return pa.map_(pa.string(), pa.float64())
        case "curves":
            return pa.map_(pa.string(), pa.list_(pa.int64()))
    return getattr(pa, kind)()


SCHEMAS = {
    status: pa.schema([(name, _type(kind)) for name, kind in (KEYS | fields).items()])
    for status, fields in STATUS.items()
}
# of every line; what measures and curves hold is read off the lines
_READ = pa.schema(
    {
        field.name: field.type
        for schema in SCHEMAS.values()
        for field in schema
        if not pa.types.is_map(field.type)
    }
    | {"crc": pa.string()}
)


def table_of(rows: Iterable[Mapping[str, Any]], status: str) -> pa.Table:
    """Rows of one status that were checked, as a table."""
    return pa.Table.from_pylist([_flat(dict(row), status) for row in rows], schema=SCHEMAS[status])


def _flat(row: dict[str, Any], status: str) -> dict[str, Any]:
    """A row as Arrow takes it: maps as lists of pairs, and no int where a float is meant, of which it refuses
    large ones."""
    for name, kind in STATUS[status].items():
        if kind in ("measures", "curves") and name in row:
            row[name] = list(row[name].items())
        elif kind == "float64" and isinstance(row.get(name), int):
            row[name] = float(row[name])
    return row


def tables_of(rows: Iterable[Mapping[str, Any]]) -> Tables:
    """Rows that were checked, by their status."""
    found: dict[str, list[Mapping[str, Any]]] = {status: [] for status in STATUS}
    for row in rows:
        found[row["status"]].append(row)
    return {status: table_of(some, status) for status, some in found.items()}


def sound(lines: Sequence[bytes], cells: Cells, dataset: str, split: str) -> Tables | None:
    """Lines of a journal of the current schema as tables, if all rows surely pass `rows.validate`.

    Args:
        lines: whole ones, with their ends.
        cells: what `run.json` says of every cell.
        dataset, split: what all rows have to be of.

    Returns:
        None where a row has to be looked at.
    """
    if not all(map(_is_whole, lines)):
        return None
    content = b"".join(lines)
    if not content.isascii():
        return None
    try:
        read = json.read_json(
            pa.BufferReader(content),
            read_options=json.ReadOptions(block_size=PARSED),
            parse_options=json.ParseOptions(explicit_schema=_READ, unexpected_field_behavior="infer"),
        )
    except pa.ArrowException:
        return None
    if len(read) != len(lines) or not _all(
        pc.equal(read["dataset"], dataset), pc.equal(read["split"], split)
    ):
        return None
    if not _all(pc.starts_with(read["sample"], f"{dataset}:{split}:")):
        return None
    found = {}
    left = len(read)
    for status in STATUS:
        here = pc.equal(read["status"], status)
        part = read.filter(here)
        left -= len(part)
        table = _answers(part, lines, here, cells) if status == "ok" else _few(part, status, cells)
        if table is None:
            return None
        found[status] = table
    return None if left else found


def _is_whole(line: bytes) -> bool:
    """Whether a line has its checksum, and is no deeper than a parser's stack."""
    if line[-LENGTH:] != END % zlib.crc32(b"}", zlib.crc32(line[:-LENGTH])):
        return False
    return len(line) < NESTED or line.count(b"[") + line.count(b"{") < NESTED


def _all(*conditions: pa.ChunkedArray) -> bool:
    """Whether all values of all of them are there and true."""
    return all(pc.all(one, skip_nulls=False, min_count=0).as_py() is True for one in conditions)


def _few(part: pa.Table, status: str, cells: Cells) -> pa.Table | None:
    """Rows that describe a sample or a failure, of which there are few: looked at one by one."""
    try:
        checked = [validate(row, cells) for row in part.select(SCHEMAS[status].names).to_pylist()]
    except (ValueError, KeyError):
        return None
    return table_of(checked, status)


def _answers(part: pa.Table, lines: Sequence[bytes], here: pa.ChunkedArray, cells: Cells) -> pa.Table | None:
    """Rows of status ok, if they pass."""
    schema = SCHEMAS["ok"]
    if not len(part):
        return schema.empty_table()
    if not {"measures", "curves"} <= set(part.column_names):
        return None
    measures, curves = _measured(part["measures"]), _measured(part["curves"])
    if measures is None or curves is None or curves.type.num_fields or "j_fixed" in measures.type.names:
        return None
    texts = [field.name for field in schema if pa.types.is_string(field.type)]
    numbers = [
        field.name
        for field in schema
        if not pa.types.is_string(field.type) and not pa.types.is_map(field.type)
    ]
    if any(part[name].null_count for name in {*texts, *numbers} - set(NUMBERS_OR_NONE)):
        return None
    if part["coverage"].null_count:  # None is a value, and nothing is none
        absent = np.flatnonzero(here)[np.flatnonzero(pc.is_null(part["coverage"]))]
        if not all(b'"coverage": null' in lines[at] for at in absent):
            return None
    if not _numbers_pass({name: part[name].to_numpy() for name in numbers}, part, cells):
        return None
    columns = [
        _map(measures, "measures", schema)
        if name == "measures"
        else _map(curves, "curves", schema)
        if name == "curves"
        else part[name]
        for name in schema.names
    ]
    return pa.table(columns, schema=schema)


def _measured(column: pa.ChunkedArray) -> pa.StructArray | None:
    """What every row measured, if all measured the same and all of it is a number."""
    whole = column.combine_chunks()
    if not pa.types.is_struct(whole.type) or whole.null_count:
        return None
    for values in whole.flatten():
        if not (pa.types.is_int64(values.type) or pa.types.is_float64(values.type)) or values.null_count:
            return None
        most = EXACT if pa.types.is_int64(values.type) else LARGEST
        if not (np.abs(values.to_numpy().astype(np.float64)) < most).all():
            return None
    return whole


def _map(measured: pa.StructArray, name: str, schema: pa.Schema) -> pa.MapArray:
    """The same as Arrow's maps."""
    names, rows = measured.type.names, len(measured)
    offsets = pa.array(np.arange(rows + 1) * len(names), pa.int32())
    values = [one.to_numpy().astype(np.float64) for one in measured.flatten()]
    items = (
        pa.array(np.stack(values, axis=1).ravel())
        if names
        else pa.array([], schema.field(name).type.item_type)
    )
    keys = pa.array(names * rows, pa.string())
    return pa.MapArray.from_arrays(offsets, keys, items, schema.field(name).type)


def _numbers_pass(of: dict[str, NDArray[Any]], part: pa.Table, cells: Cells) -> bool:
    """The conditions of `rows.validate` on rows of images.

    Args:
        of: their numbers, NaN where there is none.
    """
    given = {name: ~np.isnan(of[name]) for name in NUMBERS_OR_NONE}
    for name, values in of.items():
        if values.dtype.kind == "f":
            there = given.get(name, np.ones(len(values), dtype=bool))
            if part[name].null_count != (~there).sum():  # NaN is no number
                return False
            if not ((values >= -LARGEST) & (values < LARGEST))[there].all():
                return False
    told = _of_cells(part, of, cells)
    if told is None:
        return False
    inner, outer, place = of["intersection"], of["union"], of["place"]
    final, mean, views = of["tokens_final"], of["tokens_mean"], of["views"]
    kept = _kept(part["kept"])
    if (
        kept is None
        or (outer >= EXACT).any()
        or any((of[name] >= most).any() for name, most in SMALL.items())
    ):
        return False
    with np.errstate(invalid="ignore", divide="ignore"):
        iou = np.where(outer != 0, inner / outer, 1.0)
    coverage, llm = of["coverage"], of["tokens_llm"]
    tokens, moved = of["rounding_tokens"], of["rounding_iou"]
    said, logprob = of["seg_said"], of["seg_logprob"]
    budget = np.where(told["sent"] < 0, of["budget"], told["sent"]) * views
    patches = told["patches"] * views
    letters = 4 * ((patches + 23) // 24)  # of base64, four for three bytes of eight patches
    length = pc.binary_length(part["kept"]).to_numpy()
    return bool(
        (of["of"] >= 1).all()
        and (of["frames"] == 1).all()
        and (views >= 1).all()
        and ((inner >= 0) & (inner <= outer) & (of["iou"] == iou) & (place >= 0)).all()
        and ((coverage >= 0) & (coverage <= 1 + 1e-9) | ~given["coverage"]).all()
        and _all(
            pc.match_substring_regex(part["mask"], r"^[0-o]*\z"),
            pc.equal(part["shown"], ""),
            pc.not_equal(part["cluster"], ""),
        )
        and (np.where(told["forced"], ~given["seg_said"], (said == 0) | (said == 1))).all()
        and not ((said == 0) & ((inner != 0) | given["seg_logprob"])).any()
        and not (given["seg_logprob"] & (logprob > 1e-3)).any()
        and ((place < of["of"]) | ~np.asarray(pc.equal(part["protocol"], "each"))).all()
        and ((tokens >= 0) & (tokens <= final) | ~given["rounding_tokens"]).all()
        and ((np.abs(moved) <= 1) | ~given["rounding_iou"]).all()
        and ((llm >= mean) | ~given["tokens_llm"]).all()
        and ((kept <= told["pooled"] * final) & (mean >= final) & (~told["tower"] | (mean == final))).all()
        and (~told["final"] | (final == budget)).all()
        and (~told["mean"] | (np.abs(mean - of["budget"] * views) <= views)).all()
        and ((told["patches"] < 0) | (length == letters) & (final <= patches) & (mean <= patches)).all()
    )


def _of_cells(part: pa.Table, of: Mapping[str, NDArray[Any]], cells: Cells) -> dict[str, NDArray[Any]] | None:
    """What the conditions read off the cell of every row; None where a row is not as its cell says, or a
    cell says what no column holds."""
    coded = part["cell"].combine_chunks().dictionary_encode()
    entries = [cells.get(cell) for cell in coded.dictionary.to_pylist()]
    if not all(entries):
        return None
    at = coded.indices.to_numpy()
    said: list[dict[str, Any]] = [{**entry, **entry.get("setting", {})} for entry in entries if entry]
    for name in CELL_FACTS:
        kind = str if OF_CELL[name] == "string" else int
        values = [one.get(name) for one in said]
        if not all(type(value) is kind for value in values):
            return None
        if kind is int:
            if not (np.array(values)[at] == of[name]).all():
                return None
        elif not _all(pc.equal(part[name], pa.array(values, pa.string()).take(coded.indices))):
            return None
    if any(
        (one.get("dataset"), one.get("split")) != (part["dataset"][0].as_py(), part["split"][0].as_py())
        for one in said
    ):
        return None
    facts = [_facts(entry) for entry in entries if entry]
    if None in facts:
        return None
    return {name: np.array([fact[name] for fact in facts if fact])[at] for name in facts[0] or {}}


def _facts(cell: Mapping[str, Any]) -> dict[str, Any] | None:
    """What the conditions read off a cell; -1 for what it does not say, None where it says no numbers."""
    sent, pooled, grid = cell.get("sent", -1), cell.get("pooled", 1), cell.get("grid") or []
    if not all(type(one) is int for one in (sent, pooled, *grid)) or max(sent, pooled, *grid) >= 2**20:
        return None
    if ("sent" in cell and sent < 0) or pooled < 0 or len(grid) > 2 or min(grid, default=0) < 0:
        return None
    kind = cell.get("budget_kind")
    return {
        "sent": sent,
        "pooled": pooled,
        "patches": math.prod(grid) if grid else -1,
        "tower": cell.get("stage") == "tower",
        "final": kind == "final",
        "mean": kind == "mean",
        "forced": cell.get("setting", {}).get("answers", "forced") == "forced",
    }


def _kept(column: pa.ChunkedArray) -> NDArray[np.int64] | None:
    """How many patches each bitmap holds; None where one is no base64."""
    decode = base64.b64decode
    try:
        return np.array(
            [int.from_bytes(decode(text, validate=True)).bit_count() for text in column.to_pylist()],
            dtype=np.int64,
        )
    except ValueError:
        return None


class Keys:
    """What makes rows the same row (`rows.row_key`), of as many as were added."""

    def __init__(self) -> None:
        self._cells: dict[str, int] = {}
        self._samples: dict[str, int] = {}
        self._seen: set[int] = set()

    def add(self, tables: Tables) -> bool:
        """Add the rows of some tables, unless one is there already or stands there twice; whether they were
        added."""
        numbers = np.concatenate([self._numbers(table) for table in tables.values()]).tolist()
        if len(set(numbers)) < len(numbers) or not self._seen.isdisjoint(numbers):
            return False
        if any(number < 0 for number in numbers):
            return False
        self._seen.update(numbers)
        return True

    def __contains__(self, key: tuple[str, str, int]) -> bool:
        cell, sample, place = key
        if cell not in self._cells or sample not in self._samples or place + 1 >= PLACES:
            return False
        return _number(self._cells[cell], self._samples[sample], place) in self._seen

    def _numbers(self, table: pa.Table) -> NDArray[np.int64]:
        """One for each row, the same for the same key; -1 where its place is too far for that."""
        cells, samples = (_coded(table[name], known) for name, known in self._both())
        place = table["place"].to_numpy()
        return np.where(place + 1 < PLACES, _number(cells, samples, place), -1)

    def _both(self) -> tuple[tuple[str, dict[str, int]], tuple[str, dict[str, int]]]:
        return ("cell", self._cells), ("sample", self._samples)


def _coded(column: pa.ChunkedArray, known: dict[str, int]) -> NDArray[np.int64]:
    """The number of every text, the next free one for what is new."""
    coded = column.combine_chunks().dictionary_encode()
    numbers = [known.setdefault(text, len(known)) for text in coded.dictionary.to_pylist()]
    return np.array(numbers, dtype=np.int64)[coded.indices.to_numpy()]


def _number(cell: Any, sample: Any, place: Any) -> Any:
    """Of 2**20 cells, 2**28 samples and PLACES places."""
    return (cell << 43) | (sample << 15) | (place + 1)
