"""All expressions of a report for the page's browser of samples: what was asked, how every row scored there,
and what it kept and painted, in parts that the page reads when they are asked for.

A part is JSON, compressed and written as base64, so that no text of a data set or of a plugin can end a
script. Small runs have their parts in the page; those of larger ones lie beside it as scripts, since a page
that is opened from a folder may read nothing else.
"""

from __future__ import annotations

import base64
import json
import re
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from operator import itemgetter
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from harness.store.run_folder import shown_frames
from pruners.errors import UserError
from reports.comparable import COLUMN, LINE
from reports.gallery import RECORD, Shot, Shots, answer_of, geometry_of, item_of, regions_of, shot_key
from reports.gather import Runs
from reports.tables import Table, TableRow, column_rank

FOLDER = "samples"  # beside the page
PART = 1_000_000  # characters of a part before it is compressed, unless one expression has more
SCORES = 250_000  # in a part of the list
LEVEL = 4  # of compression: 6 takes two and a half times as long for 8 % less
ROWS = 20_000  # of records that are taken apart at a time
KEY = ["data", "sample", "expression"]
OURS = re.compile(r"(list|masks)-\d+\.js|picture-\d+\.jpg")


@dataclass
class Samples:
    """What the browser of samples reads.

    Attributes:
        count: expressions.
        painted: those whose masks are at hand.
        columns: `data set:split`, in the order of the tables.
        lists: number of parts `list-0`, `list-1`, ... with texts and scores.
        parts: name to base64 of compressed JSON; `masks-0`, ... have expressions with their answers by cell.
    """

    count: int = 0
    painted: int = 0
    columns: list[str] = field(default_factory=list)
    lists: int = 0
    parts: dict[str, str] = field(default_factory=dict)

    @property
    def size(self) -> int:
        """Characters of all parts."""
        return sum(map(len, self.parts.values()))

    def index(self, beside: bool) -> dict[str, Any]:
        """What the page itself holds; `beside`: the folder of the parts, empty where they are in the page."""
        return {
            "count": self.count,
            "painted": self.painted,
            "columns": self.columns,
            "lists": self.lists,
            "beside": f"{FOLDER}/" if beside else "",
        }


def lines_of(table: Table) -> list[TableRow]:
    """A table's rows as they stand on the page, block by block."""
    return [line for _, block in table.blocks() for line in block]


