"""What a pruner may not state, return or do, each as a tiny pruner that has to be refused in one sentence."""

from __future__ import annotations

import inspect
import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor

import pruners
from pruners import checks
from pruners.base import (
    CLS,
    POOLED,
    Cut,
    ImpossibleBudget,
    LayerPruner,
    LayerView,
    Need,
    Pruner,
    ScorePruner,
    Selection,
    UserError,
    View,
)
from pruners.fastv import FastV
from pruners.views import LLM_ATTENTION, LLM_HIDDEN
from tests import test_conformance as suite
from tests.tokens import WIDTH, make_layer_view, make_tokens

BUDGET = 8


def tower(choose: Callable[[View, int], Any], **facts: Any) -> Pruner:
    """A pruner that selects so."""
    made = type(
        "Odd",
        (Pruner,),
        {"name": "odd", "reference": "here", "select": lambda _, *given: choose(*given), **facts},
    )
    return dataclass(frozen=True)(made)()


def scoring(score: Callable[[View], Any], **facts: Any) -> Pruner:
    made = type(
        "Odd",
        (ScorePruner,),
        {"name": "odd", "reference": "here", "score": lambda _, tokens: score(tokens), **facts},
    )
    return dataclass(frozen=True)(made)()


def layered(
    choose: Callable[[LayerView, int], Any] = lambda tokens, count: Selection(torch.arange(count)),
    cuts: Callable[[int], Any] = lambda budget: (Cut(2, budget),),
    kind: str = "final",
    **facts: Any,
) -> LayerPruner:
    """A pruner that cuts so."""
    made = {
        "name": "odd",
        "reference": "here",
        "cut": lambda _, *given: choose(*given),
        "cuts": lambda _, budget, patches, layers: cuts(budget),
        "budget_kind": property(lambda _: kind),
        "needs": frozenset({LLM_ATTENTION, LLM_HIDDEN}),
    }
    return dataclass(frozen=True)(type("Odd", (LayerPruner,), made | facts))()


@contextmanager
def refused(says: str) -> Iterator[None]:
    """One sentence that names the pruner."""
    with pytest.raises(UserError) as caught:
        yield
    assert (
        says in str(caught.value)
        and "The pruner odd (" in str(caught.value)
        and "\n" not in str(caught.value)
    )


def arange(count: int, **kind: Any) -> Tensor:
    return torch.arange(count, **kind)


BAD_SELECTIONS: dict[str, tuple[Callable[[View, int], Any], str]] = {
    "doubles": (lambda _, n: Selection(torch.zeros(n, dtype=torch.long)), "chose patch 0 8 times"),
    "one double": (lambda _, n: Selection(torch.tensor([*range(n - 1), 3])), "chose patch 3 2 times"),
    "beyond": (lambda _, n: Selection(arange(n) + 570), "chose patch 576, and there are 0 to 575"),
    "negative": (lambda _, n: Selection(arange(n) - 50), "neither a patch nor one of the marks"),
    "floats": (lambda _, n: Selection(arange(n).float()), "int64 of one dimension is asked"),
    "int32": (lambda _, n: Selection(arange(n, dtype=torch.int32)), "torch.int32"),
    "bools": (lambda _, n: Selection(torch.ones(n, dtype=torch.bool)), "torch.bool"),
    "list": (lambda _, n: Selection(list(range(n))), "indices as list"),  # type: ignore[arg-type]
    "numpy": (lambda _, n: Selection(arange(n).numpy()), "indices as ndarray"),  # type: ignore[arg-type]
    "two dimensions": (lambda _, n: Selection(arange(n)[:, None]), "shape (8, 1)"),
    "no dimension": (lambda _, n: Selection(torch.tensor(3)), "shape ()"),
    "sparse": (lambda _, n: Selection(arange(n).to_sparse()), "int64 of one dimension"),
    "elsewhere": (lambda _, n: Selection(arange(n, device="meta")), "returned indices on meta"),
    "too few": (lambda _, n: Selection(arange(n - 1)), "kept 7 tokens where 8 were asked"),
    "too many": (lambda _, n: Selection(arange(n + 1)), "kept 9 tokens where 8 were asked"),
    "nothing": (lambda _, n: None, "returned None where a Selection is asked"),
    "indices alone": (lambda _, n: arange(n), "returned Tensor where a Selection is asked"),
    "class twice": (
        lambda _, n: Selection(torch.tensor([CLS, CLS, *range(n - 2)])),
        "the class token 2 times",
    ),
    "pooled without features": (
        lambda _, n: Selection(torch.tensor([*range(n - 1), POOLED])),
        "without giving features",
    ),
    "nan": (
        lambda _, n: Selection(arange(n), torch.full((n, WIDTH), torch.nan).double()),
        "features that are not finite",
    ),
    "inf": (
        lambda _, n: Selection(arange(n), torch.full((n, WIDTH), torch.inf).double()),
        "features that are not finite",
    ),
    "width": (lambda _, n: Selection(arange(n), torch.ones(n, 3).double()), "(8, 3) where (8, 32)"),
    "few features": (lambda tokens, n: Selection(arange(n), tokens.patches[:3]), "(3, 32) where (8, 32)"),
    "other precision": (lambda tokens, n: Selection(arange(n), tokens.patches[:n].float()), "torch.float32"),
    "features as list": (lambda _, n: Selection(arange(n), [1.0] * n), "features as list"),  # type: ignore[arg-type]
}


