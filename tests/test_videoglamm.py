"""VideoGLaMM on clips: tiny checkpoints of random weights in the official layout, placements of the budget,
windows, methods inside the language model frame by frame, its own answers, and masks of all frames."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import Phi3Config, Phi3ForCausalLM

from backbones.base import Grounded, Row
from backbones.parts.clips import Clip, decoded
from backbones.parts.tokenizer import IMAGE_TOKEN, Phi3Tokenizer
from backbones.videoglamm.backbone import VideoGlammBackbone
from backbones.videoglamm.budgets import CELLS
from backbones.videoglamm.placement import members
from pruners import ImpossibleBudget, LayerPruner, LayerView, Need, Selection, UserError, registry
from tests import tiny_videoglamm as tiny

NEW = 5
VISUAL = tiny.FRAMES * CELLS
TAIL = tiny.FRAMES * 64
PLACEMENTS = ("grid", "direct", "postpool")


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.write(tmp_path_factory.mktemp("videoglamm"))


@pytest.fixture(scope="module")
def checkpoint2(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """With SAM2."""
    return tiny.write(tmp_path_factory.mktemp("videoglamm2"), sam2=True)


@pytest.fixture(scope="module", params=PLACEMENTS)
def placed(checkpoint: Path, request: pytest.FixtureRequest) -> VideoGlammBackbone:
    return short(tiny.load(checkpoint, placement=request.param))


@pytest.fixture(scope="module")
def whole_alone(placed: VideoGlammBackbone) -> dict[str, Grounded]:
    """What all tokens answer apart from other rows, by the answers asked for."""
    (encoding,) = placed.encode([tiny.clip(5)])
    ways = ("generated", "forced")
    return {how: one(placed, tiny.row(placed, encoding, "none", answers=how), False) for how in ways}


@pytest.fixture
def model(checkpoint: Path) -> VideoGlammBackbone:
    return short(tiny.load(checkpoint))


def short(backbone: VideoGlammBackbone) -> VideoGlammBackbone:
    """Random weights come to no end by themselves."""
    backbone.most_new = NEW
    return backbone


def one(backbone: VideoGlammBackbone, row: Row, share: bool = True) -> Grounded:
    (found,) = backbone.ground_rows([row], share)
    return found


def masks(found: Grounded, clip: Clip) -> np.ndarray:
    assert found.runs is not None
    return np.concatenate([decoded(run, clip.height, clip.width) for run in found.runs[0]])


def same(first: Grounded, second: Grounded) -> None:
    assert (first.lengths, first.said, first.words, first.tokens_llm) == (
        second.lengths,
        second.said,
        second.words,
        second.tokens_llm,
    )
    assert first.retained.equal(second.retained) and first.error == second.error


# -- what the language model gets


def test_lengths_and_patches(placed: VideoGlammBackbone) -> None:
    (encoding,) = placed.encode([tiny.clip(5)])
    each = {"grid": (CELLS, CELLS), "direct": (576, 196), "postpool": (CELLS, 100)}[placed.placement]
    patches = placed.grid[0] * placed.grid[1]
    for text, budget, count in (("none", 0, each[0]), ("uniform", 100 if each[1] == 100 else 196, each[1])):
        row = tiny.row(placed, encoding, text, budget)
        found = one(placed, row)
        assert found.lengths == (tiny.FRAMES * count,) * placed.num_layers and not found.error
        said = len(placed.ids(row.turns, answered=False)) - 1
        assert found.tokens_llm == tiny.FRAMES * count + TAIL + said
        kept = (budget or patches) * tiny.FRAMES
        assert len(found.retained.unique()) == len(found.retained) == kept
        assert int(found.retained.max()) < tiny.FRAMES * patches
        if row.selections and text != "none":
            wanted = [one.indices + k * patches for k, one in enumerate(row.selections)]
            assert found.retained.equal(torch.cat(wanted))


def test_methods_inside_the_model_count_by_frame(placed: VideoGlammBackbone) -> None:
    (encoding,) = placed.encode([tiny.clip(5)])
    found = one(placed, tiny.row(placed, encoding, "fastv(layer=1)", 40))
    all_of = placed.sent(placed.grid[0] * placed.grid[1])
    assert found.lengths == (tiny.FRAMES * all_of, *[tiny.FRAMES * 40] * 3)
    patches, stands = placed.grid[0] * placed.grid[1], 4 if placed.placement == "grid" else 1
    views = found.retained // patches
    assert [int((views == k).sum()) for k in range(tiny.FRAMES)] == [40 * stands] * tiny.FRAMES
    assert len(found.retained.unique()) == len(found.retained)


@pytest.mark.parametrize("text", ["uniform", "visionzip", "fastv(layer=1)", "pyramiddrop", "sparsevlm"])
@pytest.mark.parametrize("positions", ["compact", "kept"])
def test_shared_equals_apart(
    placed: VideoGlammBackbone, whole_alone: dict[str, Grounded], text: str, positions: str
) -> None:
    (encoding,) = placed.encode([tiny.clip(5)])
    budget = 121 if placed.placement == "grid" and text in ("uniform", "visionzip") else 60
    if placed.placement == "direct" and text == "pyramiddrop":
        budget = 160  # its mean over the layers is no smaller than a quarter of 576
    for answers in ("generated", "forced"):
        rows = [
            tiny.row(placed, encoding, text, budget, words, answers=answers, positions=positions)
            for words in ("the red star", "a small blue ring on the left")
        ]
        apart = list(placed.ground_rows(rows, False))
        if placed.placement != "direct" or positions == "compact":  # there it takes longer than all others
            apart.append(whole_alone[answers])
            rows.append(tiny.row(placed, encoding, "none", answers=answers))
        for first, second in zip(placed.ground_rows(rows), apart, strict=True):
            same(first, second)
            assert first.seg_logprob is not None and second.seg_logprob is not None
            torch.testing.assert_close(
                first.seg_logprob, second.seg_logprob, rtol=1e-4, atol=1e-4, equal_nan=True
            )
            if answers == "forced":
                pair = [masks(found, tiny.clip(5)) for found in (first, second)]
                assert pair[0].any() and (pair[0] != pair[1]).mean() < 0.01


@dataclass(frozen=True)
class Looks(LayerPruner):
    """Keeps the first tokens of a frame, and writes down what it sees."""

    layer: int = 1
    name = "looks"
    reference = "a test"
    needs = frozenset({Need("llm_attention"), Need("llm_keys"), Need("llm_hidden"), Need("llm_inputs")})

    def cut(self, tokens: LayerView, count: int) -> Selection:
        SEEN.append(tokens)
        rows = tokens.attention("question")
        SHAPES.append(
            (
                rows.shape[1:],
                tokens.keys().shape[1],
                tokens.hidden().shape[0],
                tokens.inputs("text").shape[0],
                tokens.inputs().shape[0],
                tokens.attention("prompt").shape[-1],
            )
        )
        assert rows[..., tokens.visual].equal(tokens.attention("text")[:, : rows.shape[1], tokens.visual])
        return Selection(torch.arange(count, device=tokens.indices.device))


SEEN: list[LayerView] = []
SHAPES: list[Any] = []


def test_a_method_inside_the_model_sees_its_frame_alone(
    placed: VideoGlammBackbone, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No other frame's tokens, and none of the video encoder's; the text is where it is."""
    monkeypatch.setattr(registry.PRUNERS, "known", {**registry.PRUNERS.known, "looks": Looks})
    (encoding,) = placed.encode([tiny.clip(5)])
    each = placed.sent(placed.grid[0] * placed.grid[1])
    row = replace(tiny.row(placed, encoding, "none"), pruner=Looks(), budget=30, selections=())
    ids = placed.ids(row.turns, answered=False)
    before, text = ids.index(IMAGE_TOKEN), len(ids) - 1 - ids.index(IMAGE_TOKEN)
    for answers, share in (("generated", True), ("forced", True), ("forced", False)):
        SEEN.clear(), SHAPES.clear()
        one(placed, replace(row, answers=answers), share)
        assert SEEN and not len(SEEN) % tiny.FRAMES
        for view, told in zip(SEEN, SHAPES, strict=True):
            assert view.indices.tolist() == list(range(each)) and view.start == before
            assert view.question == slice(before + each, before + each + text)
            last = view.positions[view.question].tolist()
            first = before + tiny.FRAMES * each + TAIL
            assert last == list(range(first, first + text))
            behind = len(view.positions) - before - each
            whole = before + each + behind
            assert told == ((text, whole), each, each, behind, each, whole)
        starts = {int(view.positions[before]) for view in SEEN}
        assert starts == {before + k * each for k in range(tiny.FRAMES)}
        assert {view.sample for view in SEEN} == {f"sample#{k}" for k in range(tiny.FRAMES)}


