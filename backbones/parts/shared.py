"""The language model over many rows, with everything computed once that rows have in common.

A row is a constant beginning, the visual tokens that a pruner left of an image, the constant rest of the
sentence about it, and a question with its answer. Attention looks back only, so the beginning's keys and
values serve all rows, and those of an image's tokens and of the sentence serve all its expressions. A row
that is cut shares the layers before its first cut with the rows that the same tokens entered. Behind the last
layer only a few states are read, so it computes no more than keys and values for all other tokens.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Container, Iterable, Mapping, Sequence, Set
from dataclasses import dataclass
from functools import cache
from itertools import groupby
from math import gcd
from typing import Any, NamedTuple

import torch
from torch import Tensor
from transformers import LlamaModel

from backbones.parts import llama
from backbones.parts.batches import Waiting, filled_up
from backbones.parts.behind import Behind, Going
from backbones.parts.contexts import Ask, Context, ContextAnswer, Contexts, context_positions
from backbones.parts.cuts import AtCut, Cutting, Sequences
from backbones.parts.generation import Writer, Written
from backbones.parts.llama import Past, through

_Where = tuple[int, tuple[int, ...], tuple[int, ...]]  # number of a context, beginning and sentence around it


@dataclass(frozen=True, eq=False)
class _Branch:
    """Rows of one context and the same words, which are one row until a cut parts them.

    Attributes:
        contexts, place: the batch that its context ran in, and its place there.
        ask: what they ask; they differ in what they are cut by.
        numbers: of all of them.
    """

    contexts: Contexts
    place: int
    ask: Ask
    numbers: list[int]


class _Kind(NamedTuple):
    """What branches of one batch have in common.

    Attributes:
        words, read: how many.
        deep: layers before the last of their first cuts.
    """

    words: int
    read: int
    deep: int


class Shared:
    """Runs rows of one model.

    Args:
        batch_size: most rows in a forward pass.
        multiple: of tokens that matrices get, as in `backbones.parts.llama.Layer`; of rows that write.
        beginnings: what is known of constant beginnings; grows.
        writer: goes on behind the words of every row, of which the last is read; none of them is fill or is
            cut.
        tell: is called with how many more rows have their answer.
    """

    def __init__(
        self,
        llm: LlamaModel,
        batch_size: int,
        multiple: int,
        beginnings: dict[tuple[int, ...], Past],
        writer: Writer | None = None,
        tell: Callable[[int], None] | None = None,
    ) -> None:
        self.llm, self.batch_size, self.multiple, self._beginnings = llm, batch_size, multiple, beginnings
        self._writer, self._tell = writer, tell or (lambda rows: None)
        # whose answers grow by a token a row
        self._rows = multiple if writer is not None else 1
        self.depth = llm.config.num_hidden_layers
        self.device = llm.device

    def _beginning(self, ids: tuple[int, ...]) -> Past:
        """Keys and values of the constant beginning, computed once for all images and runs."""
        if ids not in self._beginnings:
            past = Past()
            words = torch.tensor([ids], device=self.device)
            places = _places(0, len(ids), 1, words.device)
            through(
                self.llm,
                llama.embed_ids(self.llm, words),
                places,
                past,
                range(self.depth),
                read=places[:, :0],
                multiple=self.multiple,
            )
            self._beginnings[ids] = past
        return self._beginnings[ids]

    def run(
        self, contexts: Sequence[Context], project: Callable[[list[int]], Tensor], asks: Sequence[Ask]
    ) -> dict[int, ContextAnswer]:
        """Answers of all rows by their number.

        Args:
            project: numbers of contexts of T tokens and a tail each -> (B, T + tail, width), called once per
                batch.
        """
        of: dict[_Where, dict[tuple[int, ...], list[int]]] = defaultdict(lambda: defaultdict(list))
        for number, ask in enumerate(asks):
            of[ask.context, ask.beginning, ask.sentence][ask.words].append(number)
        groups: dict[tuple[Any, ...], list[_Where]] = defaultdict(list)
        for where, branches in of.items():
            one, text = contexts[where[0]], where[1:]
            deep = self._depth(asks[k] for numbers in branches.values() for k in numbers)
            groups[*text, len(one), one.views, one.tail, deep].append(where)
        answers: dict[int, ContextAnswer] = {}
        behind = Behind(self.llm, self.batch_size, self.multiple, answers, self._tell)
        for (*_, deep), group in groups.items():
            self._of_group(group, of, contexts, project, asks, deep, behind)
        behind.finish()
        return answers

    def _depth(self, asks: Iterable[Ask]) -> int:
        """How many layers some rows have in common with others that the same tokens entered."""
        return max(self.depth if ask.first_cut is None else ask.first_cut for ask in asks)

    def _of_group(
        self,
        group: list[_Where],
        of: Mapping[_Where, Mapping[tuple[int, ...], list[int]]],
        contexts: Sequence[Context],
        project: Callable[[list[int]], Tensor],
        asks: Sequence[Ask],
        deep: int,
        behind: Behind,
    ) -> None:
        """Contexts of one length and the same words around them, and the rows on them up to their first
        cuts."""

        def kind(numbers: list[int]) -> _Kind:
            one = asks[numbers[0]]
            return _Kind(len(one.words), len(one.read), self._depth(asks[k] for k in numbers))

        # contexts whose questions have one length together, so that these soon fill a batch
        group.sort(key=lambda where: sorted({len(words) for words in of[where]}))
        waiting = Waiting[_Kind, _Branch](
            self.batch_size, Counter(kind(numbers) for where in group for numbers in of[where].values())
        )
        first = {asks[k].first_cut for where in group for numbers in of[where].values() for k in numbers}
        cuts = {cut for cut in first if cut is not None}

        def run(part: list[_Where]) -> None:  # what it knows of the contexts goes with it
            given = [contexts[where[0]] for where in part]
            _, beginning, sentence = part[0]
            # what is projected makes the multiple, too
            rows = self.multiple // gcd(self.multiple, len(given[0]) + given[0].tail)
            visual = project([where[0] for where in filled_up(part, rows)])[: len(part)]
            known = self._context(beginning, sentence, given, visual, cuts, deep)
            for place, where in enumerate(part):
                for numbers in of[where].values():
                    branch = _Branch(known, place, asks[numbers[0]], numbers)
                    if batch := waiting.add(kind(numbers), branch):
                        self._branches(batch, asks, behind)

        for start in range(0, len(group), self.batch_size):
            run(group[start : start + self.batch_size])

    def _context(
        self,
        beginning: tuple[int, ...],
        sentence: tuple[int, ...],
        given: Sequence[Context],
        visual: Tensor,
        cuts: Set[int],
        deep: int,
    ) -> Contexts:
        """A batch of contexts through the layers that rows on them have in common.

        Args:
            cuts: layers before which rows part from others.
            deep: the layers.
        """
        start, rows = self._beginning(beginning), len(visual)
        ids = torch.tensor(sentence, dtype=torch.long, device=self.device)
        hidden = torch.cat([visual, llama.embed_ids(self.llm, ids).expand(rows, -1, -1)], dim=1)
        past = Past(start, torch.zeros(rows, dtype=torch.long, device=self.device))
        saved = dict.fromkeys({0, *cuts, *(cut - 1 for cut in cuts)} if cuts else (), hidden)
        places, follows = context_positions(given, len(sentence), len(beginning), self.device)
        if hidden.shape[1]:
            unread = places[:, :0] if deep == self.depth else None
            _, lengths = through(self.llm, hidden, places, past, range(deep), saved, unread, self.multiple)
        else:  # an image of no token and no sentence: questions follow the beginning at once
            past.layers = {
                layer: (key[past.owner], value[past.owner]) for layer, (key, value) in start.layers.items()
            }
            lengths = [0] * deep
        patches = torch.stack([context.patches.to(self.device) for context in given])
        views, tail = given[0].views, given[0].tail
        counts = tuple(length - len(sentence) - tail for length in lengths)
        return Contexts(start, past, saved, counts, patches, places, follows, views, tail)

    def _branches(self, batch: Sequence[_Branch], asks: Sequence[Ask], behind: Behind) -> None:
        """A batch of branches of one kind, up to their first cuts."""
        llm, filled = self.llm, filled_up(batch, self._rows)
        upon = _Upon(filled, self.device)
        words = torch.tensor([one.ask.words for one in filled], device=self.device)
        read = torch.tensor([one.ask.read for one in filled], dtype=torch.long, device=self.device)
        cuttings = [[(k, asks[k].cutting) for k in one.numbers] for one in batch]
        cuts = sorted({by.cuts[0].layer for row in cuttings for _, by in row if by is not None})
        deep = self._depth(asks[k] for k in batch[0].numbers)
        own = llama.embed_ids(llm, words)
        wanted = dict.fromkeys({*cuts, *(cut - 1 for cut in cuts)}, own)
        kept = None if self._writer else {cut - 1 for cut in cuts}
        here = upon.past(kept)
        places = upon.each(lambda one: one.next)[:, None] + torch.arange(words.shape[1], device=self.device)
        unread = read if deep == self.depth else None
        hidden, _ = through(llm, own, places, here, range(deep), wanted, unread, self.multiple)
        if deep == self.depth:
            self._uncut(batch, hidden, here, places, cuttings, behind.answers)
        if not cuts:
            return
        first = filled[0].contexts
        last = [words.shape[1] - one.ask.last for one in filled]
        every = torch.cat([upon.each(lambda one: one.positions), places], dim=1)
        rows = Sequences(0, upon.each(lambda one: one.patches), every, last, first.views, first.tail)

        def whole(layer: int) -> Tensor:
            """What enters a layer of all rows: context and words."""
            return torch.cat([upon.each(lambda one: one.saved[layer]), wanted[layer]], dim=1)

        @cache
        def entered(row: int) -> tuple[Tensor, Tensor]:
            visual, tail = (
                filled[row]
                .contexts.saved[0][filled[row].place]
                .split([rows.count, first.saved[0].shape[1] - rows.count])
            )
            return visual, torch.cat([tail[rows.tail :], own[row]])

        for cut in cuts:
            hidden = whole(cut)
            at = AtCut(
                llm,
                cut,
                0,
                rows,
                past=behind.past(first.start, len(filled)),
                ran=here.layers[cut - 1],
                hidden=lambda hidden=hidden: hidden,  # type: ignore[misc]
                entered=lambda cut=cut: whole(cut - 1),  # type: ignore[misc]
                tail=wanted[cut - 1],
                inputs=entered,
                multiple=self.multiple,
            )
            going = [
                (row, Going(k, by, read[row] - words.shape[1], first.start, first.lengths[:cut]))
                for row, members in enumerate(cuttings)
                for k, by in members
                if by is not None and by.cuts[0].layer == cut
            ]
            behind.cut(at, hidden, rows, going, entered)

    def _uncut(
        self,
        batch: Sequence[_Branch],
        hidden: Tensor,
        past: Past,
        places: Tensor,
        cuttings: Sequence[Sequence[tuple[int, Cutting | None]]],
        answers: dict[int, ContextAnswer],
    ) -> None:
        """Answers of a batch's rows that no cut parts from the others."""
        final = llama.norm(self.llm, hidden)
        written: Sequence[Written | None] = [None] * len(batch)
        if self._writer is not None:
            written = self._writer(final[:, -1], past, places[:, -1] + 1, len(batch))
        before = len(answers)
        for row, (one, members) in enumerate(zip(batch, cuttings, strict=True)):
            known = one.contexts
            answers |= {
                k: ContextAnswer(final[row], known.lengths, known.patches[one.place], written[row])
                for k, by in members
                if by is None
            }
        self._tell(len(answers) - before)


class _Upon:
    """What a batch of branches stands on, row by row, from the batches that their contexts ran in."""

    def __init__(self, rows: Sequence[_Branch], device: torch.device) -> None:
        self._parts = [
            (contexts, torch.tensor([one.place for one in part], device=device))
            for contexts, part in groupby(rows, key=lambda one: one.contexts)
        ]

    def each(self, of: Callable[[Contexts], Tensor]) -> Tensor:
        """(B, ...) one thing of every row's context."""
        return torch.cat([of(contexts)[places] for contexts, places in self._parts])

    def past(self, keep: Container[int] | None) -> Past:
        """Keys and values of what stands before the rows; `keep` as in `Past`."""
        (contexts, places), *others = self._parts
        return Past(contexts.past, places, keep, [(one.past, of) for one, of in others])


def _places(first: int, count: int, rows: int, device: torch.device) -> Tensor:
    """(rows, count) position ids from `first` on."""
    return torch.arange(first, first + count, device=device).expand(rows, -1)
