"""What rows have in common, row for row: visual tokens as a selection left them, and the words around them.

Position ids, too: tokens that keep theirs leave gaps, and the text behind the image goes on as if nothing had
been pruned.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from backbones.parts.cuts import Cutting
from backbones.parts.generation import Written
from backbones.parts.llama import Past
from pruners.base import Pruner, Selection


@dataclass(frozen=True)
class Context:
    """Visual tokens as a selection left them.

    Attributes:
        patches: (T,) the patch of each, or CLS or POOLED.
        places: (T,) their position ids counted from the image's; None for 0 to T - 1.
        end: where what stands behind them goes on, counted so; None for T.
        views: how many views they are of, equally many of each, view after view; a cut prunes each by itself.
        tail: further tokens behind them, which no pruner sees and no cut touches.
    """

    patches: Tensor
    places: Tensor | None = None
    end: int | None = None
    views: int = 1
    tail: int = 0

    def __len__(self) -> int:
        return len(self.patches)

    @property
    def span(self) -> int:
        """Position ids that they and the tail take."""
        return (len(self) if self.end is None else self.end) + self.tail


def context_of(
    pruner: Pruner, selections: Sequence[Selection], patches: int, positions: str = "compact"
) -> Context:
    """What a pruner sends into the language model of a view of so many patches; all of it without a
    selection.

    Args:
        positions: those that the run asks for.
    """
    if not selections:
        return Context(torch.arange(patches))
    (chosen,) = selections
    if pruner.positions_for(positions) == "kept":
        return Context(chosen.indices, chosen.standing(patches), patches)
    return Context(chosen.indices)


@dataclass(frozen=True)
class Ask:
    """One row.

    Attributes:
        context: number of its context.
        beginning: ids before the image.
        sentence: ids behind the image that other rows have there, too.
        words: ids behind these, fill included.
        last: position in `words` of the last one that is no fill.
        read: positions in `words` whose final states are wanted.
        cutting: what leaves the context while the model runs.
    """

    context: int
    beginning: tuple[int, ...]
    sentence: tuple[int, ...]
    words: tuple[int, ...]
    last: int
    read: tuple[int, ...]
    cutting: Cutting | None = None

    @property
    def first_cut(self) -> int | None:
        """Layer before which it parts from the rows of its context."""
        return self.cutting.cuts[0].layer if self.cutting else None


@dataclass(frozen=True, eq=False)
class Contexts:
    """What rows on the same images and selections have in common.

    Attributes:
        start: the beginning.
        past: keys and values of the visual tokens, their tail and the sentence behind them.
        saved: input (B, T + tail + s, width) of the layers on both sides of a cut, and of the first layer.
        lengths: T, the visual tokens that ran, of every layer that ran.
        patches: (B, T) as in `Context`.
        positions: (B, T + tail + s) position ids.
        views, tail: as in `Context`.
        next: (B,) position id of what follows.
    """

    start: Past
    past: Past
    saved: dict[int, Tensor]
    lengths: tuple[int, ...]
    patches: Tensor
    positions: Tensor
    next: Tensor
    views: int = 1
    tail: int = 0


@dataclass(frozen=True)
class ContextAnswer:
    """What the language model made of a row.

    Attributes:
        hidden: (R, width) final states of the words that are read; NaN where a cut had no numbers to choose
            by.
        lengths: visual tokens that ran in every layer.
        patches: (m,) the patch of every visual token in the last layer, or CLS or POOLED.
        written: what the model went on with behind the words, where it was asked to.
    """

    hidden: Tensor
    lengths: tuple[int, ...]
    patches: Tensor
    written: Written | None = None


def context_positions(
    contexts: Sequence[Context], sentence: int, first: int, device: torch.device
) -> tuple[Tensor, Tensor]:
    """Position ids (B, T + tail + s) of contexts of one length with their tails and sentences, and (B,) of
    what follows, from `first` on."""
    count = len(contexts[0])
    plain = torch.arange(count, device=device)
    places = torch.stack([plain if one.places is None else one.places.to(device) for one in contexts])
    tail = contexts[0].tail
    ends = torch.tensor([one.span - tail for one in contexts], device=device)
    behind = ends[:, None] + torch.arange(tail + sentence + 1, device=device)
    return first + torch.cat([places, behind[:, :-1]], dim=1), first + behind[:, -1]


def whole_positions(contexts: Sequence[Context], before: int, behind: int, device: torch.device) -> Tensor:
    """Position ids (B, a + T + tail + b) of whole sequences, with `before` and `behind` text tokens around
    contexts of one length."""
    text = torch.arange(before, device=device).expand(len(contexts), -1)
    return torch.cat([text, context_positions(contexts, behind, before, device)[0]], dim=1)
