"""What methods that prune inside the language model cost at published budgets: the schedules that they state,
and what the projection of costs at full size counts of them."""

from __future__ import annotations

from typing import Any

import pytest

from backbones.glamm.full_size import LLM
from backbones.glamm.shapes import GlammShapes
from harness.cost import projection
from harness.cost.lines import lines_of
from pruners import Cut, ImpossibleBudget, UserError, checks, parse, stages

PATCHES, LAYERS = 576, 32

# text: budget -> the tokens that a layer sees and for how many layers, and their mean, as published
PUBLISHED: dict[str, dict[int, tuple[list[tuple[int, int]], float]]] = {
    "sparsevlm": {
        192: ([(576, 3), (309, 4), (204, 9), (113, 16)], 206.5),
        128: ([(576, 3), (312, 4), (117, 9), (39, 16)], 145.4),
        96: ([(576, 3), (249, 4), (55, 9), (27, 16)], 114.1),
        64: ([(576, 3), (82, 4), (32, 9), (18, 16)], 82.3),
    },
    "sparsevlm(version='plus')": {
        192: ([(576, 3), (300, 4), (200, 9), (118, 16)], 206.8),
        128: ([(576, 3), (238, 4), (108, 9), (60, 16)], 144.1),
        96: ([(576, 3), (246, 4), (54, 9), (28, 16)], 113.9),
        64: ([(576, 3), (66, 4), (34, 9), (20, 16)], 81.8),
    },
    "pyramiddrop": {270: ([(576, 8), (288, 8), (144, 8), (72, 8)], 270)},
    "pyramiddrop(ratios=(0.5, 0.25, 0.125))": {270: ([(576, 8), (288, 8), (144, 8), (72, 8)], 270)},
    "fastv": {
        192: ([(576, 2), (192, 30)], 216),
        128: ([(576, 2), (128, 30)], 156),
        64: ([(576, 2), (64, 30)], 96),
    },
    "dart(budget='label')": {
        192: ([(576, 2), (196, 30)], 219.8),
        128: ([(576, 2), (132, 30)], 159.8),
        64: ([(576, 2), (68, 30)], 99.8),
    },
    "dart": {132: ([(576, 2), (132, 30)], 159.8)},
    "nuwa": {
        192: ([(336, 16), (48, 16)], 192),
        128: ([(224, 16), (32, 16)], 128),
        64: ([(112, 16), (16, 16)], 64),
        57: ([(100, 16), (14, 16)], 57),
    },
    "feather(counts=(216, 19))": {207: ([(576, 8), (216, 8), (19, 16)], 207.5)},
}
# the same of what is proposed for budgets that are not published: shares and layers by a rule, and counts
# moved by single tokens where the rule alone misses the mean by more than every layer may round
PROPOSED: dict[str, dict[int, tuple[list[tuple[int, int]], float]]] = {
    "pyramiddrop": {
        192: ([(576, 8), (145, 8), (36, 8), (9, 8)], 191.5),
        128: ([(576, 2), (241, 6), (101, 8), (42, 16)], 127.4),
        64: ([(576, 2), (110, 6), (21, 8), (4, 16)], 63.9),
    },
    "pyramiddrop(layers=(2, 8, 16))": {192: ([(576, 2), (322, 6), (180, 8), (100, 16)], 191.4)},
    "feather": {
        192: ([(576, 8), (175, 8), (8, 16)], 191.8),
        128: ([(576, 2), (196, 14), (13, 16)], 128.3),
        64: ([(576, 2), (64, 14), (1, 16)], 64.5),
    },
    "sparsevlm(budget='mean')": {192: ([(576, 3), (281, 4), (184, 9), (102, 16)], 191.9)},
}
ROWS = [
    (text, budget, runs, mean)
    for table in (PUBLISHED, PROPOSED)
    for text, rows in table.items()
    for budget, (runs, mean) in rows.items()
]
LOGGED = {  # means over the layers of what leaves each, as SparseVLM's authors count
    "sparsevlm": {192: 192.0, 128: 128.6, 96: 96.9, 64: 64.8},
    "sparsevlm(version='plus')": {192: 192.4, 128: 128.0, 96: 96.8, 64: 64.4},
}


def layered(runs: list[tuple[int, int]]) -> tuple[int, ...]:
    return tuple(count for count, layers in runs for _ in range(layers))


@pytest.mark.parametrize(("text", "budget", "runs", "mean"), ROWS, ids=str)
def test_schedules(text: str, budget: int, runs: list[tuple[int, int]], mean: float) -> None:
    schedule = checks.stated(parse(text)[0], budget, PATCHES, LAYERS)
    assert schedule == layered(runs) and sum(schedule) / LAYERS == pytest.approx(mean, abs=0.051)


@pytest.mark.parametrize("text", LOGGED)
def test_labels_are_means_of_what_leaves_the_layers(text: str) -> None:
    for budget, mean in LOGGED[text].items():
        schedule = checks.stated(parse(text)[0], budget, PATCHES, LAYERS)
        logged = (sum(schedule[1:]) + schedule[-1]) / LAYERS
        assert logged == pytest.approx(mean, abs=0.051) and int(logged) == budget


