"""Which samples the page shows, and what every pruner kept and painted there."""

from __future__ import annotations

import base64
import binascii
import json
import zlib
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import pandas as pd
from PIL import Image

from backbones.parts.clips import BETWEEN
from backbones.parts.geometry import regions
from harness.store.records import kept_tokens
from reports.clips import clip_answer, packed, pictured, points, scores
from reports.comparable import COLUMN
from reports.gather import Runs
from reports.kept import kept_words, lit
from reports.tables import BOUND, Table

BYTES = 1_000_000  # of pictures in a page
PICTURES = "images"  # folder of a run
ANSWERS = 6_000  # masks in a page; of a clip one per frame that is shown
BEFORE = "centre-crop"  # the geometry of runs that do not name one
KINDS = ("best", "median", "worst", "random")
# what a card shows of a record is made of
RECORD = [
    *("cell", "seed", "frames", "views", "shown", "grid", "geometry", "tokens_final"),
    *("iou", "coverage", "intersection", "union", "kept", "mask", "curves", "j", "f", "j_fixed", "f_fixed"),
]
Shot = tuple[int, str, int]  # number of a frame, path of its picture below the run folder, bytes
Shots = dict[tuple[int, str], list[Shot]]  # (run, image) -> frames that have a picture


def pictures(
    runs: Runs, tables: list[Table], shots: Shots, images: dict[str, int], room: int
) -> dict[str, Any]:
    """Per pruner and budget its best, median, worst and a random expression, with the answers of all pruners
    to each.

    Args:
        shots: as `shots_of`.
        images: numbers of the page's pictures, by run and path; those that are shown are added.
        room: bytes of answers.

    Returns:
        `items`: expressions with their truth; `answers`: per table, budget and item the answers; `picks`:
        (table, budget, pruner, kind, item); `of`: number of images that they are chosen from, and `clips`: of
        clips.
    """
    chosen = _affordable(runs, shots)
    found: dict[str, Any] = {"items": [], "answers": {}, "picks": [], "of": 0, "clips": 0}
    if chosen.empty:
        return found
    for name, part in (("of", chosen[chosen["frames"] == 1]), ("clips", chosen[chosen["frames"] > 1])):
        found[name] = int(part.groupby(COLUMN)["sample"].nunique().sum())
    items: dict[tuple[str, int], int] = {}
    facts = {(row["sample"], row["expression"]): row for row in chosen.to_dict("records")}
    count = 0
    for number, table in enumerate(tables):
        frame = table.group.frame
        frame = frame[
            ["sample", "expression", "pruner", "budget", *(name for name in RECORD if name in frame)]
        ]
        frame = frame[
            frame["seed"] == frame.groupby(["pruner", "budget"], observed=True)["seed"].transform("min")
        ]
        frame = frame.merge(chosen[["sample", "expression"]], on=["sample", "expression"])
        frame = frame[frame["mask"].astype(bool) & frame["kept"].astype(bool) & frame["grid"].notna()]
        if frame.empty:
            continue
        bound = frame[frame["pruner"] == BOUND]
        for budget in sorted(set(frame["budget"]) - set(bound["budget"])):
            here = frame[frame["budget"] == budget]
            shown = pd.concat([bound, here])
            by_item = {key: part for key, part in shown.groupby(["sample", "expression"], observed=True)}
            for line in table.lines:
                part = here[here["pruner"] == line.pruner]
                if line.budget != budget or part.empty:
                    continue
                for kind, key in _choose(part).items():
                    name = f"{number}:{budget}:{items.get(key)}"
                    if name not in found["answers"]:
                        there = shots[shot_key(facts[key])]
                        masks = len(by_item[key]) * len(there)
                        if count + masks > ANSWERS:
                            continue
                        told = _answers(by_item[key], table, facts[key], there)
                        size = len(json.dumps(told)) + 2 * len(str(facts[key]["truth"])) + 500
                        if size > room:
                            continue
                        count, room = count + masks, room - size
                        if key not in items:
                            items[key] = len(items)
                            found["items"].append(item_of(facts[key], there, images))
                        name = f"{number}:{budget}:{items[key]}"
                        found["answers"][name] = told
                    found["picks"].append([number, int(budget), line.pruner, kind, items[key]])
    return found


