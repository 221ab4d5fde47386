"""The language model over many rows, with everything computed once that rows have in common.

A row is a constant beginning, the visual tokens that a pruner left of an image, the constant rest of the
sentence about it, and a question with its answer. Attention looks back only, so the beginning's keys and
values serve all rows, and those of an image's tokens and of the sentence serve all its expressions. A row
that is cut shares the layers before its first cut with the rows that the same tokens entered. Behind the last
layer only a few states are read, so it computes no more than keys and values for all other tokens.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Container, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor
from transformers import LlamaModel

from backbones.parts import llama
from backbones.parts.contexts import Ask, Context, ContextAnswer, Contexts, context_positions
from backbones.parts.cuts import AtCut, Chosen, Cutting, Sequences
from backbones.parts.generation import Writer, Written
from backbones.parts.llama import Past

Member = TypeVar("Member")


@dataclass(frozen=True)
class _Cut:
    """A row of a batch behind a cut.

    Attributes:
        ask: its number.
        row: its place in the batch.
        cutting, chosen: what it is cut by, and what stays.
        lengths: visual tokens of every layer so far.
        sound: whether all that was read so far were numbers.
    """

    ask: int
    row: int
    cutting: Cutting
    chosen: Chosen
    lengths: tuple[int, ...]
    sound: bool


@dataclass(frozen=True)
class _Tails:
    """The ends of a batch's rows, which no cut touches.

    Attributes:
        read: (B, R) places of the states that are wanted, counted from the end: negative.
        entered: what entered the first layer of a row: visual tokens and text, fill included.
    """

    read: Tensor
    entered: Callable[[int], tuple[Tensor, Tensor]]

    def of(self, rows: Sequence[int]) -> _Tails:
        """Those of some rows."""
        return _Tails(self.read[list(rows)], lambda row: self.entered(rows[row]))


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
            )
            self._beginnings[ids] = past
        return self._beginnings[ids]

    def _batches(self, members: Sequence[int]) -> Iterator[tuple[list[int], list[int]]]:
        """Portions of at most `batch_size`, and the same filled up with the last one."""
        for start in range(0, len(members), self.batch_size):
            part = list(members[start : start + self.batch_size])
            yield part, filled_up(part, self.multiple)

    def run(
        self, contexts: Sequence[Context], project: Callable[[list[int]], Tensor], asks: Sequence[Ask]
    ) -> dict[int, ContextAnswer]:
        """Answers of all rows by their number.

        Args:
            project: numbers of contexts of T tokens and a tail each -> (B, T + tail, width), called once per
                batch.
        """
        of: dict[tuple[int, tuple[int, ...], tuple[int, ...]], list[int]] = defaultdict(list)
        for number, ask in enumerate(asks):
            of[ask.context, ask.beginning, ask.sentence].append(number)
        groups: dict[tuple[Any, ...], list[int]] = defaultdict(list)
        for context, beginning, sentence in of:
            one = contexts[context]
            groups[beginning, sentence, len(one), one.views, one.tail].append(context)
        answers: dict[int, ContextAnswer] = {}
        for (beginning, sentence, *_), group in groups.items():
            # contexts whose questions have one length together: their branches fill batches
            group.sort(
                key=lambda context: sorted({len(asks[k].words) for k in of[context, beginning, sentence]})
            )
            for part, filled in self._batches(group):
                numbers = [number for context in part for number in of[context, beginning, sentence]]
                given = [contexts[context] for context in filled]
                answers |= self._with_contexts(
                    beginning, sentence, part, given, project(filled), asks, numbers
                )
        return answers

    def _with_contexts(
        self,
        beginning: tuple[int, ...],
        sentence: tuple[int, ...],
        part: list[int],
        given: Sequence[Context],
        visual: Tensor,
        asks: Sequence[Ask],
        numbers: list[int],
    ) -> dict[int, ContextAnswer]:
        start, rows = self._beginning(beginning), len(visual)
        cuts, deep = self._depth(asks[k] for k in numbers)
        ids = torch.tensor(sentence, dtype=torch.long, device=self.device)
        hidden = torch.cat([visual, llama.embed_ids(self.llm, ids).expand(rows, -1, -1)], dim=1)
        past = Past(start, torch.zeros(rows, dtype=torch.long, device=self.device))
        saved = dict.fromkeys({0, *cuts, *(cut - 1 for cut in cuts)} if cuts else (), hidden)
        places, follows = context_positions(given, len(sentence), len(beginning), self.device)
        if hidden.shape[1]:
            unread = places[:, :0] if deep == self.depth else None
            _, lengths = through(self.llm, hidden, places, past, range(deep), saved, unread)
        else:  # an image of no token and no sentence: questions follow the beginning at once
            past.layers = {
                layer: (key[past.owner], value[past.owner]) for layer, (key, value) in start.layers.items()
            }
            lengths = [0] * deep
        patches = torch.stack([context.patches.to(self.device) for context in given])
        views, tail = given[0].views, given[0].tail
        counts = tuple(length - len(sentence) - tail for length in lengths)
        known = Contexts(start, past, saved, counts, patches, places, follows, views, tail)
        # rows of one context and the same words are one branch until a cut parts them
        branches: dict[tuple[int, tuple[int, ...]], list[int]] = defaultdict(list)
        for number in numbers:
            branches[part.index(asks[number].context), asks[number].words].append(number)
        alike: dict[tuple[int, int], list[tuple[int, tuple[int, ...]]]] = defaultdict(list)
        for branch, members in branches.items():
            alike[len(branch[1]), len(asks[members[0]].read)].append(branch)
        answers: dict[int, ContextAnswer] = {}
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

    def _depth(self, asks: Iterable[Ask]) -> tuple[set[int], int]:
        """First cuts of some rows, and how many layers these rows have in common."""
        cuts = {ask.first_cut for ask in asks}
        behind = {cut for cut in cuts if cut is not None}
        return behind, self.depth if None in cuts else max(behind)

    def _branches(
        self,
        contexts: Contexts,
        owner: Tensor,
        words: Tensor,
        read: Tensor,
        asks: Sequence[Ask],
        branches: list[list[int]],
    ) -> dict[int, ContextAnswer]:
        """Rows of one context and the same words, up to their first cuts."""
        llm, numbers = self.llm, [number for branch in branches for number in branch]
        cuts, deep = self._depth(asks[k] for k in numbers)
        own = llama.embed_ids(llm, words)
        wanted = dict.fromkeys(cuts | {cut - 1 for cut in cuts}, own)
        kept = None if self._writer else {cut - 1 for cut in cuts}
        here = Past(contexts.past, owner, kept)
        places = contexts.next[owner, None] + torch.arange(words.shape[1], device=self.device)
        hidden, _ = through(llm, own, places, here, range(deep), wanted, read if deep == self.depth else None)
        answers: dict[int, ContextAnswer] = {}
        if deep == self.depth:
            final, patches = llama.norm(llm, hidden), contexts.patches[owner]
            written: Sequence[Written | None] = [None] * len(branches)
            if self._writer is not None:
                written = self._writer(final[:, -1], here, places[:, -1] + 1, len(branches))
            for row, branch in enumerate(branches):
                answers |= {
                    number: ContextAnswer(final[row], contexts.lengths, patches[row], written[row])
                    for number in branch
                    if asks[number].cutting is None
                }
        self._tell(len(answers))
        if not cuts:
            return answers
        last = [words.shape[1] - asks[branch[0]].last for branch in branches]
        last += last[-1:] * (len(words) - len(branches))
        every = torch.cat([contexts.positions[owner], places], dim=1)
        views, tail = contexts.views, contexts.tail
        rows = Sequences(0, contexts.patches[owner], every, last, views, tail)

        def whole(layer: int, row: int | None = None) -> Tensor:
            """What enters a layer of all rows, or of one: context and words."""
            of = owner if row is None else owner[row : row + 1]
            mine = own if layer == 0 else wanted[layer]
            return torch.cat([contexts.saved[layer][of], mine if row is None else mine[row : row + 1]], dim=1)

        def entered(row: int) -> tuple[Tensor, Tensor]:
            return (together := whole(0, row)[0])[: rows.count], together[rows.count + tail :]

        tails = _Tails(read - words.shape[1], entered)
        for cut in cuts:
            hidden = whole(cut)
            at = AtCut(
                llm,
                cut,
                0,
                rows,
                past=self._on(contexts, len(words)),
                ran=here.layers[cut - 1],
                hidden=lambda hidden=hidden: hidden,  # type: ignore[misc]
                entered=lambda cut=cut: whole(cut - 1),  # type: ignore[misc]
                tail=wanted[cut - 1],
                inputs=entered,
            )
            found = []
            for row, branch in enumerate(branches):
                for number in branch:
                    if (by := asks[number].cutting) is not None and by.cuts[0].layer == cut:
                        chosen = at.chosen(row, by)
                        found.append(_Cut(number, row, by, chosen, contexts.lengths[:cut], chosen.sound))
            answers |= self._behind(contexts, hidden, rows, tails, found, 0)
        return answers

    def _on(self, contexts: Contexts, rows: int, keep: Container[int] | None = None) -> Past:
        """Keys and values of rows that have the beginning alone in common."""
        return Past(contexts.start, torch.zeros(rows, dtype=torch.long, device=self.device), keep)

    def _behind(
        self,
        contexts: Contexts,
        hidden: Tensor,
        rows: Sequences,
        tails: _Tails,
        found: Sequence[_Cut],
        number: int,
    ) -> dict[int, ContextAnswer]:
        """The layers behind a cut, up to the next one of each row: only the beginning is still common.

        Args:
            hidden: (B, M, width) what enters the first of them.
            found: the rows that were cut here.
            number: of the cut.
        """
        groups: dict[tuple[int, int], list[_Cut]] = defaultdict(list)
        for one in found:
            cuts = one.cutting.cuts
            stop = cuts[number + 1].layer if number + 1 < len(cuts) else self.depth
            groups[one.chosen.selection.tokens, stop].append(one)
        answers: dict[int, ContextAnswer] = {}
        for (_, stop), group in groups.items():
            for portion, filled in self._batches(range(len(group))):
                members = [group[k] for k in filled]
                answers |= self._onward(contexts, hidden, rows, tails, members, len(portion), number, stop)
        return answers

    def _onward(
        self,
        contexts: Contexts,
        hidden: Tensor,
        rows: Sequences,
        tails: _Tails,
        members: Sequence[_Cut],
        count: int,
        number: int,
        stop: int,
    ) -> dict[int, ContextAnswer]:
        """One batch of rows with equally many tokens from a cut to layer `stop`; the first `count` are no
        fill."""
        cut, picked = members[0].cutting.cuts[number].layer, [one.row for one in members]
        hidden, rows = rows.behind(hidden, picked, [(one.cutting, one.chosen) for one in members])
        tails, length = tails.of(picked), hidden.shape[1]
        last = stop == self.depth
        past = self._on(contexts, len(members), keep=() if last else (stop - 1,))
        saved = {} if last else {stop - 1: hidden}
        read = tails.read + length if last else None
        hidden, seen = through(self.llm, hidden, rows.positions, past, range(cut, stop), saved, read)
        text = length - rows.count  # and the tail
        ran = tuple(tokens - text for tokens in seen)
        if last:
            unsound = torch.tensor([not one.sound for one in members], device=self.device)
            final = llama.norm(self.llm, hidden).masked_fill(unsound[:, None, None], torch.nan)
            self._tell(count)
            return {
                one.ask: ContextAnswer(final[row], one.lengths + ran, one.chosen.patches)
                for row, one in enumerate(members[:count])
            }
        at = AtCut(
            self.llm,
            stop,
            number + 1,
            rows,
            past=self._on(contexts, len(members)),
            ran=past.layers[stop - 1],
            hidden=lambda: hidden,
            entered=lambda: saved[stop - 1],
            tail=saved[stop - 1],
            inputs=tails.entered,
        )
        found = []
        for row, one in enumerate(members[:count]):
            chosen = at.chosen(row, one.cutting)
            sound = one.sound and chosen.sound
            found.append(_Cut(one.ask, row, one.cutting, chosen, one.lengths + ran, sound))
        return self._behind(contexts, hidden, rows, tails, found, number + 1)


def filled_up(part: Sequence[Member], multiple: int) -> list[Member]:
    """A batch with its last member repeated up to a multiple that rounds alike."""
    return [*part, *(list(part[-1:]) * (-len(part) % multiple))]


def _places(first: int, count: int, rows: int, device: torch.device) -> Tensor:
    """(rows, count) position ids from `first` on."""
    return torch.arange(first, first + count, device=device).expand(rows, -1)
