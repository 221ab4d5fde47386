"""A bundle as a file: a zip of `bundle.json` and `results.parquet`, and nothing else.

Whoever reads one reads what a stranger wrote: nothing is extracted or unpickled, every size is known before
it is read, and no name, type or column is taken that this version does not write itself.
"""

from __future__ import annotations

import hashlib
import io
import json
import zipfile
import zlib
from pathlib import Path
from typing import Any, NoReturn

import pandas as pd

from harness.bundle.content import COUNTS, SCHEMA, Bundle, content_digest
from harness.store.journal import DIGEST
from pruners.base import UserError

JSON, PARQUET, SUFFIX = "bundle.json", "results.parquet", ".zip"
MIB = 2**20
LARGEST = {JSON: 16 * MIB, PARQUET: 128 * MIB}  # of the files inside
LARGEST_FILE = 64 * MIB
MOST_ROWS = 5_000_000
MOST_VALUES = 20 * MOST_ROWS  # of a column: counts of every frame are lists
LONGEST = 200  # letters of a text in a row
UNPACKED = 2048 * MIB  # of all columns, as they say of themselves
MOMENT = (1980, 1, 1, 0, 0, 0)  # of the files in a zip: the same run gives the same bytes


def arrow_schema() -> Any:
    """The columns of `results.parquet` and their types."""
    import pyarrow

    types = {
        "measures": pyarrow.map_(pyarrow.string(), pyarrow.float64()),
        "curves": pyarrow.map_(pyarrow.string(), pyarrow.list_(pyarrow.int64())),
    }
    return pyarrow.schema(
        [(name, types.get(kind) or getattr(pyarrow, kind)()) for name, kind in COUNTS.items()],
        metadata={"schema": str(SCHEMA)},
    )


def sealed(bundle: Bundle) -> tuple[Bundle, bytes]:
    """The bundle with the digests of both of its files, and its rows as Parquet."""
    import pyarrow
    from pyarrow import parquet

    schema, rows = arrow_schema(), bundle.rows
    arrays = []
    for name, kind in COUNTS.items():
        values = rows[name].tolist()
        if kind in ("measures", "curves"):
            values = [list(one.items()) for one in values]
        elif kind != "string":
            number = int if kind == "int64" else float
            values = [
                None if lost else number(value) for value, lost in zip(values, rows[name].isna(), strict=True)
            ]
        arrays.append(pyarrow.array(values, schema.field(name).type))
    held = io.BytesIO()
    table = pyarrow.Table.from_arrays(arrays, schema=schema)
    parquet.write_table(table, held, compression="zstd", write_page_checksum=True)
    raw = held.getvalue()
    facts = bundle.facts | {"results": {"rows": len(rows), "sha256": hashlib.sha256(raw).hexdigest()}}
    return Bundle(facts | {DIGEST: content_digest(facts)}, rows), raw