def test_labels_between_the_rows_of_the_table_follow_the_same_mean() -> None:
    for text in LOGGED:
        for budget in (57, 100, 191, 193, 400):
            schedule = checks.stated(parse(text)[0], budget, PATCHES, LAYERS)
            assert budget <= (sum(schedule[1:]) + schedule[-1]) / LAYERS < budget + 1, (text, budget)


def test_a_deeper_model_has_the_published_counts_at_the_published_layers() -> None:
    schedule = checks.stated(parse("sparsevlm(version='plus')")[0], 192, PATCHES, 40)
    assert schedule == layered([(576, 3), (300, 4), (200, 9), (118, 24)])
    merged = checks.stated(parse("sparsevlm")[0], 192, PATCHES, 40)
    assert sum(merged) / 40 == pytest.approx(187.8, abs=0.05)
    assert (sum(merged[1:]) + merged[-1]) / 40 == pytest.approx(176.2, abs=0.05)


def test_other_grids() -> None:
    """Nuwa's table of 256 patches, and FEATHER's proposals."""
    rows = {"nuwa": {128: (224, 32), 96: (168, 24), 64: (112, 16), 32: (56, 8), 192: (256, 128)}}
    for budget, (entering, left) in rows["nuwa"].items():
        assert checks.stated(parse("nuwa")[0], budget, 256, LAYERS) == (entering,) * 16 + (left,) * 16
    feather = parse("feather")[0]
    assert checks.stated(feather, 96, 256, LAYERS) == layered([(256, 8), (106, 8), (11, 16)])
    assert checks.stated(feather, 64, 256, LAYERS) == layered([(256, 2), (100, 14), (8, 16)])


@pytest.mark.parametrize(
    ("text", "budget", "says"),
    [
        ("pyramiddrop", 36, "least mean is 37"),
        ("pyramiddrop(layers=(8, 16, 24))", 144, "least mean is 145"),
        ("feather", 36, "least mean is 37"),
        ("sparsevlm(budget='mean')", 50, "least mean is 5[5-9]"),
        ("sparsevlm", 36, "least label is (3[7-9]|4[0-2])"),
        ("pyramiddrop(ratios=(0.5, 0.25, 0.125))", 192, "give --budgets 270"),
        ("sparsevlm(counts=(300, 200, 110))", 128, "give --budgets 192"),
        ("feather(counts=(216, 19))", 64, "give --budgets 207"),
    ],
)
def test_what_cannot_be_is_refused_with_what_can(text: str, budget: int, says: str) -> None:
    with pytest.raises(ImpossibleBudget, match=says) as caught:
        checks.stated(parse(text)[0], budget, PATCHES, LAYERS)
    assert str(budget) in str(caught.value)


@pytest.mark.parametrize("text", ["pyramiddrop", "feather", "sparsevlm", "sparsevlm(budget='mean')"])
def test_the_least_that_is_named_can_be_had(text: str) -> None:
    pruner = parse(text)[0]
    for patches, layers in ((64, 5), (576, 5), (256, 18), (576, 32), (576, 40)):
        try:
            checks.stated(pruner, 1, patches, layers)
        except ImpossibleBudget as error:
            least = int(str(error).rstrip(".").split()[-1])
            checks.stated(pruner, least, patches, layers)
            with pytest.raises(ImpossibleBudget):
                checks.stated(pruner, least - 1, patches, layers)


@pytest.mark.parametrize("budget", [192, 64])
def test_the_projection_at_full_size_counts_these(budget: int) -> None:
    """7B: lengths, means and multiply-adds of the decoder layers are those of the stated schedules."""
    texts = ["fastv", "sparsevlm", "sparsevlm(version='plus')", "pyramiddrop", "dart", "feather", "nuwa"]
    model = full_size()
    prompt = model.prompt()
    lines = lines_of(parse(",".join(texts)), [budget], 0, model.grid, model.shape.layers)
    cells = projection.project(model, lines, prompt).cells.set_index("pruner")
    width, inner = LLM["hidden_size"], LLM["intermediate_size"]
    for text in texts:
        pruner, row = parse(text)[0], cells.loc[text]
        schedule = pruner.schedule(budget, PATCHES, LAYERS)
        assert tuple(n - prompt.text for n in row["lengths"]) == schedule, text
        assert row["tokens_mean"] == sum(schedule) / LAYERS
        lengths = [n + prompt.text for n in schedule]
        macs = sum(4 * n * width**2 + 2 * n**2 * width + 3 * n * width * inner for n in lengths)
        assert row["macs.language_model"] == macs


def full_size() -> Any:
    import backbones

    shapes = backbones.one("glamm-7b").shapes()
    assert isinstance(shapes, GlammShapes)
    return shapes


# --- the arithmetic of several cuts, on paper


