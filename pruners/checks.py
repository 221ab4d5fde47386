"""What a pruner states and returns, looked at in one place for every caller: sweep, `try`, cost, diagnosis,
Python.

Whatever a pruner does wrong is one sentence with its text, its source and the sample.
"""

from __future__ import annotations

import random
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor

from pruners.base import CLS, POOLED, Cut, Pruner, Selection
from pruners.errors import Fault, UserError
from pruners.lending import Copy, Lent, LentLayer, finite, unwritten
from pruners.plugins import source_of
from pruners.views import LayerView, View

Known = tuple[type[Pruner], str, str]  # class, text and function of a pruner whose choice is watched
_due: set[Known] = set()
_watched: set[Known] = set()
SHORT = 200  # letters of a foreign error that a sentence quotes


# -- what it states


def stated(pruner: Pruner, budget: int, patches: int, num_layers: int) -> tuple[int, ...]:
    """Visual tokens that every layer of the language model will see, as the pruner states them beforehand.

    Raises:
        ImpossibleBudget: the pruner cannot end at the budget.
        UserError: the statement is false: its cuts make no sense or another schedule, or it does not end at
            (or average) the budget, grows, or leaves 0 to `patches`.
    """
    with _blamed(pruner, f"at a budget of {budget}"):
        pruner.check(budget, patches, num_layers)
        entering = pruner.entering(budget, patches, num_layers)
        if type(entering) is not int:
            raise Fault(f"states {entering!r} tokens that enter, which is no whole number")
        cuts = pruner.cuts(budget, patches, num_layers)
        _check_cuts(cuts, num_layers)
        schedule, follows = (
            tuple(of(pruner, budget, patches, num_layers)) for of in (type(pruner).schedule, Pruner.schedule)
        )
        if schedule != follows:
            raise Fault(f"states the schedule {told(schedule)} where its cuts make {told(follows)}")
        _check_schedule(schedule, pruner.budget_kind, budget, patches)
        if pruner.positions not in ("compact", "kept"):
            raise Fault(f"has positions {pruner.positions!r}; they are 'compact' or 'kept'")
        return schedule


def _check_cuts(cuts: Sequence[Cut], num_layers: int) -> None:
    """Raise Fault unless they are cuts inside the language model, one behind the other."""
    if not isinstance(cuts, tuple) or not all(isinstance(cut, Cut) for cut in cuts):
        raise Fault(f"states its cuts as {_named(cuts)}; they are a tuple of pruners.Cut(layer, keep)")
    before = 0
    for cut in cuts:
        if type(cut.layer) is not int or type(cut.keep) is not int:
            raise Fault(f"states {cut}, which is not of whole numbers")
        if not 1 <= cut.layer < num_layers:
            raise Fault(
                f"cuts before layer {cut.layer} of a language model that has {num_layers}; give 1 to "
                f"{num_layers - 1}"
            )
        if cut.layer <= before:
            raise Fault(f"cuts before layer {cut.layer} behind a cut before layer {before}; cuts ascend")
        before = cut.layer


def told(schedule: Sequence[int]) -> str:
    """Tokens of every layer as a text.

    >>> told([576, 576, 64])
    '576 x 2, 64 x 1'
    """
    runs: list[list[int]] = []
    for count in schedule:
        if runs and runs[-1][0] == count:
            runs[-1][1] += 1
        else:
            runs.append([count, 1])
    return ", ".join(f"{count} x {layers}" for count, layers in runs)


def _check_schedule(schedule: Sequence[int], kind: str, budget: int, patches: int) -> None:
    for layer, (before, count) in enumerate(zip((patches, *schedule), schedule, strict=False)):
        if not 0 <= count <= before:
            raise Fault(
                f"states {count} tokens in layer {layer}, behind {before}; tokens are never negative and "
                f"never grow"
            )
    match kind:
        case "final":
            if schedule[-1] != budget:
                raise Fault(
                    f"ends at {schedule[-1]} tokens where {budget} were asked; a pruner ends at exactly "
                    f"the budget"
                )
        case "mean":  # every pruned layer rounds, or truncates, by a token at most
            pruned = sum(count < patches for count in schedule)
            if abs(sum(schedule) - budget * len(schedule)) > pruned:
                mean = sum(schedule) / len(schedule)
                raise Fault(
                    f"averages {mean:.2f} tokens where {budget} were asked; a pruner averages exactly the "
                    f"budget"
                )
        case "label":  # a name; what it costs is read off the run
            pass
        case _:
            raise Fault(f"counts its budget as {kind!r}; budget_kind is 'final', 'mean' or 'label'")