@pytest.mark.parametrize("case", BAD_SELECTIONS)
def test_bad_selections(case: str) -> None:
    choose, says = BAD_SELECTIONS[case]
    with refused(says):
        checks.select(tower(choose), make_tokens(), BUDGET)


def test_good_selections_pass_unchanged() -> None:
    """Any order, one class token, any number of pooled ones."""
    tokens = make_tokens()
    for indices in ([7, 3, 5], [CLS, 3, 5], [POOLED, POOLED, CLS], [0, 575, 1]):
        chosen = Selection(torch.tensor(indices), tokens.patches[:3])
        assert checks.select(tower(lambda *_, chosen=chosen: chosen), tokens, 3) is chosen


@pytest.mark.parametrize(
    ("score", "says"),
    [
        (lambda tokens: tokens.patches[:, 0] * torch.nan, "not finite"),
        (
            lambda tokens: tokens.patches[:, 0].clone().index_fill_(0, torch.tensor([9]), -torch.inf),
            "not finite",
        ),
        (lambda tokens: tokens.patches, "scored (576, 32)"),
        (lambda tokens: tokens.patches[:-1, 0], "scored (575,)"),
        (lambda tokens: tokens.patches[:, 0].tolist(), "scored list"),
        (
            lambda tokens: 1 / 0,
            "failed on an image at 8 tokens with ZeroDivisionError('division by zero'); see where with "
            "--debug",
        ),
        (lambda tokens: exec("raise SystemExit(0)"), "SystemExit"),
        (lambda tokens: exec("raise ValueError('a\\nb' * 500)"), "..."),
        (
            lambda tokens: tokens.keys(-1),
            "reads Need(kind='keys', layer=-1), which its `needs` do not declare",
        ),
    ],
)
def test_bad_scores_and_failures(score: Callable[[View], Any], says: str) -> None:
    with refused(says):
        checks.select(scoring(score), make_tokens(sample="an image"), BUDGET)


def test_what_a_user_can_mend_and_missing_memory_pass() -> None:
    for error in (UserError("give another one"), torch.OutOfMemoryError("no memory")):

        def fail(tokens: View, error: Exception = error) -> Tensor:
            raise error

        with pytest.raises(type(error)) as caught:
            checks.select(scoring(fail), make_tokens(), BUDGET)
        assert caught.value is error


def test_the_source_is_named() -> None:
    @dataclass(frozen=True)
    class Odd(ScorePruner):
        name = "odd"
        reference = "here"
        power: float = 1.0

        def score(self, tokens: View) -> Tensor:
            return tokens.patches

    with pytest.raises(
        UserError, match=r"^The pruner odd\(power=2.0\) \(.*test_checks.py:\d+\) scored .*\.$"
    ):
        checks.select(Odd(power=2.0), make_tokens(), BUDGET)


