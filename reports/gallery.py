"""Which samples the page shows, and what every pruner kept and painted there."""

from __future__ import annotations

import base64
import zlib
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

BYTES = 2_500_000  # of pictures in a page
PICTURES = "images"  # folder of a run
ANSWERS = 6_000  # masks in a page; of a clip one per frame that is shown
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
Shots = dict[
    tuple[int, str], list[tuple[int, str]]
]  # (run, image) -> frames that have a picture, and its path


def pictures(runs: Runs, tables: list[Table]) -> dict[str, Any]:
    """Per pruner and budget its best, median, worst and a random expression, with the answers of all pruners
    to each.

    Returns:
        `images`: addresses; `items`: expressions with their truth; `answers`: per table, budget and item the
        answers; `picks`: (table, budget, pruner, kind, item); `of`: number of images that they are chosen
        from, and `clips`: of clips.
    """
    chosen, shots = _affordable(runs)
    found: dict[str, Any] = {"images": [], "items": [], "answers": {}, "picks": [], "of": 0, "clips": 0}
    if chosen.empty:
        return found
    for name, part in (("of", chosen[chosen["frames"] == 1]), ("clips", chosen[chosen["frames"] > 1])):
        found[name] = int(part.groupby(COLUMN)["sample"].nunique().sum())
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
                        found["items"].append(_item(facts[key], shots, images))
                    name = f"{number}:{budget}:{items[key]}"
                    if name not in found["answers"]:
                        masks = len(by_item[key]) * len(_shots(facts[key], shots))
                        if count + masks > ANSWERS:
                            continue
                        count += masks
                        found["answers"][name] = _answers(by_item[key], table, facts[key], shots)
                    found["picks"].append([number, int(budget), line.pruner, kind, items[key]])
    found["images"] = [_address(runs, path) for path in images]
    return found


def _affordable(runs: Runs) -> tuple[pd.DataFrame, Shots]:
    """Expressions whose image has a picture, split by split in turn until the pictures fill the page, where
    all frames of a clip count; and the pictures of each."""
    frame = runs.samples
    if frame.empty or "image" not in frame:
        return pd.DataFrame(columns=["run", *COLUMN, "sample", "frames"]), {}
    frames = runs.frame.groupby("sample")["frames"].max()
    frame = frame.assign(frames=frame["sample"].map(frames).fillna(1).astype(int))
    frame = frame[frame["image"].astype(bool)].drop_duplicates(["sample", "expression"])
    one = frame.drop_duplicates("sample").copy()
    one["turn"] = one.groupby(COLUMN).cumcount()
    one = one.sort_values(["turn", *COLUMN], kind="stable")
    shots: Shots = {}
    sizes = []
    for run, image, count in zip(one["run"], one["image"], one["frames"], strict=True):
        there = [
            (number, name, path.stat().st_size)
            for number, name in pictured(str(image), int(count))
            if (path := recorded_picture(runs.runs[int(run)].folder, name))
        ]
        shots[int(run), str(image)] = [(number, name) for number, name, _ in there]
        sizes.append(sum(size for _, _, size in there))
    known = pd.Series(sizes, index=one.index)
    kept = one[(known > 0) & (known.cumsum() <= BYTES)]
    return frame[frame["sample"].isin(kept["sample"])], shots


def _shots(facts: dict[Any, Any], shots: Shots) -> list[tuple[int, str]]:
    return shots[int(facts["run"]), str(facts["image"])]


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


def _item(facts: dict[Any, Any], shots: Shots, images: dict[str, int]) -> dict[str, Any]:
    """An expression with its truth; of a clip `frames` say what there is of each frame that is shown, and
    `points` at which frames curves are drawn."""
    found = {
        "sample": facts["sample"],
        "expression": int(facts["expression"]),
        "text": facts["text"],
        "height": int(facts["height"]),
        "width": int(facts["width"]),
        "truth": facts["truth"],
    }
    if facts["frames"] == 1:
        return found | {"image": _place(facts, facts["image"], images)}
    truth = str(facts["truth"]).split(BETWEEN)
    there = _shots(facts, shots)
    return found | {
        "truth": "",
        "length": facts["frames"],
        "frames": [
            {
                "number": number,
                "truth": truth[number],
                "image": _place(facts, name, images),
            }
            for number, name in there
        ],
        "points": points(facts["frames"], [number for number, _ in there]),
    }


def _place(facts: dict[Any, Any], name: str, images: dict[str, int]) -> int:
    """Number of a picture on the page."""
    return images.setdefault(f"{facts['run']}/{name}", len(images))


def _answers(part: pd.DataFrame, table: Table, facts: dict[Any, Any], shots: Shots) -> list[dict[str, Any]]:
    order = {(line.pruner, line.budget): place for place, line in enumerate(table.lines)}
    places = [
        order[(str(pruner), int(budget))]
        for pruner, budget in zip(part["pruner"], part["budget"], strict=True)
    ]
    found: list[dict[str, Any]] = []
    numbers = [number for number, _ in _shots(facts, shots)]
    for row in part.assign(place=places).sort_values("place").to_dict("records"):
        shown = {name: row[name] for name in ANSWER}
        shown["iou"] = round(100 * row["iou"], 1)
        shown["grid"] = [int(side) for side in row["grid"].split("x")]
        shown["regions"] = _regions(shown.pop("geometry"), int(facts["height"]), int(facts["width"]))
        shown["coverage"] = None if row["coverage"] != row["coverage"] else round(100 * row["coverage"], 1)
        if facts["frames"] == 1:
            kept = kept_tokens(str(row["kept"]), int(row["views"]) * shown["grid"][0] * shown["grid"][1])
            patches = int(kept.sum())
            shown |= {"kept": packed(lit(kept)), "patches": patches}
            shown["told"] = kept_words(int(row["tokens_final"]), patches)
        else:
            shown |= clip_answer(row, len(shown["regions"]), numbers, points(facts["frames"], numbers))
            del shown["mask"], shown["kept"]  # of all frames and views
        found.append(shown)
    return found


def _regions(geometry: Any, height: int, width: int) -> list[list[float]]:
    """What the views cover of an image, four digits; none where the run does not say."""
    known = geometry if isinstance(geometry, str) else BEFORE
    return [[round(edge, 4) for edge in region] for region in regions(known, height, width)]


def _address(runs: Runs, path: str) -> str:
    number, _, name = path.partition("/")
    picture = recorded_picture(runs.runs[int(number)].folder, name)
    return "data:image/jpeg;base64," + base64.b64encode(picture.read_bytes()).decode() if picture else ""


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
