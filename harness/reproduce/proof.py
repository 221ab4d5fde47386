"""The set-up first: the unpruned row on a sample of images, against its printed number.

Whoever gets another number without any pruner need not run for days. The sample is drawn from a seed, and
asked with several seeds of the protocol where it draws; from these records follows, too, what the protocol's
draw is worth (`harness.reproduce.bands`).
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from backbones.base import Backbone
from harness import metrics
from harness.engine import runner
from harness.engine.runner import Split, Way
from harness.metrics import SUM_EPSILON, Metric
from harness.metrics.bootstrap import estimate, per_image, resample
from harness.plan import Plan
from harness.reproduce.bands import Judged, Ours, judge
from harness.reproduce.numbers import Number, Row
from harness.reproduce.spec import Spec
from harness.store import records
from pruners.errors import UserError

BOUND = "none"
SEED = 16  # of the choice of images
# of any table; a spec's own come first
CAUSES = (
    "the files are not those of the spec: another checkpoint, another revision of CLIP, an interrupted copy; "
    "`python -m harness doctor` compares them tensor by tensor",
    "the data are not those of the spec: refs(google) instead of unc or umd, another release, a part; the "
    "doctor's counts tell",
    "the protocol or the answers are others than those that the numbers were made with",
    "the printed number is of another model than the released one",
    "precision: give --dtype bfloat16 where the numbers were made in it, float32 to see what it changes",
)


@dataclass(frozen=True)
class Proven:
    """One printed number of the unpruned row, and ours on the sample.

    Attributes:
        row: the printed one.
        split: data set and split.
        metric: its name.
        images: asked.
        whole: that the printed number is of; None where not known.
    """

    row: Row
    split: tuple[str, str]
    metric: str
    printed: Number
    ours: Ours
    judged: Judged
    images: int
    whole: int | None


@dataclass(frozen=True)
class Proof:
    """What the sample says.

    Attributes:
        draw: by metric, the share of an image's variance that the protocol's draw makes; 0 where none is
            drawn, or where the spec says that both drew the same.
        draws: seeds that it was asked with.
    """

    cells: tuple[Proven, ...]
    draw: dict[str, float]
    draws: int

    @property
    def stands(self) -> bool:
        """Whether no number is outside of its band."""
        return all(one.judged.verdict != "differs" for one in self.cells)


def prove(
    spec: Spec, plan: Plan, backbone: Backbone, folder: Path, same_images: dict[str, bool], way: Way
) -> Proof:
    """Ask the unpruned row on the sample, and hold it against the print.

    Args:
        plan: of the spec, with the user's folders; its `limit` bounds the sample.
        folder: for the runs, one per seed of the protocol.
        same_images: of a split, whether it is known to be the printed one.

    Raises:
        UserError: as `harness.engine.runner.run`.
    """
    names = spec.proof.splits or (":".join(spec.columns[0]),)
    drawn = spec.protocol in backbone.drawn and spec.band.draw == "other"
    plan = replace(plan, pruners=(BOUND,), datasets=",".join(names), costs="off")
    splits = _drawn(runner.prepare(replace(plan, limit=spec.plan.limit), backbone), spec, plan.limit)
    frames = []
    for number in range(spec.proof.draws if drawn else 1):
        seeded = replace(plan, seed=plan.seed + number)
        asked = splits if number == 0 else _with_jobs(splits, runner.prepare(seeded, backbone))
        runner.run(seeded, backbone, asked, folder / f"seed-{seeded.seed}", way)
        frames.append(records.load_records(folder / f"seed-{seeded.seed}"))
    draw: dict[str, float] = {}
    cells: list[Proven] = []
    for name in (name for name in spec.metrics if name in metrics.names()):
        metric = metrics.get(name)
        draw[name] = _share_of_draw(frames, metric) if drawn else 0.0
        for row, split, printed in _printed(spec, name):
            if split is None or ":".join(split) not in names:
                continue
            whole = _whole(spec, split, same_images)
            ours = _score([_of(frame, split) for frame in frames], metric)
            judged = judge(ours, printed.value, printed.half_unit, whole, draw[name], spec.band.tolerance)
            cells.append(Proven(row, split, name, printed, ours, judged, ours.images, whole))
    if not cells:
        raise UserError(
            f"The spec {str(spec.path)!r} prints no unpruned row (pruner {BOUND}) of {', '.join(names)}, so "
            f"its set-up cannot be proven; name splits that it has in [proof], or add the row."
        )
    return Proof(tuple(cells), draw, len(frames))


def _printed(spec: Spec, metric: str) -> list[tuple[Row, tuple[str, str] | None, Number]]:
    """The numbers of the unpruned row; of the named one where there are several."""
    unpruned = [one for one in spec.cells(metric) if one[0].pruner == BOUND]
    return [one for one in unpruned if one[0].method == (spec.proof.method or unpruned[0][0].method)]


def _whole(spec: Spec, split: tuple[str, str], same: dict[str, bool]) -> int | None:
    """The images that a printed number is of, if ours are among them."""
    name = ":".join(split)
    known = spec.split(name)
    return known.images if known is not None and same.get(name, False) else None


def _drawn(splits: Sequence[Split], spec: Spec, limit: int | None) -> list[Split]:
    """The splits with a sample of their images."""
    found = []
    for split in splits:
        many = spec.proof.images or len(split.samples)
        many = min(many, limit or many, len(split.samples))
        places = list(range(len(split.samples)))
        random.Random(f"{SEED} {':'.join(split.name)}").shuffle(places)
        del places[many:]  # a larger sample holds the smaller one, and begins with it
        found.append(
            replace(
                split,
                samples=[split.samples[place] for place in places],
                contents=[split.contents[place] for place in places],
            )
        )
    return found


def _with_jobs(splits: Sequence[Split], others: Sequence[Split]) -> list[Split]:
    """The same samples under the cells of another seed."""
    return [replace(split, jobs=other.jobs) for split, other in zip(splits, others, strict=True)]


def _of(frame: pd.DataFrame, split: tuple[str, str]) -> pd.DataFrame:
    return frame[(frame["dataset"] == split[0]) & (frame["split"] == split[1])]


def _score(frames: Sequence[pd.DataFrame], metric: Metric) -> Ours:
    """Mean score over seeds of the protocol, with the interval of one seed."""
    scale = metric.scale
    found = []
    for frame in frames:
        above, below = metric.terms(frame)
        inner, outer = (per_image(values, records.media(frame))[:, None] for values in (above, below))
        drawn = resample(inner, outer, epsilon=metric.epsilon or SUM_EPSILON)
        found.append(estimate([drawn], [[1.0]]))
    value = float(np.mean([one.value for one in found]))
    low, high = (value + getattr(found[0], end) - found[0].value for end in ("low", "high"))
    return Ours(scale * value, scale * low, scale * high, found[0].images, draws=len(found))


def _share_of_draw(frames: Sequence[pd.DataFrame], metric: Metric) -> float:
    """The draw's share of the variance of what an image contributes to a score: its variance between seeds
    for one image, mean over images, by that over all images and seeds; over all splits that were asked."""
    if len(frames) < 2:
        return 1.0  # nothing is known of it: all of it may be the draw's
    tables = []
    for number, frame in enumerate(frames):
        above, below = metric.terms(frame)
        named = frame["dataset"] + ":" + frame["split"]
        facts = {"above": above, "below": below, "seed": number, "split": named}
        tables.append(pd.DataFrame(facts | {"image": records.media(frame)}, index=frame.index))
    sums = pd.concat(tables).groupby(["split", "image", "seed"])[["above", "below"]].sum()
    within = total = 0.0
    for _, part in sums.groupby(level="split"):
        above, below = (_wide(part[name]) for name in ("above", "below"))
        value = above.sum() / max(below.sum(), SUM_EPSILON)
        moved = (above - value * below) / max(below.mean(), SUM_EPSILON)  # (images, seeds)
        within += float(moved.var(axis=1, ddof=1).mean())
        total += float(moved.var(ddof=1))
    return min(within / total, 1.0) if total > 0 else 0.0


def _wide(sums: pd.Series[float]) -> NDArray[np.float64]:
    """(images, seeds), images that all seeds have."""
    table = sums.unstack("seed").dropna()
    return table.to_numpy(dtype=np.float64)