def test_infinite_input_is_the_backbones_fault() -> None:
    given = make_tokens()
    broken = View(given.patches / 0, given.cls, given.grid, given.num_heads, given.signal)
    with refused("so the backbone is at fault"):
        checks.select(scoring(lambda tokens: tokens.patches.norm(dim=1)), broken, BUDGET)
    merged = tower(lambda tokens, count: Selection(torch.full((count,), POOLED), tokens.patches[:count]))
    with refused("so the backbone is at fault"):
        checks.select(merged, broken, BUDGET)


WRITES: dict[str, Callable[[View], Any]] = {
    "tokens.patches": lambda tokens: tokens.patches.sub_(1),
    "tokens.cls": lambda tokens: tokens.cls.zero_(),
    "tokens.keys": lambda tokens: tokens.keys(-1)[3:].mul_(2),
    "tokens.text_embeds": lambda tokens: torch.add(tokens.text_embeds, 1, out=tokens.text_embeds),
}


@pytest.mark.parametrize("inference", [True, False])
@pytest.mark.parametrize("name", WRITES)
def test_writing_into_the_input_is_refused_and_reaches_nobody(name: str, inference: bool) -> None:
    def score(tokens: View) -> Tensor:
        WRITES[name](tokens)
        return tokens.patches[:, 0]

    needs = frozenset({Need("keys", -1), pruners.base.TEXT_EMBEDS})
    with torch.inference_mode(inference):
        given, fresh = make_tokens(), make_tokens()
    with refused(f"changes {name} in place"):
        checks.select(scoring(score, needs=needs), given, BUDGET)
    assert given.patches.equal(fresh.patches) and torch.equal(given.cls, fresh.cls)
    assert all(given.signal(need).equal(fresh.signal(need)) for need in needs)


def test_writing_past_torch_reaches_nobody() -> None:
    """numpy's view of the memory counts no version."""
    given, fresh = make_tokens(), make_tokens()

    def score(tokens: View) -> Tensor:
        tokens.patches.numpy()[:] = 0
        return tokens.patches[:, 0]

    checks.select(scoring(score), given, BUDGET)
    assert given.patches.equal(fresh.patches)


def compact() -> Any:
    return property(lambda _: "compact")


BAD_CUTS: dict[str, tuple[Callable[[LayerView, int], Any], str]] = {
    "doubles": (lambda _, n: Selection(torch.zeros(n, dtype=torch.long)), "chose visual token 0 8 times"),
    "beyond": (lambda _, n: Selection(arange(n) + 64), "chose visual token 64, and there are 0 to 63"),
    "class token": (lambda _, n: Selection(arange(n) - 1), "chose visual token -1"),
    "too few": (lambda _, n: Selection(arange(n - 1)), "kept 7 tokens where 8"),
    "floats": (lambda _, n: Selection(arange(n).double()), "torch.float64"),
    "list": (lambda _, n: Selection(list(range(n))), "indices as list"),  # type: ignore[arg-type]
    "indices alone": (lambda _, n: arange(n), "returned Tensor where a Selection is asked"),
    "nothing": (lambda _, n: None, "returned None where a Selection is asked"),
    "writes": (
        lambda tokens, n: Selection(tokens.attention().zero_()[0, 0, :n].long()),
        "changes tokens.llm_attention in place",
    ),
    "renames": (lambda tokens, n: Selection(tokens.indices.add_(1)[:n]), "changes tokens.indices in place"),
    "fails": (lambda tokens, n: tokens.attention().reshape(7, 7), "RuntimeError"),
    "a row before the image": (
        lambda tokens, n: tokens.attention(arange(n)),
        "the attention row of token 0 where 5 to 103 are the image's and those behind it",
    ),
    "reads more": (lambda tokens, n: tokens.normed(), "which its `needs` do not declare"),
    "pooled without features": (
        lambda _, n: Selection(torch.full((n,), POOLED)),
        "keeps positions and marked",
    ),
    "other width": (lambda _, n: Selection(arange(n), torch.ones(n, 3).double()), "(8, 3) where (8, 32)"),
    "other precision": (
        lambda tokens, n: Selection(arange(n), tokens.hidden()[:n].float()),
        "torch.float32",
    ),
    "no numbers": (
        lambda tokens, n: Selection(arange(n), tokens.hidden()[:n] * torch.nan),
        "features that are not finite",
    ),
}


