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
    ImpossibleBudget,
    LayerPruner,
    Need,
    Pruner,
    ScorePruner,
    Selection,
    UserError,
    VisualTokens,
)
from pruners.fastv import FastV
from tests import test_conformance as suite
from tests.tokens import WIDTH, attention_row, make_tokens

BUDGET = 8


def tower(choose: Callable[[VisualTokens, int], Any], **facts: Any) -> Pruner:
    """A pruner that selects so."""
    made = type(
        "Odd",
        (Pruner,),
        {"name": "odd", "reference": "here", "select": lambda _, *given: choose(*given), **facts},
    )
    return dataclass(frozen=True)(made)()


def scoring(score: Callable[[VisualTokens], Any], **facts: Any) -> Pruner:
    made = type(
        "Odd",
        (ScorePruner,),
        {"name": "odd", "reference": "here", "score": lambda _, tokens: score(tokens), **facts},
    )
    return dataclass(frozen=True)(made)()


def layered(
    keep: Callable[[Tensor, int], Any] = lambda attention, count: torch.arange(count),
    after: Callable[[int], Any] = lambda budget: budget,
    kind: str = "final",
) -> LayerPruner:
    facts = {
        "__annotations__": {"layer": int},
        "layer": 2,
        "name": "odd",
        "reference": "here",
        "keep": lambda _, *given: keep(*given),
        "tokens_after": lambda _, budget, patches, layers: after(budget),
        "budget_kind": property(lambda _: kind),
    }
    return dataclass(frozen=True)(type("Odd", (LayerPruner,), facts))()


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


BAD_SELECTIONS: dict[str, tuple[Callable[[VisualTokens, int], Any], str]] = {
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
            "failed on an image at 8 tokens with ZeroDivisionError('division by zero'); see where with --debug",
        ),
        (lambda tokens: exec("raise SystemExit(0)"), "SystemExit"),
        (lambda tokens: exec("raise ValueError('a\\nb' * 500)"), "..."),
        (
            lambda tokens: tokens.keys(-1),
            "reads Need(kind='keys', layer=-1), which its `needs` do not declare",
        ),
    ],
)
def test_bad_scores_and_failures(score: Callable[[VisualTokens], Any], says: str) -> None:
    with refused(says):
        checks.select(scoring(score), make_tokens(sample="an image"), BUDGET)


def test_what_a_user_can_mend_and_missing_memory_pass() -> None:
    for error in (UserError("give another one"), torch.OutOfMemoryError("no memory")):

        def fail(tokens: VisualTokens, error: Exception = error) -> Tensor:
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

        def score(self, tokens: VisualTokens) -> Tensor:
            return tokens.patches

    with pytest.raises(
        UserError, match=r"^The pruner odd\(power=2.0\) \(.*test_checks.py:\d+\) scored .*\.$"
    ):
        checks.select(Odd(power=2.0), make_tokens(), BUDGET)


def test_infinite_input_is_the_backbones_fault() -> None:
    given = make_tokens()
    broken = VisualTokens(given.patches / 0, given.cls, given.grid, given.num_heads, given.signal)
    with refused("so the backbone is at fault"):
        checks.select(scoring(lambda tokens: tokens.patches.norm(dim=1)), broken, BUDGET)
    merged = tower(lambda tokens, count: Selection(torch.full((count,), POOLED), tokens.patches[:count]))
    with refused("so the backbone is at fault"):
        checks.select(merged, broken, BUDGET)


WRITES: dict[str, Callable[[VisualTokens], Any]] = {
    "tokens.patches": lambda tokens: tokens.patches.sub_(1),
    "tokens.cls": lambda tokens: tokens.cls.zero_(),
    "tokens.keys": lambda tokens: tokens.keys(-1)[3:].mul_(2),
    "tokens.text_embeds": lambda tokens: torch.add(tokens.text_embeds, 1, out=tokens.text_embeds),
}


@pytest.mark.parametrize("inference", [True, False])
@pytest.mark.parametrize("name", WRITES)
def test_writing_into_the_input_is_refused_and_reaches_nobody(name: str, inference: bool) -> None:
    def score(tokens: VisualTokens) -> Tensor:
        WRITES[name](tokens)
        return tokens.patches[:, 0]

    needs = frozenset({Need("keys", -1), pruners.base.TEXT_EMBEDS})
    with torch.inference_mode(inference):
        given, fresh = make_tokens(), make_tokens()
    with refused(f"changes {name} in place"):
        checks.select(scoring(score, needs=needs), given, BUDGET)
    assert given.patches.equal(fresh.patches) and given.cls.equal(fresh.cls)
    assert all(given.signal(need).equal(fresh.signal(need)) for need in needs)


def test_writing_past_torch_reaches_nobody() -> None:
    """numpy's view of the memory counts no version."""
    given, fresh = make_tokens(), make_tokens()

    def score(tokens: VisualTokens) -> Tensor:
        tokens.patches.numpy()[:] = 0
        return tokens.patches[:, 0]

    checks.select(scoring(score), given, BUDGET)
    assert given.patches.equal(fresh.patches)


BAD_KEEPS: dict[str, tuple[Callable[[Tensor, int], Any], str]] = {
    "descends": (lambda _, n: arange(n).flip(0), "do not ascend"),
    "doubles": (lambda _, n: torch.zeros(n, dtype=torch.long), "chose patch 0 8 times"),
    "beyond": (lambda _, n: arange(n) + 64, "chose patch 64, and there are 0 to 63"),
    "class token": (lambda _, n: arange(n) - 1, "chose patch -1"),
    "too few": (lambda _, n: arange(n - 1), "kept 7 tokens where 8"),
    "floats": (lambda _, n: arange(n).double(), "torch.float64"),
    "list": (lambda _, n: list(range(n)), "kept indices as list"),
    "nothing": (lambda _, n: None, "kept indices as None"),
    "writes": (lambda row, n: row.zero_()[0, :n].long(), "changes the attention in place"),
    "fails": (lambda row, n: row.reshape(7, 7), "RuntimeError"),
}


