"""The record store: one JSON line per (cell, expression), append-only; tables are derived from it, never stored instead.

A run folder holds `run.json` (what was asked and where it ran), `done.json` once all is there, and per split a folder
`records/<dataset>-<split>` with one JSONL file per process that worked on it, the claims of its parts, and, when the split's
cells are complete, the same rows as Parquet. Every process writes to a file of its own, so a run that was killed at any byte
leaves at most a torn last line, which is dropped and its sample done again.
"""

from __future__ import annotations

import base64
import json
import os
import secrets
import socket
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import suppress
from itertools import islice
from pathlib import Path
from typing import IO, Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from pruners.base import UserError

SCHEMA = 2
NO_EXPRESSION = -1  # id and place in the row of a failed sample
NO_CELL = ""  # cell of the rows that describe a sample
FOLDER, RUN, DONE = "records", "run.json", "done.json"
ROWS_AT_ONCE = 20_000
# fields of a row and their types in Parquet: of every row, and of each status, in the order in which a split is compacted
KEYS = {"cell": "string", "sample": "string", "place": "int64", "of": "int64", "status": "string"}
ASKED = {"dataset": "string", "split": "string", "expression": "int64"}
OF_SAMPLE = ASKED | {"text": "string", "height": "int64", "width": "int64", "truth": "string", "image": "string"}
OF_CELL = {"backbone": "string", "protocol": "string", "pruner": "string", "budget": "int64", "seed": "int64"}
COUNTED = {"tokens_final": "int64", "tokens_mean": "float64", "intersection": "int64", "union": "int64", "iou": "float64"}
SHOWN = {"coverage": "float64", "kept": "string", "mask": "string"}
STATUS = {
    "failed": ASKED | OF_CELL | {"reason": "string"},
    "sample": OF_SAMPLE,
    "ok": ASKED | OF_CELL | COUNTED | SHOWN,
}
COLUMNS = (*ASKED, *OF_CELL, *COUNTED, *SHOWN, "sample", "cell", "text")
FROM_RUN = ("fingerprint", "dtype", "attn", "device", "data", "stage", "budget_kind")  # looked up by the row's cell
ORDER = ["dataset", "split", "pruner", "budget", "seed", "sample", "expression"]


def write_atomically(path: Path, content: dict[str, Any], only_new: bool = False) -> None:
    """Write a json file that is either whole or not there; `only_new` leaves one that is there already as it is."""
    partial = path.with_suffix(f".{secrets.token_hex(4)}")
    with partial.open("w") as file:
        file.write(json.dumps(content, indent=2, sort_keys=True) + "\n")
        file.flush()
        os.fsync(file.fileno())
    if only_new:
        with suppress(FileExistsError):
            os.link(partial, path)
        partial.unlink()
    else:
        partial.replace(path)


def split_folder(folder: Path, dataset: str, split: str) -> Path:
    """Where a run keeps the records of one split."""
    return folder / FOLDER / f"{dataset}-{split}"


def pack_tokens(indices: NDArray[np.int64], count: int) -> str:
    """Kept patches of `count` as text: base64 of a bitmap in raster order; what is no patch (index < 0) is not in it."""
    bitmap = np.zeros(count, dtype=bool)
    bitmap[indices[indices >= 0]] = True
    return base64.b64encode(np.packbits(bitmap).tobytes()).decode()


def kept_tokens(text: str, count: int) -> NDArray[np.bool_]:
    """The bitmap that `pack_tokens` wrote, (count,) bool."""
    return np.unpackbits(np.frombuffer(base64.b64decode(text), dtype=np.uint8), count=count).astype(bool)


def read_lines(path: Path) -> Iterator[dict[str, Any]]:
    """Rows of a record file; a torn last line is left out.

    Raises:
        UserError: another schema, or a damaged line before the last.
    """
    with path.open("rb") as file:
        bad: tuple[int, Exception] | None = None
        for number, line in enumerate(file, 1):
            if bad:
                raise UserError(
                    f"{path}:{bad[0]} is damaged ({bad[1]}); delete that line, and the same command does its sample again."
                )
            try:
                if not line.endswith(b"\n"):
                    raise ValueError("torn")
                row = json.loads(line)
                if not isinstance(row, dict) or (number > 1 and not row.keys() >= KEYS.keys()):
                    raise ValueError("not a record")
            except ValueError as error:
                bad = number, error
                continue
            if number == 1 and row.get("schema") != SCHEMA:
                raise UserError(
                    f"{path} has record schema {row.get('schema')!r}, this version reads {SCHEMA}; use a new --out folder."
                )
            if number > 1:
                yield row


def rows_of(place: Path) -> Iterator[dict[str, Any]]:
    """All rows of a split's folder, file by file."""
    for path in sorted(place.glob("*.jsonl")):
        yield from read_lines(path)


class Writer:
    """Appends rows of one split to a file that no other process writes to; the file is made with the first row."""

    def __init__(self, place: Path) -> None:
        self.path = place / f"{socket.gethostname()}-{os.getpid()}-{secrets.token_hex(3)}.jsonl"
        self._file: IO[bytes] | None = None

    def append(self, rows: Iterable[dict[str, Any]]) -> None:
        """Write rows and wait until the disk has them."""
        content = b"".join(json.dumps(row, sort_keys=True).encode() + b"\n" for row in rows)
        if self._file is None:
            self._file = self.path.open("xb")
            content = json.dumps({"schema": SCHEMA}).encode() + b"\n" + content
        self._file.write(content)
        self._file.flush()
        os.fsync(self._file.fileno())

    def close(self) -> None:
        """Close the file; what `append` wrote is on the disk already."""
        if self._file is not None:
            with suppress(OSError):
                self._file.close()