@pytest.mark.parametrize("case", BAD_CUTS)
def test_bad_cuts(case: str) -> None:
    choose, says = BAD_CUTS[case]
    view = make_layer_view(64)
    with refused(says):
        checks.cut(layered(choose), view, BUDGET)
    assert view.indices.equal(arange(64))


def test_good_cuts_pass_unchanged() -> None:
    """Any order; tokens that are no single one where positions are numbered anew; none at all."""
    view = make_layer_view(64)
    for indices in ([7, 3, 5], [63, 0, 1], []):
        chosen = Selection(torch.tensor(indices, dtype=torch.long))
        assert checks.cut(layered(lambda *_, chosen=chosen: chosen), view, len(indices)) is chosen
    merged = Selection(torch.tensor([9, POOLED, POOLED]), view.hidden()[:3])
    assert checks.cut(layered(lambda *_: merged, positions=compact()), view, 3) is merged
    with refused("POOLED without giving features"):
        bare = Selection(merged.indices)
        checks.cut(layered(lambda *_: bare, positions=compact()), view, 3)


def test_logits_are_no_numbers_behind_their_own_token_alone() -> None:
    """A pruner that fails on what it was given is not excused by the -inf that belong there."""

    def fail(tokens: LayerView, count: int) -> Selection:
        raise ValueError(str(tokens.logits("text").isneginf().any()))

    with refused("failed on this image at 8 tokens before layer 2 with ValueError('tensor(True)')"):
        checks.cut(layered(fail), make_layer_view(64), BUDGET)


def test_the_class_token_of_a_tower_without_one() -> None:
    given = make_tokens()
    view = View(given.patches, None, given.grid, given.num_heads, given.signal)
    with refused("has none"):
        checks.select(tower(lambda view, n: Selection(arange(n) - 1)), view, BUDGET)


@pytest.mark.parametrize(
    ("places", "says"),
    [
        (arange(BUDGET) + 570, "place 576"),
        (torch.zeros(BUDGET, dtype=torch.int64), "place 0 8 times"),
        (arange(BUDGET - 1), f"{BUDGET - 1}"),
    ],
)
def test_places_are_patches(places: Tensor, says: str) -> None:
    with refused(says):
        checks.select(tower(lambda view, n: Selection(arange(n), None, places)), make_tokens(), BUDGET)


def test_where_tokens_stand_that_keep_their_places() -> None:
    """A patch at its own place; a class token at the first that is free, pooled tokens at the last."""
    chosen = Selection(torch.tensor([CLS, 0, 5, 2, POOLED, POOLED]))
    assert chosen.standing(8).tolist() == [1, 0, 5, 2, 6, 7]
    assert Selection(torch.tensor([3, 1])).standing(8).tolist() == [3, 1]
    assert Selection(torch.tensor([POOLED, POOLED]), None, torch.tensor([4, 2])).standing(8).tolist() == [
        4,
        2,
    ]
    pooled = pruners.parse("downsample")[0].select(make_tokens((8, 8)), 4)
    assert pooled.standing(64).tolist() == [9, 13, 41, 45]


def views(count: int) -> list[View]:
    given = [make_tokens((8, 8), seed=seed, sample="a clip") for seed in range(count)]
    return [
        View(one.patches, one.cls, one.grid, one.num_heads, one.signal, one.sample, number=k, of=count)
        for k, one in enumerate(given)
    ]


def across(choose: Callable[[list[View], int], Any], **facts: Any) -> Pruner:
    """A pruner that chooses across views."""
    made = {"name": "odd", "reference": "here", "select_views": lambda _, *given: choose(*given)}
    return dataclass(frozen=True)(type("Odd", (Pruner,), made | facts))()