def test_what_a_placement_cannot_do(checkpoint: Path) -> None:
    model = tiny.load(checkpoint)
    (encoding,) = model.encode([tiny.clip(2)])
    with pytest.raises(ImpossibleBudget, match="128 make none; give 121 or 144"):
        one(model, tiny.row(model, encoding, "uniform", 128))
    with pytest.raises(ImpossibleBudget, match=r"cannot keep 196 tokens: this backbone has 144"):
        one(model, tiny.row(model, encoding, "fastv(layer=1)", 196))
    with pytest.raises(UserError, match="no placement 'pool', there are grid, direct, postpool"):
        tiny.load(checkpoint, placement="pool")
    with pytest.raises(UserError, match="no branch 'frame', there are video, framewise"):
        tiny.load(checkpoint, branch="frame")
    with pytest.raises(UserError, match="reads 2 frames at once and 3 were asked"):
        tiny.load(checkpoint, frames=3)
    with pytest.raises(UserError, match="sees clips"):
        model.preprocess(np.zeros((4, 4, 3), np.uint8))


def test_names_and_fingerprints(checkpoint: Path) -> None:
    ways = [{}, {"placement": "direct"}, {"placement": "postpool"}, {"frames": 4}]
    found = [tiny.load(checkpoint, **way) for way in ways]
    assert [one.name for one in found] == [
        "videoglamm",
        "videoglamm-direct",
        "videoglamm-postpool",
        "videoglamm",
    ]
    assert len({one.fingerprint for one in found}) == 4
    assert tiny.load(checkpoint).fingerprint == found[0].fingerprint
    assert found[3].facts == {"placement": "grid", "frames": "4", "branch": "framewise"}


