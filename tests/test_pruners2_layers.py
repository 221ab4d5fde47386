"""Traps of methods that act inside the language model which no golden array shows: forced answers, odd grids,
few tokens, ties, truncation, parameters."""

from __future__ import annotations

from fractions import Fraction
from typing import Any

import pytest
import torch
from torch import Tensor

import backbones
from backbones.glamm.backbone import GlammBackbone
from harness.engine.cells import expand, impossible
from pruners import POOLED, Cut, ImpossibleBudget, LayerView, Need, UserError, View, checks, parse
from pruners.base import Fault
from pruners.dart import Dart
from pruners.feather import Feather
from pruners.nuwa import UPPER, Nuwa
from pruners.pyramiddrop import PyramidDrop
from pruners.sparsevlm import SparseVLM, clusters, pool_size
from pruners.stages import scaled
from pruners.views import LLM_ATTENTION, LLM_ATTENTION_AHEAD, LLM_INPUTS, LLM_KEYS, LLM_NORMED, Query
from tests.bench import literal_layers
from tests.test_cuts import ground, row_of
from tests.tiny_glamm import picture
from tests.tokens import ANSWER, BEFORE, BEHIND, make_layer_view, make_tokens

METHODS = ("sparsevlm", "sparsevlm(version='plus')", "pyramiddrop", "dart", "feather", "nuwa")


def answered(tokens: LayerView, answer: Any, **other: Any) -> LayerView:
    """The same sequence with other answers, or another end of the question."""
    facts = {"asked": tokens.asked, "grid": tokens.grid, **other}
    return LayerView(
        tokens.layer,
        tokens.number,
        tokens.indices,
        tokens.positions,
        tokens.start,
        tokens.width,
        tokens.dtype,
        answer,
        **facts,
    )


def kept(pruner: Any, tokens: LayerView, count: int) -> list[int]:
    found: list[int] = checks.cut(pruner, tokens, count).indices.tolist()
    return found


# -- all of them


@torch.no_grad()
def test_the_bench_compares_equal_choices() -> None:
    """Literal loops after the releases choose the same, of small layers."""
    found = literal_layers.rows(1, (192, 64), width=128, heads=4, inner=172, channels=64)
    assert len(found) == 12 and all(row["same_in_float64"] for row in found)


@pytest.mark.parametrize("text", METHODS)
def test_a_forced_answer_is_not_read(text: str) -> None:
    """The last row belongs to it, and so do the last text tokens."""
    pruner, plain = parse(text)[0], make_layer_view(576)
    cut = pruner.cuts(192, 576, 32)[0]

    def answer(query: Query) -> Tensor:
        assert query.of != "last"
        found = plain.signal(query)
        if query.of == "text":
            found = found.clone()
            found[..., -ANSWER:, :] = torch.nan
        return found

    count = min(cut.keep, 576)
    assert checks.cut(pruner, answered(plain, answer), count, checked=False).indices.tolist() == kept(
        pruner, plain, count
    )


@pytest.mark.parametrize("share", [True, False])
def test_shared_and_faithful_paths_of_the_mini_choose_the_same(share: bool) -> None:
    mini = backbones.load("glamm-mini")
    assert isinstance(mini, GlammBackbone)
    image = mini.encode([picture(96, 96)])[0]
    texts = (
        "sparsevlm(budget='mean')",
        "sparsevlm(version='plus')",
        "sparsevlm(recycle=False)",
        "pyramiddrop",
        "dart(order='norm')",
        "dart(budget='mean', layer=1)",
        "feather(rope=True, protect=True)",
        "nuwa(positions='compact')",
        "nuwa(aggregate='mean', cut_layer=3)",
    )
    rows = [row_of(mini, image, text, budget=192) for text in texts]
    one, other = ground(mini, rows), ground(mini, rows, share=not share)
    for text, row, first, second in zip(texts, rows, one, other, strict=True):
        assert first.lengths == second.lengths == checks.stated(row.pruner, 192, 576, 5), text
        assert first.retained.equal(second.retained) and not first.error, text
        torch.testing.assert_close(first.logits, second.logits, atol=2e-3, rtol=1e-3)


