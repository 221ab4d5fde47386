"""The record store: one JSON line per (cell, expression), append-only; tables are derived from it, never
stored instead.

A run folder holds `run.json` (what was asked and where it ran), `claims` (which parts are done), `done.json`
once all is there, and per split a folder `records/<dataset>-<split>` with one journal per process that worked
on it and, when the run is complete, the same rows as Parquet. Every process writes to a file of its own, so
a run that was killed at any byte leaves at most a torn last line, which is dropped and its sample done again.
Whoever reads, reads a row once and checked.
"""

from __future__ import annotations

import os
import secrets
import socket
from array import array
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from harness.store.blocks import SCHEMAS as TABLES
from harness.store.blocks import Keys, Tables, sound, tables_of
from harness.store.journal import Journal, Reader, digest, read_whole, write_atomically
from harness.store.rows import (
    ANSWERED,
    ASKED,
    COUNTED,
    KEYS,
    NO_CELL,
    NO_EXPRESSION,
    NUMBERS_OR_NONE,
    OF_CELL,
    OF_SAMPLE,
    ROUNDED,
    SEEN,
    SHOWN,
    description,
    image_of,
    is_description,
    kept_tokens,
    pack_tokens,
    row_key,
    validate,
)
from harness.store.run_folder import (
    DONE,
    FOLDER,
    RUN,
    SCHEMA,
    SCHEMAS,
    cells_of,
    done_info,
    held_digest,
    run_info,
    split_folder,
    splits_of,
)
from harness.store.tables import ROWS_AT_ONCE, coded, compact, frame_of, intact, plain, read_table
from pruners.base import UserError

__all__ = ["NO_CELL", "NO_EXPRESSION", "kept_tokens", "pack_tokens", "row_key"]

COLUMNS = (*ASKED, *OF_CELL, *COUNTED, *ROUNDED, *SHOWN, *SEEN, *ANSWERED, "sample", "cell", "text", "group")
# looked up by the row's cell
FROM_RUN = (
    *("fingerprint", "dtype", "attn", "device", "data", "source", "evaluation", "parameters"),
    *("stage", "budget_kind", "schedule", "kind", "needs", "stochastic", "grid", "geometry"),
    *("positions", "own_positions", "answers", "budget_asked", "model", "pooled"),
)
BEFORE = {
    "positions": "compact",
    "own_positions": False,
    "answers": "forced",
    "model": "",
    "pooled": 1,
}  # where nothing is said
ORDER = ["dataset", "split", "pruner", "budget", "seed", "sample", "expression"]
CUT_OFF = (
    "questions are longer than the text tower takes; pruners that read text see their beginning, as "
    "officially"
)
BLOCK = 2**24  # bytes of a journal that are looked at together
MASKS = ("kept", "mask")
JOURNAL = "delete that line, and the same command does its sample again"


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
        for reader in self._known():
            for lines in reader.blocks(1):
                yield from self._one_by_one(reader, lines)

    def _known(self) -> Iterator[Reader]:
        """Of every journal that is there, in the order of their names."""
        for path in sorted(self.place.glob("*.jsonl")):
            yield self._readers.setdefault(path, Reader(path, SCHEMAS, JOURNAL))

    def _one_by_one(self, reader: Reader, lines: Iterable[bytes]) -> Iterator[tuple[str, dict[str, Any]]]:
        for number, row in reader.rows(lines):
            where = f"{reader.path}:{number}"
            # another process may have begun another edition
            if row.get("status") != "sample" and str(row.get("cell")) not in self.cells:
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

    def _blocks(self) -> Iterator[Tables]:
        """What was written since the last call, checked, some thousand rows at a time."""
        for reader in self._known():
            for lines in reader.blocks(BLOCK):
                found = None
                if reader.summed and reader.header["schema"] == SCHEMA:
                    if not self._here:  # it is this folder's, or a sentence says that it is not
                        for _ in self._one_by_one(reader, lines[:1]):
                            pass
                    if len(self._here) == 1:
                        found = sound(lines, self.cells, *next(iter(self._here)))
                yield found or tables_of(row for _, row in self._one_by_one(reader, lines))

    def tables(self) -> Iterator[Tables]:
        """Every row once, as tables by status, some thousand rows at a time.

        Raises:
            UserError: as `rows`.
        """
        keys = Keys()
        for tables in Journals(self.place, self.cells)._blocks():
            if not keys.add(tables):
                break
            yield tables
        else:
            return
        # a row stands there twice, or may: which is looked at row by row
        rest = (row for row in self.rows() if row_key(row) not in keys)
        while some := list(islice(rest, ROWS_AT_ONCE)):
            yield tables_of(some)

    def row_keys(self) -> Iterator[dict[str, Any]]:
        """The KEYS alone of every row, each once.

        Raises:
            UserError: as `rows`.
        """
        for tables in self.tables():
            for table in tables.values():
                columns = [table[name].to_pylist() for name in KEYS]
                for values in zip(*columns, strict=True):
                    yield dict(zip(KEYS, values, strict=True))

    def rows(self) -> Iterator[dict[str, Any]]:
        """Every row once.

        Raises:
            UserError: a damaged line, or two rows that should be one and differ; both are named.
        """
        hashes = array("q", (hash(row_key(row)) for _, row in Journals(self.place, self.cells).new()))
        values, counts = np.unique(np.frombuffer(hashes, dtype=np.int64), return_counts=True)
        suspects = set(values[counts > 1].tolist())
        seen: dict[tuple[Any, ...], tuple[str, dict[str, Any]]] = {}
        for where, row in Journals(self.place, self.cells).new():
            if hash(row_key(row)) in suspects:
                if row_key(row) in seen:
                    _agree(seen[row_key(row)], (where, row))
                    continue
                seen[row_key(row)] = where, row
            yield row