# -- views


def test_views(placed: VideoGlammBackbone) -> None:
    clip = tiny.clip(5, size=(30, 44))
    (encoding,) = placed.encode([clip])
    truth = np.zeros((tiny.FRAMES, 1, 30, 44), dtype=bool)
    truth[0, :, :, :22] = True
    views = placed.views(encoding, (placed.turn("it"),), "sample", truth)
    patches = placed.grid[0] * placed.grid[1]
    assert len(views) == tiny.FRAMES == len(placed.regions_of(encoding))
    for number, view in enumerate(views):
        assert (view.number, view.of, view.grid) == (number, tiny.FRAMES, placed.grid)
        assert view.region == placed.regions(30, 44)[0] and view.patches.shape == (patches, 32)
        for kind, shape in (
            ("keys", (patches + 1, 32)),
            ("cls_attention", (view.num_heads, patches + 1)),
            ("attention", (view.num_heads, patches + 1, patches + 1)),
            ("received_attention", (view.num_heads, patches + 1)),
        ):
            assert view.signal(Need(kind, -1)).shape == shape
        torch.testing.assert_close(view.attention(-1).sum(-1), torch.ones(view.num_heads, patches + 1))
        torch.testing.assert_close(view.attention(-1).mean(1), view.received_attention(-1))
        torch.testing.assert_close(view.attention(-1)[:, 0], view.cls_attention(-1))
        assert view.llm_patches.shape == (patches, 64)
    assert 0.3 < float(views[0].referent.mean()) < 0.7 and float(views[1].referent.max()) == 0
    assert not views[0].keys(-1).equal(views[1].keys(-1)), "each frame has its own"
    with pytest.raises(UserError, match="no truth masks"):
        _ = placed.views(encoding, (placed.turn("it"),), "sample")[0].referent