def shots_of(runs: Runs) -> Shots:
    """The frames of every sample that have a picture in the run's own folder."""
    if runs.samples.empty or "image" not in runs.samples:
        return {}
    frames = _frames(runs)
    one = runs.samples[runs.samples["image"].astype(bool)].drop_duplicates(["run", "image"])
    counts = one["sample"].map(frames).fillna(1)
    return {
        (int(run), str(image)): [
            (number, name, path.stat().st_size)
            for number, name in pictured(str(image), int(count))
            if (path := recorded_picture(runs.runs[int(run)].folder, name))
        ]
        for run, image, count in zip(one["run"], one["image"], counts, strict=True)
    }


def _frames(runs: Runs) -> dict[str, int]:
    """The frames of every sample."""
    most = runs.frame.groupby("sample", observed=True)["frames"].max()
    return {str(sample): int(frames) for sample, frames in most.items()}


def shot_key(facts: Mapping[Any, Any]) -> tuple[int, str]:
    """The key of a sample's pictures."""
    return int(facts["run"]), str(facts["image"])


def _affordable(runs: Runs, shots: Shots) -> pd.DataFrame:
    """Expressions whose image has a picture, split by split in turn until the pictures fill the page, where
    all frames of a clip count."""
    frame = runs.samples
    if not shots:
        return pd.DataFrame(columns=["run", *COLUMN, "sample", "frames"])
    frames = _frames(runs)
    frame = frame.assign(frames=frame["sample"].map(frames).fillna(1).astype(int))
    frame = frame[frame["image"].astype(bool)].drop_duplicates(["sample", "expression"])
    one = frame.drop_duplicates("sample").copy()
    one["turn"] = one.groupby(COLUMN).cumcount()
    one = one.sort_values(["turn", *COLUMN], kind="stable")
    sizes = [
        sum(size for _, _, size in shots[int(run), str(image)])
        for run, image in zip(one["run"], one["image"], strict=True)
    ]
    known = pd.Series(sizes, index=one.index)
    kept = one[(known > 0) & (known.cumsum() <= BYTES)]
    return frame[frame["sample"].isin(kept["sample"])]


