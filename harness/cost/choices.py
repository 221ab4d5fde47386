"""Pruners of a model that is not here: what they read and choose, on random numbers of full size."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch._subclasses.fake_tensor import FakeTensorMode, unset_fake_temporarily
from torch.utils._python_dispatch import _disable_current_modes

from backbones.costs import Shapes
from harness.cost import meters
from harness.engine.cells import Line
from pruners import checks
from pruners.base import Pruner, Selection
from pruners.views import LLM_ATTENTION, LLM_ATTENTION_AHEAD, LayerView, Query, View

SEED = 0


@dataclass(frozen=True)
class OfPruner:
    """Multiply-adds of a pruner's own work.

    Attributes:
        tower: signals and choice before the language model.
        first: every signal that it asks for at its first cut, by the cut's layer and the question; rows that
            the same tokens entered share these.
        inside: all that it costs while the language model runs, `first` included.
    """

    tower: int
    first: dict[tuple[object, ...], int]
    inside: int


class Recall:
    """Choices at cuts, asked for once and then given again: with the signals that were read, without the
    pruner's own code, which a tracer need not understand."""

    def __init__(self) -> None:
        self._known: list[tuple[list[Query], Selection]] = []

    def first(self, pruner: Pruner, tokens: LayerView, count: int) -> Selection:
        """What the pruner chooses."""
        asked: list[Query] = []

        def answer(query: Query) -> torch.Tensor:
            asked.append(query)
            return tokens.signal(query)

        chosen = checks.cut(pruner, tokens.answered_by(answer), count)
        self._known.append((asked, chosen))
        return chosen

    def again(self, pruner: Pruner, tokens: LayerView, count: int) -> Selection:
        """The same, cut by cut."""
        asked, chosen = self._known[tokens.number]
        indices = chosen.indices
        for query in asked:  # a tracer leaves out what nothing depends on
            indices = indices + torch.zeros_like(tokens.signal(query)).sum().to(indices)
        return Selection(indices, chosen.features)


class Blind:
    """Asks pruners at the cuts of a model that is all shapes: what they read is computed as shapes, and they
    choose on random numbers of these.

    Args:
        fake: the shapes' mode.
        counting: counts multiply-adds.
        checked: whether what they choose is looked at.
    """

    def __init__(self, fake: FakeTensorMode, counting: meters.Counter | None, checked: bool) -> None:
        self._fake, self._counting, self._checked = fake, counting, checked
        self._draw = torch.Generator().manual_seed(SEED)
        self.first: dict[tuple[object, ...], int] = {}

    def __call__(self, pruner: Pruner, tokens: LayerView, count: int) -> Selection:
        with unset_fake_temporarily():
            places = torch.arange(len(tokens.positions))
            view = tokens.answered_by(partial(self._answer, tokens), places[: len(tokens)], places)
            chosen = checks.cut(pruner, view, count, self._checked)
        features = None if chosen.features is None else self._fake.from_tensor(chosen.features)
        return Selection(self._fake.from_tensor(chosen.indices), features)

    def _answer(self, tokens: LayerView, query: Query) -> torch.Tensor:
        with self._fake:
            before = self._counting.get_total_flops() if self._counting is not None else 0
            of = self._fake.from_tensor(query.of) if isinstance(query.of, torch.Tensor) else query.of
            found = tokens.signal(replace(query, of=of))
        if self._counting is not None and tokens.number == 0:
            key = (tokens.layer, *query.key)
            self.first.setdefault(key, (self._counting.get_total_flops() - before) // 2)
        with _disable_current_modes():  # numbers that the real model would have had anyway
            drawn = torch.randn(found.shape, generator=self._draw, dtype=torch.float32)
            rows = query.need in (LLM_ATTENTION, LLM_ATTENTION_AHEAD) and query.softmax
            return (drawn.softmax(-1) if rows else drawn).to(found.dtype)


@dataclass(frozen=True)
class Entering:
    """What a line lets into the language model.

    Attributes:
        tokens: of all views, in the language model.
        projected: of all views, on their way into it.
        whole: whether all tokens enter because nothing chooses.
        macs: multiply-adds of signals and choice before the language model.
    """

    tokens: int
    projected: int
    whole: bool
    macs: int


def entering(line: Line, model: Shapes, views: Sequence[View]) -> Entering:
    """What a line lets into the language model of these views."""
    counting = meters.counter()
    with torch.no_grad(), counting:
        chosen = checks.select_views(line.pruner, views, line.budget, model.shape.layers)
        for one, view in zip(chosen, views, strict=False):
            one.gather(view)
    left = [one.tokens for one in chosen] or [len(view) for view in views]
    projected = model.projected(chosen, len(views))
    return Entering(sum(map(model.sent, left)), projected, not chosen, counting.get_total_flops() // 2)