def _agree(one: tuple[str, dict[str, Any]], other: tuple[str, dict[str, Any]]) -> None:
    differing = [name for name in one[1] if one[1][name] != other[1].get(name)]
    if differing:
        raise UserError(
            f"{one[0]} and {other[0]} are the same result ({one[1]['sample']} of cell "
            f"{one[1]['cell'] or 'none'}) with "
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


def _tables(folder: Path, columns: Mapping[str, Sequence[str]]) -> dict[str, pd.DataFrame]:
    """Rows of all splits, of the current cells, by status: those columns of them."""
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
    found: dict[str, list[pa.Table]] = {status: [] for status in columns}
    for dataset, split in splits_of(shown):
        place = split_folder(folder, dataset, split)
        known = {status: tables.get(place.name, {}).get(f"{status}.parquet") for status in columns}
        left = []
        for status, facts in known.items():
            file = place / f"{status}.parquet"
            if facts is not None and file.is_file():
                found[status].append(read_table(folder, file, facts, status, columns[status]))
            else:
                left.append(status)
        counts = dict.fromkeys(left, 0)
        for some in shown_tables(place, info["cells"], shown) if left else ():
            for status in left:
                counts[status] += len(some[status])
                found[status].append(coded(some[status].select(list(columns[status]))))
        for status, count in counts.items():
            if (facts := known[status]) is not None and count != facts["rows"]:
                raise UserError(
                    f"The records of {dataset}:{split} in {str(folder)!r} are not all there ({count} of "
                    f"{facts['rows']} rows of "
                    f"status {status}); `python -m harness rebuild {folder}` opens it again, and its command "
                    f"does what is missing."
                )
    return {status: frame_of(found.pop(status)) for status in columns}


def shown_tables(
    place: Path, known: Mapping[str, Mapping[str, Any]], cells: Mapping[str, Mapping[str, Any]]
) -> Iterator[Tables]:
    """The rows of a split's journals that are of these cells, as `Journals.tables`.

    Args:
        known: what `run.json` says of every cell.
    """
    for tables in Journals(place, known).tables():
        yield {status: table.filter(are_shown(table, cells)) for status, table in tables.items()}


def are_shown(table: pa.Table, cells: Mapping[str, Mapping[str, Any]]) -> pa.ChunkedArray:
    """Of each row whether it is of these cells, or describes a sample of theirs."""
    codes = {description(cell["setting"].get("code", "")) for cell in cells.values()}
    names = [*(cell for cell in cells if not is_description(cell)), NO_CELL, *codes]
    return pc.is_in(table["cell"], value_set=pa.array(names, pa.string()))


@dataclass(frozen=True)
class Records:
    """What a run folder holds.

    Attributes:
        frame: as `load_records`, its texts but `mask` and `kept` as categories in the order of the alphabet:
            a number for each row, and every text once.
        samples: as the function of that name.
        failures: sample to reason.
    """

    frame: pd.DataFrame
    samples: pd.DataFrame
    failures: dict[str, str]


def read_run(path: str | Path, masks: bool = True) -> Records:
    """All of a run at once, in little memory.

    Args:
        path: run folder.
        masks: whether `mask` and `kept` are read, which are most of a run.

    Raises:
        UserError: as `load_records`.
    """
    folder = Path(path)
    left_out = {"place", "of", "status", *(() if masks else MASKS)}
    told = [name for name in TABLES["ok"].names if name not in left_out]
    found = _tables(folder, {"ok": told, "sample": ["sample", *OF_SAMPLE], "failed": ["sample", "reason"]})
    described = _described(found["sample"])
    frame = _with_facts(found.pop("ok"), described, run_info(folder), masks)
    return Records(frame, plain(described), _reasons(found["failed"]))


def load_records(path: str | Path, masks: bool = True) -> pd.DataFrame:
    """Records of a run, one row per (cell, expression), sorted; failed samples are left out.

    Args:
        path: run folder.
        masks: whether `mask` and `kept` are read, which are most of a run; without, it has no such columns.

    Returns:
        A frame with COLUMNS, FROM_RUN and what metrics of others counted; of clips with `curves`, per-frame
        counts by name, too. Counts are int64 pixels, `iou` is their ratio (1 for an empty union), `coverage`
        the share of the referent's area whose visual tokens were kept (NaN without a referent, or where all
        tokens are pooled), `kept` for `kept_tokens`, `mask` the `counts` of the predicted mask's COCO run
        lengths, of a clip frame by frame with blanks between. Rows of before schema 4 have the image id for
        `cluster`, and no `tokens_llm`.

    Raises:
        UserError: there are no records, or what is there cannot be trusted; names file and line.
    """
    return plain(read_run(path, masks).frame)


def _with_facts(
    frame: pd.DataFrame, described: pd.DataFrame, info: Mapping[str, Any], masks: bool
) -> pd.DataFrame:
    """Rows with what was asked there, and with what the run says of their cells."""
    cells = cells_of(info)
    columns = [name for name in COLUMNS if masks or name not in MASKS]
    if frame.empty:
        return pd.DataFrame(columns=[*columns, *FROM_RUN])
    said = described.drop_duplicates(["sample", "expression"])
    asked = pd.MultiIndex.from_frame(said[["sample", "expression"]])
    at = asked.get_indexer(pd.MultiIndex.from_frame(frame[["sample", "expression"]]))
    for name in ("text", "group"):
        texts = pd.Categorical(said[name])
        codes = np.append(texts.codes, -1)[at]  # the last one is of what nobody described
        frame[name] = pd.Categorical.from_codes(codes, texts.categories)
    for name in NUMBERS_OR_NONE:
        frame[name] = frame[name].astype(float)
    of = frame["cell"].cat.categories
    for name in FROM_RUN:
        facts = [_fact(cells[cell], name) for cell in of]
        if name == "data" and info.get("samples"):
            prints = {split: digest({"samples": known}) for split, known in info["samples"].items()}
            facts = [prints.get(f"{cells[cell]['dataset']}:{cells[cell]['split']}") for cell in of]
        frame[name] = _spread(facts, frame["cell"].cat.codes.to_numpy())
    taken = {*TABLES["ok"].names, *COLUMNS, *FROM_RUN}
    others = sorted(name for name in frame.columns if name not in taken)
    shown = [*columns, *FROM_RUN, *(["curves"] if "curves" in frame else []), *others]
    return frame[shown].sort_values(ORDER, kind="stable", ignore_index=True)


def _spread(facts: Sequence[Any], codes: NDArray[np.integer[Any]]) -> Any:
    """The fact of each row's cell; texts as categories."""
    texts = {fact for fact in facts if fact is not None}
    if not texts or not all(isinstance(text, str) for text in texts):
        return pd.Series(facts).take(codes).to_numpy()
    made = pd.Categorical(facts, categories=sorted(texts))
    return pd.Categorical.from_codes(made.codes[codes], made.categories)


def _fact(cell: Mapping[str, Any], name: str) -> Any:
    """One fact of a cell; lists as text."""
    if name == "evaluation":
        return cell["setting"].get("code")
    if name == "parameters":  # those that are not drawn
        return " ".join(
            f"{field}={value!r}" for field, value in cell.get("parameters", []) if field != "seed"
        )
    value = cell.get(name, cell["setting"].get(name, BEFORE.get(name)))
    if isinstance(value, list):
        return ("x" if name == "grid" else " ").join(map(str, value))
    return value


def samples(path: str | Path) -> pd.DataFrame:
    """What was asked of every image: one row per expression of a sample, columns `sample` and OF_SAMPLE.

    `truth` is the `counts` of the target's COCO run lengths (size height, width); `image` a picture's path
    below the run folder, empty where none is kept.
    """
    return plain(_described(_tables(Path(path), {"sample": ["sample", *OF_SAMPLE]})["sample"]))


def _described(frame: pd.DataFrame) -> pd.DataFrame:
    if frame.empty:
        return pd.DataFrame(columns=["sample", *OF_SAMPLE])
    frame = frame.sort_values(["dataset", "split", "sample", "expression"], kind="stable", ignore_index=True)
    # cells of several codes each have their own descriptions
    return frame[~frame.duplicated(["sample", "expression"])].reset_index(drop=True)


def images(samples: pd.Series[str]) -> pd.Series[str]:
    """The image of each sample, by its number alone."""
    return samples.map(image_of)


def media(frame: pd.DataFrame) -> pd.Series[str]:
    """The medium of each record, to draw again in a bootstrap: its cluster, under a name that sorts by the
    number of its image. The order decides which draw an image gets, and is that of records that have the
    number alone."""
    one = frame[["cluster", "sample"]].drop_duplicates().astype(str)
    first = one.groupby("cluster")["sample"].min()
    names = images(first) + " " + first.index
    return frame["cluster"].astype(str).map(names)


def failures(path: str | Path) -> dict[str, str]:
    """Samples that could not be evaluated, and why."""
    return _reasons(_tables(Path(path), {"failed": ["sample", "reason"]})["failed"])


def _reasons(frame: pd.DataFrame) -> dict[str, str]:
    return {} if frame.empty else dict(sorted(zip(frame["sample"], frame["reason"], strict=True)))


def rebuild_tables(path: str | Path) -> bool:
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
        if tables and all(intact(place / table, facts) for table, facts in tables.items()):
            continue

        counts: Counter[str] = Counter()
        for some in shown_tables(place, info["cells"], shown):
            counts.update({f"{status}.parquet": len(table) for status, table in some.items()})
        if all(counts[table] == facts["rows"] for table, facts in tables.items()):
            closed["splits"][place.name] = compact(place, shown_tables(place, info["cells"], shown))
        else:
            whole = False
    if whole:
        write_atomically(folder / DONE, closed)
    else:
        (folder / DONE).unlink()
    return whole
