"""What a sweep costs per image when every cell computes alone, and when cells share as evaluation does:
closed forms.

Batches are taken as full; what evaluation leaves out besides (the vision tower's last layer, tokens behind
the last [SEG]) is not taken off. Nor is added that rows which are cut need those tokens, so that their words
run apart from those of `none`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from backbones.costs import Over, Prompt, Shape
from harness.cost.formulas import language_model_macs, layer_macs
from harness.cost.projection import Projection
from harness.cost.store import BASELINE
from harness.engine.cells import Line
from pruners.views import PER_TEXT

ENCODED = "image and questions encoded once"
HEADS = "no lm_head, [SEG] head at its own tokens"
BEGINNING = "constant beginning of the prompt once per run"
CONTEXTS = "one context per image and selection"
CUTS = "layers before a cut shared with all tokens"
LAST = "last layer: keys and values alone, but where a state is read"


@dataclass(frozen=True)
class SharedCell:
    """One pruner at one budget.

    Attributes:
        lengths: sequence length of every layer of the language model.
        whole: all visual tokens enter the language model, so that the layers before the first cut are those
            of `none`.
        per_text: the selection depends on the text, so that every conversation has its own.
    """

    lengths: tuple[int, ...]
    whole: bool
    per_text: bool

    @property
    def before_cut(self) -> int:
        """Layers before the first cut: those that see what the first one sees."""
        return sum(length == self.lengths[0] for length in self.lengths)


@dataclass(frozen=True)
class Account:
    """Multiply-adds of a sweep per image.

    Attributes:
        naive: every cell alone, by the released forward.
        savings: what each way of sharing saves beyond those before it.
        once: of a whole run, whatever the number of images: the constant beginning.
    """

    cells: int
    naive: int
    savings: dict[str, int]
    once: int

    @property
    def shared(self) -> int:
        """What is left per image."""
        return self.naive - sum(self.savings.values())

    @property
    def ratio(self) -> float:
        """Naive over shared."""
        return self.naive / self.shared


def without_beginning(cell: SharedCell, prompt: Prompt, shape: Shape, talks: int) -> int:
    """The language model's layers of all conversations behind the constant beginning, whose keys and values
    are there."""
    return talks * sum(layer_macs(length - prompt.before, length, shape) for length in cell.lengths)


def context_layer(cell: SharedCell, prompt: Prompt, shape: Shape, talks: int) -> int:
    """One layer before the cut: visual tokens, and the sentence about them, once per selection; words per
    conversation."""
    length = cell.lengths[0]
    own = prompt.after - prompt.common  # nothing before them looks at the words
    contexts = talks if cell.per_text else 1
    return contexts * layer_macs(length - prompt.before - own, length - own, shape) + talks * layer_macs(
        own, length, shape
    )


def behind_cut(cell: SharedCell, prompt: Prompt, shape: Shape, talks: int) -> int:
    """The layers behind the first cut, where every conversation has kept tokens of its own."""
    return talks * sum(
        layer_macs(length - prompt.before, length, shape) for length in cell.lengths[cell.before_cut :]
    )


def with_contexts(cell: SharedCell, prompt: Prompt, shape: Shape, talks: int) -> int:
    """The language model's layers of all conversations about an image."""
    return cell.before_cut * context_layer(cell, prompt, shape, talks) + behind_cut(
        cell, prompt, shape, talks
    )


def language_model(cells: Sequence[SharedCell], prompt: Prompt, shape: Shape, talks: int) -> int:
    """The language model's layers of all conversations and cells, each layer before a cut once."""
    whole = [cell for cell in cells if cell.whole]
    deepest = max(whole, key=lambda cell: cell.before_cut, default=None)
    common = deepest.before_cut * context_layer(deepest, prompt, shape, talks) if deepest is not None else 0
    behind = sum(behind_cut(cell, prompt, shape, talks) for cell in whole)
    return (
        common + behind + sum(with_contexts(cell, prompt, shape, talks) for cell in cells if not cell.whole)
    )


def key_and_value(shape: Shape) -> int:
    """A token's key and value in one layer."""
    return 2 * shape.width * shape.key_heads * shape.head_width


