"""Methods with several cuts, merged tokens, choices at both places: through the model, the engine and the
costs, as a plugin brings them."""

from __future__ import annotations

import inspect
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from backbones.base import Grounded, Row, Turn
from backbones.glamm import stages
from backbones.glamm.backbone import GlammBackbone
from backbones.glamm.language import GlammLanguage
from backbones.parts.cuts import cutting
from harness.cost import formulas, measure, projection
from harness.cost.lines import lines_of
from harness.engine.runner import Plan, prepare, run
from harness.store import records
from pruners import LayerView, Pruner, Selection, UserError, checks, load_plugin, parse, registry
from tests import test_conformance as suite
from tests.fake_backbone import FakeBackbone, write_data
from tests.tiny_glamm import TURN, picture

PLUGIN = Path(__file__).parent / "progressive.py"
METHODS = (
    "pyramid",
    "pyramid(placed='kept')",
    "pyramid(layers=(1,), budget='mean')",
    "withdraw",
    "recycle",
    "distinct",
    "upright",
    "spread",
    "placed",
)
LAYERS, BUDGET = 3, 200  # of the tiny GLaMM; more than the mean of one of its layers
SCHEDULES = {
    "pyramid": (576, 339, 200),
    "pyramid(placed='kept')": (576, 339, 200),
    "pyramid(layers=(1,), budget='mean')": (576, 12, 12),
    "withdraw": (576, 24, 0),
    "recycle": (576, 339, 200),
    "distinct": (576, 200, 200),
    "upright": (576, 339, 200),
    "spread": (400, 200, 200),
    "placed": (200, 200, 200),
}


