"""The record store: one JSON line per (cell, expression), append-only; tables are derived from it, never
stored instead.

A run folder holds `run.json` (what was asked and where it ran), `done.json` once all is there, and per split
a folder `records/<dataset>-<split>` with one journal per process that worked on it, the claims of its parts,
and, when the run is complete, the same rows as Parquet. Every process writes to a file of its own, so a run
that was killed at any byte leaves at most a torn last line, which is dropped and its sample done again.
Whoever reads, reads a row once and checked.
"""

from __future__ import annotations

import hashlib
import os
import secrets
import socket
from array import array
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np
import pandas as pd

from harness.store import sweeps
from harness.store.journal import Journal, Reader, digest, read_whole, write_atomically
from harness.store.rows import (
    ASKED,
    COUNTED,
    KEYS,
    NO_CELL,
    NO_EXPRESSION,
    NULLABLE,
    OF_CELL,
    OF_SAMPLE,
    ROUNDED,
    SHOWN,
    STATUS,
    description,
    is_description,
    kept_tokens,
    key,
    pack_tokens,
    validate,
)
from pruners.base import UserError

__all__ = ["NO_CELL", "NO_EXPRESSION", "kept_tokens", "key", "pack_tokens"]

SCHEMA = 4
# 2: journals without checksums, cells without the digests of their code; 3: one sweep, no digests of samples
SCHEMAS = (2, 3, 4)
FOLDER, RUN, DONE = "records", "run.json", "done.json"
LOOSE = ("provenance", "continued")  # of run.json: told, but no number hangs on it
ROWS_AT_ONCE = 20_000
COLUMNS = (*ASKED, *OF_CELL, *COUNTED, *ROUNDED, *SHOWN, "sample", "cell", "text")
# looked up by the row's cell
FROM_RUN = (
    *("fingerprint", "dtype", "attn", "device", "data", "source", "evaluation", "parameters"),
    *("stage", "budget_kind", "kind", "needs", "stochastic", "grid"),
    *("positions", "answers", "budget_asked"),
)
ORDER = ["dataset", "split", "pruner", "budget", "seed", "sample", "expression"]
CUT_OFF = "questions are longer than the text tower takes; pruners that read text see their beginning, as officially"
JOURNAL = "delete that line, and the same command does its sample again"
CLOSED = "`python -m harness rebuild {folder}` makes it again from the run's journals"


def split_folder(folder: Path, dataset: str, split: str) -> Path:
    """Where a run keeps the records of one split; letters that have a meaning in paths are
    percent-encoded."""
    name = f"{quote(dataset, safe='+()')}-{quote(split, safe='+')}"
    return folder / FOLDER / name


def read_lines(path: Path) -> Iterator[dict[str, Any]]:
    """Rows of one journal as they stand there; a torn last line is left out.

    Raises:
        UserError: another schema, or a damaged line.
    """
    for number, row in (reader := Reader(path, SCHEMAS, JOURNAL)):
        if not row.keys() >= KEYS.keys():
            raise UserError(f"{reader.path}:{number} is damaged (not a record); {JOURNAL}.")
        yield row


def rows_of(place: Path) -> Iterator[dict[str, Any]]:
    """All rows of a split's folder as they stand there, file by file."""
    for path in sorted(place.glob("*.jsonl")):
        yield from read_lines(path)


