"""What every registered pruner has to keep; a plugin inherits these tests by being registered.

`pytest tests/test_conformance.py --plugin my_pruner.py` runs them on a file of your own.
"""

from __future__ import annotations

from dataclasses import FrozenInstanceError, fields

import pytest
import torch
from torch import Tensor

import pruners
from pruners.base import CLS, POOLED, ImpossibleBudget, LayerPruner, Need, Pruner, Selection, UndeclaredNeed, VisualTokens
from tests.tokens import WIDTH, attention_row, make_tokens

LAYERS = 32
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
    "random(seed=7)",
)
SPECS = (*pruners.names(), *VARIANTS)


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Also the pruners of --plugin files."""
    if "pruner" in metafunc.fixturenames:
        extra = [name for path in metafunc.config.getoption("--plugin") for name in pruners.load_plugin(path)]
        specs = dict.fromkeys((*SPECS, *extra))
        metafunc.parametrize("pruner", [pruners.parse(spec)[0] for spec in specs], ids=list(specs))


def choose(pruner: Pruner, tokens: VisualTokens, budget: int) -> Selection:
    """What the language model's last layer sees, whatever the pruner's stage."""
    if isinstance(pruner, LayerPruner):
        count = pruner.tokens_after(budget, len(tokens), LAYERS)
        row = attention_row(len(tokens), dtype=tokens.patches.dtype)
        return Selection(pruner.keep(row, count))
    return pruner.select(tokens.only(pruner.needs), budget)


def expected_tokens(pruner: Pruner, tokens: VisualTokens, budget: int) -> int:
    if pruner.name == "none":
        return len(tokens)
    return pruner.tokens_after(budget, len(tokens), LAYERS) if isinstance(pruner, LayerPruner) else budget


def possible(pruner: Pruner, budget: int, patches: int) -> bool:
    try:
        pruner.check(budget, patches, LAYERS)
    except ImpossibleBudget:
        return False
    return True


def same(one: Selection, other: Selection) -> bool:
    if not one.indices.equal(other.indices):
        return False
    return one.features is None or (other.features is not None and one.features.equal(other.features))


@pytest.mark.parametrize("grid", GRIDS, ids=str)
@torch.inference_mode()
def test_exact_budget_and_valid_indices(pruner: Pruner, grid: tuple[int, int]) -> None:
    """Every budget from 1 to all tokens: exactly so many, real patches, none twice."""
    tokens = make_tokens(grid)
    patches, tried = len(tokens), 0
    for budget in range(1, patches + 1):
        if not possible(pruner, budget, patches):
            continue
        tried += 1
        chosen = choose(pruner, tokens, budget)
        assert chosen.tokens == expected_tokens(pruner, tokens, budget)
        assert chosen.indices.dtype == torch.int64 and chosen.indices.ndim == 1
        real = chosen.indices[chosen.indices >= 0]
        assert len(real.unique()) == len(real), budget
        assert set(chosen.indices[chosen.indices < 0].tolist()) <= {CLS, POOLED}
        assert not len(real) or int(real.max()) < patches
        if (chosen.indices < 0).any():
            assert chosen.features is not None or POOLED not in chosen.indices
        if budget in (1, 2, patches // 3, patches):
            features = chosen.gather(tokens)
            assert features.shape == (chosen.tokens, WIDTH) and bool(features.isfinite().all())
            assert features.dtype == tokens.patches.dtype
    assert tried >= patches * 3 // 4, "most budgets have to be possible"


def test_impossible_budgets(pruner: Pruner) -> None:
    """0, negative and too many tokens are refused in one sentence that names the number."""
    for budget in (0, -3, 577):
        with pytest.raises(ImpossibleBudget) as caught:
            pruner.check(budget, 576, LAYERS)
        assert str(budget) in str(caught.value) and "\n" not in str(caught.value)


@torch.inference_mode()
def test_deterministic(pruner: Pruner) -> None:
    for budget in (64, 191):
        first = choose(pruner, make_tokens(sample="a"), budget)
        assert same(first, choose(pruner, make_tokens(sample="a"), budget))
        torch.manual_seed(123)
        assert same(first, choose(pruner, make_tokens(sample="a"), budget)), "the global random state must not matter"


@torch.inference_mode()
def test_independent_of_other_images(pruner: Pruner) -> None:
    """Selecting for other images in between changes nothing."""
    alone = [choose(pruner, make_tokens(seed=seed, sample=str(seed)), 64) for seed in range(3)]
    for seed in (2, 0, 1):
        assert same(alone[seed], choose(pruner, make_tokens(seed=seed, sample=str(seed)), 64))


@torch.inference_mode()
def test_inputs_are_not_changed(pruner: Pruner) -> None:
    tokens, fresh = make_tokens(), make_tokens()
    choose(pruner, tokens, 64)
    assert tokens.patches.equal(fresh.patches) and tokens.cls.equal(fresh.cls)
    for need in pruner.needs:
        assert tokens.signal(need).equal(fresh.signal(need))
    if isinstance(pruner, LayerPruner):
        row = attention_row(576)
        pruner.keep(row, 64)
        assert row.equal(attention_row(576))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
@torch.inference_mode()
def test_precisions(pruner: Pruner, dtype: torch.dtype) -> None:
    """Every precision gives the budget, its own dtype, and (but for VisPruner, which is chaotic) about the same choice."""
    tokens = make_tokens(dtype=dtype)
    chosen = choose(pruner, tokens, 128)
    assert chosen.tokens == expected_tokens(pruner, tokens, 128)
    assert chosen.gather(tokens).dtype == dtype
    if dtype == torch.float32 and pruner.name != "vispruner":
        exact = choose(pruner, make_tokens(), 128)
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

    spy = VisualTokens(tokens.patches, tokens.cls, tokens.grid, tokens.num_heads, answer, declared=pruner.needs)
    choose(pruner, spy, 64)
    assert set(asked) <= pruner.needs
    with pytest.raises(UndeclaredNeed):
        make_tokens().only(frozenset()).signal(Need("keys", -2))


@torch.inference_mode()
def test_featureless_image(pruner: Pruner) -> None:
    """Where every patch is alike (and nothing is the referent) the budget still holds and no number is lost."""
    plain = make_tokens((8, 8))
    blank = torch.zeros_like(plain.patches)
    answer = {need: torch.zeros_like(plain.signal(need)) for need in pruner.needs}.__getitem__
    tokens = VisualTokens(blank, blank[0], plain.grid, plain.num_heads, answer)
    for budget in (1, 2, 17, 64):
        if possible(pruner, budget, 64):
            chosen = choose(pruner, tokens, budget)
            assert chosen.tokens == expected_tokens(pruner, tokens, budget)
            assert bool(chosen.gather(tokens).isfinite().all())


@torch.inference_mode()
def test_one_and_many_expressions(pruner: Pruner) -> None:
    for texts in (1, 2, 3, 5):
        tokens = make_tokens(texts=texts)
        for budget in (3, 64, 192):
            if possible(pruner, budget, 576):
                assert choose(pruner, tokens, budget).tokens == expected_tokens(pruner, tokens, budget)


ORDERS = {
    "litelvlm": "context, then raster",
    "prumerge": "score, extra last",
    "visionzip": "class, raster, targets",
    "trim": "raster, mean last",
    "downsample": "cells",
}


@torch.inference_mode()
def test_order(pruner: Pruner) -> None:
    """The documented order; a method that documents none keeps raster order."""
    chosen = choose(pruner, make_tokens(texts=1), 64).indices.tolist()
    order = ORDERS.get(pruner.name, "raster")
    if order == "raster":
        assert chosen == sorted(chosen)
    elif order == "raster, mean last":
        assert chosen[-1] == POOLED and chosen[:-1] == sorted(chosen[:-1])
    elif order == "class, raster, targets":
        dominant = pruner.split(64)[0]  # type: ignore[attr-defined]
        assert chosen[0] == CLS
        assert chosen[1:dominant] == sorted(chosen[1:dominant]) and chosen[dominant:] == sorted(chosen[dominant:])
    elif order == "score, extra last":
        assert chosen[-1] == POOLED
    elif order == "cells":
        assert set(chosen) == {POOLED}
    elif pruner.spec() == "litelvlm":
        assert chosen == sorted(chosen)
        three = choose(pruner, make_tokens(texts=3), 64).indices
        low = pruner.low_similarity(make_tokens(texts=3), 64)  # type: ignore[attr-defined]
        assert three[-len(low) :].equal(low) and low.equal(low.sort().values)


def test_is_a_frozen_value(pruner: Pruner) -> None:
    """Hyper-parameters cannot change under a running sweep, and the text of a pruner rebuilds it."""
    assert pruners.parse(pruner.spec()) == [pruner]
    assert pruner.stage in ("tower", "layer") and pruner.kind in ("method", "control") and pruner.reference
    for field in fields(pruner):  # type: ignore[arg-type]
        with pytest.raises(FrozenInstanceError):
            setattr(pruner, field.name, None)