def unread(cells: Sequence[SharedCell], prompt: Prompt, shape: Shape, talks: int) -> int:
    """What the last layer would compute of tokens beside the `prompt.turns` of a conversation that are read
    behind it."""

    def of_others(new: int, keys: int, read: int = 0) -> int:
        return layer_macs(new - read, keys, shape) - (new - read) * key_and_value(shape)

    def of_cell(cell: SharedCell) -> int:
        length = cell.lengths[-1]
        if cell.before_cut < shape.layers:
            return talks * of_others(length - prompt.before, length, prompt.turns)
        own = prompt.after - prompt.common
        contexts = talks if cell.per_text else 1
        return contexts * of_others(length - prompt.before - own, length - own) + talks * of_others(
            own, length, prompt.turns
        )

    uncut = [cell for cell in cells if cell.whole and cell.before_cut == shape.layers]
    return sum(of_cell(cell) for cell in cells if cell not in uncut) + sum(
        of_cell(cell) for cell in uncut[:1]
    )


def account(projected: Projection, lines: Sequence[Line], prompt: Prompt, talks: int = 1) -> Account:
    """Multiply-adds per image of the cells of a projection.

    Args:
        lines: the projection's, in its order.
        prompt: one conversation; an image has `talks` of them, of equal length.
    """
    shape, rows = projected.shape, projected.cells.to_dict("records")
    cells = [
        cell_of(line, row["lengths"], whole)
        for line, row, whole in zip(lines, rows, projected.whole, strict=True)
    ]

    def of_row(row: dict[Any, Any], over: Over) -> int:
        return sum(int(row[f"macs.{name}"]) for name, part in projected.parts.items() if part.over == over)

    def macs(over: Over, chosen: Callable[[SharedCell], bool] = lambda cell: True) -> int:
        return sum(of_row(row, over) for row, cell in zip(rows, cells, strict=True) if chosen(cell))

    def all_cells(layers: Callable[[SharedCell, Prompt, Shape, int], int]) -> int:
        return sum(layers(cell, prompt, shape, talks) for cell in cells)

    once = sum(count for name, count in projected.shared.items() if projected.parts[name].over == "image")
    everything, layers = (
        sum(int(row[name]) for row in rows) for name in ("macs_measured", "macs.language_model")
    )
    naive = len(cells) * once + talks * (everything - len(cells) * once)
    read = max((of_row(row, "questions") for row in rows), default=0)
    marks = sum(
        of_row(row, "marks") // cell.lengths[-1] * prompt.turns for row, cell in zip(rows, cells, strict=True)
    )
    towers = sum(own.tower for own, cell in zip(projected.pruners, cells, strict=True) if not cell.per_text)
    at_first = [own.first for own, cell in zip(projected.pruners, cells, strict=True) if cell.whole]
    asked = {key: macs for first in at_first for key, macs in first.items()}
    repeated = sum(sum(first.values()) for first in at_first) - sum(asked.values())
    contexts = macs("entering", lambda cell: not cell.per_text)
    widest = max(
        (of_row(row, "entering") for row, cell in zip(rows, cells, strict=True) if cell.whole), default=0
    )
    savings = {
        ENCODED: (len(cells) - 1) * once + talks * (macs("questions") - read),
        HEADS: talks * (macs("sequence") + macs("marks") - marks),
        BEGINNING: talks * layers - all_cells(without_beginning),
        CONTEXTS: all_cells(without_beginning) - all_cells(with_contexts) + (talks - 1) * (towers + contexts),
        CUTS: all_cells(with_contexts)
        - language_model(cells, prompt, shape, talks)
        + macs("entering", lambda cell: cell.whole)
        - widest
        + talks * repeated,
        LAST: unread(cells, prompt, shape, talks),
    }
    return Account(len(cells), naive, savings, beginning(prompt, shape))


def beginning(prompt: Prompt, shape: Shape) -> int:
    """The constant beginning of the prompt; nothing reads its states."""
    return language_model_macs([prompt.before] * (shape.layers - 1), shape) + prompt.before * key_and_value(
        shape
    )


def cell_of(line: Line, lengths: Sequence[int], whole: bool) -> SharedCell:
    """A line of a sweep, by the lengths that its layers see, and whether nothing chooses before them."""
    return SharedCell(tuple(lengths), whole or line.name == BASELINE, bool(line.pruner.needs & PER_TEXT))
