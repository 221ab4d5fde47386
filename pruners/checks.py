"""What a pruner states and returns, looked at in one place for every caller: sweep, `try`, cost, diagnosis,
Python.

A pruner gets copies of an image's tensors, so that one that writes into them harms no other, and is found by
their version counters. Whatever it does wrong is one sentence with its text, its source and the sample.
"""

from __future__ import annotations

import random
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple, TypeVar

import torch
from torch import Tensor

from pruners.base import CLS, POOLED, Fault, LayerPruner, Need, Pruner, Selection, UserError, View
from pruners.registration import source_of

_T = TypeVar("_T")
_due: set[tuple[type[Pruner], str]] = set()
_watched: set[tuple[type[Pruner], str]] = set()
SHORT = 200  # letters of a foreign error that a sentence quotes


class _Copy(NamedTuple):
    """What a pruner gets of a tensor; torch counts the version up with every write into it."""

    name: str
    tensor: Tensor
    version: int


def _copy(name: str, tensor: Tensor) -> _Copy:
    with torch.inference_mode(False), torch.no_grad():  # tensors made in inference mode have no version
        copy = tensor.clone()
    return _Copy(name, copy, copy._version)


class _Lent(View):
    """An image's tokens as copies: what a pruner writes into them reaches nobody else."""

    def __init__(self, tokens: View, needs: frozenset[Need]) -> None:
        patches = _copy("tokens.patches", tokens.patches)
        cls = None if tokens.cls is None else _copy("tokens.cls", tokens.cls)
        self.copies = [patches] if cls is None else [patches, cls]
        self._signals: dict[Need, Tensor] = {}
        super().__init__(
            patches.tensor,
            None if cls is None else cls.tensor,
            tokens.grid,
            tokens.num_heads,
            tokens.signal,
            tokens.sample,
            needs,
            number=tokens.number,
            of=tokens.of,
            region=tokens.region,
        )

    def signal(self, need: Need) -> Tensor:
        if need not in self._signals:
            copy = _copy(f"tokens.{need.kind}", super().signal(need))
            self.copies.append(copy)
            self._signals[need] = copy.tensor
        return self._signals[need]


def stated(pruner: Pruner, budget: int, patches: int, num_layers: int) -> tuple[int, ...]:
    """Visual tokens that every layer of the language model will see, as the pruner states them beforehand.

    Raises:
        ImpossibleBudget: the pruner cannot end at the budget.
        UserError: the statement is false: it does not end at (or average) the budget, grows, or leaves 0 to
            `patches`.
    """
    with _blamed(pruner, f"at a budget of {budget}"):
        pruner.check(budget, patches, num_layers)
        if not isinstance(pruner, LayerPruner):
            return (budget,) * num_layers
        if not 1 <= pruner.layer < num_layers:
            raise Fault(f"cuts before layer {pruner.layer} of a language model that has {num_layers}")
        after = pruner.tokens_after(budget, patches, num_layers)
        if type(after) is not int:
            raise Fault(f"states {after!r} tokens behind its cut, which is no whole number")
        schedule = (patches,) * pruner.layer + (after,) * (num_layers - pruner.layer)
        _check_schedule(schedule, pruner.budget_kind, budget, patches)
        return schedule


def _check_schedule(schedule: Sequence[int], kind: str, budget: int, patches: int) -> None:
    for layer, (before, count) in enumerate(zip((patches, *schedule), schedule, strict=False)):
        if not 0 <= count <= before:
            raise Fault(
                f"states {count} tokens in layer {layer}, behind {before}; tokens are never negative and never grow"
            )
    match kind:
        case "final":
            if schedule[-1] != budget:
                raise Fault(
                    f"ends at {schedule[-1]} tokens where {budget} were asked; a pruner ends at exactly the budget"
                )
        case "mean":  # every pruned layer rounds by half a token at most
            pruned = sum(count < patches for count in schedule)
            if 2 * abs(sum(schedule) - budget * len(schedule)) > pruned:
                mean = sum(schedule) / len(schedule)
                raise Fault(
                    f"averages {mean:.2f} tokens where {budget} were asked; a pruner averages exactly the budget"
                )
        case _:
            raise Fault(f"counts its budget as {kind!r}; budget_kind is 'final' or 'mean'")