def test_cells_and_patches() -> None:
    every = members(torch.arange(CELLS), 24)
    assert sorted(every.tolist()) == list(range(576))
    assert members(torch.tensor([13, -2, 143]), 24).tolist() == [50, 51, 74, 75, -2, 550, 551, 574, 575]


# -- its own answers


@torch.inference_mode()
def test_answers_are_those_of_phi3_without_a_cache(model: VideoGlammBackbone, checkpoint: Path) -> None:
    """transformers' own model, on the embeddings of the whole sequence, every token anew."""
    config = Phi3Config(
        **{k: v for k, v in tiny.LLM.items() if k != "sliding_window"},
        sliding_window=tiny.WINDOW + 1,
        pad_token_id=0,
        attn_implementation="eager",
    )
    theirs = Phi3ForCausalLM(config).eval()
    held = {
        k: v for k, v in load_file(checkpoint / "model.safetensors").items() if k.startswith(("model", "lm"))
    }
    missing, _ = theirs.load_state_dict(held, strict=False)
    assert not missing
    (encoding,) = model.encode([tiny.clip(5)])
    row = tiny.row(model, encoding, "uniform", 196)
    ids, written = model.ids(row.turns, answered=False), []
    for _ in range(NEW):
        window = replace(row, encoding=model.window(encoding, 0))
        embeds = model.embed([window], [[*ids, *written]])
        logits = theirs(inputs_embeds=embeds).logits[0, -1]
        written.append(int(logits.argmax()))
    assert len(set(written)) > 2, "not one token again and again"
    for share in (True, False):
        assert one(model, row, share).words == (model.tokenizer.decode(written),)


def speaking(model: VideoGlammBackbone, row: Row, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the token that comes third be the [SEG]."""
    words: list[tuple[int, ...]] = []
    whole = Phi3Tokenizer.decode
    monkeypatch.setattr(
        Phi3Tokenizer, "decode", lambda self, ids: words.append(tuple(ids)) or whole(self, ids)
    )
    one(model, row)
    seg = next(token for k, token in enumerate(words[0]) if k > 1 and token not in words[0][:k])
    monkeypatch.setitem(model.tokenizer._added, "[SEG]", seg)


def test_a_seg_ends_the_answer_and_makes_masks(
    model: VideoGlammBackbone, monkeypatch: pytest.MonkeyPatch
) -> None:
    clip = tiny.clip(5)
    (encoding,) = model.encode([clip])
    row = tiny.row(model, encoding, "none")
    silent = one(model, row)
    assert silent.said == (False,) and silent.seg_logprob is not None and silent.seg_logprob.isnan().all()
    assert not masks(silent, clip).any() and masks(silent, clip).shape == (5, 30, 44) and not silent.error
    speaking(model, row, monkeypatch)
    found = one(model, row)
    assert found.said == (True,) and found.seg_logprob is not None and float(found.seg_logprob) < 0
    made = masks(found, clip)
    assert made.shape == (5, 30, 44) and 0 < made.mean() < 1
    assert found.logits.shape == (1, 0)
    forced = one(model, replace(row, answers="forced"))
    assert forced.said is None and forced.words is None and forced.runs is not None


def test_an_end_ends_the_answer(model: VideoGlammBackbone, monkeypatch: pytest.MonkeyPatch) -> None:
    (encoding,) = model.encode([tiny.clip(2)])
    row = tiny.row(model, encoding, "none")
    speaking(model, row, monkeypatch)
    seg = model.tokenizer._added["[SEG]"]
    monkeypatch.setitem(model.tokenizer._added, "[SEG]", 646)
    for name in ("<|end|>", "<|assistant|>", "<|endoftext|>"):
        with monkeypatch.context() as patch:
            patch.setitem(model.tokenizer._added, name, seg)
            assert one(model, row).words != one_without(model, row)


def one_without(model: VideoGlammBackbone, row: Row) -> Any:
    held = type(model.tokenizer).end_ids
    try:
        type(model.tokenizer).end_ids = property(lambda self: frozenset())  # type: ignore[assignment]
        return one(model, row).words
    finally:
        type(model.tokenizer).end_ids = held  # type: ignore[method-assign]


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    with torch.no_grad():
        yield
