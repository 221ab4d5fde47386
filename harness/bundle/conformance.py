"""What every method has to keep before its numbers stand beside others: looked at when a run is submitted.

The same promises as `tests/test_conformance.py`, which says more of a method that breaks one; here they run
where a user is, without pytest.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

import pruners
from harness.bundle.tokens import WIDTH, make_layer_view, make_tokens
from harness.store import code
from pruners import checks
from pruners.base import CLS, POOLED, Fault, ImpossibleBudget, Need, Pruner, Selection, UserError, View

LAYERS = 32
GRIDS = ((24, 24), (6, 10))
USUAL = 64


def choose(pruner: Pruner, tokens: View, budget: int) -> Selection:
    """What the language model's last layer sees, wherever the pruner acts; checked as everywhere."""
    checks.stated(pruner, budget, len(tokens), LAYERS)
    entering = checks.select_views(pruner, [tokens], budget, LAYERS)
    there = entering[0] if entering else Selection(torch.arange(len(tokens)))
    blank = not bool(tokens.patches.any())
    for number, cut in enumerate(pruner.cuts(budget, len(tokens), LAYERS)):
        view = make_layer_view(
            there.indices,
            layer=cut.layer,
            number=number,
            dtype=tokens.patches.dtype,
            sample=tokens.sample,
            blank=blank,
            grid=tokens.grid,
        )
        left = checks.cut(pruner, view, cut.keep)
        places = left.indices.clamp(min=0)
        patches = there.indices[places].masked_fill(left.indices == POOLED, POOLED)
        features = left.features
        if features is None and there.features is not None:
            features = there.features[places]
        there = Selection(patches, features)
    return there


def possible(pruner: Pruner, budget: int, patches: int) -> bool:
    """Whether the pruner can end at a budget."""
    try:
        pruner.check(budget, patches, LAYERS)
    except ImpossibleBudget:
        return False
    return True


def same(one: Selection, other: Selection) -> bool:
    """Whether two choices are equal, features included."""
    if not one.indices.equal(other.indices):
        return False
    return one.features is None or (other.features is not None and one.features.equal(other.features))