class Writer:
    """Appends rows of one split to a journal that no other process writes to.

    Args:
        cells: what `run.json` says of every cell; rows are held to it.
    """

    def __init__(self, place: Path, cells: Mapping[str, Mapping[str, Any]] | None = None) -> None:
        name = f"{quote(socket.gethostname(), safe='')}-{os.getpid()}-{secrets.token_hex(3)}.jsonl"
        self._journal, self._cells = Journal(place / name, {"schema": SCHEMA}), cells

    @property
    def path(self) -> Path:
        """Of the journal."""
        return self._journal.path

    def append(self, rows: Iterable[dict[str, Any]]) -> None:
        """Write rows and wait until the disk has them.

        Raises:
            UserError: a row is none that a number may come of.
        """
        if self._cells is not None:
            rows = [self._checked(row, self._cells) for row in rows]
        self._journal.append(rows)

    def _checked(self, row: dict[str, Any], cells: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
        try:
            return validate(row, cells)
        except ValueError as error:
            raise UserError(
                f"A result of {row.get('pruner')} on {row.get('sample')} was not recorded: {error}; "
                "the pruner or the backbone returned what cannot be."
            ) from error

    def close(self) -> None:
        """Close the journal."""
        self._journal.close()


class Journals:
    """The rows of a split's journals: each checked, each once, and only what is new since the last look.

    Args:
        cells: what `run.json` says of every cell.
    """

    def __init__(self, place: Path, cells: Mapping[str, Mapping[str, Any]]) -> None:
        self.place, self.cells = place, cells
        self._readers: dict[Path, Reader] = {}
        self._here: set[tuple[str, str]] = set()  # (data set, split) that belongs into this folder

    def new(self) -> Iterator[tuple[str, dict[str, Any]]]:
        """(file and line, row) of what was written since the last call; a row that stands there twice comes
        twice."""
        for path in sorted(self.place.glob("*.jsonl")):
            reader = self._readers.setdefault(path, Reader(path, SCHEMAS, JOURNAL))
            for number, row in reader:
                where = f"{path}:{number}"
                if (
                    row.get("status") != "sample" and str(row.get("cell")) not in self.cells
                ):  # another process may have begun another edition
                    self.cells = run_info(self.place.parent.parent).get("cells", {})
                try:
                    row = validate(row, self.cells)
                    if (pair := (row["dataset"], row["split"])) not in self._here:
                        if split_folder(Path(), *pair).name != self.place.name:
                            raise ValueError(f"it is of {':'.join(pair)}")
                        self._here.add(pair)
                except ValueError as error:
                    raise UserError(f"{where} is damaged ({error}); {JOURNAL}.") from None
                yield where, row

    def rows(self) -> Iterator[dict[str, Any]]:
        """Every row once.

        Raises:
            UserError: a damaged line, or two rows that should be one and differ; both are named.
        """
        hashes = array("q", (hash(key(row)) for _, row in Journals(self.place, self.cells).new()))
        values, counts = np.unique(np.frombuffer(hashes, dtype=np.int64), return_counts=True)
        suspects = set(values[counts > 1].tolist())
        seen: dict[tuple[Any, ...], tuple[str, dict[str, Any]]] = {}
        for where, row in Journals(self.place, self.cells).new():
            if hash(key(row)) in suspects:
                if key(row) in seen:
                    _agree(seen[key(row)], (where, row))
                    continue
                seen[key(row)] = where, row
            yield row


def _agree(one: tuple[str, dict[str, Any]], other: tuple[str, dict[str, Any]]) -> None:
    differing = [name for name in one[1] if one[1][name] != other[1].get(name)]
    if differing:
        raise UserError(
            f"{one[0]} and {other[0]} are the same result ({one[1]['sample']} of cell {one[1]['cell'] or 'none'}) with "
            f"different {', '.join(differing)}; delete the line that you do not trust."
        )


def incomplete(
    rows: Iterable[dict[str, Any]], wanted: Iterable[tuple[str, str]], described: Mapping[str, str]
) -> set[str]:
    """Samples that lack rows: a (cell, sample) pair of `wanted`, the sample's description, or one of a pair's
    several rows.

    Args:
        described: per cell what stands for it in the rows that describe its samples.
    """
    seen: Counter[tuple[str, str]] = Counter()
    of: dict[tuple[str, str], int] = {}
    scored: set[tuple[str, str]] = set()
    for row in rows:
        pair = row["cell"], row["sample"]
        seen[pair] += 1
        of[pair] = row["of"]
        if row["status"] == "ok":
            scored.add((described.get(row["cell"], NO_CELL), row["sample"]))
    lost = {pair[1] for pair in wanted if pair not in of}
    lost |= {pair[1] for pair, count in of.items() if seen[pair] < count}
    return lost | {pair[1] for pair in scored if pair not in of}


def compact(place: Path, rows: Iterable[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Write the rows of a complete split as Parquet, one file per status.

    Returns:
        For every file its `rows` and its `sha256`.
    """
    import pyarrow
    from pyarrow import parquet

    schemas = {
        status: pyarrow.schema(
            [(name, getattr(pyarrow, kind)()) for name, kind in (KEYS | fields).items()],
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


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


# --- what a run folder says of itself
# -----------------------------------------------------------------------------


def run_info(path: str | Path) -> dict[str, Any]:
    """What `run.json` says of a run; empty if it is not there.

    Raises:
        UserError: it is damaged, or of a schema that this version does not read.
    """
    file = Path(path) / RUN
    mend = "restore it from a copy, or start anew with another --out folder"
    content = read_whole(file, mend, LOOSE)
    schema = content.get("schema", 2)
    if content and schema not in SCHEMAS:
        raise UserError(
            f"{str(file)!r} has schema {schema!r}, this version reads {' and '.join(map(str, SCHEMAS))}; {mend}."
        )
    cells = content.get("cells", {})
    sound = isinstance(cells, dict) and all(map(_is_cell, cells.values())) if content else True
    editions = content.get("editions", [])
    sound = sound and isinstance(editions, list) and all(_is_edition(one, cells) for one in editions)
    sound = sound and (not editions or content.get("edition") in range(len(editions))) and _are_told(content)
    sound = sound and sweeps.are_sweeps(content)
    if not sound or not all(
        isinstance(content.get(name, {}), dict) for name in ("provenance", "asked", "plan")
    ):
        raise UserError(f"{str(file)!r} is damaged (its cells are no cells); {mend}.")
    if content and schema == 2:
        content["cells"] = {number: _of_schema_2(cell) for number, cell in cells.items()}
    if content and "plan" not in content:  # before schema 4
        told = content.get("asked", {})
        content |= {"plan": told, "cut_off": told.get("cut_off", 0)}
    return content


def _is_cell(cell: Any) -> bool:
    """Whether an entry of `cells` says what a table needs of it."""
    if not isinstance(cell, dict) or not isinstance(cell.get("setting"), dict):
        return False
    texts = [cell.get(name) for name in ("dataset", "split", "pruner")]
    texts += [cell["setting"].get(name) for name in ("backbone", "protocol")]
    return (
        all(isinstance(text, str) for text in texts)
        and type(cell.get("budget")) is int
        and type(cell.get("seed")) is int
    )


def _is_edition(edition: Any, cells: Mapping[str, Any]) -> bool:
    return (
        isinstance(edition, dict)
        and all(
            isinstance(edition.get(name), kind)
            for name, kind in (("time", str), ("cells", list), ("files", dict))
        )
        and all(isinstance(cell, str) and cell in cells for cell in edition["cells"])
    )


def _are_told(content: Mapping[str, Any]) -> bool:
    """Whether what no number hangs on has the shape that reports print."""
    continued, facts = content.get("continued", []), content.get("provenance", {})
    return (
        isinstance(continued, list)
        and all(isinstance(part, dict) and isinstance(part.get("changed"), list) for part in continued)
        and isinstance(facts, dict)
        and isinstance(facts.get("packages", {}), dict)
    )


def _is_tables(tables: Any) -> bool:
    return isinstance(tables, dict) and all(
        isinstance(facts, dict) and type(facts.get("rows")) is int and isinstance(facts.get("sha256"), str)
        for facts in tables.values()
    )


def _of_schema_2(cell: dict[str, Any]) -> dict[str, Any]:
    """A cell with what its version looked up elsewhere: which of that time's pruners are controls, and which
    see the truth."""
    name = str(cell.get("pruner")).partition("(")[0]
    kind = "control" if name in ("none", "random", "uniform", "downsample", "oracle") else "method"
    return {
        "kind": kind,
        "needs": ["referent"] if name == "oracle" else [],
        "stochastic": name == "random",
    } | cell


def cells_of(info: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """The cells that a run's tables show: those of its current edition; of a run of schema 2 all."""
    editions = info.get("editions")
    known: dict[str, dict[str, Any]] = info.get("cells", {})
    return {cell: known[cell] for cell in editions[info["edition"]]["cells"]} if editions else known


def splits_of(cells: Mapping[str, Mapping[str, Any]]) -> list[tuple[str, str]]:
    """(data set, split) of cells, in their order."""
    return list(dict.fromkeys((cell["dataset"], cell["split"]) for cell in cells.values()))


def done_info(path: str | Path) -> dict[str, Any]:
    """What `done.json` says: `cells`, a digest of the cells that are complete, and the tables of every split;
    empty if it is not there, or is of another set of cells than `run.json`.

    Raises:
        UserError: it is damaged.
    """
    content = read_whole(Path(path) / DONE, "delete it, and the same command closes the run again")
    schema = content.get("schema", 2)
    if content and schema not in SCHEMAS:
        raise UserError(
            f"{str(Path(path) / DONE)!r} has schema {schema!r}, this version reads {SCHEMA}; use that version."
        )
    if schema == 2:
        return {}
    tables = content.get("splits")
    if (
        not isinstance(content.get("finished", ""), str)
        or not isinstance(tables, dict)
        or not all(map(_is_tables, tables.values()))
    ):
        raise UserError(
            f"{str(Path(path) / DONE)!r} is damaged (it names no tables); delete it, and the same command closes the run again."
        )
    return content if content.get("cells") == held_digest(run_info(path)) else {}


def held_digest(info: Mapping[str, Any]) -> str:
    """Digest of what a complete run holds: its cells, and on how many samples each is wanted."""
    cells = cells_of(info)
    return cells_digest(cells, sweeps.images_wanted(info, cells))


def cells_digest(cells: Iterable[str], images: Mapping[str, int] | None = None) -> str:
    """Digest of a set of cells; `images` on how many samples each is wanted, where the run says that."""
    return digest({"cells": sorted(cells)} | ({"images": dict(images)} if images else {}))


def finished(path: str | Path) -> bool:
    """Whether every cell of a run is complete."""
    content = run_info(path)
    return bool(done_info(path)) or (content.get("schema") is None and (Path(path) / DONE).is_file())


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
            f"{str(file)!r} is damaged (it is not the file that the run wrote); {CLOSED.format(folder=folder)}."
        )


def _frame(folder: Path, status: str) -> pd.DataFrame:
    """Rows of one status of all splits, of the current cells."""
    from pyarrow import parquet

    if not (folder / FOLDER).is_dir():
        raise UserError(
            f"There are no records in {str(folder)!r}; give the folder of a run, e.g. results/runs/<id>."
        )
    info = run_info(folder)
    if not info:
        raise UserError(
            f"There is no {RUN} in {str(folder)!r}, which says what its records are; restore it from a copy."
        )
    shown, tables = cells_of(info), done_info(folder).get("splits", {})
    frames = []
    for dataset, split in splits_of(shown):
        place = split_folder(folder, dataset, split)
        facts = tables.get(place.name, {}).get(f"{status}.parquet")
        file = place / f"{status}.parquet"
        if facts is not None and file.is_file():
            _table(folder, file, facts)
            frames.append(parquet.read_table(file, page_checksum_verification=True).to_pandas())
            continue
        rows = [
            row
            for row in Journals(place, info["cells"]).rows()
            if row["status"] == status and is_shown(row, shown)
        ]
        if facts is not None and len(rows) != facts["rows"]:
            raise UserError(
                f"The records of {dataset}:{split} in {str(folder)!r} are not all there ({len(rows)} of {facts['rows']} rows of "
                f"status {status}); `python -m harness rebuild {folder}` opens it again, and its command does what is missing."
            )
        frames.append(pd.DataFrame(rows))
    frames = [frame for frame in frames if len(frame)]
    return pd.concat(frames, ignore_index=True) if frames else pd.DataFrame()


def is_shown(row: Mapping[str, Any], cells: Mapping[str, Mapping[str, Any]]) -> bool:
    """Whether a row is of these cells, or describes a sample of theirs."""
    if not is_description(row["cell"]):
        return row["cell"] in cells
    return row["cell"] == NO_CELL or any(
        description(cell["setting"].get("code", "")) == row["cell"] for cell in cells.values()
    )


def load(path: str | Path) -> pd.DataFrame:
    """Records of a run, one row per (cell, expression), sorted; failed samples are left out.

    Args:
        path: run folder.

    Returns:
        A frame with COLUMNS and FROM_RUN. Counts are int64 pixels, `iou` is their ratio (1 for an empty
        union), `coverage` the share of the referent's area whose visual tokens were kept (NaN without a
        referent, or where all tokens are pooled), `kept` for `kept_tokens`, `mask` the `counts` of the
        predicted mask's COCO run lengths.

    Raises:
        UserError: there are no records, or what is there cannot be trusted; names file and line.
    """
    folder = Path(path)
    frame = _frame(folder, "ok")
    info = run_info(folder)
    cells = cells_of(info)
    if frame.empty:
        return pd.DataFrame(columns=[*COLUMNS, *FROM_RUN])
    said = samples(folder).set_index(["sample", "expression"])["text"]
    wanted = pd.MultiIndex.from_frame(frame[["sample", "expression"]])
    frame["text"] = said[~said.index.duplicated()].reindex(wanted).to_numpy()
    for name in NULLABLE:
        frame[name] = frame[name].astype(float)
    for name in FROM_RUN:
        frame[name] = frame["cell"].map({cell: _fact(entry, name) for cell, entry in cells.items()})
    if info.get("samples"):
        prints = {name: digest({"samples": known}) for name, known in info["samples"].items()}
        frame["data"] = (frame["dataset"] + ":" + frame["split"]).map(prints)
    return frame[[*COLUMNS, *FROM_RUN]].sort_values(ORDER, kind="stable", ignore_index=True)


def _fact(cell: Mapping[str, Any], name: str) -> Any:
    """One fact of a cell; lists as text."""
    if name == "evaluation":
        return cell["setting"].get("code")
    if name == "parameters":  # those that are not drawn
        return " ".join(
            f"{field}={value!r}" for field, value in cell.get("parameters", []) if field != "seed"
        )
    value = cell.get(name, cell["setting"].get(name))
    if isinstance(value, list):
        return ("x" if name == "grid" else " ").join(map(str, value))
    return value


def samples(path: str | Path) -> pd.DataFrame:
    """What was asked of every image: one row per expression of a sample, columns `sample` and OF_SAMPLE.

    `truth` is the `counts` of the target's COCO run lengths (size height, width); `image` a picture's path
    below the run folder, empty where none is kept.
    """
    frame = _frame(Path(path), "sample")
    if frame.empty:
        return pd.DataFrame(columns=["sample", *OF_SAMPLE])
    frame = frame.reindex(columns=["sample", *OF_SAMPLE]).sort_values(
        ["dataset", "split", "sample", "expression"], kind="stable", ignore_index=True
    )
    # cells of several codes each have their own descriptions
    return frame[~frame.duplicated(["sample", "expression"])].reset_index(drop=True)


def images(samples: pd.Series[str]) -> pd.Series[str]:
    """The image of each sample; splits share images, as those of RefCOCO and RefCOCO+ do."""
    return samples.str.rsplit(":", n=1).str[-1]


def failures(path: str | Path) -> dict[str, str]:
    """Samples that could not be evaluated, and why."""
    frame = _frame(Path(path), "failed")
    return {} if frame.empty else dict(sorted(zip(frame["sample"], frame["reason"], strict=True)))


def peak_memory(path: str | Path) -> int:
    """Most bytes of main memory that the process held which closed the run."""
    return int(
        read_whole(Path(path) / DONE, "delete it, and the same command closes the run again")[
            "peak_memory_bytes"
        ]
    )


def rebuild(path: str | Path) -> bool:
    """Make the tables of a finished run again from its journals; opens it again where they lack rows.

    Returns:
        Whether the run is closed.

    Raises:
        UserError: there is no such run, or its journals are damaged.
    """
    folder = Path(path)
    info, closed = (
        run_info(folder),
        read_whole(folder / DONE, f"delete it, then give `python -m harness rebuild {folder}` again"),
    )
    if not info:
        raise UserError(
            f"There is no {RUN} in {str(folder)!r}; give the folder of a run, e.g. results/runs/<id>."
        )
    if not closed:
        return False
    shown = cells_of(info)
    if closed.get("cells") != held_digest(info):
        return False
    whole = True
    for dataset, split in splits_of(shown):
        place = split_folder(folder, dataset, split)
        tables = closed["splits"].get(place.name, {})
        if tables and all(_intact(place / table, facts) for table, facts in tables.items()):
            continue

        def rows(place: Path = place) -> Iterator[dict[str, Any]]:
            return (row for row in Journals(place, info["cells"]).rows() if is_shown(row, shown))

        counts = Counter(f"{row['status']}.parquet" for row in rows())
        if all(counts[table] == facts["rows"] for table, facts in tables.items()):
            closed["splits"][place.name] = compact(place, rows())
        else:
            whole = False
    if whole:
        write_atomically(folder / DONE, closed)
    else:
        (folder / DONE).unlink()
    return whole


def _intact(file: Path, facts: Mapping[str, Any]) -> bool:
    return file.is_file() and _sha256(file) == facts["sha256"]