def lengths(pruner: Pruner, budget: int, patches: int, ran: Sequence[int], views: int = 1) -> None:
    """Compare the visual tokens that every layer saw with those that the pruner stated for each of the views.

    Raises:
        UserError: they differ; the first layer that does is named.
    """
    with _blamed(pruner, f"at a budget of {budget}"):
        for layer, (said, saw) in enumerate(
            zip(pruner.schedule(budget, patches, len(ran)), ran, strict=True)
        ):
            if views * said != saw:
                raise Fault(
                    f"ran with {saw} visual tokens in layer {layer} where it had stated {views * said}"
                )


# -- what it chooses


def select_views(
    pruner: Pruner, views: Sequence[View], budget: int, num_layers: int, checked: bool = True
) -> tuple[Selection, ...]:
    """What enters the language model of every view of a sample; nothing of a pruner that acts inside the
    language model alone, where all of it does.

    Args:
        checked: False takes a choice that was checked before as it is, so that clocks and meters see the
            pruner's own work alone.

    Raises:
        UserError: the pruner failed, wrote into its input, or chose what makes no sense: see `Selection`.
    """
    if pruner.stage == "layer":  # here the two kinds part
        return ()
    count = pruner.entering(budget, len(views[0]), num_layers)
    if not checked:
        return tuple(pruner.select_views([view.only(pruner.needs) for view in views], count))
    if len(views) == 1:
        return (select(pruner, views[0], count),)
    with _blamed(pruner, f"on {views[0].sample or 'these views'} at {count} tokens a view"):

        def choose() -> tuple[Selection, ...]:
            copies: list[Copy] = []
            lent = [Lent(view, pruner.needs, copies) for view in views]
            chosen = unwritten(lambda: pruner.select_views(lent, count), copies)
            if not isinstance(chosen, list | tuple) or len(chosen) != len(views):
                raise Fault(f"returned {_named(chosen)} where a list of {len(views)} Selections is asked")
            for one, view in zip(chosen, lent, strict=True):
                _check_selection(one, view)
            _count(sum(one.tokens for one in chosen), count * len(views))
            return tuple(chosen)

        return _repeatable(pruner, "select", choose)


def select(pruner: Pruner, view: View, count: int) -> Selection:
    """The choice of `count` tokens of one view, checked.

    Raises:
        UserError: the pruner failed, wrote into its input, or chose what makes no sense: see `Selection`.
    """
    with _blamed(pruner, f"on {view.sample or 'this image'} at {count} tokens"):

        def choose() -> tuple[Selection, ...]:
            lent = Lent(view, pruner.needs, [])
            (chosen,) = unwritten(lambda: pruner.select_views([lent], count), lent.copies)
            _check_selection(chosen, lent, count)
            return (chosen,)

        return _repeatable(pruner, "select", choose)[0]


def cut(pruner: Pruner, tokens: LayerView, count: int, checked: bool = True) -> Selection:
    """The choice of `count` visual tokens at a cut; `checked` as in `select_views`.

    Raises:
        UserError: the pruner failed, wrote into its input, or chose what makes no sense: see `Selection`.
    """
    if not checked:
        return pruner.cut(tokens.only(pruner.needs), count)
    with _blamed(pruner, f"on {tokens.sample or 'this image'} at {count} tokens before layer {tokens.layer}"):

        def choose() -> tuple[Selection, ...]:
            lent = LentLayer(tokens, pruner.needs, [])
            chosen = unwritten(lambda: pruner.cut(lent, count), lent.copies)
            _check_cut(chosen, lent, pruner.positions, count)
            return (chosen,)

        return _repeatable(pruner, "cut", choose)[0]


def _check_selection(chosen: Selection, view: Lent, count: int | None = None) -> None:
    """Raise Fault unless a choice names tokens of a view; `count` of them, if it is given."""
    indices = _indices(chosen, view.patches.device)
    if count is not None:
        _count(len(indices), count)
    _among([index for index in indices if index >= 0], len(view), "patch")
    marks = Counter(index for index in indices if index < 0)
    if unknown := marks.keys() - {CLS, POOLED}:
        raise Fault(f"chose {max(unknown)}, which is neither a patch nor one of the marks CLS and POOLED")
    if marks[CLS] > 1:
        raise Fault(f"chose the class token {marks[CLS]} times")
    if marks[CLS] and view.cls is None:
        raise Fault("chose the class token of a vision tower that has none")
    if chosen.places is not None:
        places = _whole_numbers(chosen.places, "places", view.patches.device)
        _count(len(places), len(indices))
        _among(places, len(view), "place")
    _check_features(chosen, bool(marks[POOLED]), view.patches.shape[1], view.patches.dtype, view.copies)