def write(bundle: Bundle, path: Path) -> Bundle:
    """Write a bundle, whole or not at all; the bundle as it was written.

    Raises:
        UserError: it cannot be written, or is larger than what is taken.
    """
    whole, raw = sealed(bundle)
    content = {JSON: json.dumps(whole.facts, indent=1, sort_keys=True).encode() + b"\n", PARQUET: raw}
    for name, data in content.items():
        if len(data) > LARGEST[name]:
            raise UserError(
                f"{name} would have {len(data) // MIB} MiB and a bundle takes {LARGEST[name] // MIB} MiB; "
                f"submit runs of fewer pruners or splits, one bundle each."
            )
    partial = path.with_name(f".{path.name}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with zipfile.ZipFile(partial, "w", zipfile.ZIP_DEFLATED) as file:
            for name, data in content.items():
                file.writestr(zipfile.ZipInfo(name, MOMENT), data, zipfile.ZIP_DEFLATED)
        partial.replace(path)
    except OSError as error:
        raise UserError(
            f"Cannot write {str(path)!r} ({error.strerror}); give --out a file that you may write."
        ) from error
    finally:
        partial.unlink(missing_ok=True)
    return whole


def read(path: Path) -> Bundle:
    """A bundle as a file has it, with its digests made again; what its numbers say is `accept`'s to judge.

    Raises:
        UserError: it is no bundle of this version, is too large, or is not what was written.
    """
    raw = _members(path)
    facts = _facts(path, raw[JSON])
    if facts.get("results", {}).get("sha256") != hashlib.sha256(raw[PARQUET]).hexdigest():
        refuse(path, f"its {PARQUET} is not the one that was written: the SHA-256 is another")
    rows = _rows(path, raw[PARQUET])
    if len(rows) != facts["results"].get("rows"):
        refuse(path, f"it has {len(rows)} rows where {JSON} says {facts['results'].get('rows')}")
    return Bundle(facts, rows)


def refuse(path: Path, why: str) -> NoReturn:
    raise UserError(
        f"{str(path)!r} is refused: {why}; make it again with "
        f"`python -m harness submit RUN --out {path.name}`."
    )


def _members(path: Path) -> dict[str, bytes]:
    """Both files of a zip, each no larger than allowed."""
    try:
        if path.stat().st_size > LARGEST_FILE:
            refuse(path, f"it has {path.stat().st_size // MIB} MiB and may have {LARGEST_FILE // MIB}")
        with zipfile.ZipFile(path) as file:
            held = file.infolist()
            names = [one.filename for one in held]
            if sorted(names) != sorted(LARGEST):
                strange = [name[:80] for name in names if name not in LARGEST] or names
                refuse(path, f"it holds {strange[:3]!r} where {JSON} and {PARQUET} belong, once each")
            found = {}
            for one in held:
                most = LARGEST[one.filename]
                if one.file_size > most:
                    refuse(path, f"its {one.filename} unpacks to more than {most // MIB} MiB")
                with file.open(one) as member:
                    found[one.filename] = member.read(most + 1)
                if len(found[one.filename]) > most:
                    refuse(path, f"its {one.filename} unpacks to more than {most // MIB} MiB")
            return found
    except UserError:  # which is a ValueError
        raise
    except OSError as error:
        raise UserError(f"{str(path)!r} cannot be read ({error.strerror or error}).") from None
    except (zipfile.BadZipFile, zlib.error, RuntimeError, EOFError, ValueError) as error:
        refuse(path, f"it is no zip that can be read ({error})")


def _constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no number of JSON")


def _facts(path: Path, raw: bytes) -> dict[str, Any]:
    try:
        facts = json.loads(raw, parse_constant=_constant)
    except (ValueError, RecursionError) as error:
        refuse(path, f"its {JSON} is no JSON ({error})")
    if not isinstance(facts, dict) or not isinstance(facts.get("results"), dict):
        refuse(path, f"its {JSON} says nothing of its results")
    if facts.get("schema") != SCHEMA:
        refuse(path, f"it has schema {str(facts.get('schema'))[:20]!r} and this version reads {SCHEMA}")
    try:
        if facts.get(DIGEST) != content_digest(facts):
            refuse(path, f"its {JSON} is not the one that was written: its digest is another")
    except RecursionError:
        refuse(path, f"its {JSON} is nested too deeply")
    return facts


def _rows(path: Path, raw: bytes) -> pd.DataFrame:
    """The rows of a Parquet file, whose types, number and sizes are looked at first."""
    import pyarrow
    from pyarrow import parquet

    schema = arrow_schema()
    texts = [name for name, kind in COUNTS.items() if kind == "string"]
    try:
        file = parquet.ParquetFile(io.BytesIO(raw), read_dictionary=texts, page_checksum_verification=True)
        there = file.metadata
        held = parquet.read_schema(io.BytesIO(raw))
        if not held.equals(schema):
            strange = [name for name in held.names if name not in COUNTS]
            refuse(path, f"its columns are not those of schema {SCHEMA} ({strange[:3] or held.names!r})")
        groups = [there.row_group(number) for number in range(there.num_row_groups)]
        chunks = [group.column(number) for group in groups for number in range(group.num_columns)]
        size = sum(one.total_uncompressed_size for one in chunks)
        most = max((one.num_values for one in chunks), default=0)
        if there.num_rows > MOST_ROWS or size > UNPACKED or most > MOST_VALUES:
            refuse(path, f"its {there.num_rows} rows unpack to more than is taken ({MOST_ROWS} rows)")
        table = file.read()
        for name in texts:
            column = table.column(name)
            for chunk in column.chunks:
                if any(len(str(text)) > LONGEST for text in chunk.dictionary.to_pylist()):
                    refuse(path, f"a {name} has more than {LONGEST} letters")
        frame = pd.DataFrame()
        for name, kind in COUNTS.items():
            column = table.column(name)
            if kind in ("measures", "curves"):
                frame[name] = pd.Series([dict(one or ()) for one in column.to_pylist()], dtype=object)
            elif kind == "int64":
                frame[name] = column.to_pandas(types_mapper={pyarrow.int64(): pd.Int64Dtype()}.get)
            else:
                frame[name] = column.to_pandas().astype(object if kind == "string" else "float64")
        return frame
    except UserError:
        raise
    except (pyarrow.ArrowException, OSError, ValueError, KeyError, MemoryError) as error:
        refuse(path, f"its {PARQUET} cannot be read ({' '.join(str(error).split())[:200]})")
