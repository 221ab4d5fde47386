"""Own data: a folder with images, COCO-style annotations and a list of expressions.

    DIR/<name>/images/...
    DIR/<name>/annotations.json
    DIR/<name>/expressions.csv (or expressions.jsonl)

`docs/own-data.md` says what stands in them. Every line of the list is used or refused in a sentence.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from harness.data.coco import Picture, below, load_instances, picture, shallow, whole
from harness.data.dataset import DataSet, Splits
from harness.data.expressions import IMAGES, ExpressionLine, LineFault, read_expressions
from harness.data.reasonseg import NAME as REASONSEG
from harness.data.refer import PUBLISHED
from harness.data.sample import DataError, Expression, Joined, Sample
from pruners.base import nearest

ANNOTATIONS = "annotations.json"
LISTS = ("expressions.csv", "expressions.jsonl")
LAYOUT = f"{{{IMAGES}/, {ANNOTATIONS}, {LISTS[0]}}}"
MOST_COMPARED = 2000  # names among which the nearest is looked for
MOST_HINTS = 20  # faults for which a name is looked for at all


Near = Callable[[str, Iterable[str]], str]


class OwnData(DataSet):
    """The data sets of a data folder that are laid out as own data."""

    name = "own"
    reference = "docs/own-data.md"
    told = "a folder of yours of any name below --data DIR, see docs/own-data.md"

    def names(self, root: Path | None) -> list[str]:
        return [] if root is None else own_names(root)

    def splits(self, dataset: str, root: Path | None) -> Splits:
        held = list(dict.fromkeys(row.split for row in _sound(Path(root or ""), dataset).rows))
        return Splits(
            [split for split in held if split != "train"], [split for split in held if split == "train"]
        )

    def load(self, dataset: str, split: str, root: Path | None) -> list[Sample]:
        return load_own(Path(root or ""), dataset, split)


@dataclass(frozen=True)
class _Files:
    """What a data set's two files hold.

    Attributes:
        listed: the file with the expressions.
        pictures: by their path below the image folder, those that a row names.
        annotations: by their id, those that a row names.
        faults: lines that cannot be used, in order.
    """

    listed: Path
    rows: list[ExpressionLine]
    pictures: dict[str, Picture]
    annotations: dict[int, Joined]
    faults: list[LineFault]


def own_names(root: Path) -> list[str]:
    """Folders below `root` that hold a list of expressions or `annotations.json`, sorted; none if there is no
    such folder."""
    return sorted({file.parent.name for kind in (*LISTS, ANNOTATIONS) for file in root.glob(f"*/{kind}")})


def hint(root: Path) -> str:
    """What to tell who gave a data folder without data."""
    if any((root / kind).is_file() for kind in (*LISTS, ANNOTATIONS)):
        return f" '{root}' is itself own data: give --data its parent, '{root.absolute().parent}'."
    return f" Own data are '{root}/NAME/{LAYOUT}', see docs/own-data.md." if root.is_dir() else ""


def load_own(root: Path, dataset: str, split: str) -> list[Sample]:
    """Read one split.

    Args:
        root: the folder that holds the data set's folder.
        split: as the list of expressions has it.

    Returns:
        One sample per image, ordered by image id.

    Raises:
        DataError: a file is missing or damaged, a line cannot be used, or there is no such split.
    """
    files = _sound(root, dataset)
    by_image: dict[str, list[ExpressionLine]] = {}
    for row in files.rows:
        if row.split == split:
            by_image.setdefault(row.image, []).append(row)
    if not by_image:
        held = list(dict.fromkeys(row.split for row in files.rows))
        raise DataError(f"{dataset} has no split {split!r}, it has {', '.join(held)}.{nearest(split, held)}")
    ordered = sorted(by_image, key=lambda name: files.pictures[name].id)
    return [_sample(root, dataset, split, files, name, by_image[name]) for name in ordered]


def faults(root: Path, dataset: str) -> Iterator[str]:
    """Every line that cannot be used, as a sentence.

    Raises:
        DataError: the files are not there, or nothing in one of them can be understood.
    """
    files = _read(root, dataset)
    for fault in files.faults:
        yield f"{files.listed}:{fault.line} {fault.what}."


def _sample(
    root: Path, dataset: str, split: str, files: _Files, name: str, rows: list[ExpressionLine]
) -> Sample:
    image = files.pictures[name]
    return Sample(
        id=f"{dataset}:{split}:{image.id}",
        dataset=dataset,
        split=split,
        image_id=image.id,
        frames=(root / dataset / IMAGES / name,),
        expressions=tuple(
            Expression(row.line, row.expression, row.annotations[0] if row.annotations else -1, row.group)
            for row in rows
        ),
        height=image.height,
        width=image.width,
        targets=tuple(tuple(files.annotations[number] for number in row.annotations) for row in rows),
        cluster=f"{dataset}/{IMAGES}/{name}",
        source=ANNOTATIONS,
    )


def _sound(root: Path, dataset: str) -> _Files:
    """The files, of which every line can be used.

    Raises:
        DataError: one cannot; the first is named.
    """
    files = _read(root, dataset)
    if files.faults:
        first = files.faults[0]
        more = (
            f" ({len(files.faults) - 1} more lines cannot be used; `python -m harness doctor --data "
            f"{root}` names them)"
            if len(files.faults) > 1
            else ""
        )
        raise DataError(f"{files.listed}:{first.line} {first.what}{more}.")
    if not files.rows:
        raise DataError(f"'{files.listed}' lists no expression; write one line for each.")
    return files


def _read(root: Path, dataset: str) -> _Files:
    folder = root / dataset
    if dataset in (*PUBLISHED, REASONSEG):
        raise DataError(
            f"'{folder}' has the name of a published data set, whose printed numbers are not of these "
            f"data; rename the folder."
        )
    lists = [folder / name for name in LISTS if (folder / name).is_file()]
    if len(lists) != 1:
        what = "both " + " and ".join(LISTS) if lists else f"no {' or '.join(LISTS)}"
        raise DataError(f"'{folder}' holds {what}; it takes one, see docs/own-data.md.")
    annotations = folder / ANNOTATIONS
    if not annotations.is_file():
        others = sorted(path.name for path in folder.glob("*.json"))
        raise DataError(
            f"'{annotations}' is missing" + (f", and there is {others[0]}" if others else "") + "; "
            f"expected {folder}/{LAYOUT}."
        )
    return _checked(folder, lists[0], annotations, _stamp(lists[0]), _stamp(annotations))


def _stamp(path: Path) -> tuple[int, int]:
    state = path.stat()
    return state.st_mtime_ns, state.st_size


@lru_cache(maxsize=4)
def _checked(folder: Path, listed: Path, annotations: Path, *stamps: tuple[int, int]) -> _Files:
    """Both files, every row held to what it names; the stamps only make the memory forget a file that has
    changed."""
    rows, found = read_expressions(listed)
    named = _Names(rows)
    with load_instances(annotations) as content:
        for record in content["images"]:
            named.picture(record)
        for record in content["annotations"]:
            named.annotation(record)
    good: list[ExpressionLine] = []
    first: dict[tuple[Any, ...], int] = {}
    splits: dict[str, ExpressionLine] = {}
    absent = {name for name in named.pictures if not (folder / IMAGES / name).is_file()}
    for row in rows:
        near = _near if len(found) < MOST_HINTS else _nothing
        same = (row.split, row.image, row.expression.strip(), frozenset(row.annotations), row.group)
        if why := named.wrong(row, near):
            found.append(LineFault(row.line, why))
        elif row.image in absent:
            there = near(row.image, _beside(folder / IMAGES / row.image))
            found.append(
                LineFault(
                    row.line, f"names the image {row.image!r}, which is not in '{folder / IMAGES}'{there}"
                )
            )
        elif first.setdefault(same, row.line) != row.line:
            found.append(LineFault(row.line, f"says the same as line {first[same]}; take one of them out"))
        elif (one := splits.setdefault(row.split.casefold(), row)).split != row.split:
            found.append(
                LineFault(
                    row.line, f"has the split '{row.split}', which line {one.line} writes '{one.split}'"
                )
            )
        else:
            good.append(row)
    found.sort(key=lambda fault: fault.line)
    return _Files(listed, good, named.pictures, named.annotations, found)


class _Names:
    """The images and annotations that rows name; what none names may be as it likes."""

    def __init__(self, rows: list[ExpressionLine]) -> None:
        self._wanted = {row.image for row in rows}
        self._numbers = {number for row in rows for number in row.annotations}
        self._listed: dict[int, str] = {}  # every image id to the name, as far as it has one
        self._owners: dict[int, int] = {}
        self.pictures: dict[str, Picture] = {}
        self.annotations: dict[int, Joined] = {}

    def picture(self, record: Any) -> None:
        """Take an image record.

        Raises:
            KeyError, TypeError, ValueError: it is none, or one of its id or name was there before.
        """
        number = whole(record, "id")
        if number in self._listed:
            raise ValueError(f"two images have the id {number}")
        self._listed[number] = str(record["file_name"])
        try:
            name = below(record["file_name"], (IMAGES,))
        except ValueError:
            return  # no row can name it
        self._listed[number] = name
        if name in self.pictures:
            raise ValueError(f"images {self.pictures[name].id} and {number} are both named '{name}'")
        if name in self._wanted:
            self.pictures[name] = picture(number, record, (IMAGES,))

    def annotation(self, record: Any) -> None:
        """Take an annotation record.

        Raises:
            KeyError, TypeError, ValueError: it is none, or one of its id was there before.
        """
        number = whole(record, "id")
        if number not in self._numbers:
            return
        if number in self.annotations:
            raise ValueError(f"two annotations have the id {number}")
        self._owners[number] = whole(record, "image_id")
        self.annotations[number] = Joined(number, shallow(number, record["segmentation"]))

    def wrong(self, row: ExpressionLine, near: Near) -> str | None:
        """What a row names that is not there, as the end of a sentence."""
        image = self.pictures.get(row.image)
        if image is None:
            there = near(row.image, self._listed.values())
            return f"names the image {row.image!r}, which {ANNOTATIONS} does not list{there}"
        for number in row.annotations:
            if number not in self.annotations:
                return f"names annotation {number}, which {ANNOTATIONS} does not hold"
            if (owner := self._owners[number]) != image.id:
                where = (
                    repr(self._listed[owner])
                    if owner in self._listed
                    else f"of id {owner}, which is not listed"
                )
                return (
                    f"names annotation {number} for the image {row.image!r}, which {ANNOTATIONS} has in the "
                    f"image {where}"
                )
        return None


def _near(name: str, others: Iterable[str]) -> str:
    """A name that may be meant, in words: one that differs in case or folder alone, or the nearest."""
    known = list(others)
    last = name.rpartition("/")[2].casefold()
    same = next((other for other in known if other.rpartition("/")[2].casefold() == last), None)
    if same is not None:
        return f" (there is {same!r})"
    close = nearest(name, known) if len(known) <= MOST_COMPARED else ""
    return f" ({close.strip()})" if close else ""


def _nothing(name: str, others: Iterable[str]) -> str:
    """Stands in for `_near` where so much is wrong that nobody reads it all."""
    return ""


def _beside(file: Path) -> list[str]:
    """The names in a file's folder."""
    return sorted(os.listdir(file.parent)) if file.parent.is_dir() else []
