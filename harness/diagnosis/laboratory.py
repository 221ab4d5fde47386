"""What methods that act on the vision tower keep of the referent, measured on CLIP alone: no language model
runs, nothing is segmented.

Three numbers of every choice. Referent coverage: the share of the referent's area whose patches are kept.
Effective rank of what is kept: the exponential of the entropy of its singular values (Roy and Vetterli,
EUSIPCO 2007), of features of length one. Coverage radius: how far the patch lies that is farthest from any
kept one, in features (1 - cosine) and on the grid (in patches).
"""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from torch import Tensor

from backbones.base import Backbone, Encoding
from harness import data, metrics
from harness.data.sample import DataError
from harness.diagnosis.similarities import look
from harness.diagnosis.summary import INSIDE, Diagnosis, auroc
from harness.engine.budgets import tokens_of
from harness.engine.cells import impossible
from harness.engine.served import served
from harness.metrics.bootstrap import Estimate, mean
from harness.progress import each
from pruners import checks
from pruners.base import REFERENT, Pruner, ScorePruner, UserError, View
from pruners.views import PER_TEXT

BOUND, RANDOM = "none", "random"
MEASURES = ("coverage", "auroc", "rank", "feature radius", "grid radius")
FEW_REASONS = 5


@dataclass(frozen=True)
class Laboratory:
    """All that was measured on one CLIP.

    Attributes:
        diagnosis: similarities and attention sinks, as of any backbone.
        rows: one per expression, method and budget: `image`, `sample`, `expression`, `pruner`, `budget`, and
            MEASURES, NaN where a measure has no meaning.
        patches: of a view.
        kinds: per method "method" or "control".
        sees_truth: methods that do.
        left_out: methods that CLIP alone cannot serve, and why.
        bad: images that could not be read, and why.
        images: that were measured.
        seconds: that these took, reading included, and of these the vision tower.
        device: where it ran.
    """

    diagnosis: Diagnosis
    rows: pd.DataFrame = field(repr=False)
    patches: int
    kinds: dict[str, str]
    sees_truth: frozenset[str]
    left_out: dict[str, str]
    bad: dict[str, str]
    images: int
    seconds: float
    encoding: float
    device: str
    _known: dict[tuple[str, int, str], Estimate] = field(default_factory=dict, repr=False, compare=False)

    @property
    def methods(self) -> list[tuple[str, int]]:
        """(method, budget) in the order in which they were asked."""
        pairs = self.rows[["pruner", "budget"]].drop_duplicates()
        return list(pairs.itertuples(index=False, name=None))

    @property
    def budgets(self) -> list[int]:
        """From the largest on, without that of the upper bound."""
        return sorted({budget for name, budget in self.methods if name != BOUND}, reverse=True)

    def of(self, pruner: str, budget: int) -> pd.DataFrame:
        """Rows of a method at a budget."""
        return self.rows[(self.rows["pruner"] == pruner) & (self.rows["budget"] == budget)]

    def mean(self, pruner: str, budget: int, measure: str) -> Estimate:
        """A measure's mean over images of means over an image's expressions."""
        key = pruner, budget, measure
        if key not in self._known:
            part = self.of(pruner, budget)
            self._known[key] = mean(part[measure], part["image"])
        return self._known[key]

    def beyond_random(self, pruner: str, budget: int) -> Estimate | None:
        """Coverage minus that of random at the budget, expression by expression; None where it was not
        asked."""
        keys = ["sample", "expression"]
        mine, other = (self.of(name, budget).set_index(keys) for name in (pruner, RANDOM))
        if pruner == RANDOM or mine.empty or other.empty:
            return None
        gap = mine["coverage"] - other["coverage"].reindex(mine.index)
        return mean(gap, mine["image"])

    @property
    def sink(self) -> tuple[int, Estimate, float]:
        """The layer in which [EOS] looks most at the start token, that share, and the even one."""
        found = [self.diagnosis.mean(f"start {k}") for k in range(self.diagnosis.layers)]
        layer = int(np.argmax([one.value for one in found]))
        return layer, found[layer], 1 / self.diagnosis.mean("tokens").value


