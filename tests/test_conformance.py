"""What every registered pruner has to keep; a plugin inherits these tests by being registered.

`pytest tests/test_conformance.py --plugin my_pruner.py` runs them on a file's pruners alone, and `--pruners
"mine(power=2.0)"` on what a pruner list names.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import FrozenInstanceError, fields
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor

import pruners
from harness.bundle.conformance import LAYERS, choose, possible, same
from pruners import checks
from pruners.base import (
    CLS,
    POOLED,
    Cut,
    ImpossibleBudget,
    Need,
    Pruner,
    UndeclaredNeed,
    View,
)
from pruners.views import CUT_KINDS, LayerView, Query
from tests.tokens import WIDTH, make_layer_view, make_tokens

GRIDS = ((24, 24), (16, 16), (8, 8), (6, 10))
VARIANTS = (
    "litelvlm(combine='intersection')",
    "litelvlm(context_share=0.25)",
    "fastv(layer=3)",
    "fastv(budget='mean')",
    "visionzip(contextual=0)",
    "prumerge(plus=True)",
    "vispruner(ratio=0.25)",
    "trim(keep='highest', similarity='cosine')",
    "cdpruner(relevance='positive')",
    "hiprune(alpha=1.0, object_layer=6)",
    "hiprune(score='cls', wrap=False)",
    "holov(crops='rule')",
    "holov(crops=1)",
    "scope(alpha=2.0)",
    "scope(combine='add')",
    "sparsevlm(version='plus')",
    "sparsevlm(budget='mean')",
    "sparsevlm(budget='mean', recycle=False)",
    "sparsevlm(noise=1e-06)",
    "pyramiddrop(layers=(2, 8, 16))",
    "dart(order='norm', text_pivots=0)",
    "dart(budget='mean', visual_pivots=2)",
    "dart(budget='label')",
    "feather(rope=True, protect=True)",
    "feather(stride=0, layers=(3, 9))",
    "nuwa(cells=False, positions='compact')",
    "nuwa(aggregate='mean', radius='published', quantile=0.1)",
    "random(seed=7)",
)


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Every pruner, or those alone that --plugin brings or --pruners names."""
    if "pruner" in metafunc.fixturenames:
        added = [name for path in metafunc.config.getoption("--plugin") for name in pruners.load_plugin(path)]
        asked = metafunc.config.getoption("--pruners") or ",".join(added or (*pruners.names(), *VARIANTS))
        found = pruners.parse(asked)
        metafunc.parametrize("pruner", found, ids=[pruner.spec() for pruner in found])


