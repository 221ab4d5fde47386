"""Rows behind their first cut, where only the beginning is still common: the layers up to their next cuts, in
batches of rows that have equally many tokens, whatever images, methods and budgets they are of."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Container, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor
from transformers import LlamaModel

from backbones.parts import llama
from backbones.parts.batches import Waiting
from backbones.parts.contexts import ContextAnswer
from backbones.parts.cuts import AtCut, Cutting, Sequences
from backbones.parts.llama import Past, through
from pruners.views import LLM_INPUTS

Inputs = Callable[[int], tuple[Tensor, Tensor]]  # what entered the first layer of a row: visual tokens, text


@dataclass(frozen=True, eq=False)
class Going:
    """A row that goes on behind a cut.

    Attributes:
        ask: its number.
        cutting: what it is cut by.
        read: (R,) places of the states that are wanted, counted from the end: negative.
        start: keys and values of its beginning.
        lengths: visual tokens of every layer so far.
        number: of the cut.
        sound: whether all that was read so far were numbers.
        inputs: what entered the first layer, if a later cut asks for it.
    """

    ask: int
    cutting: Cutting
    read: Tensor
    start: Past
    lengths: tuple[int, ...]
    number: int = 0
    sound: bool = True
    inputs: tuple[Tensor, Tensor] | None = None

    @property
    def first(self) -> int:
        """The first layer behind the cut."""
        return self.cutting.cuts[self.number].layer

    @property
    def more(self) -> bool:
        """Whether another cut follows."""
        return self.number + 1 < len(self.cutting.cuts)


class _Kind(NamedTuple):
    """What rows of one batch have in common.

    Attributes:
        first, stop: layers: behind the cut, and before the next one.
        number: of the cut.
        tokens, visual, tail, views, read: how many.
        start: the beginning.
    """

    first: int
    stop: int
    number: int
    tokens: int
    visual: int
    tail: int
    views: int
    read: int
    start: Past


class Behind:
    """Takes rows at a cut and brings them to their answers.

    Args:
        batch_size, multiple, tell: as in `Shared`.
        answers: takes them, by the row's number.
    """

    def __init__(
        self,
        llm: LlamaModel,
        batch_size: int,
        multiple: int,
        answers: dict[int, ContextAnswer],
        tell: Callable[[int], None],
    ) -> None:
        self.llm, self._multiple, self.answers, self._tell = llm, multiple, answers, tell
        self._waiting = Waiting[_Kind, tuple[Going, Tensor, Sequences]](batch_size)

    def past(self, start: Past, rows: int, keep: Container[int] | None = None) -> Past:
        """Keys and values of rows that have a beginning alone in common."""
        return Past(start, torch.zeros(rows, dtype=torch.long, device=self.llm.device), keep)

    def cut(
        self,
        at: AtCut,
        hidden: Tensor,
        rows: Sequences,
        going: Sequence[tuple[int, Going]],
        inputs: Inputs,
    ) -> None:
        """Let pruners choose of some rows at a cut; these go on at once or wait for others.

        Args:
            hidden: (B, M, width) what enters the layer behind it.
            rows: where that stands.
            going: place in the batch, and row; a place may stand several times.
            inputs: by the place in the batch.
        """
        groups = defaultdict(list)
        for place, one in going:
            chosen = at.chosen(place, one.cutting)
            groups[chosen.selection.tokens].append((place, one, chosen))
        for group in groups.values():
            places = [place for place, _, _ in group]
            left, stand = rows.behind(hidden, places, [(one.cutting, chosen) for _, one, chosen in group])
            for k, (place, one, chosen) in enumerate(group):
                asks = one.more and LLM_INPUTS in one.cutting.pruner.needs
                one = replace(one, sound=one.sound and chosen.sound, inputs=inputs(place) if asks else None)
                self._add(one, left[k].clone(), stand.row(k))  # a view would keep the whole group

    def finish(self) -> None:
        """Bring all that waits to its answer, those behind early cuts first: they go on to later ones."""
        while kinds := self._waiting.kinds:
            kind = min(kinds, key=lambda kind: kind.first)
            self._onward(kind, self._waiting.take(kind))

    def _add(self, one: Going, hidden: Tensor, stands: Sequences) -> None:
        """A row (M, width) behind a cut."""
        stop = one.cutting.cuts[one.number + 1].layer if one.more else self.llm.config.num_hidden_layers
        kind = _Kind(
            one.first,
            stop,
            one.number,
            len(hidden),
            stands.count,
            stands.tail,
            stands.views,
            len(one.read),
            one.start,
        )
        if batch := self._waiting.add(kind, (one, hidden, stands)):
            self._onward(kind, batch)

    def _onward(self, kind: _Kind, batch: Sequence[tuple[Going, Tensor, Sequences]]) -> None:
        """One batch of rows up to their next cuts, or to the end."""
        hidden, rows = torch.stack([states for _, states, _ in batch]), [one for one, _, _ in batch]
        stand = Sequences.together([stands for _, _, stands in batch])
        last = not rows[0].more
        past = self.past(kind.start, len(rows), keep=() if last else (kind.stop - 1,))
        saved = {} if last else {kind.stop - 1: hidden}
        read = torch.stack([one.read for one in rows]) + kind.tokens if last else None
        layers = range(kind.first, kind.stop)
        hidden, seen = through(self.llm, hidden, stand.positions, past, layers, saved, read, self._multiple)
        ran = tuple(tokens - kind.tokens + kind.visual for tokens in seen)
        rows = [replace(one, lengths=one.lengths + ran) for one in rows]
        if last:
            unsound = torch.tensor([not one.sound for one in rows], device=hidden.device)
            final = llama.norm(self.llm, hidden).masked_fill(unsound[:, None, None], torch.nan)
            for row, one in enumerate(rows):
                self.answers[one.ask] = ContextAnswer(final[row], one.lengths, stand.patches[row])
            self._tell(len(batch))
            return

        def inputs(row: int) -> tuple[Tensor, Tensor]:
            found = rows[row].inputs
            if found is None:
                raise ValueError("what entered the first layer was not kept")
            return found

        at = AtCut(
            self.llm,
            kind.stop,
            kind.number + 1,
            stand,
            past=self.past(kind.start, len(rows)),
            ran=past.layers[kind.stop - 1],
            hidden=lambda: hidden,
            entered=lambda: saved[kind.stop - 1],
            tail=saved[kind.stop - 1],
            inputs=inputs,
            multiple=self._multiple,
        )
        going = [(row, replace(one, number=one.number + 1)) for row, one in enumerate(rows)]
        self.cut(at, hidden, stand, going, inputs)
