"""Which expressions of a run a file of labels speaks of, and what it says of each."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import pandas as pd
from pycocotools import mask as coco_mask

from backbones.parts.clips import BETWEEN, run_lengths
from harness.data.sample import Annotation, DamagedSegmentation
from harness.labels.base import BadLabels, Box, Label, Labels, plain
from harness.store.rows import image_of
from pruners.base import nearest

# a box agrees with the recorded mask's if they share this much of what they cover together. The object of a
# sentence is the same whoever drew it; another object of the same words in the same image is elsewhere.
AGREES = 0.5
KEPT, DROPPED, UNKNOWN, ELSEWHERE = "kept", "dropped", "not in the file", "box elsewhere"
EXAMPLES = 5
IMAGE = re.compile(r"[0-9]{1,18}")  # COCO's number
Key = tuple[str, int]  # sample, expression


@dataclass(frozen=True)
class Joined:
    """What a file says of a run's expressions.

    Attributes:
        columns: (data set, split) that the file speaks of and the run has.
        found: expressions by KEPT, DROPPED (by the file), UNKNOWN (the file does not hold them), ELSEWHERE
            (it does, for an object with another box).
        examples: some of each but the kept ones, in words.
        kept: samples and expressions that count.
        truths: run lengths of the masks that the file gives of them.
        unused: labels of the file that no expression of the run has.
        lost: some of these, in words.
    """

    columns: tuple[tuple[str, str], ...]
    found: Counter[str]
    examples: Mapping[str, Sequence[str]]
    kept: frozenset[Key] = field(repr=False)
    truths: Mapping[Key, str] = field(repr=False)
    unused: int
    lost: Sequence[str]


def answered(samples: pd.DataFrame, frame: pd.DataFrame) -> pd.DataFrame:
    """The expressions that a run answered: a protocol may ask a few of each image's.

    Args:
        samples, frame: as `harness.store.records.samples` and `load_records`.
    """
    keys = ["sample", "expression"]
    known = pd.MultiIndex.from_frame(frame[keys].drop_duplicates())
    return samples[pd.MultiIndex.from_frame(samples[keys]).isin(known)].reset_index(drop=True)


def join(labels: Labels, samples: pd.DataFrame) -> Joined:
    """Find the expressions that labels speak of.

    Args:
        samples: as `harness.store.records.samples`, of one or several runs.

    Raises:
        BadLabels: the run has none of them, an id is not the run's or of several samples, or a mask is none.
    """
    asked = samples.drop_duplicates(["sample", "expression", "text", "truth"])
    twice = asked.duplicated(["sample", "expression"])
    if twice.any():
        first = asked[twice].iloc[0]
        raise BadLabels(
            f"The runs say different things of expression {first['expression']} of {first['sample']}; report "
            f"them one by one."
        )
    if labels.by_id:
        return _by_id(labels, asked)
    return _by_text(labels, asked)


# -- by sentence


def _by_text(labels: Labels, asked: pd.DataFrame) -> Joined:
    columns = asked[["dataset", "split"]].drop_duplicates().itertuples(index=False, name=None)
    held = sorted(columns)
    mine = [
        (dataset, split)
        for dataset, split in held
        if dataset in (labels.datasets or ()) and split in (labels.splits or ())
    ]
    if not mine:
        wanted = f"{(labels.datasets or ('?',))[0]}:{(labels.splits or ('?',))[0]}"
        there = [":".join(column) for column in held]
        raise BadLabels(
            f"{labels.name} in {str(labels.path)!r} is about {wanted}, which the run does not have; it has "
            f"{', '.join(there)}.{nearest(wanted, there)}"
        )
    book = _Book()
    used: set[tuple[int, str, int]] = set()
    for column in mine:
        part = asked[(asked["dataset"] == column[0]) & (asked["split"] == column[1])]
        for (image, text), rows in _spoken(part).items():
            candidates = labels.by_text.get((image, text), ())
            for row, label in zip(rows, _matched(rows, candidates), strict=True):
                if label is None:
                    book.add(ELSEWHERE if candidates else UNKNOWN, row)
                    continue
                used.add((image, text, id(label)))
                book.add(KEPT if label.keep else DROPPED, row)
                if label.keep and label.truth is not None:
                    book.truths[row["sample"], row["expression"]] = _truth(labels, label, row)
    free = [
        f"{text!r} of {label.where}"
        for (image, text), given in labels.by_text.items()
        for label in given
        if (image, text, id(label)) not in used
    ]
    return book.closed(labels, tuple(mine), len(free), free[:EXAMPLES])


def _spoken(part: pd.DataFrame) -> dict[tuple[int, str], list[dict[str, Any]]]:
    """Rows by image and sentence, in the order of their ids."""
    found: dict[tuple[int, str], list[dict[str, Any]]] = {}
    wanted = ["sample", "expression", "text", "truth", "height", "width"]
    for row in part.sort_values(["sample", "expression"])[wanted].to_dict("records"):
        image = image_of(row["sample"])
        found.setdefault((int(image) if IMAGE.fullmatch(image) else -1, plain(row["text"])), []).append(
            {str(name): value for name, value in row.items()}
        )
    return found


def _matched(rows: Sequence[Mapping[str, Any]], candidates: Sequence[Label]) -> list[Label | None]:
    """A label for each of the rows that share image and sentence: the one whose box fits best, each once
    while there are others that fit as well; None where no box agrees."""
    taken: set[int] = set()
    found: list[Label | None] = []
    for row in rows:
        here = _box_of(row)
        fits = [_overlap(here, label.box) for label in candidates]
        best = max(fits, default=0.0)
        if best < AGREES:
            found.append(None)
            continue
        as_good = [label for label, fit in zip(candidates, fits, strict=True) if fit > best - 1e-9]
        label = next((one for one in as_good if id(one) not in taken), as_good[0])
        taken.add(id(label))
        found.append(label)
    return found


def _box_of(row: Mapping[str, Any]) -> Box:
    """That of the recorded mask."""
    runs = {"size": [int(row["height"]), int(row["width"])], "counts": row["truth"].encode()}
    left, top, width, height = map(float, coco_mask.toBbox(runs))
    return left, top, width, height


def _overlap(one: Box, other: Box | None) -> float:
    """Intersection over union of two boxes; 1 where the file has none."""
    if other is None:
        return 1.0
    wide = min(one[0] + one[2], other[0] + other[2]) - max(one[0], other[0])
    high = min(one[1] + one[3], other[1] + other[3]) - max(one[1], other[1])
    shared = max(wide, 0.0) * max(high, 0.0)
    joined = one[2] * one[3] + other[2] * other[3] - shared
    return shared / joined if joined else 0.0


# -- by id


def _by_id(labels: Labels, asked: pd.DataFrame) -> Joined:
    samples = {name: part for name, part in asked.groupby("sample", sort=False)}
    of: dict[int, list[str]] = {}
    for sample, expression in asked[["sample", "expression"]].itertuples(index=False):
        of.setdefault(int(expression), []).append(sample)
    meant: dict[Key, Label] = {}
    lost: list[str] = []
    for (sample, expression), label in labels.by_id.items():
        if sample is None:
            places = of.get(int(expression or 0), [])
            if len(places) > 1:
                raise BadLabels(
                    f"Expression {expression} ({label.where} of {str(labels.path)!r}) is in {len(places)} "
                    f"samples of the run, {places[0]} the first; name the sample beside it."
                )
            keys = [(place, int(expression or 0)) for place in places]
        elif sample not in samples:
            _check_split(labels, label, sample, asked)
            keys = []
        else:
            there = set(samples[sample]["expression"])
            keys = [(sample, one) for one in sorted(there) if expression in (None, one)]
        if not keys:
            lost.append(" ".join(str(one) for one in (sample, expression) if one is not None))
        for key in keys:
            if key in meant:
                raise BadLabels(
                    f"{label.where} of {str(labels.path)!r} names expression {key[1]} of {key[0]} again, "
                    f"which {meant[key].where} names; leave one out."
                )
            meant[key] = label
    book = _Book()
    touched = asked[asked["sample"].isin({sample for sample, _ in meant})]
    columns = touched[["dataset", "split"]].drop_duplicates()
    mine = asked.merge(columns, on=["dataset", "split"])
    for row in mine.to_dict("records"):
        given = meant.get((row["sample"], row["expression"]))
        book.add(UNKNOWN if given is None else KEPT, row)
        if given is not None and given.truth is not None:
            book.truths[row["sample"], row["expression"]] = _truth(labels, given, row)
    return book.closed(
        labels, tuple(sorted(columns.itertuples(index=False, name=None))), len(lost), lost[:EXAMPLES]
    )


def _check_split(labels: Labels, label: Label, sample: str, asked: pd.DataFrame) -> None:
    """Raise BadLabels if the split that a sample names is none of the run's."""
    dataset, split, _ = sample.split(":", 2)
    held = sorted({f"{one}:{other}" for one, other in asked[["dataset", "split"]].itertuples(index=False)})
    if f"{dataset}:{split}" not in held:
        raise BadLabels(
            f"{label.where} of {str(labels.path)!r} is of {dataset}:{split}, which the run does not have; "
            f"it has {', '.join(held)}.{nearest(f'{dataset}:{split}', held)}"
        )


