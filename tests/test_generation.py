"""`--answers generated`: greedy tokens behind kept, compact and cut prompts are those of a loop without a
cache, on both paths; what says no [SEG] has an empty mask and is counted."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import backbones
import harness
import pruners
from backbones.base import Encoding, Row, Turn
from backbones.glamm.backbone import GlammBackbone
from backbones.glamm.conversation import build_prompt
from backbones.parts.contexts import whole_positions
from backbones.parts.cuts import Cutting
from backbones.parts.faithful import run_layers
from backbones.parts.tokenizer import IMAGE_TOKEN
from harness.store.records import load_records
from pruners import LayerView, Selection, checks
from reports.gather import gather
from reports.tables import tables
from tests.tiny_glamm import TURN, picture

pytestmark = pytest.mark.usefixtures("text_only")

OTHER = Turn("Please segment the small cup in this image.", "Sure, [SEG].")
CASES = [
    ("none", "compact"),
    ("uniform", "compact"),
    ("uniform", "kept"),
    ("visionzip", "kept"),
    ("fastv(layer=1)", "compact"),
]
NEW = 7


@pytest.fixture
def writing(glamm: GlammBackbone, monkeypatch: pytest.MonkeyPatch) -> GlammBackbone:
    """The tiny GLaMM, whose random weights come to no end by themselves."""
    monkeypatch.setattr(glamm, "most_new", NEW)
    return glamm


@pytest.fixture
def encoding(glamm: GlammBackbone) -> Encoding:
    return glamm.encode([picture(50, 70)])[0]


def row_of(
    backbone: Any, encoding: Encoding, text: str, positions: str, turns: tuple[Turn, ...] = (TURN,)
) -> Row:
    pruner = pruners.parse(text)[0]
    budget = backbone.grid[0] * backbone.grid[1] if text == "none" else 9
    chosen = checks.select_views(
        pruner, backbone.views(encoding, turns, "s", None), budget, backbone.num_layers
    )
    return Row(encoding, turns, pruner, budget, chosen, "s", positions, "generated")


@torch.inference_mode()
def without_cache(backbone: GlammBackbone, row: Row, behind: list[int], new: int) -> list[int]:
    """Every token by a pass over the whole sequence; what a cut leaves is what it left of the prompt."""
    ids = backbone.ids(row.turns[:1], answered=False)
    image, prompt, context = ids.index(IMAGE_TOKEN), len(behind), backbone._context(row)
    left: dict[int, Selection] = {}

    def choose(by: Any, tokens: LayerView, count: int) -> Selection:
        return left.setdefault(tokens.number, checks.cut(by, tokens, count))

    cut = backbone._cutting(row, 0)
    written: list[int] = []
    for _ in range(new):
        now = [*ids[: image + 1], *behind, *written]
        run = run_layers(
            backbone.model.language_model,
            backbone.embed([row], [now]),
            visual_start=image,
            visual_count=len(context),
            cuttings=[Cutting(cut.pruner, cut.cuts, choose=choose)] if cut else (),
            positions=whole_positions([context], image, prompt + len(written), torch.device("cpu")),
        )
        written.append(int(backbone.model.lm_head(run.hidden[0, -1]).argmax()))
        if written[-1] in (backbone.tokenizer.seg_id, backbone.tokenizer.end_id):
            break
    return written


@pytest.mark.parametrize(("text", "positions"), CASES)
def test_ids_are_those_of_a_loop_without_a_cache(
    writing: GlammBackbone, encoding: Encoding, text: str, positions: str
) -> None:
    row = row_of(writing, encoding, text, positions)
    ids = writing.ids(row.turns, answered=False)
    wanted = without_cache(writing, row, ids[ids.index(IMAGE_TOKEN) + 1 :], NEW)
    assert len(set(wanted)) > 2, "not one token again and again"
    for share in (True, False):
        (found,) = writing.ground_rows([row], share)
        assert found.words == (writing.tokenizer.decode(wanted),)


@pytest.mark.parametrize(("text", "positions"), CASES)
@pytest.mark.parametrize("share", [True, False])
def test_a_seg_gives_the_mask_of_the_state_before_it(
    writing: GlammBackbone,
    encoding: Encoding,
    text: str,
    positions: str,
    share: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The token that comes fourth is made the [SEG]; the same words, forced, give the same mask."""
    row = row_of(writing, encoding, text, positions)
    ids = writing.ids(row.turns, answered=False)
    behind = ids[ids.index(IMAGE_TOKEN) + 1 :]
    wanted = without_cache(writing, row, behind, NEW)
    seg = next(token for k, token in enumerate(wanted) if k > 1 and token not in wanted[:k])
    count = wanted.index(seg) + 1
    monkeypatch.setitem(writing.tokenizer._added, "[SEG]", seg)
    rows = [row, row_of(writing, encoding, "uniform", "compact")]
    found, _ = writing.ground_rows(rows, share)
    assert found.said == (True,) and found.seg_logprob is not None and found.seg_logprob[0] < 0
    monkeypatch.setattr(writing, "ids", lambda turns, answered=True: ids + wanted[:count])
    monkeypatch.setattr(writing, "answer_length", lambda turns: count)
    if text.startswith("fastv"):  # reads the last token of a forced answer
        return
    (forced,) = writing.ground_rows([replace(row, answers="forced")], share)
    torch.testing.assert_close(found.logits, forced.logits, rtol=1e-4, atol=1e-4)
    assert forced.said is None and forced.seg_logprob is not None
    torch.testing.assert_close(found.seg_logprob.float(), forced.seg_logprob.float(), rtol=1e-4, atol=1e-4)
    assert found.lengths == forced.lengths and found.retained.equal(forced.retained)


