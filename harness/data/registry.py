"""Which data sets there are, and from names on the command line to samples."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

from harness.data import own, reasonseg, refer
from harness.data.dataset import DataSet, Splits, checked
from harness.data.own import OwnData
from harness.data.reasonseg import ReasonSeg
from harness.data.refclips.dataset import RefClips
from harness.data.refer import FOLDER, PUBLISHED, Refer
from harness.data.refshapes.dataset import RefShapes
from harness.data.refshapes.writer import SPLITS as REFSHAPES
from harness.data.sample import DataError, Sample
from harness.data.video import known as clips
from harness.data.video.davis import RefDavis
from harness.data.video.mevis import MeViS
from harness.data.video.youtube import RefYouTube
from harness.metrics.base import Medium
from harness.registry import InstanceRegistry
from pruners.base import nearest

ENTRY_POINTS = "groundprune.datasets"
REFSHAPES_COLUMNS = tuple((family, split) for family, held in REFSHAPES.items() for split in held)
REFCLIPS_COLUMNS = (("refclips-davis", "val"),)  # a board of it takes minutes; the others are named
# the eight columns of the published tables
COLUMNS = (
    *((family, split) for family in ("refcoco", "refcoco+") for split in ("val", "testA", "testB")),
    *(("refcocog", split) for split in ("val", "test")),
)


def _wrong(one: DataSet) -> str | None:
    if not re.fullmatch(r"[\w+.-]+", one.name):
        return "cannot be named so: a name is letters, digits and + . _ -"
    if one.medium not in ("image", "video"):
        return f"has the medium {one.medium!r}; a medium is image or video"
    return None


sets: InstanceRegistry[DataSet] = InstanceRegistry("data set", DataSet, "harness.data", ENTRY_POINTS, _wrong)
register, get, names, datasets = sets.register, sets.get, sets.names, sets.all
for _built_in in (RefShapes, Refer, ReasonSeg, OwnData, RefDavis, RefYouTube, MeViS, RefClips):
    register(_built_in)


def parse_datasets(
    text: str, root: str | Path | None = None, medium: Medium = "image"
) -> list[tuple[str, str]]:
    """Understand a list of splits.

    Args:
        text: comma-separated `dataset:split`, `dataset` (all its evaluation splits), or `all`: the eight
            columns of RefCOCO/+/g if `root` is given, all of it if there are ReasonSeg and own data alone,
            those of RefShapes without a root. Of clips `all` is all evaluation splits of
            `root`, or those of RefClips in the layout of Ref-DAVIS.
        root: folder with the official REFER layout, ReasonSeg, video or own data; RefShapes needs none.
        medium: what `all` is all of.

    Returns:
        (data set, split) pairs in the order given, without repetitions.

    Raises:
        DataError: an unknown data set or split, a root without data, or no root for a data set that needs
            one.
    """
    folder = _folder(root)
    pairs: dict[tuple[str, str], None] = {}
    for word in (part.strip() for part in text.split(",")):
        if word == "all":
            pairs |= dict.fromkeys(_all(folder, medium))
        elif word:
            dataset, colon, split = word.partition(":")
            evaluation, others = _splits(dataset, folder)
            if (split or colon or not evaluation) and split not in (*evaluation, *others):
                raise DataError(
                    f"{dataset} has no split '{split}', it has {', '.join((*evaluation, *others))}."
                    f"{nearest(split, evaluation)}"
                )
            pairs |= dict.fromkeys((dataset, name) for name in ([split] if split else evaluation))
    if not pairs:
        raise DataError("No data set is named; try --datasets refshapes:val or --datasets all.")
    return list(pairs)


def load_samples(
    dataset: str, split: str, root: str | Path | None = None, medium: Medium = "image"
) -> list[Sample]:
    """Samples of one split, in an order that does not change: images by their id.

    RefShapes is generated on first use, unless `root` holds it; what is not registered under its own name is
    read from `root`.

    Args:
        medium: what the caller can look at.

    Raises:
        DataError: an unknown data set or split, no root for a data set that needs one, files that are missing
            or damaged, or samples of another medium.
    """
    folder = _folder(root)
    one = _find(dataset, folder)
    if one.medium != medium:
        raise DataError(f"{dataset} holds samples of {one.medium}, and {medium} is what is looked at here.")
    return checked(one.load(dataset, split, folder), one, dataset, split)


def _folder(root: str | Path | None) -> Path | None:
    """The data folder, if it holds any data, or may hold those of a data set of others.

    Raises:
        DataError: it holds none.
    """
    if root is None:
        return None
    folder = Path(root)
    others = own.own_names(folder) or reasonseg.found(folder) or clips.names(folder)
    if not others and all(type(one).__module__.startswith("harness.") for one in sets.all()):
        try:
            refer.refer_names(folder)
        except DataError as error:
            hints = own.hint(folder), reasonseg.hint(folder), clips.hint(folder)
            raise DataError(f"{error}{''.join(hints)}") from None
    return folder


def medium_of(dataset: str, root: str | Path | None = None) -> Medium:
    """What a data set's samples are.

    Raises:
        DataError: there is no such data set.
    """
    return _find(dataset, _folder(root)).medium


def _all(root: Path | None, medium: Medium) -> Iterable[tuple[str, str]]:
    if medium == "video" and root is None:
        return REFCLIPS_COLUMNS
    if medium == "video":
        found = [one for one in sets.all() if one.medium == medium and not one.generated]
        return [
            (dataset, split)
            for one in found
            for dataset in one.names(root)
            for split in one.splits(dataset, root).evaluation
        ]
    held = get(Refer.name).names(root)
    if root is None or held == sorted(REFSHAPES):
        return REFSHAPES_COLUMNS
    if held:
        return COLUMNS
    names = [*([reasonseg.NAME] if reasonseg.found(root) else []), *own.own_names(root)]
    names = names or clips.names(root)
    return [(dataset, split) for dataset in names for split in _splits(dataset, root).evaluation]


def _splits(dataset: str, root: Path | None) -> Splits:
    return _find(dataset, root).splits(dataset, root)


def _find(dataset: str, root: Path | None) -> DataSet:
    """What loads a data set; a published one is left to its reader, which says what is missing.

    Raises:
        DataError: nothing does, or two do.
    """
    name = refer.split_name(dataset)[0]
    found = [one for one in sets.all() if one.holds(dataset, root)]
    if len(found) > 1:
        raise DataError(
            f"'{dataset}' is a data set of {found[0].name} and one of {found[1].name}; give one of them "
            f"another name."
        )
    if found:
        return found[0]
    if name in PUBLISHED and root is None:
        raise DataError(
            f"{dataset} is not shipped; name the folder that holds {FOLDER}/{name} with --data DIR."
        )
    if name in PUBLISHED:
        return get(Refer.name)
    known = dict.fromkeys([*REFSHAPES, *PUBLISHED, *(held for one in sets.all() for held in one.names(root))])
    raise DataError(
        f"Unknown data set '{dataset}', there are {', '.join(known)}.{nearest(name, known)}"
        + (" Own data need --data DIR." if root is None else "")
    )
