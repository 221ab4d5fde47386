"""The file that the regression gate compares with: small, readable line by line, and checked when it is read.

Pixel counts stand in plain rows. What belongs to a cell (a pruner at a budget and a seed) stands in one line
per cell: token counts, the pruner's own multiply-adds, what rounding alone changes, and the kept tokens of
its rows, compressed.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import json
import math
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from harness import metrics
from harness.store.journal import write_text
from pruners.base import UserError

FORMAT = 2
METRIC = metrics.get("ciou")  # what is guarded: its value over many expressions, and of each alone
KEY = ["pruner", "budget", "seed"]
PAIR = [*KEY, "sample", "expression"]
PIXELS = list(METRIC.columns)
TOKENS = ["tokens_final", "tokens_mean"]
HEAD = {"format", "subset", "tolerances", "fingerprints", "history", "patches", "noise"}


class Damaged(ValueError):
    """Something in a baseline that cannot be."""


def _checksum(content: dict[str, Any]) -> str:
    """Of everything but the checksum itself, however the file is laid out."""
    rest = {name: value for name, value in content.items() if name != "checksum"}
    return hashlib.sha256(json.dumps(rest, sort_keys=True).encode()).hexdigest()


def pack(bitmaps: Sequence[str]) -> str:
    """Kept tokens of a cell's rows (as records hold them), compressed as one text."""
    return base64.b64encode(zlib.compress(b"".join(base64.b64decode(text) for text in bitmaps), 9)).decode()


