"""Which metrics there are, and what all of them count of an answer."""

from __future__ import annotations

import math
import re
from collections.abc import Collection
from typing import Any, get_args

import numpy as np

from harness.metrics.base import Masks, Medium, Metric, Truths
from harness.metrics.generalised import PRECISION_AT, NoTargetAccuracy, TargetAccuracy, TargetPrecision
from harness.metrics.overlap import THRESHOLDS, CumulativeIoU, GeneralIoU, Overlap, Precision
from harness.metrics.video import BoundaryAccuracy, OwnIdentity, RegionAndBoundary, RegionSimilarity
from harness.registry import InstanceRegistry
from pruners.base import UserError
from pruners.registry import source_of

ENTRY_POINTS = "groundprune.metrics"
COLUMN = re.compile(r"[a-z][a-z0-9_]*")


def _wrong(metric: Metric) -> str | None:
    """What is wrong with what a metric says of itself."""
    for fact in ("title", "meaning", "weighs", "unit"):
        if not isinstance(getattr(metric, fact, None), str) or not getattr(metric, fact).strip():
            return f"has no {fact}; add {fact} = '...' to its class"
    if re.search(r"[\s,:|]", metric.name):
        return "cannot be named so: a name holds no space and none of , : |"
    if metric.medium not in get_args(Medium):
        return f"has the medium {metric.medium!r}; a medium is {' or '.join(get_args(Medium))}"
    if not isinstance(metric.datasets, tuple) or not all(isinstance(one, str) for one in metric.datasets):
        return f"has the data sets {metric.datasets!r}; write datasets = ('grefcoco',)"
    columns = getattr(metric, "columns", None)
    if not isinstance(columns, tuple) or not columns or len(set(columns)) < len(columns):
        return "names no columns; write columns = ('hits', 'of'), what measure returns of every expression"
    if not isinstance(metric.curves, tuple) or len({*columns, *metric.curves}) < len(columns + metric.curves):
        told = "write curves = ('hits_per_frame',), of other names than columns"
        return f"has the curves {metric.curves!r}; {told}"
    filled = columns + metric.curves
    if odd := [name for name in filled if not isinstance(name, str) or not COLUMN.fullmatch(name)]:
        return f"has the column {odd[0]!r}; a column's name is small letters, digits and _"
    for other in metrics.known.values():
        common = sorted(set(filled) & {*other.columns, *other.curves})
        if common and other.name != metric.name and type(other).measure is not type(metric).measure:
            return (
                f"fills the column {common[0]!r} as {other.name} at {source_of(type(other))} does, and "
                f"measures it otherwise; "
                "name its columns after the metric"
            )
    if not issubclass(type(metric), Overlap) and (taken := sorted(set(filled) & _fields())):
        return f"fills the column {taken[0]!r}, which records have already; name its columns after the metric"
    return None


def _fields() -> set[str]:
    """What records say without any metric."""
    from harness.store.rows import STATUS

    return {field for fields in STATUS.values() for field in fields} | {"cell", "sample", "place", "of"}


metrics: InstanceRegistry[Metric] = InstanceRegistry(
    "metric", Metric, "harness.metrics", ENTRY_POINTS, _wrong
)
register, get, names = metrics.register, metrics.get, metrics.names
register(CumulativeIoU)
register(GeneralIoU)
for _threshold in THRESHOLDS:
    metrics.add(Precision(_threshold))
register(NoTargetAccuracy)
register(TargetAccuracy)
for _threshold in PRECISION_AT:
    metrics.add(TargetPrecision(_threshold))
register(RegionSimilarity)
register(BoundaryAccuracy)
register(RegionAndBoundary)
register(OwnIdentity)


def of_medium(medium: Medium) -> list[Metric]:
    """The metrics of a medium, in the order of `names`."""
    return [metric for metric in metrics.all() if metric.medium == medium]


def made_of(columns: Collection[Any]) -> list[Metric]:
    """The metrics that are made of these columns alone, in the order of `names`."""
    return [metric for metric in metrics.all() if all(name in columns for name in metric.columns)]


def measure(
    predictions: Masks, truths: Truths, medium: Medium = "image", dataset: str = ""
) -> list[dict[str, Any]]:
    """What all metrics of a medium count of some expressions, column by column, each counted once.

    Args:
        predictions, truths: (M, T, H, W), as `Metric.measure` takes them.
        dataset: whose expressions these are; without, what is measured on any data set.

    Returns:
        For each expression numbers by their column, and lists of T ints by the name of their curve.

    Raises:
        UserError: a metric returned something else than its columns and curves of every expression.
    """
    found: list[dict[str, Any]] = [{} for _ in predictions]
    done: set[Any] = set()
    for metric in of_medium(medium):
        if type(metric).measure in done or not metric.fits(dataset):
            continue
        done.add(type(metric).measure)
        try:
            rows = metric.measure(predictions, truths)
        except Exception as error:
            raise UserError(
                f"The metric {metric.name!r} at {source_of(type(metric))} cannot measure an answer "
                f"({error!r}); mend it."
            ) from error
        if wrong := _wrong_measure(metric, rows, len(found), truths.shape[1]):
            raise UserError(f"The metric {metric.name!r} at {source_of(type(metric))} {wrong}; mend it.")
        for kept, row in zip(found, rows, strict=True):
            kept |= {
                name: [int(one) for one in value] if name in metric.curves else _plain(value)
                for name, value in row.items()
            }
    return found


def _plain(value: Any) -> Any:
    return value.item() if isinstance(value, np.generic) else value


def _wrong_measure(metric: Metric, rows: Any, count: int, frames: int) -> str | None:
    wanted = (*metric.columns, *metric.curves)
    if not isinstance(rows, list) or len(rows) != count:
        told = f"{len(rows)} of them" if isinstance(rows, list) else f"a {type(rows).__name__}"
        return f"returned {told}, not a list of one dict for each of {count} expressions"
    for row in rows:
        if not isinstance(row, dict) or set(row) != set(wanted):
            told = ", ".join(map(str, row)) if isinstance(row, dict) else f"a {type(row).__name__}"
            return f"returned {told} of an expression, not {', '.join(wanted)}"
        for name in metric.columns:
            value = row[name]
            number = isinstance(value, int | float | np.integer | np.floating) and not isinstance(value, bool)
            if not number or not math.isfinite(value):
                return f"returned {value!r} as {name}, which is no finite int or float"
        for name in metric.curves:
            if wrong := _wrong_curve(row[name], frames):
                told = f"which is no list of {frames} whole numbers, one of each frame"
                return f"returned {wrong} as {name}, {told}"
    return None


def _wrong_curve(curve: Any, frames: int) -> str | None:
    """What is no curve, in words."""
    if not isinstance(curve, list | tuple | np.ndarray) or np.ndim(curve) != 1:
        return f"a {type(curve).__name__}"
    odd = [one for one in curve if not isinstance(one, int | np.integer) or isinstance(one, bool)]
    if odd:
        return f"a list with {odd[0]!r}"
    return None if len(curve) == frames else f"{len(curve)} numbers"
