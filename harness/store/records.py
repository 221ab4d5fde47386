"""The record store: one JSON line per (cell, expression), append-only; tables are derived from it, never
stored instead.

A run folder holds `run.json` (what was asked and where it ran), `done.json` once all is there, and per split
a folder `records/<dataset>-<split>` with one journal per process that worked on it, the claims of its parts,
and, when the run is complete, the same rows as Parquet. Every process writes to a file of its own, so a run
that was killed at any byte leaves at most a torn last line, which is dropped and its sample done again.
Whoever reads, reads a row once and checked.
"""

from __future__ import annotations

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
from harness.store.tables import compact, intact, measures, read_table
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
        for path in sorted(self.place.glob("*.jsonl")):
            reader = self._readers.setdefault(path, Reader(path, SCHEMAS, JOURNAL))
            for number, row in reader:
                where = f"{path}:{number}"
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


def _frame(folder: Path, status: str) -> pd.DataFrame:
    """Rows of one status of all splits, of the current cells."""
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
            frames.append(read_table(folder, file, facts, status))
            continue
        rows = [
            row
            for row in Journals(place, info["cells"]).rows()
            if row["status"] == status and is_shown(row, shown)
        ]
        if facts is not None and len(rows) != facts["rows"]:
            raise UserError(
                f"The records of {dataset}:{split} in {str(folder)!r} are not all there ({len(rows)} of "
                f"{facts['rows']} rows of "
                f"status {status}); `python -m harness rebuild {folder}` opens it again, and its command "
                f"does what is missing."
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


def load_records(path: str | Path) -> pd.DataFrame:
    """Records of a run, one row per (cell, expression), sorted; failed samples are left out.

    Args:
        path: run folder.

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
    folder = Path(path)
    frame = _frame(folder, "ok")
    info = run_info(folder)
    cells = cells_of(info)
    if frame.empty:
        return pd.DataFrame(columns=[*COLUMNS, *FROM_RUN])
    said = samples(folder).drop_duplicates(["sample", "expression"]).set_index(["sample", "expression"])
    wanted = pd.MultiIndex.from_frame(frame[["sample", "expression"]])
    for name in ("text", "group"):
        frame[name] = said[name].reindex(wanted).to_numpy()
    for name in NUMBERS_OR_NONE:
        frame[name] = frame[name].astype(float)
    for name in FROM_RUN:
        frame[name] = frame["cell"].map({cell: _fact(entry, name) for cell, entry in cells.items()})
    if info.get("samples"):
        prints = {name: digest({"samples": known}) for name, known in info["samples"].items()}
        frame["data"] = (frame["dataset"] + ":" + frame["split"]).map(prints)
    shown = [*COLUMNS, *FROM_RUN]
    if frame["curves"].map(len).any():
        frame["curves"] = frame["curves"].map(dict)  # Arrow's maps are lists of pairs
        shown.append("curves")
    frame = pd.concat([frame[shown], measures(frame)], axis=1)
    return frame.sort_values(ORDER, kind="stable", ignore_index=True)


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
    frame = _frame(Path(path), "sample")
    if frame.empty:
        return pd.DataFrame(columns=["sample", *OF_SAMPLE])
    frame = frame.reindex(columns=["sample", *OF_SAMPLE]).sort_values(
        ["dataset", "split", "sample", "expression"], kind="stable", ignore_index=True
    )
    # cells of several codes each have their own descriptions
    return frame[~frame.duplicated(["sample", "expression"])].reset_index(drop=True)


def images(samples: pd.Series[str]) -> pd.Series[str]:
    """The image of each sample, by its number alone."""
    return samples.map(image_of)


def media(frame: pd.DataFrame) -> pd.Series[str]:
    """The medium of each record, to draw again in a bootstrap: its cluster, under a name that sorts by the
    number of its image. The order decides which draw an image gets, and is that of records that have the
    number alone."""
    first = frame.groupby("cluster")["sample"].transform("min")
    return images(first) + " " + frame["cluster"]


def failures(path: str | Path) -> dict[str, str]:
    """Samples that could not be evaluated, and why."""
    frame = _frame(Path(path), "failed")
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
