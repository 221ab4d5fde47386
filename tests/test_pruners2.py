"""Six pruners before the language model: the arithmetic that their code fixes, its traps, other readings."""

from __future__ import annotations

from fractions import Fraction

import pytest
import torch
from torch import Tensor

import pruners
from harness.overview import deployable
from pruners.base import BLOCK, LLM_PATCHES, PROJECTED_PATCHES, TEXT_EMBEDS, Need, UserError, View, cosines
from pruners.cdpruner import CDPruner
from pruners.divprune import DivPrune
from pruners.hiprune import HiPrune
from pruners.holov import HoloV
from pruners.scope import Scope
from tests.tokens import make_tokens

TOWER = ("cdpruner", "divprune", "fastervlm", "hiprune", "holov", "scope")
ATTENTION = Need("cls_attention", -2)


def changed(view: View, signals: dict[Need, Tensor], patches: Tensor | None = None) -> View:
    """The same view with other answers, and perhaps other patches."""

    def answer(need: Need) -> Tensor:
        return signals[need] if need in signals else view.signal(need)

    return View(view.patches if patches is None else patches, view.cls, view.grid, view.num_heads, answer)


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def kept(text: str, view: View, budget: int) -> list[int]:
    found: list[int] = pruners.parse(text)[0].select(view, budget).indices.tolist()
    return found


@pytest.mark.parametrize("grid", [(24, 24), (16, 16), (8, 8), (6, 10), (1, 1), (2, 1), (1, 7)], ids=str)
@pytest.mark.parametrize("name", TOWER)
def test_any_budget_of_any_grid(name: str, grid: tuple[int, int]) -> None:
    view = make_tokens(grid)
    size = len(view)
    for budget in range(1, size + 1) if size <= 64 else (1, 2, 15, 16, 17, 57, size - 1, size):
        chosen = kept(name, view, budget)
        assert len(set(chosen)) == len(chosen) == budget
        assert set(chosen) <= set(range(size))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("distinct", [1, 10, 40])
@pytest.mark.parametrize("name", TOWER)
def test_fewer_distinct_tokens_than_asked(name: str, distinct: int, dtype: torch.dtype) -> None:
    """Copies of a few tokens, one of them zeros: the budget holds, and every token counts once."""
    view = make_tokens((8, 8))
    copies = torch.arange(64) % distinct

    def repeated(x: Tensor) -> Tensor:
        few = x[:distinct].clone()
        few[0] = 0
        return few[copies].to(dtype)

    signals = {need: repeated(view.signal(need)) for need in (LLM_PATCHES, PROJECTED_PATCHES)}
    signals[TEXT_EMBEDS] = view.text_embeds.to(dtype)
    for need in (ATTENTION, Need("received_attention", -2), Need("received_attention", Fraction(9, 24))):
        row = view.signal(need)
        signals[need] = torch.cat([row[:, :1], row[:, 1:][:, copies]], dim=1).to(dtype)
    poor = changed(view, signals, repeated(view.patches))
    for budget in (1, 5, 20, 63, 64):
        chosen = kept(name, poor, budget)
        assert len(set(chosen)) == budget


def test_cosines() -> None:
    for rows in (1, BLOCK, 2 * BLOCK + 5):
        x = noise(rows, 7)
        x[0] = 0
        found = cosines(x)
        assert not bool(found[0].any())
        unit = torch.nn.functional.normalize(x, dim=1)
        torch.testing.assert_close(found, unit @ unit.T)
        assert cosines(x.bfloat16()).dtype == torch.float32


# -- DivPrune


def test_divprune_starts_with_the_loneliest_and_goes_on_with_the_farthest() -> None:
    angles = torch.tensor([0.0, 1.0, 4.0, 90.0, 92.0, 200.0]).deg2rad().double()
    view = changed(make_tokens((1, 6)), {LLM_PATCHES: torch.stack([angles.cos(), angles.sin()], dim=1)})
    assert DivPrune().picked(view, 6).tolist() == [5, 2, 4, 0, 3, 1]
    farther = changed(view, {LLM_PATCHES: view.llm_patches * torch.arange(1, 7)[:, None]})
    assert DivPrune().picked(farther, 6).tolist() == [5, 2, 4, 0, 3, 1], "lengths do not matter"


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
def test_divprune_takes_copies_last(dtype: torch.dtype) -> None:
    """All that differ come first, then the lowest indices; the released code takes one of them for ever."""
    for distinct in (1, 10, 40):
        few = noise(distinct, 4096)[torch.arange(64) % distinct].to(dtype)
        picks = DivPrune().picked(changed(make_tokens((8, 8)), {LLM_PATCHES: few}), 64).tolist()
        assert {pick % distinct for pick in picks[:distinct]} == set(range(distinct))
        assert picks[distinct:] == sorted(set(range(64)) - set(picks[:distinct]))