def budgets(pruner: Pruner, patches: int) -> list[int]:
    """Six or fewer of those that the pruner can end at: few, all, and odd ones between."""
    if pruner.name == "none":
        return [patches]
    able = [budget for budget in range(1, patches + 1) if possible(pruner, budget, patches)]
    assert len(able) >= patches * 3 // 4, "most budgets have to be possible"
    places = (0, 1, len(able) // 9, len(able) // 2 - 1, len(able) - 2, len(able) - 1)
    return sorted({able[place] for place in places})


def usual(pruner: Pruner, budget: int = 64, patches: int = 576) -> int:
    """A budget as the sweep asks for it: of `none`, all tokens."""
    return patches if pruner.name == "none" else budget


def expected_tokens(pruner: Pruner, tokens: View, budget: int) -> int:
    return checks.stated(pruner, budget, len(tokens), LAYERS)[-1]


@pytest.mark.parametrize("grid", GRIDS, ids=str)
@torch.inference_mode()
def test_exact_budget_and_valid_indices(pruner: Pruner, grid: tuple[int, int]) -> None:
    """Exactly so many tokens, real patches, none twice, and features that the projector takes."""
    tokens = make_tokens(grid)
    for budget in budgets(pruner, len(tokens)):
        chosen = choose(pruner, tokens, budget)
        if pruner.budget_kind == "final":
            assert chosen.tokens == budget
        real = chosen.indices[chosen.indices >= 0]
        assert len(real.unique()) == len(real), budget
        assert set(chosen.indices[chosen.indices < 0].tolist()) <= {CLS, POOLED}
        assert not len(real) or int(real.max()) < len(tokens)
        features = chosen.gather(tokens)
        assert features.shape == (chosen.tokens, WIDTH) and bool(features.isfinite().all())
        assert features.dtype == tokens.patches.dtype


@contextmanager
def asked_once(pruner: Pruner) -> Iterator[None]:
    """Cuts of a budget are found once: some search, and every statement asks four times for the same."""
    own, known = vars(type(pruner)).get("cuts"), dict[tuple[int, ...], tuple[Cut, ...]]()

    def cuts(self: Pruner, *asked: int) -> tuple[Cut, ...]:
        return known[asked] if asked in known else known.setdefault(asked, own(self, *asked))

    with pytest.MonkeyPatch.context() as patch:
        if own is not None:
            patch.setattr(type(pruner), "cuts", cuts)
        yield


@pytest.mark.parametrize("patches", [64, 576])
@pytest.mark.parametrize("layers", [5, 32])
def test_schedule_meets_the_budget(pruner: Pruner, patches: int, layers: int) -> None:
    """What the layers see, as stated: it never grows, and ends at the budget or averages it as far as whole
    tokens can."""
    for budget in range(1, patches + 1) if pruner.name != "none" else [patches]:
        try:
            with asked_once(pruner):
                schedule = checks.stated(pruner, budget, patches, layers)
        except ImpossibleBudget:
            continue
        assert (
            len(schedule) == layers
            and list(schedule) == sorted(schedule, reverse=True)
            and schedule[0] <= patches
        )
        if pruner.budget_kind == "label":  # names a row, and costs what it costs
            continue
        met = schedule[-1] if pruner.budget_kind == "final" else sum(schedule) / layers
        assert abs(met - budget) <= (0 if pruner.budget_kind == "final" else 1)


def test_impossible_budgets(pruner: Pruner) -> None:
    """0, negative and too many tokens are refused in one sentence that names the number."""
    for budget in (0, -3, 577):
        with pytest.raises(ImpossibleBudget) as caught:
            pruner.check(budget, 576, LAYERS)
        assert str(budget) in str(caught.value) and "\n" not in str(caught.value)


@torch.inference_mode()
def test_deterministic(pruner: Pruner) -> None:
    state = torch.random.get_rng_state()
    for budget in {usual(pruner), usual(pruner, 191)}:
        first = choose(pruner, make_tokens(sample="a"), budget)
        assert same(first, choose(pruner, make_tokens(sample="a"), budget))
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(123)
            assert same(first, choose(pruner, make_tokens(sample="a"), budget)), (
                "the global random state must not matter"
            )
    assert torch.equal(state, torch.random.get_rng_state()), "the global random state is not the pruner's"


@torch.inference_mode()
def test_draws_follow_seed_and_sample(pruner: Pruner) -> None:
    """One that draws draws anew for another seed and another sample; any other has neither."""
    tokens = [make_tokens(sample=sample) for sample in ("a", "b")]
    budget = usual(pruner)
    one, other = (choose(pruner, given, budget) for given in tokens)
    assert same(one, other) != pruner.stochastic
    if pruner.stochastic:
        seeds = [choose(pruner.with_seed(seed), tokens[0], budget) for seed in (1, 2)]
        assert not same(*seeds), "the seed decides the draw"


@torch.inference_mode()
def test_independent_of_other_images(pruner: Pruner) -> None:
    """Selecting for other images in between changes nothing."""
    budget = usual(pruner)
    alone = [choose(pruner, make_tokens(seed=seed, sample=str(seed)), budget) for seed in range(3)]
    for seed in (2, 0, 1):
        assert same(alone[seed], choose(pruner, make_tokens(seed=seed, sample=str(seed)), budget))


@torch.inference_mode()
def test_inputs_are_not_changed(pruner: Pruner) -> None:
    """Called without the checks, which would hand out copies."""
    tokens, fresh = make_tokens(), make_tokens()
    given = {need: tokens.signal(need) for need in pruner.needs if need.kind not in CUT_KINDS}
    view = View(tokens.patches, tokens.cls, tokens.grid, tokens.num_heads, given.__getitem__)
    if pruner.stage != "layer":
        pruner.select(view, pruner.entering(usual(pruner), 576, LAYERS))
    assert tokens.patches.equal(fresh.patches) and tokens.cls is not None and tokens.cls.equal(fresh.cls)
    for need in given:
        assert given[need].equal(fresh.signal(need))
    there = pruner.entering(usual(pruner), 576, LAYERS)
    for number, cut in enumerate(pruner.cuts(usual(pruner), 576, LAYERS)):
        plain = make_layer_view(there, layer=cut.layer, number=number)
        answers: dict[object, tuple[Query, Tensor]] = {}

        def answer(query: Query, plain: LayerView = plain, known: dict[object, Any] = answers) -> Tensor:
            return known.setdefault(query.key, (query, plain.signal(query)))[1]

        lent = LayerView(
            cut.layer,
            number,
            plain.indices,
            plain.positions,
            plain.start,
            WIDTH,
            plain.dtype,
            answer,
            asked=plain.asked,
            grid=plain.grid,
        )
        pruner.cut(lent, cut.keep)
        assert all(given.equal(plain.signal(query)) for query, given in answers.values())
        assert plain.indices.equal(torch.arange(there))
        there = cut.keep


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
@torch.inference_mode()
def test_precisions(pruner: Pruner, dtype: torch.dtype) -> None:
    """Every precision gives the budget, its own dtype, and (but for VisPruner, which is chaotic) about the
    same choice."""
    tokens = make_tokens(dtype=dtype)
    budget = usual(pruner, 128)
    chosen = choose(pruner, tokens, budget)
    assert chosen.tokens == expected_tokens(pruner, tokens, budget)
    assert chosen.gather(tokens).dtype == dtype
    if dtype == torch.float32 and pruner.name != "vispruner":
        exact = choose(pruner, make_tokens(), budget)
        common = set(chosen.indices.tolist()) & set(exact.indices.tolist())
        assert len(common) >= 0.97 * len(set(exact.indices.tolist()))


@torch.inference_mode()
def test_declared_needs_are_enough(pruner: Pruner) -> None:
    """The pruner reads nothing that it does not declare, and everything that it declares exists."""
    asked: list[Need] = []
    tokens = make_tokens()

    def answer(need: Need) -> Tensor:
        asked.append(need)
        return tokens.signal(need)

    spy = View(tokens.patches, tokens.cls, tokens.grid, tokens.num_heads, answer, declared=pruner.needs)
    choose(pruner, spy, usual(pruner))
    assert set(asked) <= pruner.needs
    with pytest.raises(UndeclaredNeed):
        make_tokens().only(frozenset()).signal(Need("keys", -2))


@torch.inference_mode()
def test_featureless_image(pruner: Pruner) -> None:
    """Where every patch is alike (and nothing is the referent) the budget still holds and no number is
    lost."""
    plain = make_tokens((8, 8))
    blank = torch.zeros_like(plain.patches)

    def answer(need: Need) -> Tensor:
        return torch.zeros_like(plain.signal(need))

    tokens = View(blank, blank[0], plain.grid, plain.num_heads, answer)
    for budget in (1, 2, 17, 64) if pruner.name != "none" else (64,):
        if possible(pruner, budget, 64):
            chosen = choose(pruner, tokens, budget)
            assert chosen.tokens == expected_tokens(pruner, tokens, budget)
            assert bool(chosen.gather(tokens).isfinite().all())


@torch.inference_mode()
def test_one_and_many_expressions(pruner: Pruner) -> None:
    for texts in (1, 2, 3, 5):
        tokens = make_tokens(texts=texts)
        for budget in {usual(pruner, asked) for asked in (3, 64, 192)}:
            if possible(pruner, budget, 576):
                assert choose(pruner, tokens, budget).tokens == expected_tokens(pruner, tokens, budget)


ORDERS = {
    "litelvlm": "context, then raster",
    "prumerge": "score, extra last",
    "visionzip": "class, raster, targets",
    "trim": "raster, mean last",
    "downsample": "cells",
    "holov": "crops, then what fills up",
    "sparsevlm": "raster, merged last",
}


@torch.inference_mode()
def test_order(pruner: Pruner) -> None:
    """The documented order; a method that documents none keeps raster order."""
    chosen = choose(pruner, make_tokens(texts=1), usual(pruner)).indices.tolist()
    order = ORDERS.get(pruner.name, "raster")
    if order == "raster":
        assert chosen == sorted(chosen)
    elif order == "raster, mean last":
        assert chosen[-1] == POOLED and chosen[:-1] == sorted(chosen[:-1])
    elif order == "class, raster, targets":
        dominant = pruner.split(64)[0]  # type: ignore[attr-defined]
        assert chosen[0] == CLS
        assert chosen[1:dominant] == sorted(chosen[1:dominant]) and chosen[dominant:] == sorted(
            chosen[dominant:]
        )
    elif order == "score, extra last":
        assert chosen[-1] == POOLED
    elif order == "raster, merged last":
        assert chosen == sorted(chosen, key=lambda patch: (patch < 0, patch))
        assert (POOLED in chosen) == pruner.merges  # type: ignore[attr-defined]
    elif order == "cells":
        assert set(chosen) == {POOLED}
    elif order == "crops, then what fills up":
        tokens = make_tokens(texts=1)
        kept, counts = pruner.shared(tokens, 64)  # type: ignore[attr-defined]
        assert chosen[: len(kept)] == kept.tolist() and int(counts.sum()) == len(kept)
        crops = [set(part.tolist()) for part in kept.split(counts.tolist()) if len(part)]
        assert all(max(one) < min(other) for one, other in pairwise(crops))
    elif pruner.spec() == "litelvlm":
        assert chosen == sorted(chosen)
        three = choose(pruner, make_tokens(texts=3), 64).indices
        low = pruner.low_similarity(make_tokens(texts=3), 64)  # type: ignore[attr-defined]
        assert three[-len(low) :].equal(low) and low.equal(low.sort().values)


def test_is_a_frozen_value(pruner: Pruner) -> None:
    """Hyper-parameters cannot change under a running sweep, and the text of a pruner rebuilds it."""
    assert pruners.parse(pruner.spec()) == [pruner]
    assert pruners.register(type(pruner)) is type(pruner) and pruner.reference
    for field in fields(pruner):  # type: ignore[arg-type]
        with pytest.raises(FrozenInstanceError):
            setattr(pruner, field.name, None)
