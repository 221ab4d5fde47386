"""What a run folder says of itself: `run.json`, which is written first, and `done.json`, which is written
last."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import quote

from harness.store import sweeps
from harness.store.journal import digest, read_whole
from pruners.base import UserError

SCHEMA = 6
# 2: journals without checksums, cells without the digests of their code; 3: rows without their medium, one
# sweep; 4: rows without [SEG]; 5: images alone
SCHEMAS = (2, 3, 4, 5, 6)
FOLDER, RUN, DONE = "records", "run.json", "done.json"
SHOWN_FRAMES = 12  # of a clip, of which a picture is kept
LOOSE = ("provenance", "continued")  # of run.json: told, but no number hangs on it


def split_folder(folder: Path, dataset: str, split: str) -> Path:
    """Where a run keeps the records of one split; letters that have a meaning in paths are
    percent-encoded."""
    name = f"{quote(dataset, safe='+()')}-{quote(split, safe='+')}"
    return folder / FOLDER / name


def shown_frames(count: int, most: int = SHOWN_FRAMES) -> list[int]:
    """At most so many frames of a clip, evenly from the first to the last; by default those of which
    pictures are kept.

    >>> shown_frames(3), shown_frames(100)[:4], shown_frames(100, 3)
    ([0, 1, 2], [0, 9, 18, 27], [0, 50, 99])
    """
    many = min(count, most)
    return [round(k * (count - 1) / (many - 1)) for k in range(many)] if many > 1 else [0]


def frame_picture(path: Path, frame: int) -> Path:
    """The picture of another frame of a clip, beside that of its first one.

    >>> frame_picture(Path("images/clip-3.jpg"), 9).as_posix()
    'images/clip-3@9.jpg'
    """
    return path.with_stem(f"{path.stem}@{frame}")


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
            f"{str(file)!r} has schema {schema!r}, this version reads {', '.join(map(str, SCHEMAS))}; {mend}."
        )
    cells = content.get("cells", {})
    sound = isinstance(cells, dict) and all(map(_is_cell, cells.values())) if content else True
    editions = content.get("editions", [])
    sound = sound and isinstance(editions, list) and all(_is_edition(one, cells) for one in editions)
    sound = sound and (not editions or content.get("edition") in range(len(editions))) and _are_told(content)
    sound = sound and sweeps.are_sweeps(content)
    if not sound or not all(
        isinstance(content.get(name, {}), dict) for name in ("provenance", "asked", "plan", "left_out")
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
            f"{str(Path(path) / DONE)!r} has schema {schema!r}, this version reads "
            f"{', '.join(map(str, SCHEMAS))}; use that version."
        )
    if schema < 3:  # whose tables had no digests
        return {}
    tables = content.get("splits")
    if (
        not isinstance(content.get("finished", ""), str)
        or not isinstance(tables, dict)
        or not all(map(_is_tables, tables.values()))
    ):
        raise UserError(
            f"{str(Path(path) / DONE)!r} is damaged (it names no tables); delete it, and the same command "
            f"closes the run again."
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


def peak_memory(path: str | Path) -> int:
    """Most bytes of main memory that the process held which closed the run."""
    return int(
        read_whole(Path(path) / DONE, "delete it, and the same command closes the run again")[
            "peak_memory_bytes"
        ]
    )