def test_divprune_needs_nothing_before_the_projector() -> None:
    assert [name for name in TOWER if deployable(pruners.get(name)())] == ["divprune"]


# -- CDPruner


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
def test_cdpruner_fills_up_beyond_the_rank(dtype: torch.dtype) -> None:
    """By falling relevance; within the rank nothing changes."""
    view = make_tokens(dtype=dtype)
    view = changed(view, {LLM_PATCHES: noise(576, 48).to(dtype)})
    picks, weights = CDPruner().picked(view, 64), CDPruner().weights(view)
    assert picks[:48].equal(CDPruner().picked(view, 48)) and len(picks.unique()) == 64
    left = weights.index_fill(0, picks[:48], -torch.inf)
    assert picks[48:].equal(left.argsort(descending=True, stable=True)[:16])
    assert sorted(CDPruner().picked(view, 576).tolist()) == list(range(576))


def test_cdpruner_is_the_determinant_greedily() -> None:
    view = changed(make_tokens((4, 4)), {LLM_PATCHES: noise(16, 40)})
    weights, similarity = CDPruner().weights(view), cosines(view.llm_patches)
    kernel = weights[:, None] * similarity * weights
    chosen: list[int] = []
    for _ in range(6):
        volume = {one: kernel[[*chosen, one]][:, [*chosen, one]].det() for one in set(range(16)) - {*chosen}}
        chosen.append(max(volume, key=volume.__getitem__))
    assert CDPruner().picked(view, 6).tolist() == chosen


def test_cdpruner_reads_the_question_the_other_way_round() -> None:
    view = make_tokens()
    negative, positive = CDPruner().weights(view), CDPruner(relevance="positive").weights(view)
    assert negative.argmin() == positive.argmax() and kept("cdpruner", view, 64) != kept(
        "cdpruner(relevance='positive')", view, 64
    )
    alike = changed(view, {TEXT_EMBEDS: torch.zeros_like(view.text_embeds)})
    assert CDPruner().weights(alike).equal(torch.ones(576, dtype=torch.float64)), "no question, no relevance"


def test_cdpruner_averages_questions() -> None:
    view = make_tokens(texts=3)
    one = CDPruner().weights(changed(view, {TEXT_EMBEDS: view.text_embeds[1:2]}))
    assert not CDPruner().weights(view).equal(one)
    torch.testing.assert_close(
        CDPruner().weights(changed(view, {TEXT_EMBEDS: view.text_embeds[[1, 1]]})), one
    )


# -- HiPrune


def test_hiprune_wraps_around_as_published() -> None:
    method, grid = HiPrune(), (4, 5)
    assert method.around(torch.tensor([9]), grid).tolist() == [4, 8, 9, 10, 14], "10 is in the next row"
    assert method.around(torch.tensor([0]), grid).tolist() == [0, 1, 5]
    assert method.around(torch.tensor([2]), grid).tolist() == [0, 1, 2, 3, 7], "above the image is patch 0"
    assert method.around(torch.tensor([17]), grid).tolist() == [12, 16, 17, 18, 19]
    inside = HiPrune(wrap=False)
    assert inside.around(torch.tensor([9]), grid).tolist() == [4, 8, 9, 14]
    assert inside.around(torch.tensor([2]), grid).tolist() == [1, 2, 3, 7]
    assert inside.around(torch.tensor([10]), grid).tolist() == [5, 10, 11, 15]
    assert inside.around(torch.tensor([1]), (4, 1)).tolist() == [0, 1, 2]


def test_hiprune_splits_the_budget() -> None:
    view = make_tokens()
    for budget, count in ((192, 4), (128, 3), (64, 1), (26, 1), (25, 0), (1, 0)):
        anchors, found = HiPrune().objects(view, budget)
        assert len(anchors) == count and len(found) <= 5 * count
    registers = HiPrune().registers(view, torch.tensor([], dtype=torch.long), 25)
    assert kept("hiprune", view, 25) == registers.sort().values.tolist(), "no anchor, registers alone"
    for budget in range(1, 12):  # 5 tokens and more for one anchor
        anchors, found = HiPrune(alpha=1.0).objects(view, budget)
        assert len(found) <= budget and len(anchors) <= round(budget / 5)


def test_hiprune_reads_a_share_of_the_depth() -> None:
    default = HiPrune()
    assert {need.index(24) for need in default.needs} == {8, 22}
    assert {need.index(5) for need in default.needs} == {1, 3}
    other = HiPrune(object_layer=6, score="cls")
    assert {(need.kind, need.index(24)) for need in other.needs} == {
        ("cls_attention", 5),
        ("cls_attention", 22),
    }
    assert HiPrune.needs == default.needs == HiPrune(alpha=0.5).needs
    assert pruners.parse(other.spec()) == [other] and pruners.parse(other.spec())[0].needs == other.needs