def test_layers_of_shallow_and_deep_models() -> None:
    assert scaled((8, 16, 24), 32) == (8, 16, 24) and scaled((3, 7, 16), 18) == (2, 4, 9)
    assert scaled((2, 8, 16), 5) == scaled((3, 7, 16), 4) == (1, 2, 3)
    for text in ("pyramiddrop", "sparsevlm"):
        with pytest.raises(ImpossibleBudget, match="a language model that has 3 layers"):
            checks.stated(parse(text)[0], 60, 64, 3)
    assert [cut.layer for cut in SparseVLM(layers=(1, 2, 3)).cuts(60, 64, 32)] == [2, 3, 4]


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("sparsevlm(counts=(300, 200))", "counts are three whole numbers"),
        ("sparsevlm(counts=(200, 300, 100))", "counts do not grow"),
        ("sparsevlm(counts=(200, 100, 0))", "whole numbers from 1 on"),
        ("sparsevlm(counts=7)", "whole numbers in brackets"),
        ("sparsevlm(layers=(6, 2, 15))", "layers ascend"),
        ("sparsevlm(version='2.0')", "'1.0' or 'plus', not '2.0'"),
        ("sparsevlm(noise=-1)", "noise is a number from 0 on"),
        ("sparsevlm(heads=0)", "heads is a whole number from 1 on"),
        ("pyramiddrop(layers=(8, 8))", "layers ascend"),
        ("pyramiddrop(layers=(0, 8))", "layers are whole numbers from 1 on"),
        ("pyramiddrop(ratios=(0.5, 0.25))", "3 shares"),
        ("pyramiddrop(ratios=(0.25, 0.5, 0.1))", "do not grow"),
        ("pyramiddrop(ratios=('a', 0.5, 0.1))", "shares from 1 to 0"),
        ("dart(layer=0)", "layer is a whole number from 1 on"),
        ("dart(visual_pivots=0)", "visual_pivots is a whole number from 1 on"),
        ("dart(order='raster')", "'set' or 'norm', not 'raster'"),
        ("feather(counts=(19, 216))", "counts do not grow"),
        ("feather(layers=(8,))", "layers are two whole numbers"),
        ("feather(stride=-1)", "stride is a whole number from 0 on"),
        ("nuwa(quantile=1.5)", "quantile lies between 0 and 1"),
        ("nuwa(cut_layer=0)", "cut_layer is a whole number from 1 on"),
        ("nuwa(radius='wide')", "'scaled' or 'published', not 'wide'"),
    ],
)
def test_parameters_are_looked_at(text: str, says: str) -> None:
    with pytest.raises(UserError, match=says):
        parse(text)


def test_a_sweep_leaves_out_what_cannot_be_and_goes_on() -> None:
    asked = parse("none,pyramiddrop,random,dart")
    lines = expand(asked, ["8", "24"], 0, (8, 8), 4, seeds=1)
    assert {(line.name, line.budget) for line in lines} == {
        ("none", 64),
        ("pyramiddrop", 24),
        *((name, budget) for name in ("random", "dart") for budget in (8, 24)),
    }
    assert list(impossible(asked, ["8", "24"], (8, 8), 4)) == [("pyramiddrop", 8)]
    with pytest.raises(ImpossibleBudget, match="least mean is 17"):
        expand(parse("none,pyramiddrop"), ["8"], 0, (8, 8), 4)
    with pytest.raises(ImpossibleBudget, match="1 to 64"):  # no pruner's matter
        expand(asked, ["24", "65"], 0, (8, 8), 4)


def test_a_grid_that_is_not_told_is_not_guessed() -> None:
    plain = make_layer_view(64, grid=(8, 8))
    with pytest.raises(Fault, match="does not tell"):
        _ = answered(plain, plain.signal, grid=None).grid


# -- SparseVLM


def test_one_token_at_least_drops_out_where_they_merge() -> None:
    assert SparseVLM().seen([64, 64, 64], 64) == [64, 64, 64]
    assert SparseVLM(recycle=False).seen([64, 70, 3], 64) == [64, 64, 3]
    chosen = checks.cut(SparseVLM(), make_layer_view(64, grid=(8, 8)), 64)
    assert chosen.indices.tolist()[-1] == POOLED and len(set(chosen.indices.tolist())) == 64
    assert [(d, pool_size(d), clusters(d)) for d in (1, 30, 31, 276)] == [
        (1, 1, 1),
        (30, 10, 2),
        (31, 10, 2),
        (276, 83, 9),
    ]