def _check_cut(chosen: Selection, tokens: LentLayer, positions: str, count: int) -> None:
    """Raise Fault unless a choice names `count` of the visual tokens that are there."""
    indices = _indices(chosen, tokens.indices.device)
    _count(len(indices), count)
    _among([index for index in indices if index != POOLED], len(tokens), "visual token")
    if POOLED in indices and positions == "kept":
        raise Fault(
            "keeps positions and marked a token as POOLED, which has none here; name the token at its "
            "centre, or have positions 'compact'"
        )
    _check_features(chosen, POOLED in indices, tokens.width, tokens.dtype, tokens.copies)


def _indices(chosen: object, device: torch.device) -> list[int]:
    if not isinstance(chosen, Selection):
        raise Fault(f"returned {_named(chosen)} where a Selection is asked")
    return _whole_numbers(chosen.indices, "indices", device)


def _check_features(
    chosen: Selection, pooled: bool, width: int, dtype: torch.dtype, copies: Sequence[Copy]
) -> None:
    """Raise Fault unless features, if there are any, can stand in the tokens' place."""
    features, device = chosen.features, chosen.indices.device
    if features is None:
        if pooled:
            raise Fault("marked tokens as POOLED without giving features")
        return
    if not isinstance(features, Tensor):
        raise Fault(f"returned features as {_named(features)} where a tensor is asked")
    if features.shape != (chosen.tokens, width):
        raise Fault(
            f"returned features of shape {tuple(features.shape)} where {(chosen.tokens, width)} is asked"
        )
    if features.dtype != dtype or features.device != device:
        there, asked = (features.dtype, str(features.device)), (dtype, str(device))
        raise Fault(f"returned features in {there} where the tokens are in {asked}; end with .to of these")
    if not bool(features.isfinite().all()):
        finite(copies)
        raise Fault("returned features that are not finite")


def watch(pruner: Pruner) -> None:
    """Let the next choice of each of a pruner's functions be made twice and compared, once per process:
    whoever draws has to say so."""
    for function in ("select", "cut"):
        known = (type(pruner), pruner.spec(), function)
        if known not in _watched:
            _watched.add(known)
            _due.add(known)


def _repeatable(
    pruner: Pruner, function: str, choose: Callable[[], tuple[Selection, ...]]
) -> tuple[Selection, ...]:
    """What `choose` returns; of a pruner that is watched, after it returned the same twice and drew from no
    global state."""
    known = (type(pruner), pruner.spec(), function)
    if known not in _due:
        return choose()
    _due.discard(known)
    before = _global_draws()
    first, second = choose(), choose()
    if _global_draws() != before:
        raise Fault(
            "draws from a global random state, which others draw from as well; draw from a torch.Generator "
            "of its own"
        )
    if not all(_equal(one, other) for one, other in zip(first, second, strict=True)):
        raise Fault(
            "chose differently when it was asked twice; declare `stochastic = True` and a field `seed: int "
            "= 0`, and let "
            "(seed, tokens.sample) alone decide the draw"
        )
    return second


def _equal(one: Selection, other: Selection) -> bool:
    """Whether two selections are the same to the bit."""

    def same(first: Tensor | None, second: Tensor | None) -> bool:
        return first is second if first is None or second is None else first.equal(second)

    return all(same(getattr(one, name), getattr(other, name)) for name in ("indices", "features", "places"))


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
            f"The pruner {pruner.spec()} ({source_of(type(pruner))}) failed {where} with {said}; see where "
            f"with --debug."
        ) from error


def _whole_numbers(given: object, what: str, device: torch.device) -> list[int]:
    if not isinstance(given, Tensor):
        raise Fault(f"returned {what} as {_named(given)} where an int64 tensor is asked")
    if given.dtype != torch.int64 or given.ndim != 1 or given.layout != torch.strided:
        raise Fault(
            f"returned {what} as {given.dtype} of shape {tuple(given.shape)} where int64 of one dimension "
            f"is asked"
        )
    if given.device != device:
        raise Fault(f"returned {what} on {given.device} where the tokens are on {device}")
    found: list[int] = given.tolist()
    return found


def _count(found: int, asked: int) -> None:
    if found != asked:
        raise Fault(f"kept {found} tokens where {asked} were asked; a pruner ends at exactly the budget")


def _among(indices: Sequence[int], size: int, what: str) -> None:
    if indices and not 0 <= min(indices) <= max(indices) < size:
        wrong = next(index for index in indices if not 0 <= index < size)
        raise Fault(f"chose {what} {wrong}, and there are 0 to {size - 1}")
    if len(set(indices)) != len(indices):
        twice, times = Counter(indices).most_common(1)[0]
        raise Fault(f"chose {what} {twice} {times} times; a token counts once")


def _named(value: object) -> str:
    return "None" if value is None else type(value).__name__