def test_without_a_seg_the_mask_is_empty(writing: GlammBackbone, encoding: Encoding) -> None:
    rows = [row_of(writing, encoding, "uniform", "compact", (TURN, OTHER))]
    for share in (True, False):
        (found,) = writing.ground_rows(rows, share)
        assert found.said == (False, False) and not found.error
        assert found.logits.shape == (2, 50, 70) and not (found.logits > 0).any()
        assert found.seg_logprob is not None and found.seg_logprob.isnan().all()


def test_a_turn_stands_behind_the_answers_that_the_model_wrote(
    writing: GlammBackbone, encoding: Encoding
) -> None:
    """Not behind those that were planned for it."""
    row = row_of(writing, encoding, "uniform", "kept", (TURN, OTHER))
    end = writing.tokenizer.end_id
    first = writing.ids((TURN,), answered=False)
    behind = first[first.index(IMAGE_TOKEN) + 1 :]
    own = without_cache(writing, row, behind, NEW)
    both = writing.ids((TURN, OTHER), answered=False)
    behind = behind + own + [end] + both[len(both) - both[::-1].index(end) :]
    wanted = without_cache(writing, row, behind, NEW)
    for share in (True, False):
        (found,) = writing.ground_rows([row], share)
        assert found.words == tuple(map(writing.tokenizer.decode, (own, wanted)))
    assert build_prompt((TURN, OTHER)).count("</s>") == 2


def test_rows_do_not_depend_on_their_company(writing: GlammBackbone, encoding: Encoding) -> None:
    rows = [row_of(writing, encoding, *case) for case in CASES]
    rows += [row_of(writing, encoding, "uniform", "compact", (OTHER, TURN))]
    for share in (True, False):
        together = [(one.words, one.lengths) for one in writing.ground_rows(rows, share)]
        alone = [(one.words, one.lengths) for row in rows for one in writing.ground_rows([row], share)]
        assert together == alone


def test_a_run_that_says_how_often_seg_is_said(tmp_path: Path) -> None:
    plan = harness.Plan(
        "none,uniform,fastv", "64", "refshapes:val", limit=2, costs="off", answers="forced,generated"
    )
    result = harness.evaluate(plan, tmp_path / "run")
    assert [folder.name for folder in result.folders] == ["forced", "generated"]
    frame = result.frame
    forced, own = (frame[frame["answers"] == kind] for kind in ("forced", "generated"))
    assert forced["seg_said"].isna().all() and set(own["seg_said"]) <= {0.0, 1.0}
    assert (forced["seg_logprob"] <= 0).all() and (own["seg_logprob"] <= 0).all()
    whole = own[own["pruner"] == "none"]
    assert (whole["seg_said"] == 1).all() and whole["wrote"].str.contains(r"\[SEG\]").all()
    found = tables(gather(result.folders))
    assert len(found) == 2 and [one.group.facts["answers"] for one in found] == ["forced", "generated"]
    assert "[SEG] said %" in result.leaderboard


def test_plans_of_one_run_keep_their_own_answers(tmp_path: Path) -> None:
    """One that names none has the backbone's default, whatever another one asks for."""
    common = {"datasets": "refshapes:val", "limit": 1, "costs": "off"}
    plans = [
        harness.Plan("none,uniform", "64", **common),  # type: ignore[arg-type]
        harness.Plan("none", "64", answers="generated", **common),  # type: ignore[arg-type]
    ]
    result = harness.evaluate(plans, tmp_path / "run")
    told = {folder.name: set(load_records(folder)["pruner"]) for folder in result.folders}
    assert told == {"forced": {"none", "uniform"}, "generated": {"none"}}


def test_a_backbone_that_cannot(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backbones.get("glamm-mini"), "answers", ("forced",))
    plan = harness.Plan("uniform", "64", "refshapes:val", limit=1, answers="generated")
    with pytest.raises(pruners.UserError, match="glamm-mini cannot run with --answers generated"):
        harness.evaluate(plan, tmp_path)