def select(pruner: Pruner, tokens: View, budget: int) -> Selection:
    """The choice of a tower-stage pruner, checked.

    Raises:
        UserError: the pruner failed, wrote into its input, or chose what makes no sense: see `Selection`.
    """
    with _blamed(pruner, f"on {tokens.sample or 'this image'} at {budget} tokens"):

        def choose() -> Selection:
            lent = _Lent(tokens, pruner.needs)
            chosen = _unwritten(lambda: pruner.select(lent, budget), lent.copies)
            _check_selection(chosen, lent, budget)
            return chosen

        return _repeatable(pruner, choose, lambda chosen: (chosen.indices, chosen.features))


def _check_selection(chosen: Selection, tokens: _Lent, budget: int) -> None:
    if not isinstance(chosen, Selection):
        raise Fault(f"returned {_named(chosen)} where a Selection is asked")
    indices = _whole_numbers(chosen.indices, "indices", tokens.patches.device)
    _count(len(indices), budget)
    patches = [index for index in indices if index >= 0]
    _patches(patches, len(tokens))
    marks = Counter(index for index in indices if index < 0)
    if unknown := marks.keys() - {CLS, POOLED}:
        raise Fault(f"chose {max(unknown)}, which is neither a patch nor one of the marks CLS and POOLED")
    if marks[CLS] and tokens.cls is None:
        raise Fault("chose the class token, which this backbone does not have")
    if marks[CLS] > 1:
        raise Fault(f"chose the class token {marks[CLS]} times")
    features = chosen.features
    if features is None:
        if marks[POOLED]:
            raise Fault("marked tokens as POOLED without giving features")
        return
    if not isinstance(features, Tensor):
        raise Fault(f"returned features as {_named(features)} where a tensor is asked")
    wanted = (budget, tokens.patches.shape[1])
    if features.shape != wanted:
        raise Fault(f"returned features of shape {tuple(features.shape)} where {wanted} is asked")
    if features.dtype != tokens.patches.dtype or features.device != tokens.patches.device:
        there, asked = ((x.dtype, str(x.device)) for x in (features, tokens.patches))
        raise Fault(
            f"returned features in {there} where the patches are in {asked}; end with .to(tokens.patches)"
        )
    if not bool(features.isfinite().all()):
        _finite(tokens.copies)
        raise Fault("returned features that are not finite")


def keep(pruner: LayerPruner, attention: Tensor, count: int) -> Tensor:
    """The choice of a layer-stage pruner at its cut, checked; arguments as in `LayerPruner.keep`.

    Raises:
        UserError: the pruner failed, wrote into its input, or returned no `count` ascending indices.
    """
    with _blamed(pruner, f"at {count} tokens"):
        if (
            type(attention) is not Tensor or attention.is_meta
        ):  # costs are projected from shapes, which hold no values
            kept = pruner.keep(attention, count)
            _count(len(kept), count)
            return kept

        def choose() -> Tensor:
            lent = _copy("the attention", attention)
            kept = _unwritten(lambda: pruner.keep(lent.tensor, count), [lent])
            indices = _whole_numbers(kept, "kept indices", attention.device)
            _count(len(indices), count)
            _patches(indices, attention.shape[-1])
            if indices != sorted(indices):
                raise Fault("returned kept indices that do not ascend; end with .sort().values")
            return kept

        return _repeatable(pruner, choose, lambda kept: (kept,))


def lengths(pruner: Pruner, budget: int, patches: int, ran: Sequence[int]) -> None:
    """Compare the visual tokens that every layer saw with those that the pruner stated.

    Raises:
        UserError: they differ; the first layer that does is named.
    """
    # what a tower-stage pruner may keep was checked when it chose; a backbone can also be asked what it sees
    # of no token
    schedule = (
        stated(pruner, budget, patches, len(ran)) if isinstance(pruner, LayerPruner) else (budget,) * len(ran)
    )
    with _blamed(pruner, f"at a budget of {budget}"):
        for layer, (said, saw) in enumerate(zip(schedule, ran, strict=True)):
            if said != saw:
                raise Fault(f"ran with {saw} visual tokens in layer {layer} where it had stated {said}")


def watch(pruner: Pruner) -> None:
    """Let the next choice of a pruner be made twice and compared, once per process: whoever draws has to say
    so."""
    known = (type(pruner), pruner.spec())
    if known not in _watched:
        _watched.add(known)
        _due.add(known)