def collect(runs: Runs, tables: Sequence[Table], shots: Shots, images: dict[str, int]) -> Samples:
    """The parts of all expressions that a table scores.

    Args:
        shots: as `reports.gallery.shots_of`.
        images: numbers of the page's pictures, by run and path; those that are shown are added.
    """
    asked = _asked(runs, tables)
    if asked.empty:
        return Samples()
    place = pd.MultiIndex.from_frame(asked[KEY])
    scores = [_scores(table, place) for table in tables]
    columns = list(dict.fromkeys(asked["column"]))
    found = Samples(count=len(asked), columns=columns)
    facts = asked.to_dict("records")
    for one in facts:
        one["shots"] = _shots(one, shots)
    part_of = _masks(runs.frame, place, facts, images, found.parts)
    found.painted = len(part_of)
    step = max(1, SCORES // sum(one.shape[1] for one in scores))
    for first in range(0, len(asked), step):
        here = range(first, min(first + step, len(asked)))
        some = asked.iloc[here.start : here.stop]
        found.parts[f"list-{found.lists}"] = _packed(
            {
                "first": first,
                "sample": some["sample"].tolist(),
                "expression": some["expression"].tolist(),
                "text": some["text"].tolist(),
                "column": [columns.index(name) for name in some["column"]],
                "part": [part_of.get(at, -1) for at in here],
                "picture": [_first_picture(facts[at], images) for at in here],
                "scores": [one[here.start : here.stop].ravel().tolist() for one in scores],
            }
        )
        found.lists += 1
    return found


def _asked(runs: Runs, tables: Sequence[Table]) -> pd.DataFrame:
    """All expressions that a table scores, in the order of the columns, images by their number; KEY, `column`
    and what was asked. Splits of one name with other data count apart."""
    if runs.samples.empty or not tables:
        return pd.DataFrame()
    scored = pd.concat([table.group.frame[[*KEY, "run", "frames"]] for table in tables])
    scored = scored.drop_duplicates(KEY)
    asked = scored.merge(runs.samples, on=["run", "sample", "expression"])
    words = ["text", "truth", "image"]
    asked[words] = asked[words].fillna("")  # JSON has no NaN
    asked["column"] = asked["dataset"] + ":" + asked["split"]
    known = asked[COLUMN].drop_duplicates().itertuples(index=False, name=None)
    rank = {one: place for place, one in enumerate(sorted(known, key=column_rank))}
    asked["rank"] = [rank[one] for one in asked[COLUMN].itertuples(index=False, name=None)]
    asked["number"] = pd.to_numeric(asked["sample"].str.extract(r"(\d+)\D*$")[0], errors="coerce").fillna(-1)
    order = ["rank", "number", "sample", "expression", "data"]
    return asked.sort_values(order, kind="stable", ignore_index=True)


def _scores(table: Table, place: pd.MultiIndex) -> np.ndarray[Any, np.dtype[np.int64]]:
    """(expressions, rows of the page's table) thousandths of IoU, of clips of J&F, mean over seeds; -1 where
    a row has no answer."""
    frame = table.group.frame
    value = frame["iou"]
    if table.metric.medium == "video" and {"j", "f"} <= set(frame):
        value = (frame["j"] + frame["f"]) / 2
    lines = [(line.pruner, line.budget) for line in lines_of(table)]
    row = place.get_indexer(pd.MultiIndex.from_frame(frame[KEY]))
    line = pd.MultiIndex.from_tuples(lines).get_indexer(pd.MultiIndex.from_frame(frame[LINE]))
    known = (row >= 0) & (line >= 0) & value.notna().to_numpy()
    at, size = row[known] * len(lines) + line[known], len(place) * len(lines)
    total = np.bincount(at, weights=value.to_numpy(dtype=np.float64)[known], minlength=size)
    count = np.bincount(at, minlength=size)
    mean = np.full(size, -1, dtype=np.int64)
    mean[count > 0] = np.rint(1000 * total[count > 0] / count[count > 0]).astype(np.int64)
    return mean.reshape(len(place), len(lines))


def _shots(facts: Mapping[Any, Any], shots: Shots) -> list[Shot]:
    """Frames that are shown of a sample: those with a picture; where none has one, on grey."""
    known = shots.get(shot_key(facts), []) if facts["image"] else []
    return known or [(number, "", 0) for number in shown_frames(int(facts["frames"]))]


def _first_picture(facts: Mapping[Any, Any], images: Mapping[str, int]) -> int:
    _, name, _ = facts["shots"][0]
    return images.get(f"{facts['run']}/{name}", -1) if name else -1


def _masks(
    frame: pd.DataFrame,
    place: pd.MultiIndex,
    facts: Sequence[Mapping[Any, Any]],
    images: dict[str, int],
    parts: dict[str, str],
) -> dict[int, int]:
    """Write the parts with masks; the part of every expression that has any.

    Of a pruner that draws its first seed is shown.
    """
    first = frame["seed"] == frame.groupby([*COLUMN, *LINE], observed=True)["seed"].transform("min")
    shown = frame[first & (frame["mask"] != "") & (frame["kept"] != "") & frame["grid"].notna()]
    at = place.get_indexer(pd.MultiIndex.from_frame(shown[KEY]))
    shown = (
        shown[[name for name in RECORD if name in shown]]
        .assign(at=at)[at >= 0]
        .sort_values("at", kind="stable")
    )
    found: dict[int, int] = {}
    items: dict[int, Any] = {}
    answers: dict[int, Any] = {}
    number = size = 0

    def close() -> None:
        nonlocal number, items, answers, size
        parts[f"masks-{number}"] = _packed({"items": items, "answers": answers})
        number, items, answers, size = number + 1, {}, {}, 0

    for key, rows in groupby(_records(shown), itemgetter("at")):
        told, room = _expression(rows, facts[key], images)
        if items and size + room > PART:
            close()
        items[key], answers[key] = told
        found[key], size = number, size + room
    if items:
        close()
    return found


def _records(frame: pd.DataFrame) -> Iterator[dict[Any, Any]]:
    """Its rows, some thousand at a time: masks of a whole run would be held twice. (`to_dict` looks at the
    kind of every single value.)"""
    names = list(frame)
    for first in range(0, len(frame), ROWS):
        some = frame.iloc[first : first + ROWS]
        for values in zip(*(some[name].astype(object).tolist() for name in names), strict=True):
            yield dict(zip(names, values, strict=True))


def _expression(
    rows: Iterable[Mapping[Any, Any]], facts: Mapping[Any, Any], images: dict[str, int]
) -> tuple[tuple[dict[str, Any], dict[str, Any]], int]:
    """An expression, its answers by cell, and about how many characters they are."""
    numbers = [number for number, _, _ in facts["shots"]]
    item = item_of(facts, facts["shots"], images)
    item["regions"], answers = {}, {}
    size = len(str(facts["truth"])) + len(str(facts["text"])) + 300
    for row in rows:
        known = geometry_of(row)
        if known not in item["regions"]:
            item["regions"][known] = regions_of(known, int(facts["height"]), int(facts["width"]))
        answer = answer_of(row, len(item["regions"][known]), numbers) | {"geometry": known}
        answers[answer.pop("cell")] = answer
        size += len(str(row["mask"])) + len(str(row["kept"])) * max(1, len(numbers)) + 250
    return (item, answers), size


def _packed(content: dict[str, Any]) -> str:
    text = json.dumps(content, separators=(",", ":"))
    return base64.b64encode(zlib.compress(text.encode(), LEVEL)).decode()


def picture_of(number: int) -> str:
    """Where a picture lies beside the page."""
    return f"{FOLDER}/picture-{number}.jpg"


def write_beside(folder: Path, parts: Mapping[str, str], pictures: Sequence[bytes]) -> list[Path]:
    """Write what lies beside the page, and take away what an earlier report left there.

    Returns:
        The folder, if anything is in it.

    Raises:
        UserError: the folder is a link: a run may come from anywhere, and what it leads to is not the run's.
    """
    place = folder / FOLDER
    if place.is_symlink():
        raise UserError(
            f"{str(place)!r} is a link, and the page's samples are written there; remove it, or give --out "
            f"another folder."
        )
    files = {f"{name}.js": f'groundprunePart("{name}","{text}")\n'.encode() for name, text in parts.items()}
    files |= {f"picture-{number}.jpg": content for number, content in enumerate(pictures) if content}
    if place.is_dir():
        for old in place.iterdir():
            if OURS.fullmatch(old.name) and (old.is_symlink() or old.name not in files):
                old.unlink()
        if not files and not any(place.iterdir()):
            place.rmdir()
    if not files:
        return []
    place.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        (place / name).write_bytes(content)
    return [place]
