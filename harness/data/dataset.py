"""What a data set is to the harness: names, splits and samples; and the check of what one returns."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar, NamedTuple

from harness.data.sample import DataError, Sample
from harness.metrics.base import Medium
from pruners.registry import source_of


class Splits(NamedTuple):
    """Names of splits.

    Attributes:
        evaluation: those that the data set's name alone stands for on the command line.
        others: what may be asked for besides, e.g. train.
    """

    evaluation: list[str]
    others: list[str]


class DataSet(ABC):
    """One data set, or a layout of folders in which several lie.

    Attributes:
        name: of the data set, or of the layout.
        reference: where it comes from.
        medium: what its samples are.
        generated: whether it makes itself, so that `all` of a data folder leaves it out.
        told: how to get at it, for `python -m harness list`; without, the reference is shown.
    """

    name: ClassVar[str]
    reference: ClassVar[str]
    medium: ClassVar[Medium] = "image"
    generated: ClassVar[bool] = False
    told: ClassVar[str] = ""

    def names(self, root: Path | None) -> list[str]:
        """The data sets that can be loaded from a data folder, sorted; its own name alone by default.

        Args:
            root: what `--data` names; None without it.
        """
        return [self.name]

    def holds(self, dataset: str, root: Path | None) -> bool:
        """Whether a name on the command line is one of its data sets."""
        return dataset in self.names(root)

    @abstractmethod
    def splits(self, dataset: str, root: Path | None) -> Splits:
        """The splits of one of its data sets.

        Raises:
            DataError: files are missing or damaged.
        """

    @abstractmethod
    def load(self, dataset: str, split: str, root: Path | None) -> list[Sample]:
        """The samples of one split, in an order that does not change.

        Raises:
            DataError: files are missing or damaged, or there is no such split.
        """


def checked(samples: Sequence[Sample], one: DataSet, dataset: str, split: str) -> list[Sample]:
    """The samples, if records may be kept of them.

    Raises:
        DataError: there are none, or one contradicts itself or another; names the data set's class.
    """
    if wrong := _wrong(samples, one, f"{dataset}:{split}:"):
        raise DataError(
            f"The data set {dataset}:{split} as {source_of(type(one))} loads it {wrong}; mend that."
        )
    return list(samples)


def _wrong(samples: Sequence[Sample], one: DataSet, start: str) -> str | None:
    """What is wrong with the samples of a split, as the end of a sentence."""
    if not samples or not all(isinstance(sample, Sample) for sample in samples):
        return "has no samples" if not len(samples) else "holds what is no harness.data.Sample"
    (twice, count), *_ = Counter(sample.id for sample in samples).most_common(1)
    if count > 1:
        return f"has the sample id {twice!r} {count} times"
    for sample in samples:
        if not sample.id.startswith(start) or len(sample.id) == len(start):
            return f"has a sample of the id {sample.id!r}, which does not begin with {start!r}"
        if wrong := _wrong_sample(sample, one):
            return f"has the sample {sample.id} {wrong}"
    return None


def _wrong_sample(sample: Sample, one: DataSet) -> str | None:
    if not sample.frames or (one.medium == "image" and len(sample.frames) > 1):
        return f"with {len(sample.frames)} frames; an image has one"
    if min(sample.height, sample.width) < 1:
        return f"of {sample.width}x{sample.height} px"
    if not sample.expressions or len(sample.targets) != len(sample.expressions):
        return f"with {len(sample.expressions)} expressions and {len(sample.targets)} targets"
    ids = [expression.id for expression in sample.expressions]
    return "with two expressions of one id" if len(set(ids)) < len(ids) else None
