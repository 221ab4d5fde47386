"""Data sets: which there are, where they come from, and their samples.

RefShapes generates itself; everything else is read from the official REFER layout below the folder that
`--data` names.
"""

from __future__ import annotations

from pathlib import Path

from harness.data.refer import FOLDER, load_refer, names, split_name, splits
from harness.data.refshapes.writer import SPLITS as REFSHAPES
from harness.data.refshapes.writer import prepare
from harness.data.sample import Annotation, DataError, Expression, Sample, content, fingerprint
from pruners.base import nearest

__all__ = [
    "COLUMNS",
    "REFSHAPES_COLUMNS",
    "Annotation",
    "DataError",
    "Expression",
    "Sample",
    "content",
    "fingerprint",
    "load",
    "load_refer",
    "parse_datasets",
    "prepare",
]

REFSHAPES_COLUMNS = tuple((family, split) for family, held in REFSHAPES.items() for split in held)
# the eight columns of the published tables
COLUMNS = (
    *((family, split) for family in ("refcoco", "refcoco+") for split in ("val", "testA", "testB")),
    *(("refcocog", split) for split in ("val", "test")),
)


def parse_datasets(text: str, root: str | Path | None = None) -> list[tuple[str, str]]:
    """Understand a list of splits.

    Args:
        text: comma-separated `dataset:split`, `dataset` (all its evaluation splits), or `all`: the eight
            columns of RefCOCO/+/g if `root` is given, those of RefShapes if not.
        root: folder with the official REFER layout; RefShapes needs none.

    Returns:
        (data set, split) pairs in the order given, without repetitions.

    Raises:
        DataError: an unknown data set or split, a root without data, or no root for a data set that needs
            one.
    """
    held = names(Path(root)) if root is not None else []
    pairs: dict[tuple[str, str], None] = {}
    for word in (part.strip() for part in text.split(",")):
        if word == "all":
            pairs |= dict.fromkeys(
                REFSHAPES_COLUMNS if root is None or held == sorted(REFSHAPES) else COLUMNS
            )
        elif word:
            dataset, colon, split = word.partition(":")
            own, more = _splits(dataset, root)
            if (split or colon or not own) and split not in (*own, *more):
                raise DataError(
                    f"{dataset} has no split '{split}', it has {', '.join((*own, *more))}.{nearest(split, own)}"
                )
            pairs |= dict.fromkeys((dataset, name) for name in ([split] if split else own))
    if not pairs:
        raise DataError("No data set is named; try --datasets refshapes:val or --datasets all.")
    return list(pairs)


def load(dataset: str, split: str, root: str | Path | None = None) -> list[Sample]:
    """Samples of one split, ordered by image id.

    RefShapes is generated on first use, unless `root` holds it; everything else is read from `root`.

    Raises:
        DataError: as load_refer, or no root for a data set that needs one.
    """
    return load_refer(prepare() if _generated(dataset, root) else _needed(dataset, root), dataset, split)


def _generated(dataset: str, root: str | Path | None) -> bool:
    return dataset in REFSHAPES and (root is None or dataset not in names(Path(root)))


def _needed(dataset: str, root: str | Path | None) -> Path:
    """The root, if the data set can be there; what the reader finds missing, it says itself."""
    name = split_name(dataset)[0]
    published = [*dict.fromkeys(column for column, _ in COLUMNS), "grefcoco"]
    if root is not None and name in (*published, *names(Path(root))):
        return Path(root)
    if name in published:
        raise DataError(
            f"{dataset} is not shipped; name the folder that holds {FOLDER}/{name} with --data DIR."
        )
    known = [*REFSHAPES, *published, *(names(Path(root)) if root is not None else [])]
    raise DataError(
        f"Unknown data set '{dataset}', there are {', '.join(dict.fromkeys(known))}.{nearest(name, known)}"
    )


def _splits(dataset: str, root: str | Path | None) -> tuple[list[str], list[str]]:
    """A data set's evaluation splits, and what may be asked for besides: 'train', and 'test' for all tests
    together."""
    if _generated(dataset, root):
        own: list[str] = list(REFSHAPES[dataset])
        more: list[str] = []
    else:
        own, more = splits(_needed(dataset, root), dataset)
    if "test" not in own and any(name.startswith("test") for name in own):
        more.append("test")
    return own, more
