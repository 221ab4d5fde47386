"""Which samples the page shows, and what every pruner kept and painted there."""

from __future__ import annotations

import base64
import zlib
from pathlib import Path
from typing import Any

import pandas as pd
from PIL import Image

from backbones.parts.geometry import regions
from reports.comparable import COLUMN
from reports.gather import Runs
from reports.tables import BOUND, Table

BYTES = 2_500_000  # of pictures in a page
PICTURES = "images"  # folder of a run
ANSWERS = 6_000  # masks in a page
BEFORE = "centre-crop"  # the geometry of runs that do not name one
KINDS = ("best", "median", "worst", "random")
ANSWER = [
    "pruner",
    "seed",
    "kept",
    "mask",
    "intersection",
    "union",
    "iou",
    "coverage",
    "cell",
    "grid",
    "geometry",
]


def pictures(runs: Runs, tables: list[Table]) -> dict[str, Any]:
    """Per pruner and budget its best, median, worst and a random expression, with the answers of all pruners
    to each.

    Returns:
        `images`: addresses; `items`: expressions with their truth; `answers`: per table, budget and item the
        answers; `picks`: (table, budget, pruner, kind, item); `of`: number of images that they are chosen
        from.
    """
    chosen = _affordable(runs)
    found: dict[str, Any] = {"images": [], "items": [], "answers": {}, "picks": [], "of": 0}
    if chosen.empty:
        return found
    found["of"] = int(chosen.groupby(COLUMN)["sample"].nunique().sum())
    items: dict[tuple[str, int], int] = {}
    images: dict[str, int] = {}
    facts = {(row["sample"], row["expression"]): row for row in chosen.to_dict("records")}
    count = 0
    for number, table in enumerate(tables):
        frame = table.group.frame
        frame = frame[frame["seed"] == frame.groupby(["pruner", "budget"])["seed"].transform("min")]
        frame = frame.merge(chosen[["sample", "expression"]], on=["sample", "expression"])
        frame = frame[frame["mask"].astype(bool) & frame["kept"].astype(bool) & frame["grid"].notna()]
        if frame.empty:
            continue
        bound = frame[frame["pruner"] == BOUND]
        for budget in sorted(set(frame["budget"]) - set(bound["budget"])):
            here = frame[frame["budget"] == budget]
            shown = pd.concat([bound, here])
            by_item = {key: part for key, part in shown.groupby(["sample", "expression"])}
            for line in table.lines:
                part = here[here["pruner"] == line.pruner]
                if line.budget != budget or part.empty:
                    continue
                for kind, key in _choose(part).items():
                    if key not in items:
                        items[key] = len(items)
                        found["items"].append(_item(facts[key], images))
                    name = f"{number}:{budget}:{items[key]}"
                    if name not in found["answers"]:
                        if count + len(by_item[key]) > ANSWERS:
                            continue
                        count += len(by_item[key])
                        found["answers"][name] = _answers(by_item[key], table, facts[key])
                    found["picks"].append([number, int(budget), line.pruner, kind, items[key]])
    found["images"] = [_address(runs, path) for path in images]
    return found


def _affordable(runs: Runs) -> pd.DataFrame:
    """Expressions whose image has a picture, split by split in turn until the pictures fill the page."""
    frame = runs.samples
    if frame.empty or "image" not in frame:
        return pd.DataFrame(columns=["run", *COLUMN, "sample"])
    frame = frame[frame["image"].astype(bool)].drop_duplicates(["sample", "expression"])
    one = frame.drop_duplicates("sample").copy()
    one["turn"] = one.groupby(COLUMN).cumcount()
    one = one.sort_values(["turn", *COLUMN], kind="stable")
    files = [
        _picture(runs.runs[int(run)].folder, str(image))
        for run, image in zip(one["run"], one["image"], strict=True)
    ]
    sizes = pd.Series([path.stat().st_size if path else 0 for path in files], index=one.index)
    kept = one[(sizes > 0) & (sizes.cumsum() <= BYTES)]
    return frame[frame["sample"].isin(kept["sample"])]


def _choose(part: pd.DataFrame) -> dict[str, tuple[str, int]]:
    """Kind to (sample, expression)."""
    ranked = part.sort_values(["iou", "sample", "expression"], kind="stable", ascending=[False, True, True])
    first = ranked.iloc[0]
    drawn = zlib.crc32(f"{first['pruner']} {first['budget']}".encode()) % len(ranked)
    places = {"best": 0, "median": len(ranked) // 2, "worst": len(ranked) - 1, "random": drawn}
    return {
        kind: (str(ranked["sample"].iloc[at]), int(ranked["expression"].iloc[at]))
        for kind, at in places.items()
    }


def _item(facts: dict[Any, Any], images: dict[str, int]) -> dict[str, Any]:
    path = f"{facts['run']}/{facts['image']}"
    return {
        "sample": facts["sample"],
        "expression": int(facts["expression"]),
        "text": facts["text"],
        "height": int(facts["height"]),
        "width": int(facts["width"]),
        "truth": facts["truth"],
        "image": images.setdefault(path, len(images)),
    }


def _answers(part: pd.DataFrame, table: Table, facts: dict[Any, Any]) -> list[dict[str, Any]]:
    order = {(line.pruner, line.budget): place for place, line in enumerate(table.lines)}
    places = [
        order[(str(pruner), int(budget))]
        for pruner, budget in zip(part["pruner"], part["budget"], strict=True)
    ]
    rows = part.assign(place=places).sort_values("place")[ANSWER].to_dict("records")
    found: list[dict[str, Any]] = []
    for row in rows:
        shown = {str(key): value for key, value in row.items()}
        shown["iou"] = round(100 * row["iou"], 1)
        shown["grid"] = [int(side) for side in row["grid"].split("x")]
        shown["regions"] = _regions(shown.pop("geometry"), int(facts["height"]), int(facts["width"]))
        shown["coverage"] = None if row["coverage"] != row["coverage"] else round(100 * row["coverage"], 1)
        found.append(shown)
    return found


def _regions(geometry: Any, height: int, width: int) -> list[list[float]]:
    """What the views cover of an image, four digits; none where the run does not say."""
    known = geometry if isinstance(geometry, str) else BEFORE
    return [[round(edge, 4) for edge in region] for region in regions(known, height, width)]


def _address(runs: Runs, path: str) -> str:
    number, _, name = path.partition("/")
    picture = _picture(runs.runs[int(number)].folder, name)
    return "data:image/jpeg;base64," + base64.b64encode(picture.read_bytes()).decode() if picture else ""


def _picture(folder: Path, name: str) -> Path | None:
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