def _repeatable(
    pruner: Pruner, choose: Callable[[], _T], parts: Callable[[_T], Sequence[Tensor | None]]
) -> _T:
    """What `choose` returns; of a pruner that is watched, after it returned the same twice and drew from no
    global state."""
    known = (type(pruner), pruner.spec())
    if known not in _due:
        return choose()
    _due.discard(known)
    before = _global_draws()
    first, second = choose(), choose()
    if _global_draws() != before:
        raise Fault(
            "draws from a global random state, which others draw from as well; draw from a torch.Generator of its own"
        )
    for one, other in zip(parts(first), parts(second), strict=True):
        if (one is None) != (other is None) or (
            one is not None and other is not None and not torch.equal(one, other)
        ):
            raise Fault(
                "chose differently when it was asked twice; declare `stochastic = True` and a field `seed: int = 0`, and let "
                "(seed, tokens.sample) alone decide the draw"
            )
    return second


def _global_draws() -> tuple[object, ...]:
    """The random states that any code in this process shares; numpy's only where it is loaded."""
    states: list[object] = [torch.random.get_rng_state().numpy().tobytes(), random.getstate()]
    if torch.cuda.is_initialized():
        states.append(torch.cuda.get_rng_state().numpy().tobytes())
    if (numpy := sys.modules.get("numpy")) is not None:
        _, words, *rest = numpy.random.get_state()
        states += [words.tobytes(), *rest]
    return tuple(states)


@contextmanager
def _blamed(pruner: Pruner, where: str) -> Iterator[None]:
    """Turn whatever a pruner does wrong into one sentence; what the user can mend, and missing memory,
    pass."""
    try:
        yield
    except (UserError, torch.OutOfMemoryError):
        raise
    except Fault as fault:
        raise UserError(
            f"The pruner {pruner.spec()} ({source_of(type(pruner))}) {fault} ({where})."
        ) from fault
    except (Exception, SystemExit) as error:
        said = " ".join(repr(error).split())
        said = said if len(said) <= SHORT else f"{said[:SHORT]}..."
        raise UserError(
            f"The pruner {pruner.spec()} ({source_of(type(pruner))}) failed {where} with {said}; see where with --debug."
        ) from error


def _unwritten(choose: Callable[[], _T], copies: Sequence[_Copy]) -> _T:
    """What `choose` returns, having left alone what it was given; where it fails on infinite numbers, those
    are at fault."""
    try:
        chosen = choose()
    except (UserError, torch.OutOfMemoryError):
        raise
    except Exception:
        _unchanged(copies)
        _finite(copies)
        raise
    _unchanged(copies)
    return chosen


def _unchanged(copies: Sequence[_Copy]) -> None:
    for copy in copies:
        if copy.tensor._version != copy.version:
            raise Fault(f"changes {copy.name} in place; let it compute a new tensor, or clone first")


def _finite(copies: Sequence[_Copy]) -> None:
    for copy in copies:
        if not bool(copy.tensor.isfinite().all()):
            raise Fault(
                f"got numbers in {copy.name} that are not finite, so the backbone is at fault; try --dtype float32"
            )


def _whole_numbers(given: object, what: str, device: torch.device) -> list[int]:
    if not isinstance(given, Tensor):
        raise Fault(f"returned {what} as {_named(given)} where an int64 tensor is asked")
    if given.dtype != torch.int64 or given.ndim != 1 or given.layout != torch.strided:
        raise Fault(
            f"returned {what} as {given.dtype} of shape {tuple(given.shape)} where int64 of one dimension is asked"
        )
    if given.device != device:
        raise Fault(f"returned {what} on {given.device} where the tokens are on {device}")
    found: list[int] = given.tolist()
    return found


def _count(found: int, asked: int) -> None:
    if found != asked:
        raise Fault(f"kept {found} tokens where {asked} were asked; a pruner ends at exactly the budget")


def _patches(indices: Sequence[int], patches: int) -> None:
    if indices and not 0 <= min(indices) <= max(indices) < patches:
        wrong = next(index for index in indices if not 0 <= index < patches)
        raise Fault(f"chose patch {wrong}, and there are 0 to {patches - 1}")
    if len(set(indices)) != len(indices):
        twice, times = Counter(indices).most_common(1)[0]
        raise Fault(f"chose patch {twice} {times} times; a token counts once")


def _named(value: object) -> str:
    return "None" if value is None else type(value).__name__