def measure_laboratory(
    tower: Backbone,
    pairs: Sequence[tuple[str, str]],
    limit: int,
    pruners: Sequence[Pruner],
    budgets: Sequence[str | int],
    root: str | None = None,
) -> Laboratory:
    """Measure similarities and choices on all expressions.

    Args:
        tower: CLIP alone, or any backbone whose signals and probes can be read.
        pairs: (data set, split).
        limit: images per split, 0 for all.
        budgets: counts and shares.

    Raises:
        UserError: data are missing, no method can be served, no image can be read, or no referent fills a
            patch.
    """
    probes = tower.probes
    if probes is None:
        raise UserError(f"The similarities of {tower.name} cannot be read; give --clip DIR.")
    asked = _asked(tower, pruners, budgets)
    found = _Found()
    for dataset, split in pairs:
        samples = data.load_samples(dataset, split, root)
        for sample in each(samples[: limit or None], f"looking at {dataset}:{split}"):
            started = time.perf_counter()
            try:
                masks = sample.masks() == metrics.FOREGROUND
                image = sample.image()
            except DataError as error:
                found.bad[sample.id] = str(error)
                continue
            before = time.perf_counter()
            encoding = tower.encode([image])[0]
            found.encoding += time.perf_counter() - before
            found.images += 1
            seen = look(tower, probes, sample, encoding)
            found.left_out += len(sample.expressions) - len(seen)
            found.similarities += seen
            measured = {row["expression"] for row in seen}
            found.choices += _choices(tower, sample, masks, measured, encoding, asked.cells)
            found.seconds += time.perf_counter() - started
    names = ", ".join(map(":".join, pairs))
    if found.bad and not found.images:
        raise UserError(
            f"None of the {len(found.bad)} images of {names} can be read; the first: "
            f"{next(iter(found.bad.values()))}"
        )
    if not found.choices:
        raise UserError(f"No referent of {names} fills a visual token; give larger --datasets or --limit.")
    frame = pd.DataFrame(found.similarities)
    layers = sum(str(column).startswith("start ") for column in frame)
    diagnosis = Diagnosis(
        tower.name,
        tower.fingerprint,
        tuple(":".join(pair) for pair in pairs),
        limit,
        frame,
        found.left_out,
        layers,
    )
    return Laboratory(
        diagnosis,
        pd.DataFrame(found.choices),
        tower.grid[0] * tower.grid[1],
        {pruner.unseeded().spec(): pruner.kind for pruner, _ in asked.cells},
        frozenset(pruner.unseeded().spec() for pruner, _ in asked.cells if REFERENT in pruner.needs),
        asked.left_out,
        found.bad,
        found.images,
        found.seconds,
        found.encoding,
        tower.device,
    )


class _Found:
    """What has been measured so far."""

    def __init__(self) -> None:
        self.similarities: list[dict[str, Any]] = []
        self.choices: list[dict[str, Any]] = []
        self.bad: dict[str, str] = {}
        self.left_out = self.images = 0
        self.seconds = self.encoding = 0.0


class _Asked(NamedTuple):
    """(method, tokens) that are measured, and why others are not."""

    cells: list[tuple[Pruner, int]]
    left_out: dict[str, str]


def _asked(tower: Backbone, pruners: Sequence[Pruner], budgets: Sequence[str | int]) -> _Asked:
    """What can be measured.

    Raises:
        UserError: nothing, or a budget is none of this tower's.
    """
    patches = tower.grid[0] * tower.grid[1]
    counts = list(dict.fromkeys(tokens_of(budget, patches) for budget in budgets))
    if large := [count for count in counts if count > patches]:
        raise UserError(
            f"--budgets {large[0]} is more than the {patches} visual tokens of {tower.name}; give 1 to "
            f"{patches}."
        )
    able, left_out = served(pruners, tower)
    refused = impossible(able, counts, tower.grid, tower.num_layers, tower.stated)
    cells = [
        (pruner, count)
        for pruner in able
        for count in ([patches] if pruner.name == BOUND else counts)
        if (pruner.unseeded().spec(), count) not in refused
    ]
    left_out |= {f"{name} at {count}": str(why) for (name, count), why in refused.items()}
    if not cells:
        raise UserError(f"No method is left: {' '.join(left_out.values())}")
    return _Asked(cells, left_out)


# -- one image