# -- HoloV


def test_holov_crops_are_runs_of_patches() -> None:
    assert HoloV().runs(576, 64) == ((16, 36),)
    assert HoloV().runs(100, 64) == ((4, 7), (12, 6))
    assert HoloV().runs(5, 64) == ((5, 1),)
    for budget, crops in ((192, 5), (128, 8), (64, 16), (576, 1), (1, 576)):
        assert sum(count for count, _ in HoloV(crops="rule").runs(576, budget)) == crops


def test_holov_diversity_cancels() -> None:
    """Other features, the same choice: as in the released code, the term is scaled to a crop's attention."""
    view = make_tokens()
    chosen = kept("holov", view, 100)
    for seed in range(5):
        assert kept("holov", changed(view, {LLM_PATCHES: noise(576, 32, seed=seed)}), 100) == chosen


def test_holov_fills_up_where_the_code_puts_zero_rows() -> None:
    view = make_tokens()
    steep = view.cls_attention(-2) ** 4
    steep[:, 1:37] *= 1e6  # all of it in the first crop
    view = changed(view, {ATTENTION: steep})
    found, counts = HoloV().shared(view, 96)
    assert int(counts.sum()) == len(found) < 96 and counts[0] == 36
    assert found[:36].tolist() == list(range(36)), "a whole crop in raster order"
    chosen = HoloV().select(view, 96).indices
    attention = HoloV().attention(view)
    assert chosen[: len(found)].equal(found)
    best = attention.index_fill(0, found, -1).argsort(descending=True)[: 96 - len(found)]
    assert chosen[len(found) :].equal(best)


# -- SCOPE


def test_scope_is_gain_times_saliency() -> None:
    view = make_tokens((4, 4))
    similarity, saliency = cosines(view.patches), view.cls_attention(-2).sum(0)[1:]
    for method in (Scope(), Scope(alpha=2.0), Scope(combine="add"), Scope(alpha=0.0)):
        cover, chosen = torch.zeros(16, dtype=torch.float64), list[int]()
        for _ in range(16):
            gain, weight = (similarity - cover[:, None]).clamp(min=0).sum(0), saliency**method.alpha
            score = gain * weight if method.combine == "multi" else gain + weight
            score[chosen] = -torch.inf
            chosen.append(int(score.argmax()))
            cover = torch.maximum(cover, similarity[:, chosen[-1]])
        assert method.picked(view, 8).tolist() == chosen[:8], method


def test_scope_of_a_patch_of_norm_zero() -> None:
    view = make_tokens((8, 8))
    patches = view.patches.clone()
    patches[7] = 0
    picks = Scope().picked(changed(view, {}, patches), 64).tolist()
    assert sorted(picks) == list(range(64)) and 7 in picks[32:], "it covers nothing"


# -- readings


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("cdpruner(relevance='positive')", "cdpruner"),
        ("hiprune(alpha=1.0)", "hiprune"),
        ("hiprune(object_layer=6)", "hiprune"),
        ("hiprune(score='cls')", "hiprune"),
        ("hiprune(alpha=1.0, wrap=False)", "hiprune(alpha=1.0)"),
        ("holov(crops=4)", "holov"),
        ("scope(alpha=2.0)", "scope"),
        ("scope(combine='add')", "scope"),
    ],
)
def test_readings_differ(text: str, code: str) -> None:
    view = make_tokens()
    assert kept(text, view, 96) != kept(code, view, 96)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("cdpruner(relevance='low')", "'negative' or 'positive', not 'low'"),
        ("hiprune(alpha=1.5)", "between 0 and 1, not 1.5"),
        ("hiprune(object_layer=0)", "1 to 24, not 0"),
        ("hiprune(object_layer=25)", "1 to 24, not 25"),
        ("hiprune(score='row')", "'received' or 'cls', not 'row'"),
        ("hiprune(wrap=1)", "True or False, not 1"),
        ("holov(crops=0)", "1 or more, or 'rule', not 0"),
        ("holov(crops='rules')", "a whole number or 'rule', not 'rules'"),
        ("scope(alpha=-1)", "between 0 and 100, not -1.0"),
        ("scope(combine='mul')", "'multi' or 'add', not 'mul'"),
        ("divprune(ratio=0.1)", "no parameters"),
    ],
)
def test_mistakes_are_one_sentence(text: str, says: str) -> None:
    with pytest.raises(UserError) as caught:
        pruners.parse(text)
    assert says in str(caught.value) and "\n" not in str(caught.value)