def _choose(part: pd.DataFrame) -> dict[str, tuple[str, int]]:
    """Kind to (sample, expression): by J&F where that was measured of all, else by IoU."""
    measured = [scores(row) for row in part.to_dict("records")]
    if all(one is not None for one in measured):
        part = part.assign(iou=[sum(one) for one in measured if one is not None])
    ranked = part.sort_values(["iou", "sample", "expression"], kind="stable", ascending=[False, True, True])
    first = ranked.iloc[0]
    drawn = zlib.crc32(f"{first['pruner']} {first['budget']}".encode()) % len(ranked)
    places = {"best": 0, "median": len(ranked) // 2, "worst": len(ranked) - 1, "random": drawn}
    return {
        kind: (str(ranked["sample"].iloc[at]), int(ranked["expression"].iloc[at]))
        for kind, at in places.items()
    }


def item_of(facts: Mapping[Any, Any], shots: Sequence[Shot], images: dict[str, int]) -> dict[str, Any]:
    """An expression with its truth; of a clip `frames` say what there is of each frame that is shown, and
    `points` at which frames curves are drawn. The `image` of what has no picture is None."""
    found = {
        "sample": facts["sample"],
        "expression": int(facts["expression"]),
        "text": facts["text"],
        "height": int(facts["height"]),
        "width": int(facts["width"]),
        "truth": facts["truth"],
    }
    places = [
        images.setdefault(f"{facts['run']}/{name}", len(images)) if name else None for _, name, _ in shots
    ]
    if facts["frames"] == 1:
        return found | {"image": places[0] if places else None}
    truth = str(facts["truth"]).split(BETWEEN)
    return found | {
        "truth": "",
        "length": int(facts["frames"]),
        "frames": [
            {"number": number, "truth": truth[number], "image": place}
            for (number, _, _), place in zip(shots, places, strict=True)
        ],
        "points": points(int(facts["frames"]), [number for number, _, _ in shots]),
    }


def _answers(
    part: pd.DataFrame, table: Table, facts: Mapping[Any, Any], shots: Sequence[Shot]
) -> list[dict[str, Any]]:
    order = {(line.pruner, line.budget): place for place, line in enumerate(table.lines)}
    places = [
        order[(str(pruner), int(budget))]
        for pruner, budget in zip(part["pruner"], part["budget"], strict=True)
    ]
    numbers = [number for number, _, _ in shots]
    seen: dict[str, list[list[float]]] = {}
    found = []
    for row in part.assign(place=places).sort_values("place").to_dict("records"):
        known = geometry_of(row)
        if known not in seen:
            seen[known] = regions_of(known, int(facts["height"]), int(facts["width"]))
        told = answer_of(row, len(seen[known]), numbers)
        found.append({"pruner": row["pruner"]} | told | {"regions": seen[known]})
    return found


def answer_of(row: Mapping[Any, Any], views: int, numbers: Sequence[int]) -> dict[str, Any]:
    """What a card shows of a record: scores in percent, mask, and the bitmap of the bright patches.

    Args:
        row: of the records.
        views: of one frame, as `regions_of` counts them.
        numbers: frames that are shown of a clip.
    """
    rows, columns = _sides(row["grid"])
    told = {
        "seed": row["seed"],
        "intersection": row["intersection"],
        "union": row["union"],
        "iou": round(100 * row["iou"], 1),
        "coverage": None if row["coverage"] != row["coverage"] else round(100 * row["coverage"], 1),
        "cell": row["cell"],
        "grid": [rows, columns],
    }
    if row["frames"] > 1:
        return told | clip_answer(row, views, numbers, points(int(row["frames"]), numbers))
    kept = row["kept"]
    patches = int.from_bytes(binascii.a2b_base64(kept), "big").bit_count()
    if not patches:
        kept = packed(lit(kept_tokens(kept, int(row["views"]) * rows * columns)))
    return told | {
        "kept": kept,
        "mask": row["mask"],
        "patches": patches,
        "told": kept_words(int(row["tokens_final"]), patches),
    }


@cache
def _sides(grid: str) -> tuple[int, int]:
    rows, columns = map(int, grid.split("x"))
    return rows, columns


def geometry_of(row: Mapping[Any, Any]) -> str:
    """The geometry of a record, also of a run that does not name one."""
    return row["geometry"] if isinstance(row["geometry"], str) else BEFORE


def regions_of(geometry: str, height: int, width: int) -> list[list[float]]:
    """What the views cover of an image, four digits; none where the run does not say."""
    return [[round(edge, 4) for edge in region] for region in regions(geometry, height, width)]


def address(runs: Runs, path: str) -> str:
    """A picture as an address that holds it."""
    content = jpeg(runs, path)
    return "data:image/jpeg;base64," + base64.b64encode(content).decode() if content else ""


def jpeg(runs: Runs, path: str) -> bytes:
    """The content of a picture, by run and path; empty if it is none."""
    number, _, name = path.partition("/")
    picture = recorded_picture(runs.runs[int(number)].folder, name)
    return picture.read_bytes() if picture else b""


def recorded_picture(folder: Path, name: str) -> Path | None:
    """The file of a picture, if it is a JPEG in the run's own images/: a record may come from anywhere."""
    path, home = (folder / name).resolve(), (folder / PICTURES).resolve()
    if (
        path.parent != home
        or home.parent != folder.resolve()
        or not path.is_file()
        or path.stat().st_size > BYTES
    ):
        return None
    try:
        with Image.open(path, formats=["JPEG"]) as opened:
            opened.verify()
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError):
        return None
    return path
