"""The language model over embeddings, dropping visual tokens on the way: the faithful path.

Layers run with whatever attention the model was built with; what a pruner reads of them is computed beside.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from transformers import LlamaModel

from backbones.parts import llama
from backbones.parts.cuts import AtCut, Cutting, Sequences
from backbones.parts.llama import Past
from pruners.views import LLM_INPUTS

Stage = Callable[[str], AbstractContextManager[Any]]  # entered around a named part of the work, for meters


@dataclass(frozen=True)
class LayerRun:
    """Result of a pass.

    Attributes:
        hidden: (B, L', width) after the final norm.
        positions: (B, L') position ids of what is left; gaps stay where tokens were dropped and kept theirs.
        lengths: sequence length that every layer saw.
        patches: (B, m) the patch of every visual token that is left, or CLS or POOLED.
        sound: for every row, whether what its pruner read were numbers.
    """

    hidden: Tensor
    positions: Tensor
    lengths: tuple[int, ...]
    patches: Tensor
    sound: tuple[bool, ...]


def run_layers(
    llm: LlamaModel,
    hidden: Tensor,
    *,
    visual_start: int = 0,
    visual_count: int = 0,
    views: int = 1,
    tail: int = 0,
    cuttings: Sequence[Cutting] = (),
    patches: Tensor | None = None,
    positions: Tensor | None = None,
    past: Past | None = None,
    first_position: int | None = None,
    last: Tensor | None = None,
    stage: Stage = nullcontext,
) -> LayerRun:
    """Run the language model on embeddings.

    Args:
        hidden: (B, L, width) input embeddings.
        visual_start, visual_count: the visual span.
        views, tail: as in `backbones.parts.contexts.Context`; the tail stands behind the span.
        cuttings: what leaves every row on the way, at the same layers and to the same counts; none for rows
            that keep everything.
        patches: (B, n) the patch of every visual token, or CLS or POOLED; without, the first n.
        positions: (B, L) position ids; without, those from `first_position` on.
        past: has earlier tokens, and takes these tokens' keys and values; layers behind a cut take fewer.
        first_position: position id of the first token; without, every layer goes on behind the tokens that
            it has of the past, as tokens decoded behind a cut do that leaves no gaps.
        last: (B,) place of each row's last token, if fill stands behind it.
        stage: "pruner" is entered around what pruning costs.
    """
    batch, length = hidden.shape[:2]
    if patches is None:
        patches = torch.arange(visual_count, device=hidden.device).expand(batch, -1)
    first = first_position if first_position is not None else past.length() if past is not None else 0
    each_layer = past is not None and past.before is not None and first_position is None and positions is None
    if positions is None:
        positions = _from(first, hidden)
    ends = [1] * batch if last is None else (length - last).tolist()
    rows = Sequences(visual_start, patches, positions, ends, views, tail)
    by = llama.rotary(llm, positions, hidden.dtype)
    cuts = cuttings[0].cuts if cuttings else ()
    given = hidden if any(LLM_INPUTS in one.pruner.needs for one in cuttings) else None
    number, lengths, sound = 0, [], [True] * batch
    for layer in llama.layers(llm):
        lengths.append(hidden.shape[1])
        if each_layer and past is not None and (here := past.length(layer.index)) != first:
            first = here
            rows = replace(rows, positions=_from(first, hidden))
            by = llama.rotary(llm, rows.positions, hidden.dtype)
        if number == len(cuts) or layer.index != cuts[number].layer - 1:
            hidden = layer(hidden, by, past)
            continue
        entered, known = hidden, past if past is not None else Past()
        hidden = layer(entered, by, known)
        with stage("pruner"):
            at = _at_cut(llm, layer.index + 1, number, rows, known, hidden, entered, given)
            found = [(one, at.chosen(row, one)) for row, one in enumerate(cuttings)]
            hidden, rows = rows.behind(hidden, range(batch), found)
            sound = [before and one.sound for before, (_, one) in zip(sound, found, strict=True)]
            by = llama.rotary(llm, rows.positions, hidden.dtype)
        number += 1
        del at, found, entered, known
    return LayerRun(llama.norm(llm, hidden), rows.positions, tuple(lengths), rows.patches, tuple(sound))


def _from(first: int, hidden: Tensor) -> Tensor:
    """(B, L) position ids from `first` on."""
    return torch.arange(first, first + hidden.shape[1], device=hidden.device).expand(len(hidden), -1)


def _at_cut(
    llm: LlamaModel,
    layer: int,
    number: int,
    rows: Sequences,
    known: Past,
    hidden: Tensor,
    entered: Tensor,
    given: Tensor | None,
) -> AtCut:
    """What pruners see before `layer`, whose input is `hidden`; `given` is what entered the first layer."""

    def inputs(row: int) -> tuple[Tensor, Tensor]:
        if given is None:
            raise ValueError("what entered the first layer was not kept")
        text = given.shape[1] - (hidden.shape[1] - rows.start - rows.count)
        return given[row, rows.start : text], given[row, text + rows.tail :]

    return AtCut(
        llm,
        layer,
        number,
        rows,
        past=known,
        ran=known.layers[layer - 1],
        hidden=lambda: hidden,
        entered=lambda: entered,
        tail=entered,
        inputs=inputs,
    )
