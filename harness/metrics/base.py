"""What a metric is: what it counts of masks, and how a score follows from what was counted."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, ClassVar, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

Medium = Literal["image", "video"]
Masks = NDArray[np.bool_]
Truths = NDArray[np.uint8]


class Columns(Protocol):
    """Columns by name: a pandas frame of records, or a dict of sequences."""

    def __getitem__(self, name: Any, /) -> Any:
        """A column, (n,)."""


class Metric(ABC):
    """A score of masks against their truth: a ratio of two sums over expressions.

    Every metric that fits a run's medium is measured while the run goes, and what it counts is recorded. Its
    value of any set of records is the sum of their numerators over the sum of their denominators; the
    bootstrap, the differences and the gate need no more than that.

    Attributes:
        name: what it is called in files and on the command line.
        title: what tables print.
        reference: where it is defined.
        meaning: what it is, as a part of a sentence.
        weighs: what counts how much in it, as a part of a sentence.
        columns: of a record; what `measure` fills.
        curves: what `measure` returns besides, of every frame: names of lists of T whole numbers.
        unit: of the values that tables print; those that begin with % are printed a hundred times as large.
        higher_is_better: whether a larger value is the better one.
        medium: which of the two it can look at.
        datasets: those that it is measured on; of all without.
        needs_generated: whether it tells little of answers that are forced.
        shown: whether the leaderboard prints it beside the score that it ranks by.
        epsilon: added to the sum of denominators.
        of_iou: whether it is made of the rows' IoU, so that their `rounding_iou` says how far rounding moves
            it.
    """

    name: str
    title: str
    reference: str
    meaning: str
    weighs: str
    columns: tuple[str, ...]
    curves: ClassVar[tuple[str, ...]] = ()
    unit: ClassVar[str] = "%"
    higher_is_better: ClassVar[bool] = True
    medium: ClassVar[Medium] = "image"
    datasets: ClassVar[tuple[str, ...]] = ()
    needs_generated: ClassVar[bool] = False
    shown: ClassVar[bool] = True
    epsilon: ClassVar[float] = 0.0
    of_iou: ClassVar[bool] = False

    @abstractmethod
    def measure(self, predictions: Masks, truths: Truths) -> list[dict[str, Any]]:
        """Count what the score is made of.

        Args:
            predictions: (M, T, H, W) bool, the answers to M expressions of one sample and one group
                (`Expression.group`), in the order of the sample; T frames, 1 of an image. Of a clip, M is
                more than 1 only where a group was named: what nobody in particular said comes one by one.
            truths: (M, T, H, W) uint8: 1 is the target, 0 is not, 255 is ignored; any other value is no
                class. Of a group behind these the objects that count though no expression means them.

        Returns:
            For each expression its `columns`, finite numbers, and its `curves`.
        """

    @abstractmethod
    def terms(self, table: Columns) -> tuple[NDArray[Any], NDArray[Any]]:
        """Numerator and denominator of every record.

        Args:
            table: with the metric's `columns`, (n,) each.

        Returns:
            Two arrays (n,), int64 or float64.

        Raises:
            ValueError: the columns hold what `measure` cannot have counted.
        """

    def value(self, table: Columns) -> float:
        """The score of all records of a table, in no unit (0..1 of a share); NaN without any."""
        numerators, denominators = self.terms(table)
        below = denominators.sum() + self.epsilon
        return float(numerators.sum() / below) if len(numerators) and below else float("nan")

    def each(self, table: Columns) -> NDArray[np.float64]:
        """(n,) the score of every record alone; NaN where its denominator is 0."""
        numerators, denominators = self.terms(table)
        with np.errstate(invalid="ignore", divide="ignore"):
            return np.where(denominators != 0, numerators / denominators, np.nan)

    def fits(self, dataset: str) -> bool:
        """Whether it is measured on a data set; one by another author, `name(author)`, is the same one."""
        return not self.datasets or dataset.partition("(")[0] in self.datasets

    @property
    def scale(self) -> float:
        """What a value is multiplied with to be printed in the metric's unit."""
        return 100.0 if self.unit.startswith("%") else 1.0

    @property
    def unit_word(self) -> str:
        """The unit in a sentence."""
        return f"percent{self.unit[1:]}" if self.unit.startswith("%") else self.unit

    @property
    def points(self) -> str:
        """The unit of a difference in a sentence."""
        return "points" if self.unit.startswith("%") else self.unit

    def rank(self, value: float) -> float:
        """Sorts values: the best one first."""
        return -value if self.higher_is_better else value