def key(row: dict[str, Any]) -> tuple[Any, ...]:
    """What makes a row the same row."""
    return row["cell"], row["sample"], row["place"]


def incomplete(place: Path, wanted: Iterable[tuple[str, str]]) -> set[str]:
    """Samples that lack rows: a (cell, sample) pair of `wanted`, the sample's description, or one of a pair's several rows."""
    seen: Counter[tuple[str, str]] = Counter()
    of: dict[tuple[str, str], int] = {}
    scored: set[str] = set()
    for row in rows_of(place):
        pair = row["cell"], row["sample"]
        seen[pair] += 1
        of[pair] = row["of"]
        if row["status"] == "ok":
            scored.add(row["sample"])
    lost = {pair[1] for pair in wanted if pair not in of}
    lost |= {pair[1] for pair, count in of.items() if seen[pair] < count}
    return lost | {sample for sample in scored if (NO_CELL, sample) not in of}


def compact(place: Path) -> None:
    """Write a complete split's rows as Parquet, one file per status, `ok` last: where that one is, all are."""
    import pyarrow
    from pyarrow import parquet

    for status, fields in STATUS.items():
        columns = [(name, getattr(pyarrow, kind)()) for name, kind in (KEYS | fields).items()]
        schema = pyarrow.schema(columns, metadata={"schema": str(SCHEMA)})
        partial = place / f"{status}.{secrets.token_hex(4)}"
        found = (row for row in rows_of(place) if row["status"] == status)
        with partial.open("wb") as file:
            with parquet.ParquetWriter(file, schema, compression="zstd") as writer:
                while rows := list(islice(found, ROWS_AT_ONCE)):
                    writer.write_table(pyarrow.Table.from_pylist(rows, schema=schema))
            file.flush()
            os.fsync(file.fileno())
        partial.replace(place / f"{status}.parquet")


def compacted(place: Path) -> bool:
    """Whether a split's rows are there as Parquet."""
    return (place / "ok.parquet").is_file()


def _frame(folder: Path, status: str) -> pd.DataFrame:
    """Rows of one status of all splits."""
    base = folder / FOLDER
    if not base.is_dir():
        raise UserError(f"There are no records in {str(folder)!r}; give the folder of a run, e.g. results/runs/<id>.")
    frames = []
    for place in sorted(path for path in base.iterdir() if path.is_dir()):
        if not compacted(place):
            frames.append(pd.DataFrame([row for row in rows_of(place) if row["status"] == status]))
        elif (place / f"{status}.parquet").is_file():
            frames.append(pd.read_parquet(place / f"{status}.parquet"))
    frames = [frame for frame in frames if len(frame)]
    return pd.concat(frames, ignore_index=True) if frames else pd.DataFrame()


def load(path: str | Path) -> pd.DataFrame:
    """Records of a run, one row per (cell, expression), sorted; failed samples are left out.

    Args:
        path: run folder.

    Returns:
        A frame with COLUMNS and FROM_RUN. Counts are int64 pixels, `iou` is their ratio (1 for an empty union), `coverage` the
        share of the referent's area whose visual tokens were kept (NaN without a referent, or where all tokens are
        pooled), `kept` for `kept_tokens`, `mask` the `counts` of the predicted mask's COCO run lengths.
    """
    folder = Path(path)
    frame = _frame(folder, "ok")
    cells = run_info(folder).get("cells", {})
    if frame.empty:
        return pd.DataFrame(columns=[*COLUMNS, *FROM_RUN])
    said = samples(folder).set_index(["sample", "expression"])["text"]
    wanted = pd.MultiIndex.from_frame(frame[["sample", "expression"]])
    frame["text"] = said[~said.index.duplicated()].reindex(wanted).to_numpy()
    frame["coverage"] = frame["coverage"].astype(float)
    known = {cell: entry["setting"] | entry for cell, entry in cells.items()}
    for name in FROM_RUN:
        frame[name] = frame["cell"].map({cell: entry.get(name) for cell, entry in known.items()})
    return frame[[*COLUMNS, *FROM_RUN]].sort_values(ORDER, kind="stable", ignore_index=True)


def samples(path: str | Path) -> pd.DataFrame:
    """What was asked of every image: one row per expression of a sample, columns `sample` and OF_SAMPLE.

    `truth` is the `counts` of the target's COCO run lengths (size height, width); `image` a picture's path below the run
    folder, empty where none is kept.
    """
    frame = _frame(Path(path), "sample")
    if frame.empty:
        return pd.DataFrame(columns=["sample", *OF_SAMPLE])
    return frame[["sample", *OF_SAMPLE]].sort_values(
        ["dataset", "split", "sample", "expression"], kind="stable", ignore_index=True
    )


def images(samples: pd.Series[str]) -> pd.Series[str]:
    """The image of each sample; splits share images, as those of RefCOCO and RefCOCO+ do."""
    return samples.str.rsplit(":", n=1).str[-1]


def failures(path: str | Path) -> dict[str, str]:
    """Samples that could not be evaluated, and why."""
    frame = _frame(Path(path), "failed")
    return {} if frame.empty else dict(sorted(zip(frame["sample"], frame["reason"], strict=True)))


def peak_memory(path: str | Path) -> int:
    """Most bytes of main memory that the process held which closed the run."""
    return int(json.loads((Path(path) / DONE).read_text())["peak_memory_bytes"])


def run_info(path: str | Path) -> dict[str, Any]:
    """What `run.json` says of a run; empty if it is not there.

    Raises:
        UserError: it is damaged.
    """
    file = Path(path) / RUN
    if not file.is_file():
        return {}
    try:
        content = json.loads(file.read_text())
    except ValueError as error:
        raise UserError(f"'{file}' is damaged ({error}); start anew with another --out folder.") from error
    return content if isinstance(content, dict) else {}