def unpack(text: str, rows: int, patches: int) -> list[str]:
    """What `pack` packed.

    Raises:
        Damaged: it is no such text, or of another number of rows.
    """
    size = -(-patches // 8)
    try:
        unzip = zlib.decompressobj()
        raw = unzip.decompress(base64.b64decode(text, validate=True), rows * size + 1)
    except (binascii.Error, zlib.error) as error:
        raise Damaged(f"kept tokens cannot be unpacked: {error}") from error
    if len(raw) != rows * size:
        raise Damaged(f"kept tokens are not those of {rows} rows")
    return [base64.b64encode(raw[k * size : (k + 1) * size]).decode() for k in range(rows)]


def baseline_cells(
    frame: pd.DataFrame, costs: dict[tuple[str, int], int], rounding: dict[tuple[Any, ...], Any]
) -> list[dict[str, Any]]:
    """One entry per cell, rows in the frame's order.

    Args:
        frame: columns PAIR, PIXELS, TOKENS and `kept`.
        costs: own multiply-adds of (pruner, budget).
        rounding: of (pruner, budget, seed), as `harness.gate.comparison.rounding` measures it.
    """
    found = []
    for pruner, budget, seed in frame[KEY].drop_duplicates().itertuples(index=False, name=None):
        part = frame[(frame[KEY] == [pruner, budget, seed]).all(axis=1)]
        counts = {name: part[name].tolist() for name in TOKENS}
        found.append(
            {
                **{"pruner": str(pruner), "budget": int(budget), "seed": int(seed), "rows": len(part)},
                **{name: values[0] if len(set(values)) == 1 else values for name, values in counts.items()},
                "macs": costs.get((str(pruner), int(budget))),
                "rounding": rounding[pruner, budget, seed],
                "kept": pack(part["kept"].tolist()),
            }
        )
    return found


def frame(content: dict[str, Any]) -> pd.DataFrame:
    """The rows of a baseline with columns PAIR, PIXELS, TOKENS and `kept`.

    Raises:
        Damaged: rows and cells do not belong together.
    """
    rows = pd.DataFrame(content["rows"], columns=[*PAIR, *PIXELS])
    known = {tuple(cell[name] for name in KEY): cell for cell in content["cells"]}
    parts = []
    for name, part in rows.groupby(KEY, sort=False):
        cell = known.pop(name, None)
        if cell is None or cell["rows"] != len(part):
            raise Damaged(
                f"{len(part)} rows of {name[0]} at {name[1]} tokens, where its cell has "
                f"{cell and cell['rows']}"
            )
        kept = unpack(cell["kept"], len(part), content["patches"])
        parts.append(
            part.assign(kept=kept, **{column: np.broadcast_to(cell[column], len(part)) for column in TOKENS})
        )
    if known or not parts:
        raise Damaged(
            f"no rows of {', '.join(sorted({cell['pruner'] for cell in known.values()})) or 'any pruner'}"
        )
    return pd.concat(parts).loc[rows.index]


def check_counts(rows: pd.DataFrame, what: str) -> None:
    """See that every row is there once and holds what the metric is made of.

    Args:
        rows: columns PAIR and PIXELS.
        what: whose rows, for the error.

    Raises:
        Damaged: a row is there twice, or holds what cannot have been counted.
    """
    if rows.duplicated(PAIR).any():
        first = rows[rows.duplicated(PAIR)].iloc[0]
        raise Damaged(
            f"{what} has {first['pruner']} on {first['sample']} expression {first['expression']} twice"
        )
    if not _sound(rows):
        first = next(row for k in range(len(rows)) if not _sound(rows.iloc[[k]]) for row in [rows.iloc[k]])
        told = " and ".join(f"{first[name]} as {name}" for name in PIXELS)
        raise Damaged(
            f"{what} has {told} for {first['pruner']} on {first['sample']} expression {first['expression']}"
        )


def _sound(rows: pd.DataFrame) -> bool:
    """Whether the metric can be made of what the rows hold."""
    try:
        METRIC.terms(rows)
    except (ValueError, TypeError):
        return False
    return True


def _check(content: dict[str, Any]) -> None:
    """See that a baseline is one.

    Raises:
        Damaged, KeyError, TypeError, ValueError: it is none.
    """
    if missing := sorted((HEAD | {"cells", "rows", "checksum"}) - content.keys()):
        raise Damaged(f"{', '.join(missing)} missing")
    if content["checksum"] != _checksum(content):
        raise Damaged("its checksum is another")
    rows = frame(content)
    check_counts(rows, "it")
    for cell in content["cells"]:
        usual = cell["rounding"]
        falls = [points for scores in usual["falls"].values() for points in scores.values()]
        numbers = [usual["tokens"], usual["lost"], *falls, *([] if cell["macs"] is None else [cell["macs"]])]
        if not all(math.isfinite(value) and value >= 0 for value in numbers):
            raise Damaged(f"the cell of {cell['pruner']} at {cell['budget']} tokens holds {numbers}")


def _damaged(path: Path, why: object) -> UserError:
    return UserError(f"The baseline {str(path)!r} is damaged ({why}); restore it from version control.")


def _parsed(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text())
    except (ValueError, RecursionError) as error:
        raise _damaged(path, error) from error
    if not isinstance(content, dict):
        raise _damaged(path, "it holds no object")
    return content


def read_baseline(path: Path) -> dict[str, Any]:
    """The committed baseline.

    Raises:
        UserError: it is missing, damaged or of another format.
    """
    if not path.is_file():
        raise UserError(
            f"There is no baseline {str(path)!r}; make one with `python -m harness gate --baseline {path} "
            f"--accept REASON`."
        )
    content = _parsed(path)
    if content.get("format", FORMAT) != FORMAT:
        raise UserError(
            f"The baseline {str(path)!r} has format {content['format']!r}, this version reads {FORMAT}; "
            f"renew it with "
            f"`python -m harness gate --baseline {path} --accept REASON`."
        )
    try:
        _check(content)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise _damaged(path, error if isinstance(error, Damaged) else repr(error)) from error
    return content


def accepted(path: Path) -> tuple[dict[str, Any] | None, list[dict[str, str]]]:
    """What was run for a baseline, and all reasons given so far; also of other formats.

    Raises:
        UserError: the file is damaged.
    """
    if not path.exists():
        return None, []
    content = _parsed(path)
    if not isinstance(content.get("history"), list) or not isinstance(content.get("subset"), dict):
        raise _damaged(path, "subset or history missing")
    return content["subset"], content["history"]


def write_baseline(path: Path, content: dict[str, Any]) -> None:
    """Write a baseline, one line per cell and row, whole or not at all."""
    head = {name: content[name] for name in sorted(HEAD)} | {"checksum": _checksum(content)}
    lists = [
        f' "{name}": [\n' + ",\n".join(json.dumps(entry) for entry in content[name]) + "\n]"
        for name in ("cells", "rows")
    ]
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, json.dumps(head, indent=1)[:-2] + ",\n" + ",\n".join(lists) + "}\n")
