"""What pruners choose of an encoded medium, and what they may know of its truth."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from backbones.base import Backbone, Conversation, Encoding
from harness import data
from harness.engine.cells import Job
from harness.engine.truth import Truth
from pruners import checks
from pruners.base import Selection
from pruners.views import PER_TEXT


@dataclass(frozen=True, eq=False)
class Seen:
    """A sample with its truth.

    Attributes:
        shares: (E, V * N) part of every patch that an expression's referent covers, view after view.
        shown: number of the frame that each of V views shows.
    """

    sample: data.Sample
    truth: Truth
    shares: NDArray[np.float64]
    shown: tuple[int, ...]


def shares_of(
    backbone: Backbone,
    encoding: Encoding,
    talks: Sequence[Conversation],
    truth: Truth,
    shown: Sequence[int],
) -> NDArray[np.float64]:
    """(E, V * N) part of every patch that the referent of an expression covers, view after view."""
    shares = np.zeros((len(truth), len(shown) * backbone.grid[0] * backbone.grid[1]))
    for talk in talks:
        for position in talk.expressions:
            masks = truth.seen([position], shown)
            of_views = [
                backbone.patch_shares(masks if masks.ndim == 3 else masks[k], k, encoding.original)
                for k in range(len(shown))
            ]
            shares[position] = torch.cat(of_views).double().numpy(force=True)
    return shares


class Chosen:
    """What pruners let into the language model of one encoding; what depends on the pixels alone is chosen
    once for all that ask about them."""

    def __init__(self, backbone: Backbone, encoding: Encoding) -> None:
        self.backbone, self.encoding = backbone, encoding
        self._kept: dict[tuple[int, int], tuple[Selection, ...]] = {}

    def of(
        self, seen: Seen, talks: Sequence[Conversation], job: Job
    ) -> Iterator[tuple[Conversation, tuple[Selection, ...]]]:
        """The choice in every conversation about a sample: once per sample if it reads neither text nor
        truth, once per medium if it does not draw either."""
        pruner, budget = job.pruner, job.cell.budget
        # the splits of a run share their pruners, and draws hang on the sample
        key = None if pruner.needs & PER_TEXT or pruner.stochastic else (id(pruner), budget)
        chosen = self._kept.get(key) if key is not None else None
        for talk in talks:
            if chosen is None or pruner.needs & PER_TEXT:
                referent = seen.truth.seen(talk.expressions, seen.shown)
                views = self.backbone.views(self.encoding, talk.turns, seen.sample.id, referent)
                chosen = checks.select_views(pruner, views, budget, self.backbone.num_layers)
            if key is not None:
                self._kept[key] = chosen
            yield talk, chosen