def test_choices_across_views() -> None:
    """Each for itself, or one more here and one fewer there; as many as were asked in all."""
    clip = views(3)
    chosen = checks.select_views(pruners.get("uniform")(), clip, BUDGET, 5)
    assert [one.tokens for one in chosen] == [BUDGET] * 3
    uneven = across(lambda clip, n: [Selection(arange(n - 2 + 2 * view.number)) for view in clip])
    assert [one.tokens for one in checks.select_views(uneven, clip, BUDGET, 5)] == [6, 8, 10]
    assert checks.select(across(lambda clip, n: [Selection(arange(n))]), clip[0], BUDGET).tokens == BUDGET
    assert checks.select_views(FastV(), clip, BUDGET, 5) == ()
    for choose, says in (
        (lambda clip, n: [Selection(arange(n))] * 2, "a list of 3 Selections"),
        (lambda clip, n: [Selection(arange(n + 1))] * 3, "kept 27 tokens where 24"),
        (lambda clip, n: [Selection(arange(n) + 60)] * 3, "chose patch 64"),
        (lambda clip, n: [clip[2].patches.zero_()] * 3, "changes tokens.patches in place"),
    ):
        with refused(says):
            checks.select_views(across(choose), clip, BUDGET, 5)


@pytest.mark.parametrize(
    ("cuts", "kind", "says"),
    [
        (lambda budget: (Cut(2, budget + 1),), "final", "ends at 65 tokens where 64 were asked"),
        (lambda budget: (Cut(2, budget + 50),), "final", "ends at 114 tokens where 64"),
        (lambda budget: (Cut(2, budget - 1),), "final", "ends at 63 tokens where 64"),
        (lambda budget: (Cut(2, 300), Cut(9, 60)), "final", "ends at 60 tokens where 64"),
        (lambda budget: (Cut(2, budget),), "mean", "averages 96.00 tokens where 64"),
        (lambda budget: (Cut(2, 31),), "mean", "averages 65.06 tokens where 64"),
        (lambda budget: (Cut(2, 28),), "mean", "averages 62.25 tokens where 64"),
        (lambda budget: (Cut(2, 100), Cut(9, 20)), "mean", "averages 72.25 tokens where 64"),
        (lambda budget: (Cut(2, -3),), "final", "states -3 tokens in layer 2"),
        (lambda budget: (Cut(2, 577),), "final", "states 577 tokens in layer 2, behind 576"),
        (lambda budget: (Cut(2, 30), Cut(9, 64)), "final", "states 64 tokens in layer 9, behind 30"),
        (lambda budget: (Cut(2, budget / 1),), "final", "which is not of whole numbers"),
        (lambda budget: (Cut(True, budget),), "final", "which is not of whole numbers"),
        (lambda budget: [Cut(2, budget)], "final", "states its cuts as list"),
        (lambda budget: ((2, budget),), "final", "a tuple of pruners.Cut(layer, keep)"),
        (lambda budget: (Cut(0, budget),), "final", "cuts before layer 0 of a language model that has 32"),
        (lambda budget: (Cut(32, budget),), "final", "give 1 to 31"),
        (lambda budget: (Cut(9, 80), Cut(2, 64)), "final", "layer 2 behind a cut before layer 9"),
        (lambda budget: (Cut(2, 80), Cut(2, 64)), "final", "cuts ascend"),
        (lambda budget: (Cut(2, budget),), "median", "budget_kind is 'final', 'mean' or 'label'"),
    ],
)
def test_false_statements(cuts: Callable[[int], Any], kind: str, says: str) -> None:
    with refused(says):
        checks.stated(layered(cuts=cuts, kind=kind), 64, 576, 32)


@pytest.mark.parametrize(
    ("facts", "says"),
    [
        ({"schedule": lambda *_: (576,) * 2 + (64,) * 30}, "64 x 30 where its cuts make 576 x 9, 64 x 23"),
        ({"entering": lambda *_: 5.0}, "states 5.0 tokens that enter"),
        ({"entering": lambda *_: 600}, "states 600 tokens in layer 0, behind 576"),
        ({"positions": property(lambda _: "lost")}, "has positions 'lost'"),
    ],
)
def test_other_false_statements(facts: dict[str, Any], says: str) -> None:
    with refused(says):
        checks.stated(layered(cuts=lambda budget: (Cut(9, budget),), **facts), 64, 576, 32)