# -- both


class _Book:
    """Counts what becomes of the expressions."""

    def __init__(self) -> None:
        self.truths: dict[Key, str] = {}
        self._found: Counter[str] = Counter()
        self._examples: dict[str, list[str]] = {}
        self._kept: set[Key] = set()

    def add(self, what: str, row: Mapping[Any, Any]) -> None:
        """Count an expression."""
        self._found[what] += 1
        if what == KEPT:
            self._kept.add((row["sample"], int(row["expression"])))
        elif len(some := self._examples.setdefault(what, [])) < EXAMPLES:
            some.append(f"{row['text']!r} ({row['sample']}, {row['expression']})")

    def closed(
        self, labels: Labels, columns: tuple[tuple[str, str], ...], unused: int, lost: Sequence[str]
    ) -> Joined:
        """The whole account.

        Raises:
            BadLabels: nothing counts, or some of what counts has a mask of the file's and some has none.
        """
        if not self._kept:
            told = ", ".join(f"{count} {what}" for what, count in self._found.items())
            raise BadLabels(
                f"None of the {labels.count} labels in {str(labels.path)!r} keeps an expression of the run "
                f"({told or 'none is found there'}); look whether it is of the same data set and split."
            )
        if self.truths and (bare := sorted(self._kept - self.truths.keys())):
            raise BadLabels(
                f"{str(labels.path)!r} gives masks of {len(self.truths)} expressions and none of "
                f"{len(bare)}, "
                f"{bare[0][1]} of {bare[0][0]} the first; scores of both kinds do not add up, so give "
                f"masks of all or of none."
            )
        return Joined(columns, self._found, self._examples, frozenset(self._kept), self.truths, unused, lost)


def _truth(labels: Labels, label: Label, row: Mapping[Any, Any]) -> str:
    """Run lengths of a label's mask.

    Raises:
        BadLabels: it is none of an image of this size.
    """
    if BETWEEN in row["truth"]:
        raise BadLabels(
            f"{label.where} of {str(labels.path)!r} gives a mask of {row['sample']}, which is a clip; leave "
            f"truth out, as only images take other masks."
        )
    height, width = int(row["height"]), int(row["width"])
    try:
        mask = Annotation(int(row["expression"]), label.truth).mask(height, width)
    except DamagedSegmentation as error:
        reason = str(error).partition("(")[2].removesuffix(")")
        raise BadLabels(
            f"The mask of {label.where} in {str(labels.path)!r} is none of {row['sample']}, "
            f"{width}x{height} px ({reason}); mend it, or download the file again."
        ) from None
    return run_lengths(mask > 0)