def _choices(
    tower: Backbone,
    sample: data.Sample,
    masks: NDArray[np.bool_],
    measured: set[int],
    encoding: Encoding,
    cells: Sequence[tuple[Pruner, int]],
) -> list[dict[str, Any]]:
    """One row per expression and cell."""
    rows: list[dict[str, Any]] = []
    known: dict[tuple[str, int], dict[str, Any]] = {}  # of what does not depend on the expression
    for expression, mask in zip(sample.expressions, masks, strict=True):
        if expression.id not in measured:
            continue
        share = tower.patch_shares(mask[None]).double().numpy(force=True)
        (view,) = tower.views(encoding, (tower.turn(expression.text),), sample.id, mask[None])
        for pruner, count in cells:
            key = pruner.unseeded().spec(), count
            if not pruner.needs & PER_TEXT and key in known:
                facts = known[key]
            else:
                facts = known[key] = _facts(pruner, view, count)
            patches, scores = facts["patches"], facts["scores"]
            inside, plain = share >= INSIDE, (share >= INSIDE) | (share == 0)
            rows.append(
                {"image": f"{sample.image_id} {sample.cluster}", "sample": sample.id}
                | {"expression": expression.id, "pruner": key[0], "budget": count}
                | {
                    "coverage": float(share[patches].sum() / share.sum()) if len(patches) else math.nan,
                    "auroc": math.nan if scores is None else auroc(scores[plain], inside[plain]),
                }
                | {name: facts[name] for name in MEASURES[2:]}
            )
    return rows


@torch.inference_mode()
def _facts(pruner: Pruner, view: View, count: int) -> dict[str, Any]:
    """What a choice is, whatever the referent: its patches, scores where the method only ranks, and how it
    is spread."""
    chosen = checks.select(pruner, view, count)
    patches = torch.unique(chosen.indices[chosen.indices >= 0])
    scores = None
    if isinstance(pruner, ScorePruner):
        scores = pruner.score(view.only(pruner.needs)).double().numpy(force=True)
    radius = (math.nan, math.nan) if not len(patches) else coverage_radius(view.patches, patches, view.grid)
    return {
        "patches": patches.numpy(force=True),
        "scores": scores,
        "rank": effective_rank(chosen.gather(view)),
        "feature radius": radius[0],
        "grid radius": radius[1],
    }


def effective_rank(features: Tensor) -> float:
    """Exponential of the entropy of the singular values of (T, C) features of length one: 1 of equal ones, T
    of orthogonal ones.

    >>> round(effective_rank(torch.eye(4)), 6), round(effective_rank(torch.ones(4, 3)), 6)
    (4.0, 1.0)
    """
    unit = torch.nn.functional.normalize(features.double(), dim=1)
    gram = unit @ unit.T if len(unit) <= unit.shape[1] else unit.T @ unit
    values = torch.linalg.eigvalsh(gram).clamp(min=0).sqrt()
    shares = values / values.sum()
    shares = shares[shares > 1e-12]
    return float(torch.exp(-(shares * shares.log()).sum()))


def coverage_radius(features: Tensor, kept: Tensor, grid: tuple[int, int]) -> tuple[float, float]:
    """How far the patch is that is farthest from any kept one: in 1 - cosine of (N, C) features, and in
    patches on the grid.

    Args:
        kept: (T,) at least one patch, as places in raster order.

    >>> coverage_radius(torch.eye(4), torch.tensor([0]), (2, 2))
    (1.0, 1.4142135623730951)
    """
    unit = torch.nn.functional.normalize(features.double(), dim=1)
    near = (unit @ unit[kept].T).max(dim=1).values
    apart = _distances(grid)[kept.cpu()].min(dim=0).values
    return max(float(1 - near.min()), 0.0), float(apart.max())


@lru_cache(maxsize=4)
def _distances(grid: tuple[int, int]) -> Tensor:
    """(N, N) between the patches of a grid."""
    places = torch.stack(torch.meshgrid(*map(torch.arange, grid), indexing="ij"), dim=-1).view(-1, 2).double()
    return torch.cdist(places, places)


def reasons(bad: dict[str, str]) -> list[tuple[str, int]]:
    """Why images could not be read, the most frequent first, each with its count; of reasons that name a
    file, the first few."""
    return Counter(bad.values()).most_common(FEW_REASONS)
