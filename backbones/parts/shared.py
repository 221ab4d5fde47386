"""The language model over many rows, with everything computed once that rows have in common.

A row is a constant beginning, the visual tokens that a pruner left of an image, the constant rest of the
sentence about it, and a question with its answer. Attention looks back only, so the beginning's keys and
values serve all rows, and those of an image's tokens and of the sentence serve all its expressions. A pruner
inside the model shares the layers before its cut with the rows that keep every token. Behind the last layer
only a few states are read, so it computes no more than keys and values for all other tokens.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor
from transformers import LlamaModel

from backbones.parts import llama
from backbones.parts.llama import Past, tokens_at
from pruners import checks
from pruners.base import LayerPruner

Member = TypeVar("Member")


@dataclass(frozen=True)
class Ask:
    """One row.

    Attributes:
        context: number of its context: an image's visual tokens as one selection left them.
        beginning: ids before the image.
        sentence: ids behind the image that other rows have there, too.
        words: ids behind these, fill included.
        last: position in `words` of the last one that is no fill.
        read: positions in `words` whose final states are wanted.
        pruner, keep: what cuts the context while the model runs, and to how many tokens.
    """

    context: int
    beginning: tuple[int, ...]
    sentence: tuple[int, ...]
    words: tuple[int, ...]
    last: int
    read: tuple[int, ...]
    pruner: LayerPruner | None = None
    keep: int = 0


@dataclass(frozen=True)
class _Contexts:
    """What rows on the same images and selections have in common.

    Attributes:
        start: the beginning.
        past: keys and values of the visual tokens and the sentence behind them.
        saved: input (B, T + s, width) of the layers that begin behind a cut.
        lengths: T, the visual tokens that ran, of every layer that ran.
    """

    start: Past
    past: Past
    saved: dict[int, Tensor]
    lengths: tuple[int, ...]

    @property
    def visual(self) -> int:
        """Visual tokens that entered."""
        return self.lengths[0]

    @property
    def span(self) -> slice:
        """Where the visual tokens stand."""
        first = self.past.length()
        return slice(first, first + self.visual)

    @property
    def end(self) -> int:
        """Where the words begin."""
        return self.past.layers[0][0].shape[2]


@dataclass(frozen=True)
class Answer:
    """What the language model made of a row.

    Attributes:
        hidden: (R, width) final states of the words that are read; NaN where a cut had no numbers to choose
            by.
        lengths: visual tokens that ran in every layer.
        kept: sorted visual tokens that a cut left, None without one.
    """

    hidden: Tensor
    lengths: tuple[int, ...]
    kept: Tensor | None = None


def through(
    llm: LlamaModel,
    hidden: Tensor,
    positions: Tensor,
    past: Past,
    layers: range,
    saved: dict[int, Tensor] | None = None,
    read: Tensor | None = None,
) -> tuple[Tensor, list[int]]:
    """Run `layers`; also gives the tokens that each of them got.

    Args:
        saved: what it has a key for, it gets: the input of that layer; of layer `layers.stop` the output, if
            all are wanted.
        read: (B, R) tokens whose states are wanted in the end; None for all. With R = 0 later rows get their
            keys and values.
    """
    by, lengths = llama.rotary(llm, positions, hidden.dtype), []
    saved = saved if saved is not None else {}
    for index in layers:
        if index in saved:
            saved[index] = hidden
        lengths.append(hidden.shape[1])
        layer = llama.Layer(llm, index)
        if read is not None and index == layers.stop - 1:
            return layer.at(hidden, by, past, read), lengths
        hidden = layer(hidden, by, past)
    if layers.stop in saved:
        saved[layers.stop] = hidden
    return hidden, lengths


class Shared:
    """Runs rows of one model.

    Args:
        batch_size: most rows in a forward pass.
        multiple: batches are filled up to a multiple of it.
        beginnings: what is known of constant beginnings; grows.
    """

    def __init__(
        self, llm: LlamaModel, batch_size: int, multiple: int, beginnings: dict[tuple[int, ...], Past]
    ) -> None:
        self.llm, self.batch_size, self.multiple, self._beginnings = llm, batch_size, multiple, beginnings
        self.depth = llm.config.num_hidden_layers
        self.device = llm.device

    def _beginning(self, ids: tuple[int, ...]) -> Past:
        """Keys and values of the constant beginning, computed once for all images and runs."""
        if ids not in self._beginnings:
            past = Past()
            words = torch.tensor([ids], device=self.device)
            places = _places(0, len(ids), 1, words.device)
            through(
                self.llm, llama.embed(self.llm, words), places, past, range(self.depth), read=places[:, :0]
            )
            self._beginnings[ids] = past
        return self._beginnings[ids]

    def _batches(self, members: Sequence[int]) -> Iterator[tuple[list[int], list[int]]]:
        """Portions of at most `batch_size`, and the same filled up with the last one."""
        for start in range(0, len(members), self.batch_size):
            part = list(members[start : start + self.batch_size])
            yield part, filled_up(part, self.multiple)

    def run(
        self, lengths: Sequence[int], project: Callable[[list[int]], Tensor], asks: Sequence[Ask]
    ) -> dict[int, Answer]:
        """Answers of all rows by their number.

        Args:
            lengths: visual tokens of every context.
            project: numbers of contexts of T tokens each -> (B, T, width), called once per batch.
        """
        of: dict[tuple[int, tuple[int, ...], tuple[int, ...]], list[int]] = defaultdict(list)
        for number, ask in enumerate(asks):
            of[ask.context, ask.beginning, ask.sentence].append(number)
        groups: dict[tuple[tuple[int, ...], tuple[int, ...], int], list[int]] = defaultdict(list)
        for context, beginning, sentence in of:
            groups[beginning, sentence, lengths[context]].append(context)
        answers: dict[int, Answer] = {}
        for (beginning, sentence, _), group in groups.items():
            # contexts whose questions have one length together: their branches fill batches
            group.sort(
                key=lambda context: sorted({len(asks[k].words) for k in of[context, beginning, sentence]})
            )
            for part, filled in self._batches(group):
                numbers = [number for context in part for number in of[context, beginning, sentence]]
                answers |= self._with_contexts(beginning, sentence, part, project(filled), asks, numbers)
        return answers

    def _with_contexts(
        self,
        beginning: tuple[int, ...],
        sentence: tuple[int, ...],
        part: list[int],
        visual: Tensor,
        asks: Sequence[Ask],
        numbers: list[int],
    ) -> dict[int, Answer]:
        start, rows = self._beginning(beginning), len(visual)
        cuts = {pruner.layer for k in numbers if (pruner := asks[k].pruner) is not None}
        deep = self.depth if any(asks[k].pruner is None for k in numbers) else max(cuts)
        ids = torch.tensor(sentence, dtype=torch.long, device=self.device)
        hidden = torch.cat([visual, llama.embed(self.llm, ids).expand(rows, -1, -1)], dim=1)
        past = Past(start, torch.zeros(rows, dtype=torch.long, device=self.device))
        saved = dict.fromkeys(cuts, hidden)
        if hidden.shape[1]:
            places = _places(len(beginning), hidden.shape[1], rows, self.device)
            unread = places[:, :0] if deep == self.depth else None
            _, lengths = through(self.llm, hidden, places, past, range(deep), saved, unread)
        else:  # an image of no token and no sentence: questions follow the beginning at once
            past.layers = {
                layer: (key[past.owner], value[past.owner]) for layer, (key, value) in start.layers.items()
            }
            lengths = [0] * deep
        known = _Contexts(start, past, saved, tuple(length - len(sentence) for length in lengths))
        # rows of one context and the same words are one branch until a cut parts them
        branches: dict[tuple[int, tuple[int, ...]], list[int]] = defaultdict(list)
        for number in numbers:
            branches[part.index(asks[number].context), asks[number].words].append(number)
        alike: dict[tuple[int, int], list[tuple[int, tuple[int, ...]]]] = defaultdict(list)
        for branch, members in branches.items():
            alike[len(branch[1]), len(asks[members[0]].read)].append(branch)
        answers: dict[int, Answer] = {}
        for group in alike.values():
            for portion, filled in self._batches(range(len(group))):
                owner = torch.tensor([group[k][0] for k in filled], device=self.device)
                words = torch.tensor([group[k][1] for k in filled], device=self.device)
                read = torch.tensor(
                    [asks[branches[group[k]][0]].read for k in filled], dtype=torch.long, device=self.device
                )
                answers |= self._branches(
                    known, owner, words, read, asks, [branches[group[k]] for k in portion]
                )
        return answers

    def _branches(
        self,
        contexts: _Contexts,
        owner: Tensor,
        words: Tensor,
        read: Tensor,
        asks: Sequence[Ask],
        branches: list[list[int]],
    ) -> dict[int, Answer]:
        llm, numbers = self.llm, [number for branch in branches for number in branch]
        cuts = {pruner.layer for k in numbers if (pruner := asks[k].pruner) is not None}
        deep = self.depth if any(asks[k].pruner is None for k in numbers) else max(cuts)
        own = llama.embed(llm, words)
        wanted = dict.fromkeys(cuts | {cut - 1 for cut in cuts}, own)
        here = Past(contexts.past, owner, keep={cut - 1 for cut in cuts})
        places = _places(contexts.end, words.shape[1], len(words), self.device)
        hidden, _ = through(llm, own, places, here, range(deep), wanted, read if deep == self.depth else None)
        answers: dict[int, Answer] = {}
        if deep == self.depth:
            final = llama.norm(llm, hidden)
            for row, branch in enumerate(branches):
                answers |= {
                    number: Answer(final[row], contexts.lengths)
                    for number in branch
                    if asks[number].pruner is None
                }
        for cut in cuts:
            lasts = torch.zeros(len(words), dtype=torch.long, device=self.device)
            for row, branch in enumerate(branches):
                lasts[row] = asks[branch[0]].last
            by = llama.rotary(llm, places, own.dtype)
            scores = llama.Layer(llm, cut - 1).row(wanted[cut - 1], lasts, by, here.layers[cut - 1][0])[
                ..., contexts.span
            ]
            answers |= self._cut(contexts, owner, wanted[cut], scores, read, asks, branches, cut)
        return answers

    def _cut(
        self,
        contexts: _Contexts,
        owner: Tensor,
        own: Tensor,
        scores: Tensor,
        read: Tensor,
        asks: Sequence[Ask],
        branches: list[list[int]],
        cut: int,
    ) -> dict[int, Answer]:
        """The layers behind a cut: only the beginning is still common."""
        budgets: dict[int, list[tuple[int, int, Tensor]]] = defaultdict(list)
        for row, branch in enumerate(branches):
            for number in branch:
                pruner = asks[number].pruner
                if pruner is not None and pruner.layer == cut:
                    kept = checks.keep(pruner, scores[row].nan_to_num(), asks[number].keep)
                    budgets[asks[number].keep].append((number, row, kept))
        length, finite = contexts.saved[cut].shape[1], scores.isfinite().flatten(1).all(1)
        answers: dict[int, Answer] = {}
        for found in budgets.values():
            for portion, filled in self._batches(range(len(found))):
                rows = torch.tensor([found[k][1] for k in filled], device=self.device)
                kept = torch.stack([found[k][2] for k in filled])
                text = torch.arange(contexts.visual, length + own.shape[1], device=self.device).expand(
                    len(rows), -1
                )
                stay = torch.cat([kept, text], dim=1)
                hidden = tokens_at(torch.cat([contexts.saved[cut][owner[rows]], own[rows]], dim=1), stay)
                past = Past(
                    contexts.start, torch.zeros(len(rows), dtype=torch.long, device=self.device), keep=()
                )
                behind = read[rows] + stay.shape[1] - own.shape[1]
                places = stay + contexts.span.start
                run, seen = through(self.llm, hidden, places, past, range(cut, self.depth), read=behind)
                final = llama.norm(self.llm, run).masked_fill(~finite[rows, None, None], torch.nan)
                lengths = contexts.lengths[:cut] + tuple(tokens - text.shape[1] for tokens in seen)
                for place, k in enumerate(portion):
                    answers[found[k][0]] = Answer(final[place], lengths, found[k][2])
        return answers


def filled_up(part: Sequence[Member], multiple: int) -> list[Member]:
    """A batch with its last member repeated up to a multiple that rounds alike."""
    return [*part, *(list(part[-1:]) * (-len(part) % multiple))]


def _places(first: int, count: int, rows: int, device: torch.device) -> Tensor:
    """(rows, count) position ids from `first` on."""
    return torch.arange(first, first + count, device=device).expand(rows, -1)
