"""`--positions`: kept tokens are numbered anew, or keep their position ids; a part of the cell, on both
paths."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

import harness
import pruners
from backbones.base import Encoding, Row
from backbones.glamm.backbone import GlammBackbone
from harness.engine.cells import expand
from pruners import checks
from reports.gather import gather
from tests.tiny_glamm import TURN, picture

PATCHES = 576  # of glamm-mini


@pytest.fixture(scope="module")
def encoding(glamm: GlammBackbone) -> Encoding:
    return glamm.encode([picture(50, 70)])[0]


def row_of(backbone: GlammBackbone, encoding: Encoding, text: str, budget: int, positions: str) -> Row:
    pruner = pruners.parse(text)[0]
    views = backbone.views(encoding, (TURN,), "s", None)
    chosen = checks.select_views(pruner, views, budget, backbone.num_layers)
    return Row(encoding, (TURN,), pruner, budget, chosen, "s", positions)


def test_with_all_tokens_both_are_the_unpruned_model_to_the_last_bit(
    glamm: GlammBackbone, encoding: Encoding
) -> None:
    patches = glamm.grid[0] * glamm.grid[1]
    rows = [row_of(glamm, encoding, text, patches, "kept") for text in ("none", "uniform", "random")]
    for share in (True, False):
        whole, *others = (one.logits for one in glamm.ground_rows(rows, share))
        assert all(other.equal(whole) for other in others)


@pytest.mark.parametrize("text", ["visionzip", "prumerge", "litelvlm", "trim", "downsample", "random"])
def test_kept_places_on_both_paths(glamm: GlammBackbone, encoding: Encoding, text: str) -> None:
    """Tokens that are no patch have a place of their own, and a row alone is the row in company."""
    rows = [row_of(glamm, encoding, text, 40, positions) for positions in ("kept", "compact")]
    shared, faithful = (list(glamm.ground_rows(rows, share)) for share in (True, False))
    (alone,) = glamm.ground_rows(rows[:1])
    for one, other in zip(shared, faithful, strict=True):
        torch.testing.assert_close(one.logits, other.logits, rtol=1e-3, atol=1e-3)
        assert one.lengths == other.lengths and one.retained.equal(other.retained)
    assert alone.logits.equal(shared[0].logits)
    assert not shared[0].logits.equal(shared[1].logits)
    chosen = rows[0].selections[0]
    standing = chosen.standing(len(encoding.hidden_states[-1]) - 1).tolist()
    assert len(set(standing)) == 40
    assert all(
        place == index for place, index in zip(standing, chosen.indices.tolist(), strict=True) if index >= 0
    )


def test_the_text_goes_on_where_it_would_without_pruning(glamm: GlammBackbone, encoding: Encoding) -> None:
    context = glamm._context(row_of(glamm, encoding, "uniform", 9, "kept"))
    assert context.span == len(encoding.hidden_states[-1]) - 1 and len(context) == 9


def test_every_method_that_has_no_rule_of_its_own_runs_with_both() -> None:
    lines = expand(pruners.parse("none,uniform,fastv"), [64], 0, (24, 24), 32, positions=("compact", "kept"))
    told = [(line.name, line.positions) for line in lines]
    assert told == [("none", "compact"), ("uniform", "compact"), ("uniform", "kept"), ("fastv", "kept")]


def test_a_run_with_both(tmp_path: Path) -> None:
    plan = harness.Plan(
        "none,uniform,fastv", "64", "refshapes:val", limit=2, costs="off", positions="compact,kept"
    )
    result = harness.evaluate(plan, tmp_path / "run")
    frame = result.frame
    counted = frame.groupby(["pruner", "positions"]).size()
    assert set(counted.index) == {
        ("none", "compact"), ("uniform", "compact"), ("uniform", "kept"), ("fastv", "kept")
    }  # fmt: skip
    assert len(set(frame["cell"])) == 4 and counted.nunique() == 1
    assert "uniform, positions kept" in result.leaderboard and "fastv, positions" not in result.leaderboard
    assert set(gather([result.folder]).frame["pruner"]) == {
        "none", "uniform", "uniform, positions kept", "fastv"
    }  # fmt: skip
    told = harness.evaluate(replace(plan, positions="compact"), tmp_path / "run")
    assert told.frame.equals(frame), "a smaller command finds all there"


def test_a_backbone_that_cannot(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from backbones.mini import GlammMini

    monkeypatch.setattr(GlammMini, "positions", ("compact",))
    plan = harness.Plan("uniform", "64", "refshapes:val", limit=1, positions="kept")
    with pytest.raises(pruners.UserError, match="glamm-mini cannot run with --positions kept; give compact"):
        harness.evaluate(plan, tmp_path)
    with pytest.raises(
        pruners.UserError, match=r"--positions takes compact or kept, not 'kep'. Did you mean 'kept'"
    ):
        replace(plan, positions="kep")