def test_true_statements() -> None:
    assert checks.stated(FastV(layer=3), 64, 576, 5) == (576, 576, 576, 64, 64)
    assert checks.stated(FastV(budget="mean"), 64, 576, 32) == (576,) * 2 + (30,) * 30
    assert checks.stated(layered(cuts=lambda _: (Cut(2, 30),), kind="mean"), 64, 576, 32)[-1] == 30
    several = layered(cuts=lambda budget: (Cut(1, 100), Cut(3, budget)))
    assert checks.stated(several, 64, 576, 5) == (576, 100, 100, 64, 64)
    nothing = layered(cuts=lambda budget: (Cut(2, 0),), kind="mean")
    assert checks.stated(nothing, 36, 576, 32) == (576,) * 2 + (0,) * 30, "tokens may all leave"
    assert checks.stated(pruners.get("trim")(), 64, 576, 3) == (64, 64, 64)
    named = layered(cuts=lambda _: (Cut(2, 80),), kind="label")
    assert checks.stated(named, 64, 576, 32)[-1] == 80, "a label is no count that is compared"
    with refused("states 577 tokens in layer 2"):
        checks.stated(layered(cuts=lambda _: (Cut(2, 577),), kind="label"), 64, 576, 32)
    with pytest.raises(ImpossibleBudget, match="least mean is 73"):
        checks.stated(FastV(layer=4, budget="mean"), 64, 576, 32)


def test_lengths_that_ran_are_compared_layer_by_layer() -> None:
    checks.lengths(FastV(), 64, 576, (576, 576, 64, 64))
    checks.lengths(pruners.get("trim")(), 64, 576, [64, 64])
    checks.lengths(pruners.get("trim")(), 64, 576, [192, 192], views=3)
    for ran, says in (
        ((576, 576, 576, 64), "576 visual tokens in layer 2 where it had stated 64"),
        ((576, 64, 64), "layer 1"),
    ):
        with pytest.raises(UserError, match=says):
            checks.lengths(FastV(), 64, 576, ran)


class Counter:
    calls = 0


def _by_calls(tokens: View) -> Tensor:
    Counter.calls += 1
    return tokens.patches[:, Counter.calls % 3]


def _own_seed(tokens: View) -> Tensor:
    torch.manual_seed(0)
    return torch.rand(len(tokens))


DRAWS: dict[str, Callable[[View], Tensor]] = {
    "torch": lambda tokens: torch.rand(len(tokens)),
    "python": lambda tokens: torch.tensor([random.random() for _ in range(len(tokens))]),
    "own generator": lambda tokens: torch.rand(
        len(tokens), generator=torch.Generator().manual_seed(random.SystemRandom().getrandbits(32))
    ),
    "number of calls": _by_calls,
    "a global seed": _own_seed,
    "tiny noise": lambda tokens: tokens.patches[:, 0] + 1e-3 * torch.rand(len(tokens)),
}


@pytest.mark.parametrize("case", DRAWS)
def test_undeclared_draws_are_found_once(case: str) -> None:
    pruner, state = scoring(DRAWS[case]), torch.random.get_rng_state()
    checks.select(pruner, make_tokens(), BUDGET)  # nobody looks yet
    torch.rand(1)
    checks.watch(pruner)
    with refused(
        "global random state"
        if case in ("torch", "python", "a global seed", "tiny noise")
        else "declare `stochastic = True`"
    ):
        checks.select(pruner, make_tokens(), BUDGET)
    checks.watch(pruner)
    Counter.calls = 0
    checks.select(pruner, make_tokens(), BUDGET)
    assert Counter.calls == (case == "number of calls"), "looked at once per process"
    torch.random.set_rng_state(state)