def test_what_stays_follows_from_the_count_with_merged_tokens() -> None:
    """Several numbers can make one count; then most stay, as in the table's rows."""
    pruner = SparseVLM()
    for rows in ((300, 200, 110), (303, 110, 36), (238, 48, 26), (66, 30, 17)):
        there = 576
        for count, seen in zip(rows, pruner.seen(list(rows), 576), strict=True):
            view = make_layer_view(there)
            assert pruner.kept(view, seen) == count
            there = seen
    assert pruner.kept(make_layer_view(55), 27) == 26  # 25 and two merged ones are 27, too


def test_all_words_rate_where_none_stands_out() -> None:
    plain = make_layer_view(64, grid=(8, 8))

    def even(query: Query) -> Tensor:
        found = plain.signal(query)
        return torch.ones_like(found) if query.need == LLM_INPUTS else found

    assert len(SparseVLM().raters(answered(plain, even))) in (0, BEHIND - ANSWER)
    assert 0 < len(SparseVLM().raters(plain)) < BEHIND - ANSWER
    one = answered(plain, plain.signal, asked=BEFORE + 64 + 1)  # a question of one token
    assert SparseVLM().raters(one).tolist() == [0]


def test_mutual_neighbours_are_both_centres_without_noise() -> None:
    """Two clusters: equal density to the last bit; noise lets one of them win."""
    draw = torch.Generator().manual_seed(3)
    states = 0.3 * torch.randn(12, 64, generator=draw, dtype=torch.float64)
    far = torch.cdist(states, states, compute_mode="donot_use_mm_for_euclid_dist")
    assert far.equal(far.T)
    pair = (far + 1e9 * torch.eye(12)).argmin().item()
    closest = {pair // 12, pair % 12}
    centres, groups, merged = SparseVLM().clustered(states, 2)
    assert set(centres.tolist()) == closest and groups[centres].tolist() == [0, 1]
    noisy = SparseVLM(noise=1e-6)
    assert set(noisy.clustered(states, 2)[0].tolist()) != closest
    assert noisy.clustered(states, 2)[2].equal(noisy.clustered(states, 2)[2])
    sizes = groups.bincount()
    sums = torch.stack([states[groups == k].sum(0) for k in range(2)])
    torch.testing.assert_close(merged, sums / (sizes[:, None] + 1e-6))


def test_plus_takes_what_heads_there_are() -> None:
    view = make_layer_view(64, grid=(8, 8))
    few, many = SparseVLM(version="plus", heads=3), SparseVLM(version="plus")
    assert len(few.ratings(view)) == 3 and len(many.ratings(view)) == 4


# -- PyramidDrop


def test_ratios_are_truncated() -> None:
    """0.333 of 576 are 191, and so on; m / 576 is m."""
    for ratio, count in ((0.111111, 63), (0.333, 191), (0.222, 127), (57 / 576, 57)):
        pruner = PyramidDrop(layers=(2,), ratios=(ratio,))
        mean = (2 * 576 + 30 * count) / 32
        assert pruner.cuts(int(mean), 576, 32) == (Cut(2, count),)


# -- DART


def test_dart_keeps_exactly_what_is_asked() -> None:
    view = make_layer_view(576)
    for count in (1, 3, 4, 5, 67, 68, 191, 196, 575, 576):
        assert len(set(kept(Dart(), view, count))) == count
    strongest = Dart().pivots(view, 4)[0].tolist()
    assert kept(Dart(), view, 2) == sorted(strongest[:2])
    assert kept(Dart(), view, 196) == kept(
        Dart(budget="label"), view, Dart(budget="label").left(192, 576, 32)
    )


def test_dart_with_fewer_words_than_pivots() -> None:
    plain = make_layer_view(576)
    short = answered(plain, plain.signal, asked=BEFORE + 576 + 2)
    assert len(Dart().pivots(short, 64)[1]) == 2
    assert len(set(kept(Dart(), short, 132))) == 132
    none = answered(plain, plain.signal, asked=BEFORE + 576)
    assert kept(Dart(), none, 132) == kept(Dart(text_pivots=0), plain, 132)


def test_dart_visits_in_the_order_of_a_set_of_places() -> None:
    view = make_layer_view(576)
    pivots = torch.tensor([570, 3, 40, 31]), torch.tensor([0, 5])
    places = [BEFORE + k for k in (570, 3, 40, 31, 576, 581)]
    assert Dart().visited(view, *pivots) == sorted(places, key=lambda place: place % 32)
    assert Dart(order="norm").visited(view, *pivots) == places


def test_dart_counts_keys_that_queries_share_as_the_release_does() -> None:
    """Repeated for the queries, a norm grows by one factor, and nothing else changes."""
    plain = make_layer_view(64, grid=(8, 8))

    def repeated(query: Query) -> Tensor:
        found = plain.signal(query)
        return found.repeat_interleave(2, dim=0) if query.need == LLM_KEYS else found

    assert kept(Dart(), answered(plain, repeated), 20) == kept(Dart(), plain, 20)


def test_dart_takes_the_least_alike_of_what_is_left() -> None:
    """One after the other: what one pivot took, the next cannot take."""
    plain = make_layer_view(64, grid=(8, 8))
    states = torch.zeros(64, 2, dtype=torch.float64)
    states[:, 0], states[10:14, 0] = 1, torch.tensor([-1.0, -0.9, -0.8, -0.7]).double()
    states[:, 1] = 0.1
    keys = torch.zeros(1, 64, 2, dtype=torch.float64)
    keys[0, [5, 6], 0] = torch.tensor([3.0, 2.0]).double()

    def answer(query: Query) -> Tensor:
        text = query.of == "text"
        if query.need == LLM_KEYS:
            return keys[:, :BEHIND] * 0 if text else keys
        assert query.need == LLM_NORMED
        return states[:BEHIND] if text else states

    assert kept(Dart(visual_pivots=2, text_pivots=0), answered(plain, answer), 6) == [5, 6, 10, 11, 12, 13]


# -- FEATHER


@pytest.mark.parametrize("grid", [(24, 24), (6, 10), (5, 7)])
def test_feather_keeps_the_grid_at_the_first_cut(grid: tuple[int, int]) -> None:
    rows, columns = grid
    patches = rows * columns
    points = {r * columns + c for r in range(0, rows, 3) for c in range(0, columns, 3)}
    found = kept(Feather(stride=3), make_layer_view(patches, grid=grid), patches // 2)
    assert points <= set(found)
    bare = kept(Feather(stride=0), make_layer_view(patches, grid=grid), patches // 2)
    assert not points <= set(bare)
    few = kept(Feather(stride=3), make_layer_view(patches, grid=grid), 3)
    assert set(few) <= points  # the best of them


def test_feather_keeps_the_grid_of_every_view() -> None:
    patches = torch.arange(2 * 36)
    found = kept(Feather(stride=3), make_layer_view(patches, grid=(6, 6)), 8)
    assert found == [0, 3, 18, 21, 36, 39, 54, 57]


def test_feather_protects_the_grid_at_the_second_cut_if_it_is_told_to() -> None:
    view = make_layer_view(torch.arange(0, 576, 2), number=1)
    points = [k for k, patch in enumerate(range(0, 576, 2)) if patch // 24 % 3 == 0 and patch % 24 % 3 == 0]
    assert set(kept(Feather(stride=3, protect=True), view, len(points))) == set(points)
    assert kept(Feather(stride=3), view, 40) == kept(Feather(stride=0), view, 40)


def test_feather_looks_at_the_image_alone_without_positions() -> None:
    view = make_layer_view(64, grid=(8, 8))
    asked: list[Query] = []

    def answer(query: Query) -> Tensor:
        asked.append(query)
        return view.signal(query)

    score = Feather().score(answered(view, answer))
    assert float(score.sum()) == pytest.approx(1)
    (query,) = asked
    assert (query.need, query.rotary, query.softmax) == (LLM_ATTENTION, False, False)
    assert isinstance(query.of, Tensor) and query.of.tolist() == [view.asked - 1]
    assert not torch.allclose(score, Feather(rope=True).score(view))


def test_feather_strides_shrink_no_grid_below_three() -> None:
    pruner = Feather()
    assert [pruner.step(count, (24, 24)) for count in (576, 175, 128, 63, 8, 2, 1)] == [3, 3, 3, 5, 12, 24, 0]
    assert pruner.step(63, (6, 10)) == 3


# -- PyramidDrop and FEATHER read different layers


def test_pyramiddrop_asks_the_layer_to_come() -> None:
    view = make_layer_view(64, grid=(8, 8))
    row = view.attention("prompt", ahead=True)[:, 0, view.visual].mean(0)
    assert kept(PyramidDrop(), view, 9) == sorted(row.argsort(descending=True)[:9].tolist())
    assert PyramidDrop.needs == {LLM_ATTENTION_AHEAD} and PyramidDrop().positions == "compact"


# -- Nuwa


@pytest.mark.parametrize("grid", [(5, 7), (1, 9), (3, 3), (1, 1), (6, 10)])
def test_nuwa_serves_cells_at_odd_sides(grid: tuple[int, int]) -> None:
    """Incomplete cells hold what they have; a cell has one more where others cannot."""
    rows, columns = grid
    tokens = make_tokens(grid)
    for count in range(1, rows * columns + 1):
        kept_, own = Nuwa().chosen(tokens, count)
        assert len(kept_) == count == len(kept_.unique()) and bool(own.any())
        cells = (kept_ // columns // 2) * -(-columns // 2) + kept_ % columns // 2
        if count <= -(-rows // 2) * -(-columns // 2):
            assert len(cells.unique()) == count
        features = Nuwa().select(tokens, count).features
        assert features is not None and bool(features.isfinite().all())


def test_nuwa_takes_the_upper_left_first_among_equals() -> None:
    plain = make_tokens((4, 4))

    def even(need: Need) -> Tensor:
        found = plain.signal(need)
        return torch.full_like(found, 0.1) if need.kind == "cls_attention" else found

    tokens = View(plain.patches, plain.cls, plain.grid, plain.num_heads, even)
    assert Nuwa().chosen(tokens, 4)[0].tolist() == [0, 2, 8, 10]
    assert bool(Nuwa().chosen(tokens, 4)[1].all()), "all that equal the threshold keep their own feature"
    assert Nuwa().chosen(tokens, 6)[0].tolist() == [0, 1, 2, 3, 8, 9]


@pytest.mark.parametrize("count", [2, 21, 41, 50, 112, 161])
def test_nuwa_quantile_is_a_rank(count: int) -> None:
    """Where 0.55 (S - 1) is whole, too, where the release's float32 rounds."""
    _, own = Nuwa().chosen(make_tokens(), count)
    assert int(own.sum()) == count - -(-11 * (count - 1) // 20)


def test_nuwa_adds_and_leaves_the_best_alone() -> None:
    tokens = make_tokens()
    kept_, own = Nuwa().chosen(tokens, 112)
    added, mean = (
        Nuwa(aggregate=how).select(tokens, 112).features
        for how in ("add", "mean")  # type: ignore[arg-type]
    )
    assert added is not None and mean is not None
    assert added[own].equal(tokens.patches[kept_][own]) and mean[own].equal(added[own])
    assert float(added[~own].norm(dim=1).mean()) > 1.2 * float(mean[~own].norm(dim=1).mean())


def test_nuwa_reads_the_tower_by_its_depth() -> None:
    assert [Need("hidden", layer).index(24) for layer in UPPER] == list(range(15, 24))
    assert [Need("hidden", layer).index(5) for layer in UPPER] == [2, 3, 3, 3, 3, 3, 4, 4, 4]
    assert UPPER[0] == Fraction(2, 3)


def test_nuwa_radius_is_a_share_of_the_diagonal() -> None:
    assert [Nuwa().reach(grid) for grid in ((24, 24), (16, 16), (1, 1))] == [280, 119, 1]
    assert Nuwa(radius="published").reach((16, 16)) == 280


def test_nuwa_can_cut_elsewhere_or_not_at_all() -> None:
    assert checks.stated(Nuwa(cut_layer=16), 64, 576, 18) == (71,) * 16 + (8, 8)
    assert checks.stated(Nuwa(), 576, 576, 32) == (576,) * 32
    with pytest.raises(ImpossibleBudget, match="cut_layer 1 to 4"):
        checks.stated(Nuwa(cut_layer=5), 64, 576, 5)


def test_nuwa_takes_the_diagonal_of_any_grid() -> None:
    assert Nuwa().reach((12, 24)) == Nuwa().reach((24, 12)) == 172  # 280 x (121 + 529) / 1058


def test_nuwa_leaves_one_token_behind_the_cut() -> None:
    """Of few tokens fewer enter, so that the mean is still met."""
    assert checks.stated(Nuwa(), 1, 16, 5) == (1, 1, 1, 1, 1)
    assert checks.stated(Nuwa(), 2, 16, 5) == (4, 4, 1, 1, 1)