@pytest.fixture(autouse=True)
def plugin(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the plugin registers is forgotten after a test."""
    monkeypatch.setattr(registry.PRUNERS, "known", dict(registry.PRUNERS.known))
    load_plugin(PLUGIN)


def row_of(
    backbone: GlammBackbone, image: Any, text: str, turns: tuple[Turn, ...] = (TURN,), budget: int = BUDGET
) -> Row:
    pruner = parse(text)[0]
    views = backbone.views(image, turns, "s")
    chosen = checks.select_views(pruner, views, budget, backbone.num_layers)
    return Row(image, turns, pruner, budget, chosen, "s")


def ground(backbone: GlammBackbone, rows: list[Row], share: bool = True) -> list[Grounded]:
    return list(backbone.ground_rows(rows, share))


SUITE = {name: test for name, test in vars(suite).items() if name.startswith("test_")}
IN_NO_ORDER = ("recycle", "distinct")


@pytest.mark.parametrize("name", SUITE)
def test_they_conform(name: str) -> None:
    wanted = inspect.signature(inspect.unwrap(SUITE[name])).parameters
    given = {"grid": (8, 8), "patches": 64, "layers": 32, "dtype": torch.float32}
    for text in (*METHODS, "pyramid(layers=(2, 8, 16), budget='mean')"):
        if name != "test_order" or text not in IN_NO_ORDER:
            one = {key: value for key, value in given.items() if key in wanted}
            SUITE[name](parse(text)[0], **one)


@pytest.mark.parametrize("share", [True, False])
def test_lengths_are_those_that_they_state(glamm: GlammBackbone, share: bool) -> None:
    image = glamm.encode([picture(60, 60)])[0]
    rows = [row_of(glamm, image, text) for text in METHODS]
    for text, row, found in zip(METHODS, rows, ground(glamm, rows, share), strict=True):
        assert checks.stated(row.pruner, BUDGET, 576, LAYERS) == found.lengths == SCHEDULES[text], text
        assert len(found.retained) == found.tokens_final and not found.error


def test_cuts_at_two_layers_of_the_mini_are_not_one_cut() -> None:
    """The published shape: what a second cut does is in the lengths, the tokens and the masks."""
    import backbones

    mini = backbones.load("glamm-mini")
    assert isinstance(mini, GlammBackbone)
    image = mini.encode([picture(96, 96)])[0]
    rows = [
        row_of(mini, image, text, budget=32)
        for text in ("pyramid", "pyramid(layers=(1,))", "fastv(layer=1)", "fastv")
    ]
    several, once, fastv, later = ground(mini, rows)
    assert several.lengths == (576, 136, 32, 32, 32)
    assert once.lengths == fastv.lengths == (576, 32, 32, 32, 32) and later.lengths == (576, 576, 32, 32, 32)
    for other in (once, fastv, later):
        assert several.tokens_mean != other.tokens_mean
        assert not several.logits.allclose(other.logits, atol=1e-3)
        assert set(several.retained.tolist()) != set(other.retained.tolist())


def test_sharing_changes_no_more_than_the_last_digits(glamm: GlammBackbone) -> None:
    """Conversations, methods and budgets together, against every row whole."""
    images = glamm.encode([picture(60, 60)])
    longer = Turn("Where is the small cup on the right of the table in this picture?", TURN.answer)
    talks = [(TURN,), (TURN, longer)]
    rows = [
        row_of(glamm, image, text, turns, budget)
        for image in images
        for turns in talks
        for text in (*METHODS, "none", "fastv(layer=1)")
        for budget in (
            (BUDGET, 230)
            if text in ("pyramid", "fastv(layer=1)")
            else (576,)
            if text == "none"
            else (BUDGET,)
        )
    ]
    for row, one, other in zip(rows, ground(glamm, rows), ground(glamm, rows, False), strict=True):
        assert one.retained.equal(other.retained) and one.lengths == other.lengths, row.pruner
        torch.testing.assert_close(one.logits, other.logits, atol=2e-4, rtol=1e-4)


def test_rows_do_not_depend_on_their_company(glamm: GlammBackbone) -> None:
    """Bit for bit."""
    images = glamm.encode([picture(60, 60, seed) for seed in range(2)])
    budgets = (BUDGET, 230)
    rows = [
        row_of(glamm, image, text, budget=budget)
        for image, budget in zip(images, budgets, strict=True)
        for text in METHODS
    ]
    for row, found in zip(rows, ground(glamm, rows), strict=True):
        alone = ground(glamm, [row])[0]
        assert alone.logits.equal(found.logits) and alone.retained.equal(found.retained), row.pruner


def test_what_is_retained_are_patches_through_all_stages(
    glamm: GlammBackbone, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Followed by hand, in the order in which the tokens stand."""
    image = glamm.encode([picture(60, 60)])[0]
    followed: dict[int, torch.Tensor] = {}

    def follow(pruner: Pruner, tokens: LayerView, count: int) -> Selection:
        if tokens.number:
            assert tokens.indices.equal(followed[tokens.number - 1])
        chosen = checks.cut(pruner, tokens, count)
        left = [int(tokens.indices[k]) if k >= 0 else k for k in chosen.indices.tolist()]
        followed[tokens.number] = torch.tensor(left, dtype=torch.long)
        return chosen

    def followed_cutting(*given: Any, **named: Any) -> Any:
        return cutting(*given, **named, choose=follow)

    monkeypatch.setattr(sys.modules[GlammLanguage.__module__], "cutting", followed_cutting)
    for share in (True, False):
        for text in METHODS[:-1]:
            followed.clear()
            row = row_of(glamm, image, text)
            assert ground(glamm, [row], share)[0].retained.equal(followed[max(followed)]), text
            if text == "spread":
                assert set(followed[0].tolist()) < set(row.selections[0].indices.tolist())


def test_positions_matter(glamm: GlammBackbone) -> None:
    """The same tokens elsewhere are another answer; nothing left out is the unpruned one."""
    image = glamm.encode([picture(60, 60)])[0]
    rows = [row_of(glamm, image, text) for text in ("uniform", "placed", "pyramid", METHODS[1])]
    even, placed, compact, kept = ground(glamm, rows)
    assert placed.retained.equal(even.retained) and not placed.logits.allclose(even.logits, atol=1e-3)
    assert not compact.logits.allclose(kept.logits, atol=1e-3)
    whole = [row_of(glamm, image, text, budget=576) for text in ("none", "placed", "pyramid", "recycle")]
    plain, *others = ground(glamm, whole)
    for other in others:
        torch.testing.assert_close(other.logits, plain.logits, atol=1e-4, rtol=1e-4)


def test_gaps_count_towards_the_positions_that_there_are(
    glamm: GlammBackbone, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A conversation that fits because few tokens are left does not fit where they keep their places."""
    image = glamm.encode([picture(60, 60)])[0]
    monkeypatch.setattr(glamm.model.language_model.config, "max_position_embeddings", 500)
    rows = [row_of(glamm, image, text) for text in ("uniform", "placed")]
    assert [bool(found.error) for found in ground(glamm, rows)] == [False, True]


# -- costs


def inputs_of(backbone: GlammBackbone) -> stages.GlammInputs:
    truth = np.zeros((1, 96, 96), dtype=bool)
    truth[0, 30:60, 30:60] = True
    return stages.prepare_inputs(backbone, picture(96, 96), (TURN,), "s", truth)


def test_cost_of_cuts_follows_the_schedule(glamm: GlammBackbone) -> None:
    """Counted, by closed form and by fvcore; projected from shapes the same, bytes too."""
    inputs, shape = inputs_of(glamm), formulas.Shape.of(glamm.model.language_model.config)
    lines = lines_of(parse("recycle,pyramid,distinct,spread"), (BUDGET,), 0, (24, 24), LAYERS)
    projected = projection.project(glamm.staged.shapes(), lines, inputs.prompt, dtype=torch.float32)
    for line, told in zip(lines, projection.counts_lines(projected), strict=True):
        expected = tuple(n + inputs.text for n in checks.stated(line.pruner, line.budget, 576, LAYERS))
        language_model = formulas.language_model_macs(expected, shape)
        assert tuple(told["lengths"]) == expected and told["macs"]["prefill"] == language_model, line.name
        if line.name in ("none", "recycle"):  # which words rate depends on values
            continue
        found = measure.count(glamm.staged, inputs, line)
        inside = found["macs"]["prefill/pruner"]
        assert found["lengths"] == expected and found["macs"]["prefill"] == language_model, line.name
        # what a pruner multiplies itself is in the first count alone
        own = 576 * 64 * 8 if line.name == "distinct" else 0
        assert found["fvcore"] == language_model + inside - own
        assert told["macs"]["pruner"] == found["macs"]["pruner"] + inside, line.name
        assert told["peak"]["prefill"] == found["peak"]["prefill"], line.name


def test_cost_pass_computes_the_masks_of_the_evaluation(glamm: GlammBackbone) -> None:
    image = glamm.encode([picture(96, 96)])[0]
    for text in METHODS:
        row = row_of(glamm, image, text)
        passed = stages.forward(glamm.model, inputs_of(glamm), row.pruner, BUDGET)
        torch.testing.assert_close(passed.logits, ground(glamm, [row])[0].logits, atol=2e-3, rtol=1e-3)


# -- the engine


def test_a_run_of_them_records_what_they_state(tmp_path: Path) -> None:
    root = write_data(tmp_path / "data")
    plan = Plan(f"none,fastv,{','.join(METHODS)}", (24,), "refcoco:val", data=str(root))
    backbone = FakeBackbone()
    run(plan, backbone, prepare(plan, backbone), tmp_path / "run")
    frame = records.load_records(tmp_path / "run").drop_duplicates("pruner").set_index("pruner")
    for pruner in plan.chosen():
        stated = pruner.schedule(64 if pruner.name == "none" else 24, 64, backbone.num_layers)
        row = frame.loc[pruner.spec()]
        assert row["tokens_final"] == stated[-1] and row["tokens_mean"] == sum(stated) / len(stated)
        assert row["stage"] == pruner.stage
    assert frame.loc["spread", "stage"] == "both" and frame.loc["pyramid", "stage"] == "layer"
    assert "llm_attention" in frame.loc["spread", "needs"]


@pytest.mark.parametrize(
    ("cuts", "says"),
    [
        ("(Cut(1, 30), Cut(2, budget + 1))", "ends at 25 tokens where 24 were asked"),
        ("(Cut(2, 30), Cut(1, budget))", "before layer 1 behind a cut before layer 2"),
        ("(Cut(1, 10), Cut(2, budget))", "states 24 tokens in layer 2, behind 10"),
    ],
)
def test_a_false_schedule_is_refused_before_anything_runs(tmp_path: Path, cuts: str, says: str) -> None:
    path = tmp_path / "false.py"
    path.write_text(
        f"""
from dataclasses import dataclass
import torch
from pruners import Cut, LayerPruner, Selection, register

@register
@dataclass(frozen=True)
class False_(LayerPruner):
    name = "false"
    reference = "a test"

    def cuts(self, budget, patches, num_layers):
        return {cuts}

    def cut(self, tokens, count):
        return Selection(torch.arange(count))
"""
    )
    load_plugin(path)
    plan = Plan("false", (24,), "refcoco:val", data=str(tmp_path))
    with pytest.raises(UserError, match=says) as caught:
        prepare(plan, FakeBackbone())
    assert "false.py:6" in str(caught.value) and "\n" not in str(caught.value)