@pytest.mark.parametrize("case", BAD_KEEPS)
def test_bad_keeps(case: str) -> None:
    keep, says = BAD_KEEPS[case]
    row = attention_row(64)
    with refused(says):
        checks.keep(layered(keep), row, BUDGET)
    assert row.equal(attention_row(64))


def test_costs_without_values_are_looked_at_by_shape() -> None:
    row = torch.empty(4, 64, device="meta")
    assert len(checks.keep(FastV(), row, BUDGET)) == BUDGET
    with refused("kept 7 tokens"):
        checks.keep(layered(BAD_KEEPS["too few"][0]), row, BUDGET)


@pytest.mark.parametrize(
    ("after", "kind", "says"),
    [
        (lambda budget: budget + 1, "final", "ends at 65 tokens where 64 were asked"),
        (lambda budget: budget + 50, "final", "ends at 114 tokens where 64"),
        (lambda budget: budget - 1, "final", "ends at 63 tokens where 64"),
        (lambda budget: budget, "mean", "averages 96.00 tokens where 64"),
        (lambda budget: 31, "mean", "averages 65.06 tokens where 64"),
        (lambda budget: 29, "mean", "averages 63.19 tokens where 64"),
        (lambda budget: -3, "final", "states -3 tokens in layer 2"),
        (lambda budget: 577, "final", "states 577 tokens in layer 2, behind 576"),
        (lambda budget: budget / 1, "final", "states 64.0 tokens behind its cut"),
        (lambda budget: budget, "median", "budget_kind is 'final' or 'mean'"),
    ],
)
def test_false_statements(after: Callable[[int], Any], kind: str, says: str) -> None:
    with refused(says):
        checks.stated(layered(after=after, kind=kind), 64, 576, 32)


def test_true_statements() -> None:
    assert checks.stated(FastV(layer=3), 64, 576, 5) == (576, 576, 576, 64, 64)
    assert checks.stated(FastV(budget="mean"), 64, 576, 32) == (576,) * 2 + (30,) * 30
    assert checks.stated(layered(after=lambda _: 30, kind="mean"), 64, 576, 32)[-1] == 30
    assert checks.stated(pruners.get("trim")(), 64, 576, 3) == (64, 64, 64)
    with pytest.raises(ImpossibleBudget, match="least mean is 73"):
        checks.stated(FastV(layer=4, budget="mean"), 64, 576, 32)


def test_lengths_that_ran_are_compared_layer_by_layer() -> None:
    checks.lengths(FastV(), 64, 576, (576, 576, 64, 64))
    checks.lengths(pruners.get("trim")(), 64, 576, [64, 64])
    for ran, says in (
        ((576, 576, 576, 64), "576 visual tokens in layer 2 where it had stated 64"),
        ((576, 64, 64), "layer 1"),
    ):
        with pytest.raises(UserError, match=says):
            checks.lengths(FastV(), 64, 576, ran)


class Counter:
    calls = 0


def _by_calls(tokens: VisualTokens) -> Tensor:
    Counter.calls += 1
    return tokens.patches[:, Counter.calls % 3]


def _own_seed(tokens: VisualTokens) -> Tensor:
    torch.manual_seed(0)
    return torch.rand(len(tokens))


DRAWS: dict[str, Callable[[VisualTokens], Tensor]] = {
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
    def noisy(tokens: VisualTokens, count: int) -> Selection:
        generator = torch.Generator()
        generator.seed()
        return Selection(
            torch.arange(count), tokens.patches[:count] + torch.rand(count, WIDTH, generator=generator)
        )

    def drawn(attention: Tensor, count: int) -> Tensor:
        generator = torch.Generator()
        generator.seed()
        return torch.randperm(attention.shape[1], generator=generator)[:count].sort().values

    merging, cutting = tower(noisy), layered(drawn)
    checks.watch(merging)
    with refused("chose differently when it was asked twice"):
        checks.select(merging, make_tokens(), BUDGET)
    checks.watch(cutting)
    with refused("chose differently when it was asked twice"):
        checks.keep(cutting, attention_row(576), BUDGET)


@pytest.mark.parametrize("text", ["random", "random(seed=7)", "vispruner", "visionzip", "trim", "uniform"])
def test_declared_draws_and_the_others_pass(text: str) -> None:
    (pruner,) = pruners.parse(text)
    tokens = make_tokens(sample="a")
    plain = checks.select(pruner, tokens, BUDGET)
    checks.watch(pruner)
    assert suite.same(plain, checks.select(pruner, tokens, BUDGET))


def _drop(test: str) -> Callable[[], Pruner]:
    """Built-in pruners whose one promise is broken, by the conformance test that has to see it."""

    def late(tokens: VisualTokens, count: int) -> Selection:
        return Selection(torch.arange(count if count != 575 else 574))

    def unseeded(tokens: VisualTokens) -> Tensor:
        return torch.rand(len(tokens), generator=torch.Generator().manual_seed(1))

    return {
        "test_exact_budget_and_valid_indices": lambda: tower(late),
        "test_schedule_meets_the_budget": lambda: layered(after=lambda budget: budget + (budget == 300)),
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
