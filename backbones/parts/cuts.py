"""A cut inside the language model: what pruners see there of a batch of rows, and what goes on behind it.

A signal is computed for all rows of the batch when the first pruner asks for it, so that pruners and budgets
that cut at one place share it, and a row gets the same digits in any company.

Of a row with several views, a pruner sees each by itself: the sequence without the other views' tokens, and
without a tail that no pruner sees. Attention rows are then those columns of the whole ones.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor
from transformers import LlamaModel

from backbones.parts import llama
from backbones.parts.llama import Layer, Past, tokens_at
from pruners import checks
from pruners.base import POOLED, Cut, Pruner, Selection
from pruners.views import (
    LLM_ATTENTION,
    LLM_ATTENTION_AHEAD,
    LLM_HIDDEN,
    LLM_INPUTS,
    LLM_NORMED,
    LLM_ROTARY,
    LayerView,
    Need,
    Query,
)

Choose = Callable[[Pruner, LayerView, int], Selection]


@dataclass(frozen=True)
class Cutting:
    """What leaves a row's sequence while the language model runs.

    Attributes:
        pruner, cuts: who chooses, and where.
        sample: stable id of the image, for pruners that draw.
        choose: asks the pruner.
        answer: tokens of the last, forced answer, with which the row ends: behind the question.
        grid: rows and columns of a view's patches.
    """

    pruner: Pruner
    cuts: tuple[Cut, ...]
    sample: str = ""
    choose: Choose = checks.cut
    answer: int = 0
    grid: tuple[int, int] | None = None


def cutting(
    pruner: Pruner,
    budget: int,
    patches: int,
    num_layers: int,
    sample: str = "",
    choose: Choose = checks.cut,
    answer: int = 0,
    grid: tuple[int, int] | None = None,
) -> Cutting | None:
    """What a pruner takes out of a row; None if it takes out nothing."""
    cuts = pruner.cuts(budget, patches, num_layers)
    return Cutting(pruner, cuts, sample, choose, answer, grid) if cuts else None


@dataclass(frozen=True)
class Chosen:
    """What one pruner left of one row.

    Attributes:
        selection: of the visual tokens that were there.
        patches: (m,) the patch of each token that stays, or CLS or POOLED.
        sound: whether all that it read were numbers.
    """

    selection: Selection
    patches: Tensor
    sound: bool


@dataclass(frozen=True)
class Sequences:
    """Where B rows stand: what of them runs now, without what a `Past` holds of them.

    Attributes:
        start: tokens before the image among those that run.
        patches: (B, n) the patch of every visual token, or CLS or POOLED.
        positions: (B, M) position ids of the tokens that run.
        last: for every row, the last token that is no fill, counted from the end: 1 or more.
        views: how many views the visual tokens are of, equally many of each.
        tail: tokens between the visual ones and the text.
    """

    start: int
    patches: Tensor
    positions: Tensor
    last: Sequence[int]
    views: int = 1
    tail: int = 0

    @property
    def count(self) -> int:
        """Visual tokens of a row."""
        return self.patches.shape[1]

    def row(self, number: int) -> Sequences:
        """One of them by itself."""
        own = slice(number, number + 1)
        return replace(
            self, patches=self.patches[own], positions=self.positions[own], last=[self.last[number]]
        )

    @staticmethod
    def together(parts: Sequence[Sequences]) -> Sequences:
        """Rows of equal lengths as one batch."""
        patches, positions = (torch.cat([getattr(one, n) for one in parts]) for n in ("patches", "positions"))
        last = [back for one in parts for back in one.last]
        return replace(parts[0], patches=patches, positions=positions, last=last)

    def behind(
        self, hidden: Tensor, rows: Sequence[int], chosen: Sequence[tuple[Cutting, Chosen]]
    ) -> tuple[Tensor, Sequences]:
        """What goes on behind a cut: states (B', M', width) and where they stand.

        Args:
            hidden: (B, M, width) what entered it.
            rows: B' numbers of rows, each as often as it goes on.
            chosen: what stays of each of these, equally many tokens.
        """
        device, count = hidden.device, chosen[0][1].selection.tokens
        before, after = (
            torch.arange(first, end, device=device).expand(len(rows), -1)
            for first, end in ((0, self.start), (self.start + self.count, hidden.shape[1]))
        )
        kept = torch.stack([one.selection.indices for _, one in chosen]).clamp(min=0)
        stay = torch.cat([before, kept + self.start, after], dim=1)
        of = torch.tensor(list(rows), device=device)[:, None]
        left, positions = hidden[of, stay], self.positions[of, stay]
        for k, (by, one) in enumerate(chosen):
            if one.selection.features is not None:
                left[k, self.start : self.start + count] = one.selection.features
            if by.pruner.positions == "compact":
                first = self.positions[rows[k], 0]
                positions[k] = first + torch.arange(stay.shape[1], device=device)
        patches = torch.stack([one.patches for _, one in chosen])
        last = [self.last[k] for k in rows]
        return left, replace(self, patches=patches, positions=positions, last=last)


@dataclass(frozen=True)
class _Shown:
    """What a pruner sees of a row.

    Attributes:
        view: number of the view.
        columns: the places in the row's sequence that it sees; None for all of them.
    """

    view: int
    columns: Tensor | None


class AtCut:
    """B rows before layer `layer`, each s + n + T tokens long and fill behind them.

    Args:
        layer, number: as in `LayerView`.
        rows: where they stand.
        past: what stands before the tokens that run, in layer `layer` too.
        ran: keys and values (B, H', K, d) of layer - 1.
        hidden: (B, M, width) what enters the layer, when it is asked for.
        entered: (B, M, width) what entered layer - 1, when it is asked for.
        tail: (B, W, width) the end of it; the last tokens are among these.
        inputs: what entered the first layer of one row: (E, width) visual tokens and (T or more, width) text.
        multiple: as in `backbones.parts.llama.Layer`.
    """

    def __init__(
        self,
        llm: LlamaModel,
        layer: int,
        number: int,
        rows: Sequences,
        *,
        past: Past,
        ran: tuple[Tensor, Tensor],
        hidden: Callable[[], Tensor],
        entered: Callable[[], Tensor],
        tail: Tensor,
        inputs: Callable[[int], tuple[Tensor, Tensor]],
        multiple: int = 1,
    ) -> None:
        self.llm, self.layer, self.number, self._multiple = llm, layer, number, multiple
        self._patches, self._last, self._past, self._ran = rows.patches, rows.last, past, ran
        self._hidden, self._entered, self._tail, self._inputs = hidden, entered, tail, inputs
        self._length = ran[0].shape[2]
        before = self._length - rows.positions.shape[1]
        earlier = torch.arange(before, device=rows.positions.device)
        self._positions = torch.cat([earlier.expand(len(rows.positions), -1), rows.positions], dim=1)
        self._visual = slice(before + rows.start, before + rows.start + rows.count)
        self._text = self._visual.stop + rows.tail
        self._views, self._each = rows.views, rows.count // rows.views
        self._answers: dict[tuple[object, ...], tuple[Tensor, list[bool]]] = {}

    def chosen(self, row: int, by: Cutting) -> Chosen:
        """What a pruner leaves of a row: of each of its views as many as it states."""
        parts = [self._of_view(row, view, by) for view in range(self._views)]
        return parts[0] if len(parts) == 1 else self._joined(row, parts)

    def _of_view(self, row: int, view: int, by: Cutting) -> Chosen:
        """What a pruner leaves of one view, counted among its own tokens."""
        unsound: list[Query] = []
        patches = self._patches[row, view * self._each : (view + 1) * self._each]
        own, end, columns = patches, self._end(row), self._columns(row, view)
        if self._views > 1:
            if by.grid is None:
                raise ValueError("patches of several views are told apart by the grid of one")
            own = torch.where(patches < 0, patches, patches - view * by.grid[0] * by.grid[1])
        seen = LayerView(
            self.layer,
            self.number,
            own,
            self._positions[row, :end] if columns is None else self._positions[row, columns],
            self._visual.start,
            self._tail.shape[-1],
            self._tail.dtype,
            partial(self._answer, row, unsound, _Shown(view, columns)),
            by.sample if self._views == 1 else f"{by.sample}#{view}",
            asked=(end if columns is None else len(columns)) - by.answer,
            grid=by.grid,
        )
        selection = by.choose(by.pruner, seen, by.cuts[self.number].keep)
        kept = selection.indices
        patches = patches[kept.clamp(min=0)].masked_fill(kept == POOLED, POOLED)
        return Chosen(selection, patches, not unsound)

    def _columns(self, row: int, view: int) -> Tensor | None:
        """The places of a row's sequence that a pruner of a view sees; None for all."""
        if self._views == 1 and self._text == self._visual.stop:
            return None
        first = self._visual.start + view * self._each
        spans = (0, self._visual.start), (first, first + self._each), (self._text, self._end(row))
        return torch.cat([torch.arange(*span, device=self._positions.device) for span in spans])

    def _joined(self, row: int, parts: Sequence[Chosen]) -> Chosen:
        """What stays of all views together; where one merges, the others' tokens are given with it."""
        indices, features = [], []
        merged = any(part.selection.features is not None for part in parts)
        for view, part in enumerate(parts):
            own = part.selection.indices
            indices.append(torch.where(own < 0, own, own + view * self._each))
            if merged and (given := part.selection.features) is not None:
                features.append(given)
            elif merged:
                states = self._hidden()[row]
                first = len(states) - self._length + self._visual.start
                features.append(states[first + indices[-1]])
        selection = Selection(torch.cat(indices), torch.cat(features) if merged else None)
        patches = torch.cat([part.patches for part in parts])
        return Chosen(selection, patches, all(part.sound for part in parts))

    def _end(self, row: int) -> int:
        """Tokens of a row without its fill."""
        return self._length - self._last[row] + 1

    def _answer(self, row: int, unsound: list[Query], shown: _Shown, query: Query) -> Tensor:
        """The answer to one row's query, without fill and what is not shown.

        Args:
            unsound: takes the query if its answer held what is no number; that is replaced.
        """
        if isinstance(query.of, Tensor) and shown.columns is not None:
            query = replace(query, of=shown.columns[query.of])
        # places differ from row to row, and so does whether anybody may ask what entered the first layer
        alone = isinstance(query.of, Tensor) or query.need == LLM_INPUTS
        if isinstance(query.of, FakeTensor):  # of shapes alone, which have no places to compare
            answers, sound = self._checked(query, row)
        else:
            key = (row, *query.key) if alone else query.key
            if key not in self._answers:
                self._answers[key] = self._checked(query, row if alone else None)
            answers, sound = self._answers[key]
        answer, fine = (answers[0], sound[0]) if alone else (answers[row], sound[row])
        if not fine:
            unsound.append(query)
        text = self._end(row) - self._text
        if query.need in (LLM_ATTENTION, LLM_ATTENTION_AHEAD):
            columns = shown.columns
            answer = answer[..., : self._end(row)] if columns is None else answer[..., columns]
        elif query.of == "visual" and self._views > 1:
            each = answer.shape[-2] // self._views
            answer = answer[..., shown.view * each : (shown.view + 1) * each, :]
        if query.of != "text":
            return answer
        by_heads = query.need not in (LLM_HIDDEN, LLM_NORMED, LLM_INPUTS, LLM_ROTARY)
        return answer[:, :text] if by_heads else answer[:text]

    def _checked(self, query: Query, row: int | None) -> tuple[Tensor, list[bool]]:
        """Answers of one row, or of all, and which of them are numbers throughout."""
        found = self._computed(query, slice(None) if row is None else slice(row, row + 1))
        # costs are projected from shapes, which hold no values
        if type(found) is not Tensor or found.is_meta:
            return found, [True] * len(found)
        fine = found.isfinite() if query.softmax else found.isfinite() | found.isneginf()
        each: list[bool] = fine.flatten(1).all(1).tolist()
        return (found if all(each) else found.nan_to_num(neginf=-torch.inf)), each

    def _computed(self, query: Query, rows: slice) -> Tensor:
        """The answer of some rows, fill included; kinds and shapes are those of `LayerView`."""
        span = self._visual if query.of == "visual" else slice(self._text, self._length)
        ran = self._layer(self.layer - 1)
        match query.need:
            case Need("llm_attention"):
                states = self._tail if query.of == "last" else self._entered()
                logits = self._logits(query, rows, ran, states, self._ran[0])
                return llama.probabilities(logits) if query.softmax else logits
            case Need("llm_attention_ahead"):
                layer = self._layer(self.layer)
                logits = self._logits(query, rows, layer, self._hidden(), self._keys_ahead)
                return llama.probabilities(logits) if query.softmax else logits
            case Need("llm_keys"):
                keys = self._ran[0][rows, :, span]
                return ran.whole(keys if query.rotary else llama.turned_back(keys, self._by(rows, span)))
            case Need("llm_values"):
                return ran.whole(self._ran[1][rows, :, span])
            case Need("llm_hidden") | Need("llm_normed"):
                states = self._hidden()
                shift = self._length - states.shape[1]
                states = states[rows, span.start - shift : span.stop - shift]
                return llama.norm(self.llm, states) if query.need == LLM_NORMED else states
            case Need("llm_inputs"):
                which = 0 if query.of == "visual" else 1
                return torch.stack([self._inputs(k)[which] for k in range(len(self._patches))[rows]])
            case Need("llm_rotary"):
                half = slice(ran.head // 2)
                return torch.cat([turn[..., half] for turn in self._by(rows, span)], dim=-1)
        raise ValueError(f"there is no signal {query.need} at a cut")

    def _logits(self, query: Query, rows: slice, layer: Layer, states: Tensor, keys: Tensor) -> Tensor:
        """(B, H, R, K) rows before their softmax.

        Args:
            states: (B, M or W, width) what the last tokens of the sequence enter the layer as.
            keys: (B, H', K, d) of the layer.
        """
        read, keys = self._read(query, rows), keys[rows]
        states = tokens_at(states[rows], read - (self._length - states.shape[1]))
        by = None
        if query.rotary:
            by = llama.rotary(self.llm, self._positions[rows].gather(1, read), states.dtype)
        else:
            keys = llama.turned_back(keys, self._by(rows, slice(None)))
        return layer.logits(states, keys, llama.unseen(read, self._length, layer.window), by)

    def _read(self, query: Query, rows: slice) -> Tensor:
        """(B, R) places of the tokens whose rows are asked for."""
        device = self._positions.device
        if isinstance(query.of, Tensor):
            return query.of[None]
        if query.of == "text":
            text = torch.arange(self._text, self._length, device=device)
            return text.expand(len(self._positions), -1)[rows]
        return torch.tensor([[self._length - back] for back in self._last], device=device)[rows]

    @cached_property
    def _keys_ahead(self) -> Tensor:
        """(B, H', K, d) keys of the layer that has not run."""
        hidden = self._hidden()
        places = self._positions[:, self._length - hidden.shape[1] :]
        keys = self._layer(self.layer).keys(hidden, llama.rotary(self.llm, places, hidden.dtype))
        earlier = self._past.earlier(self.layer)
        return keys if earlier is None else torch.cat([earlier[0], keys], dim=2)

    def _layer(self, index: int) -> Layer:
        return Layer(self.llm, index, self._multiple)

    def _by(self, rows: slice, span: slice) -> llama.Rotary:
        return llama.rotary(self.llm, self._positions[rows, span], self._tail.dtype)