def test_undeclared_draws_of_features_and_of_cuts_are_found() -> None:
    def noisy(tokens: View, count: int) -> Selection:
        generator = torch.Generator()
        generator.seed()
        return Selection(
            torch.arange(count), tokens.patches[:count] + torch.rand(count, WIDTH, generator=generator)
        )

    def drawn(tokens: LayerView, count: int) -> Selection:
        generator = torch.Generator()
        generator.seed()
        return Selection(torch.randperm(len(tokens), generator=generator)[:count])

    merging, cutting = tower(noisy), layered(drawn)
    checks.watch(merging)
    with refused("chose differently when it was asked twice"):
        checks.select(merging, make_tokens(), BUDGET)
    checks.watch(cutting)
    with refused("chose differently when it was asked twice"):
        checks.cut(cutting, make_layer_view(576), BUDGET)


@pytest.mark.parametrize("text", ["random", "random(seed=7)", "vispruner", "visionzip", "trim", "uniform"])
def test_declared_draws_and_the_others_pass(text: str) -> None:
    (pruner,) = pruners.parse(text)
    tokens = make_tokens(sample="a")
    plain = checks.select(pruner, tokens, BUDGET)
    checks.watch(pruner)
    assert suite.same(plain, checks.select(pruner, tokens, BUDGET))


def _drop(test: str) -> Callable[[], Pruner]:
    """Built-in pruners whose one promise is broken, by the conformance test that has to see it."""

    def late(tokens: View, count: int) -> Selection:
        return Selection(torch.arange(count if count != 575 else 574))

    def unseeded(tokens: View) -> Tensor:
        return torch.rand(len(tokens), generator=torch.Generator().manual_seed(1))

    return {
        "test_exact_budget_and_valid_indices": lambda: tower(late),
        "test_schedule_meets_the_budget": lambda: layered(
            cuts=lambda budget: (Cut(2, budget + (budget == 300)),)
        ),
        "test_deterministic": lambda: scoring(lambda tokens: torch.rand(len(tokens))),
        "test_draws_follow_seed_and_sample": lambda: scoring(
            unseeded,
            stochastic=True,
            seed=0,
            with_seed=lambda pruner, _: pruner,
            parameters=lambda _: {"seed": 0},
        ),
        "test_inputs_are_not_changed": lambda: scoring(lambda tokens: tokens.patches.sub_(1).norm(dim=1)),
        "test_featureless_image": lambda: scoring(
            lambda tokens: tokens.patches[:, 0] / tokens.patches.norm(dim=1)
        ),
        "test_declared_needs_are_enough": lambda: scoring(lambda tokens: tokens.keys(-1)[1:].norm(dim=1)),
        "test_precisions": lambda: tower(
            lambda tokens, n: Selection(torch.arange(n), tokens.patches[:n].float())
        ),
        "test_order": lambda: tower(lambda tokens, n: Selection(torch.arange(n).flip(0))),
        "test_one_and_many_expressions": lambda: tower(
            lambda tokens, n: Selection(torch.arange(n - (len(tokens.text_embeds) > 2))),
            needs=frozenset({pruners.base.TEXT_EMBEDS}),
        ),
        "test_impossible_budgets": lambda: tower(lambda *_: None, check=lambda *_: None),
        "test_independent_of_other_images": lambda: scoring(_by_calls),
        "test_is_a_frozen_value": lambda: tower(
            lambda tokens, n: Selection(torch.arange(n)), spec=lambda _: "odd(colour=1)"
        ),
    }[test]


def _run(test: Callable[..., None], pruner: Pruner) -> None:
    given = {"grid": (24, 24), "patches": 576, "layers": 32, "dtype": torch.float32}
    wanted = inspect.signature(inspect.unwrap(test)).parameters
    test(pruner, **{name: value for name, value in given.items() if name in wanted})


SUITE = {name: test for name, test in vars(suite).items() if name.startswith("test_")}


@pytest.mark.parametrize("name", SUITE)
def test_conformance_catches(name: str) -> None:
    """Each of its tests fails for a pruner made for it, and passes for one that keeps everything."""
    _run(SUITE[name], pruners.get("uniform")())
    broken = _drop(name)()
    with (
        torch.random.fork_rng(devices=[]),
        pytest.raises((AssertionError, UserError, RuntimeError, pytest.fail.Exception)),
    ):
        _run(SUITE[name], broken)