@pytest.mark.parametrize(
    ("counts", "layers", "budget", "kept"),
    [
        ([1], [2], 5, [1]),  # 2 x 8 + 2 x 1 is 18 of 20: a token in both layers behind the cut
        ([9], [2], 6, [5]),  # from all 8 down to the first that is as near
        ([1], [2], 8, [7]),  # and up
        ([4, 4], [1, 2], 5, [4, 4]),
        ([5, 1], [1, 3], 6, [5, 3]),  # the last cut moves first
        ([6, 2], [1, 3], 5, [6, 2]),
        ([8, 8], [1, 2], 8, [8, 8]),
    ],
)
def test_cuts_are_settled_by_single_tokens(
    counts: list[int], layers: list[int], budget: int, kept: list[int]
) -> None:
    """Of 8 patches in 4 layers."""
    pruner = parse("pyramiddrop")[0]
    assert stages.settled(pruner, counts, layers, budget, 8, 4) == tuple(map(Cut, layers, kept))


def test_the_least_mean_is_one_token_behind_every_cut() -> None:
    pruner = parse("pyramiddrop")[0]
    assert stages.settled(pruner, [1, 1], [1, 2], 3, 8, 4) == (Cut(1, 1), Cut(2, 1))
    with pytest.raises(ImpossibleBudget, match="cannot average 2 tokens over 4 layers: the least mean is 3"):
        stages.settled(pruner, [1, 1], [1, 2], 2, 8, 4)
    with pytest.raises(ImpossibleBudget, match="cuts before layer 4 of a language model that has 4 layers"):
        stages.settled(pruner, [1, 1], [1, 4], 4, 8, 4)
    assert stages.settled(pruner, [1, 1], [1, 3], 5, 8, 4)[1].layer == 3


def test_what_is_what_it_is_has_one_name() -> None:
    pruner, cuts = parse("pyramiddrop")[0], (Cut(1, 3), Cut(3, 1))
    for budget in (4, 5):
        assert stages.named(pruner, cuts, 4.25, budget, 4) == cuts
    for budget in (3, 6):
        with pytest.raises(ImpossibleBudget, match=rf"averages 4.2 tokens .* not {budget}; give --budgets 4"):
            stages.named(pruner, cuts, 4.25, budget, 4)
    with pytest.raises(ImpossibleBudget, match="cuts before layer 3"):
        stages.named(pruner, cuts, 4.25, 4, 3)


def test_spans_and_totals() -> None:
    assert stages.spans((2, 5), 9) == [2, 3, 4]
    assert stages.total((5, 1), (2, 3, 4), 10) == 2 * 10 + 3 * 5 + 4 * 1
    low, high = stages.bracket(lambda x: 10 * x, 3)
    assert low < 0.3 <= high == pytest.approx(0.3) and low == pytest.approx(0.3)
    assert stages.bracket(lambda x: x, 7, 10)[1] == pytest.approx(7)


def test_numbers_in_brackets() -> None:
    for sound in (None, (1,), (1, 5), (5, 1)):
        stages.check_numbers("m", "f", sound, 1, 5)
    for wrong, says in (
        ((), "whole numbers in brackets"),
        ([1, 2], "whole numbers in brackets"),
        ((1, True), "whole numbers in brackets"),
        ((1, 2.0), "whole numbers in brackets"),
        ((0, 2), "m: f are whole numbers from 1 to 5"),
        ((1, 6), "m: f are whole numbers from 1 to 5"),
    ):
        with pytest.raises(UserError, match=says):
            stages.check_numbers("m", "f", wrong, 1, 5)
    with pytest.raises(UserError, match="from 1 on"):
        stages.check_numbers("m", "f", (0,), 1)
    for rising in (None, (1,), (1, 2, 9)):
        stages.check_ascending("m", "f", rising)
    for falling in ((2, 2), (3, 1), (0, 1)):
        with pytest.raises(UserError, match=r"m: f (ascend|are whole numbers from 1 on)"):
            stages.check_ascending("m", "f", falling)


def test_between_two_rows_of_the_table_the_nearer_one_is_scaled_and_of_two_the_larger() -> None:
    for text, rows in (
        ("sparsevlm", {160: (248, 161, 90), 112: (257, 96, 32), 80: (182, 39, 20)}),
        ("sparsevlm(version='plus')", {160: (238, 158, 94), 112: (196, 89, 50), 80: (180, 39, 20)}),
    ):
        pruner = parse(text)[0]
        found = {budget: tuple(cut.keep for cut in pruner.cuts(budget, PATCHES, LAYERS)) for budget in rows}
        assert found == rows, text


def test_pyramiddrop_cuts_early_where_late_cuts_leave_half_a_token_a_layer() -> None:
    """16 tokens for 24 layers behind the first cut are enough, and 2 for 4, and 0 are not."""
    pruner = parse("pyramiddrop")[0]
    for budget, patches, layers, cuts in (
        (13, 50, 32, [8, 16, 24]),
        (3, 8, 6, [2, 3, 4]),
        (12, 48, 32, [2, 8, 16]),
    ):
        assert [cut.layer for cut in pruner.cuts(budget, patches, layers)] == cuts