def _usual(pruner: Pruner, patches: int) -> int:
    """A budget as a sweep asks for it: of `none`, all tokens."""
    return patches if pruner.name == "none" else min(USUAL, patches // 2)


def _ends(pruner: Pruner, tokens: View, budget: int) -> None:
    """Exactly the stated tokens, real patches, none twice, finite features of the given precision."""
    chosen = choose(pruner, tokens, budget)
    stated = checks.stated(pruner, budget, len(tokens), LAYERS)[-1]
    if chosen.tokens != stated:
        raise Fault(f"ends at {chosen.tokens} tokens where {stated} are stated")
    real = chosen.indices[chosen.indices >= 0]
    if len(real.unique()) != len(real) or not set(chosen.indices[chosen.indices < 0].tolist()) <= {
        CLS,
        POOLED,
    }:
        raise Fault("keeps a patch twice, or what is no patch")
    features = chosen.gather(tokens)
    if features.shape != (chosen.tokens, WIDTH) or not bool(features.isfinite().all()):
        raise Fault("returns features of another shape, or none that are numbers")
    if features.dtype != tokens.patches.dtype:
        raise Fault(f"returns {features.dtype} where {tokens.patches.dtype} came in")


def _exact_budget(pruner: Pruner) -> None:
    for grid in GRIDS:
        tokens = make_tokens(grid)
        count = len(tokens)
        asked = [count] if pruner.name == "none" else [1, 2, count // 9, count // 2, count - 1, count]
        for budget in asked:
            if possible(pruner, budget, count):
                _ends(pruner, tokens, budget)


def _impossible_budgets(pruner: Pruner) -> None:
    for budget in (0, -3, 577):
        if possible(pruner, budget, 576):
            raise Fault(f"takes a budget of {budget} of 576 tokens")


def _deterministic(pruner: Pruner) -> None:
    budget = _usual(pruner, 576)
    state = torch.random.get_rng_state()
    first = choose(pruner, make_tokens(sample="a"), budget)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(123)
        again = choose(pruner, make_tokens(sample="a"), budget)
    if not same(first, again) or not state.equal(torch.random.get_rng_state()):
        raise Fault("hangs on the global random state, or changes it")


def _draws(pruner: Pruner) -> None:
    budget = _usual(pruner, 576)
    one, other = (choose(pruner, make_tokens(sample=sample), budget) for sample in ("a", "b"))
    if same(one, other) == pruner.stochastic:
        said = "" if pruner.stochastic else " and says that it does not draw"
        raise Fault(f"chooses {'alike' if pruner.stochastic else 'otherwise'} for another sample{said}")


def _independent(pruner: Pruner) -> None:
    budget = _usual(pruner, 576)
    alone = [choose(pruner, make_tokens(seed=seed, sample=str(seed)), budget) for seed in range(2)]
    for seed in (1, 0):
        if not same(alone[seed], choose(pruner, make_tokens(seed=seed, sample=str(seed)), budget)):
            raise Fault("chooses otherwise after another image")


def _precisions(pruner: Pruner) -> None:
    for dtype in (torch.float32, torch.bfloat16):
        _ends(pruner, make_tokens(dtype=dtype), _usual(pruner, 576))


def _declared_needs(pruner: Pruner) -> None:
    tokens, asked = make_tokens(), set()

    def answer(need: Need) -> Tensor:
        asked.add(need)
        return tokens.signal(need)

    spied = View(tokens.patches, tokens.cls, tokens.grid, tokens.num_heads, answer, declared=pruner.needs)
    choose(pruner, spied, _usual(pruner, 576))
    if not asked <= pruner.needs:
        raise Fault("reads what it does not declare")


def _featureless(pruner: Pruner) -> None:
    plain = make_tokens((8, 8))
    blank = torch.zeros_like(plain.patches)
    tokens = View(
        blank, blank[0], plain.grid, plain.num_heads, lambda need: torch.zeros_like(plain.signal(need))
    )
    for budget in (64,) if pruner.name == "none" else (2, 17, 64):
        if possible(pruner, budget, 64):
            _ends(pruner, tokens, budget)


def _expressions(pruner: Pruner) -> None:
    for texts in (2, 5):
        _ends(pruner, make_tokens(texts=texts), _usual(pruner, 576))


def _rebuilt(pruner: Pruner) -> None:
    if pruners.parse(pruner.spec()) != [pruner]:
        raise Fault(f"is another one when it is made again from its text {pruner.spec()!r}")


CHECKS: dict[str, Callable[[Pruner], None]] = {
    "exact budget": _exact_budget,
    "impossible budgets refused": _impossible_budgets,
    "deterministic": _deterministic,
    "draws as declared": _draws,
    "independent of other images": _independent,
    "every precision": _precisions,
    "reads what it declares": _declared_needs,
    "featureless image": _featureless,
    "one and many expressions": _expressions,
    "rebuilt from its text": _rebuilt,
}


def checks_digest() -> str:
    """Digest of these checks and of the tokens that they run on."""
    here = Path(__file__)
    return code.of_all(code.of_text(path.read_bytes()) for path in (here, here.with_name("tokens.py")))


@torch.inference_mode()
def conform(pruner: Pruner) -> list[str]:
    """The names of all checks, each of which the pruner passed.

    Raises:
        UserError: it fails one.
    """
    for name, check in CHECKS.items():
        try:
            check(pruner)
        except Exception as error:  # a plugin may raise anything
            told = " ".join(str(error).split())[:300] or type(error).__name__
            raise UserError(
                f"{pruner.spec()} does not conform ({name}: {told}), so its numbers do not compare; "
                f"`pytest tests/test_conformance.py --pruners {pruner.name}` in a clone says more."
            ) from error
    return list(CHECKS)
