"""What a pruner is given: copies of a sample's tensors, in which writes are found, and reach nobody else."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple, TypeVar

import torch
from torch import Tensor

from pruners.errors import Fault, UserError
from pruners.views import LayerView, Need, Query, View

_T = TypeVar("_T")


class Copy(NamedTuple):
    """What a pruner gets of a tensor; torch counts the version up with every write into it."""

    name: str
    tensor: Tensor
    version: int


def copied(name: str, tensor: Tensor) -> Copy:
    """A tensor for a pruner, under the name by which it knows it."""
    with torch.inference_mode(False), torch.no_grad():  # tensors made in inference mode have no version
        copy = tensor.clone()
    return Copy(name, copy, copy._version)


class Lent(View):
    """A view's tokens as copies: what a pruner writes into them reaches nobody else.

    Args:
        copies: all of them, in the order in which they were read; grows.
    """

    def __init__(self, view: View, needs: frozenset[Need], copies: list[Copy]) -> None:
        patches = copied("tokens.patches", view.patches)
        cls = copied("tokens.cls", view.cls) if view.cls is not None else None
        self.copies = copies
        self.copies += [patches, *([cls] if cls else [])]
        self._signals: dict[Need, Tensor] = {}
        super().__init__(
            patches.tensor,
            cls.tensor if cls else None,
            view.grid,
            view.num_heads,
            view.signal,
            view.sample,
            needs,
            number=view.number,
            of=view.of,
            region=view.region,
        )

    def signal(self, need: Need) -> Tensor:
        if need not in self._signals:
            copy = copied(f"tokens.{need.kind}", super().signal(need))
            self.copies.append(copy)
            self._signals[need] = copy.tensor
        return self._signals[need]


class LentLayer(LayerView):
    """The sequence at a cut as copies; arguments are those of `Lent`."""

    def __init__(self, tokens: LayerView, needs: frozenset[Need], copies: list[Copy]) -> None:
        indices, positions = (
            copied(f"tokens.{name}", getattr(tokens, name)) for name in ("indices", "positions")
        )
        self.copies = copies
        self.copies += [indices, positions]
        self._signals: dict[tuple[object, ...], Tensor] = {}
        super().__init__(
            tokens.layer,
            tokens.number,
            indices.tensor,
            positions.tensor,
            tokens.start,
            tokens.width,
            tokens.dtype,
            tokens.signal,
            tokens.sample,
            needs,
            tokens.asked,
            tokens._grid,
        )

    def signal(self, query: Query) -> Tensor:
        if query.key not in self._signals:
            copy = copied(f"tokens.{query.need.kind}", super().signal(query))
            self.copies.append(copy)
            self._signals[query.key] = copy.tensor
        return self._signals[query.key]


def unwritten(choose: Callable[[], _T], copies: Sequence[Copy]) -> _T:
    """What `choose` returns, having left alone what it was given; where it fails on infinite numbers, those
    are at fault."""
    try:
        chosen = choose()
    except (UserError, torch.OutOfMemoryError):
        raise
    except Exception:
        _unchanged(copies)
        finite(copies)
        raise
    _unchanged(copies)
    return chosen


def _unchanged(copies: Sequence[Copy]) -> None:
    for copy in copies:
        if copy.tensor._version != copy.version:
            raise Fault(f"changes {copy.name} in place; let it compute a new tensor, or clone first")


def finite(copies: Sequence[Copy]) -> None:
    """Raise Fault if a pruner was given numbers that are not finite."""
    for copy in copies:
        # logits are -inf behind a row's own token, as they have to be
        if not bool((copy.tensor.isfinite() | copy.tensor.isneginf()).all()):
            raise Fault(
                f"got numbers in {copy.name} that are not finite, so the backbone is at fault; try --dtype "
                f"float32"
            )
