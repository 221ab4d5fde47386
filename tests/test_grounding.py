"""From rows to masks: sizes, precisions, memory, and that sharing and company change nothing but the last
digits."""

from __future__ import annotations

from functools import partial
from itertools import product
from pathlib import Path

import pytest
import torch

import backbones
from backbones.base import Encoding, Row, Turn
from backbones.glamm.backbone import FULL_ROWS, GlammBackbone
from backbones.glamm.conversation import ANSWER_TEMPLATES, build_prompt
from backbones.parts.cuts import Cutting, cutting
from backbones.parts.faithful import run_layers
from pruners import Cut, LayerView, Pruner, Selection, UserError, checks, parse
from tests.tiny_glamm import TURN, load, picture


def row_of(
    backbone: GlammBackbone,
    encoding: Encoding,
    pruner: Pruner,
    budget: int,
    turns: tuple[Turn, ...] = (TURN,),
    sample: str = "s",
) -> Row:
    """What the engine makes of a pruner at a budget."""
    views = backbone.views(encoding, turns, sample)
    chosen = checks.select_views(pruner, views, budget, backbone.num_layers)
    return Row(encoding, turns, pruner, budget, chosen, sample)


@pytest.mark.parametrize("size", [(48, 48), (31, 200), (200, 31), (1, 7)])
def test_any_image_size(glamm: GlammBackbone, size: tuple[int, int]) -> None:
    encoding = glamm.encode([picture(*size)])[0]
    pruner = parse("uniform")[0]
    row = row_of(glamm, encoding, pruner, 64)
    result = next(glamm.ground_rows([row]))
    assert result.logits.shape == (1, *size) and bool(result.logits.isfinite().all())


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float64"])
def test_precisions(glamm_folder: Path, dtype: str) -> None:
    backbone = load(glamm_folder, dtype=dtype)
    encoding = backbone.encode([picture(60, 80)])[0]
    for text in ("litelvlm", "fastv", "visionzip"):
        pruner = parse(text)[0]
        result = next(backbone.ground_rows([row_of(backbone, encoding, pruner, 64)]))
        assert result.logits.dtype == torch.float32 and bool(result.logits.isfinite().all())
        assert result.tokens_final == 64


def test_fastv_counts_and_choice(glamm: GlammBackbone) -> None:
    """Two of three layers see all tokens; the mean is measured from the lengths that layers saw."""
    encoding = glamm.encode([picture(50, 50)])[0]
    result = next(glamm.ground_rows([Row(encoding, (TURN,), parse("fastv(layer=2)")[0], 100, ())]))
    assert result.tokens_final == 100 and result.tokens_mean == pytest.approx((576 + 576 + 100) / 3)
    assert len(result.retained) == 100 and result.retained.tolist() == sorted(result.retained.tolist())


def test_layer_pruner_that_keeps_all_changes_nothing(glamm: GlammBackbone) -> None:
    encoding = glamm.encode([picture(50, 50)])[0]
    none = parse("none")[0]
    plain = next(glamm.ground_rows([row_of(glamm, encoding, none, 576)]))
    kept = next(glamm.ground_rows([row_of(glamm, encoding, parse("fastv")[0], 576)]))
    assert plain.logits.allclose(kept.logits, atol=1e-4)


@pytest.mark.parametrize(
    "error", [torch.OutOfMemoryError("full"), RuntimeError("DefaultCPUAllocator: can't allocate memory")]
)
def test_out_of_memory_halves_the_batch_and_goes_on(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], error: RuntimeError
) -> None:
    backbone = backbones.load("glamm-mini", batch_size=32)
    assert isinstance(backbone, GlammBackbone)
    encoding = backbone.encode([picture(60, 60)])[0]
    none = parse("none")[0]
    row = row_of(backbone, encoding, none, 576)
    wanted = next(backbone.ground_rows([row])).logits
    original = backbone.decode
    room = [8]

    def decode(embeddings: torch.Tensor, prompts: torch.Tensor) -> torch.Tensor:
        if backbone.batch_size > room[0]:
            raise error
        return original(embeddings, prompts)

    monkeypatch.setattr(backbone, "decode", decode)
    assert next(backbone.ground_rows([row])).logits.equal(wanted)
    assert backbone.batch_size == 8
    assert [line.split(",")[0] for line in capsys.readouterr().err.splitlines()] == [
        "out of memory with 32 rows at once",
        "out of memory with 16 rows at once",
    ]
    room[0] = 0
    with pytest.raises(torch.OutOfMemoryError):
        next(backbone.ground_rows([row]))


def test_a_team_does_not_halve_the_batch_of_one(
    glamm: GlammBackbone, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The others would wait for the larger batch's sums for ever."""

    def full(embeddings: torch.Tensor, prompts: torch.Tensor) -> torch.Tensor:
        raise torch.OutOfMemoryError("full")

    row = Row(
        glamm.encode([picture(40, 60)])[0], (TURN,), parse("uniform")[0], 4, (Selection(torch.arange(4)),)
    )
    monkeypatch.setattr(glamm, "decode", full)
    monkeypatch.setattr(glamm.model.language_model, "gather_heads", lambda scores: scores, raising=False)
    with pytest.raises(UserError, match="--batch-size 8"):
        next(glamm.ground_rows([row]))
    assert glamm.batch_size == 16


def test_masks_come_batch_by_batch(glamm: GlammBackbone, monkeypatch: pytest.MonkeyPatch) -> None:
    """Masks of real images are large: they are made as they are asked for."""
    encoding, original, batches = glamm.encode([picture(40, 60)])[0], glamm.decode, []

    def decode(embeddings: torch.Tensor, prompts: torch.Tensor) -> torch.Tensor:
        batches.append(len(prompts))
        return original(embeddings, prompts)

    monkeypatch.setattr(glamm, "decode", decode)
    rows = [Row(encoding, (TURN,), parse("uniform")[0], 4, (Selection(torch.arange(4)),))] * (
        glamm.batch_size + 3
    )
    for share in (True, False):
        found = glamm.ground_rows(rows, share)
        next(found)
        assert batches == [glamm.batch_size]
        assert len(list(found)) == len(rows) - 1 and batches == [glamm.batch_size, FULL_ROWS]
        batches.clear()


def test_sharing_changes_no_more_than_the_last_digits(glamm: GlammBackbone) -> None:
    """Rows of several images, expressions, cuts and budgets together, against every row whole."""
    encodings = glamm.encode([picture(60, 60, seed) for seed in range(2)])
    longer = Turn("Where is the small cup on the right of the table in this picture?", TURN.answer)
    mute, early = Turn(TURN.question, "There is none."), Turn("[SEG] is what?", "It is that.")
    talks = [
        (TURN,),
        (longer,),
        (TURN, TURN),
        (mute,),
        (mute, TURN),
        (early,),
        (early, TURN),
    ]
    rows = []
    for encoding, turns, text in product(
        encodings, talks, ("none", "uniform", "litelvlm", "fastv", "fastv(layer=1)", "prumerge")
    ):
        pruner = parse(text)[0]
        for budget in (576,) if text == "none" else (40, 64):
            rows.append(row_of(glamm, encoding, pruner, budget, turns))
    shared, apart = glamm.ground_rows(rows), glamm.ground_rows(rows, share=False)
    for row, one, other in zip(rows, shared, apart, strict=True):
        assert one.retained.equal(other.retained), row.pruner
        assert (one.tokens_final, one.tokens_mean) == (other.tokens_final, pytest.approx(other.tokens_mean))
        assert one.logits.shape == other.logits.shape
        # fused kernels sum in another order: far below what decides a pixel, unless its logit is zero to five
        # digits
        torch.testing.assert_close(one.logits, other.logits, atol=2e-4, rtol=1e-4)


def test_rows_do_not_depend_on_their_company(glamm: GlammBackbone, glamm_folder: Path) -> None:
    """Bit for bit: alone, in a crowd, and with another batch size."""
    encodings = glamm.encode([picture(60, 60, seed) for seed in range(3)])
    rows = []
    for k, encoding in enumerate(encodings):
        for text in ("uniform", "litelvlm", "fastv", "feather", "none"):
            pruner = parse(text)[0]
            # odd numbers of tokens, whose products need fill
            budget = {"none": 576, "litelvlm": 61, "fastv": 61, "feather": 251}.get(text, 64)
            for turns in (
                (TURN,),
                (Turn("Where is the small cup on the right in this picture?", TURN.answer), TURN),
            ):
                rows.append(row_of(glamm, encoding, pruner, budget, turns, str(k)))
    together = list(glamm.ground_rows(rows))
    for row, result in zip(rows, together, strict=True):
        assert next(glamm.ground_rows([row])).logits.equal(result.logits)
    alone = glamm.encode([picture(60, 60, 1)])[0]
    assert alone.embedding.equal(encodings[1].embedding) and alone.hidden_states[-1].equal(
        encodings[1].hidden_states[-1]
    )
    small = load(glamm_folder, batch_size=FULL_ROWS)
    assert small.batch_size < glamm.batch_size < len(rows) and glamm.batch_size % FULL_ROWS == 0
    for one, other in zip(small.ground_rows(rows), together, strict=True):
        assert one.logits.equal(other.logits)


@pytest.mark.parametrize("attn", ["sdpa", "eager"])
@torch.inference_mode()
def test_fill_behind_a_row_changes_nothing(glamm_folder: Path, attn: str) -> None:
    """Right fill is seen by nobody: same states, same tokens kept inside the model."""
    llm = load(glamm_folder, attn=attn).model.language_model
    generator = torch.Generator().manual_seed(0)
    embeds = torch.randn(2, 150, llm.config.hidden_size, generator=generator)
    filled = torch.cat([embeds, torch.randn(2, 42, llm.config.hidden_size, generator=generator)], dim=1)
    last = torch.full((2,), 149)
    for pruner in (None, parse("fastv(layer=1)")[0]):
        cuts = [Cutting(pruner, (Cut(1, 30),))] * 2 if pruner is not None else []
        plain = run_layers(llm, embeds, visual_start=10, visual_count=100, cuttings=cuts)
        other = run_layers(llm, filled, visual_start=10, visual_count=100, cuttings=cuts, last=last)
        assert plain.hidden.allclose(other.hidden[:, : plain.hidden.shape[1]], atol=1e-5)
        assert plain.patches.equal(other.patches) and plain.patches.shape == (
            2,
            100 if pruner is None else 30,
        )


def test_conversation_without_seg(glamm: GlammBackbone) -> None:
    encoding = glamm.encode([picture(40, 60)])[0]
    row = Row(encoding, (Turn("Hello?", "Sure."),), parse("uniform")[0], 4, (Selection(torch.arange(4)),))
    assert next(glamm.ground_rows([row])).logits.shape == (0, 40, 60)
    assert list(glamm.ground_rows([])) == list(glamm.ground_rows([], share=False)) == []


def rows_of(
    backbone: GlammBackbone, *texts: str, turns: tuple[Turn, ...] = (TURN,), budget: int = 64
) -> list[Row]:
    """One image under several pruners."""
    encoding = backbone.encode([picture(60, 60)])[0]
    rows = []
    for pruner in (one for text in texts for one in parse(text)):
        count = 576 if pruner.name == "none" else budget
        rows.append(row_of(backbone, encoding, pruner, count, turns))
    return rows


@pytest.mark.parametrize("share", [True, False])
def test_lengths_are_read_from_what_ran(
    glamm: GlammBackbone, share: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = rows_of(glamm, "none", "uniform", "fastv", "fastv(layer=1)", "visionzip")
    found = [one.lengths for one in glamm.ground_rows(rows, share)]
    assert found == [(576,) * 3, (64,) * 3, (576, 576, 64), (576, 64, 64), (64,) * 3]

    # a cut that leaves other tokens than it states is seen in what ran
    def fewer(pruner: Pruner, tokens: LayerView, count: int) -> Selection:
        return Selection(torch.arange(count - 5))

    monkeypatch.setattr("backbones.glamm.language.cutting", partial(cutting, choose=fewer))
    with pytest.raises(UserError, match="ran with 59 visual tokens in layer 2 where it had stated 64"):
        list(glamm.ground_rows(rows_of(glamm, "fastv"), share))


@pytest.mark.parametrize("share", [True, False])
def test_values_that_are_not_finite_fail_their_row_alone(glamm_folder: Path, share: bool) -> None:
    """A NaN is no empty mask, and no choice of tokens; other rows of the batch are answered."""
    backbone = load(glamm_folder, dtype="float16")
    fine = Turn("Can you segment the dog in this image?", TURN.answer)
    word = next(
        k
        for k in backbone.tokenizer.encode("left")
        if k not in backbone.tokenizer.encode(build_prompt((fine,)))
    )
    with torch.no_grad():
        backbone.model.language_model.embed_tokens.weight[word] = torch.inf
    rows = [
        row
        for turns in ((TURN,), (fine,))
        for row in rows_of(backbone, "none", "uniform", "fastv", turns=turns)
    ]
    errors = [one.error for one in backbone.ground_rows(rows, share)]
    assert errors == [
        *["The model's values are not finite in float16; give --dtype bfloat16 or float32."] * 3,
        "",
        "",
        "",
    ]
    with pytest.raises(UserError, match="not finite in float16; give --dtype bfloat16 or float32"):
        backbone.ground(picture(60, 60), "left dog", "uniform")
    with torch.no_grad():
        backbone.model.projector[0].weight.fill_(torch.nan)
    assert all(one.error for one in backbone.ground_rows(rows, share))


def test_an_image_that_cannot_be_encoded_in_numbers_is_an_error(glamm_folder: Path) -> None:
    backbone = load(glamm_folder)
    with torch.no_grad():
        backbone.model.grounding_encoder.vision_encoder.neck.conv1.weight.fill_(torch.inf)
    with pytest.raises(UserError, match="not finite in float32; look at the weights"):
        backbone.encode([picture(60, 60)])


@pytest.mark.parametrize("share", [True, False])
def test_a_conversation_beyond_the_positions_is_refused_alone(glamm: GlammBackbone, share: bool) -> None:
    most = glamm.model.language_model.config.max_position_embeddings
    long = Turn("Where is the dog " + "that is left of the dog " * most + "?", TURN.answer)
    rows = [*rows_of(glamm, "uniform", "fastv", turns=(long,)), *rows_of(glamm, "uniform")]
    errors = [one.error for one in glamm.ground_rows(rows, share)]
    assert errors[2] == "" and all(
        f"has {most} positions; write a shorter expression" in error for error in errors[:2]
    )
    with pytest.raises(UserError, match=f"has {most} positions"):
        glamm.ground(picture(60, 60), "dog left of the " * most, "trim")


def test_the_prompt_ends_before_the_last_answer(glamm: GlammBackbone) -> None:
    """A pruner inside the language model is told so, in whatever words the answer is."""
    (encoding,) = glamm.encode([picture(64, 48)])
    for answer in ANSWER_TEMPLATES:
        turns = (TURN, Turn("Please segment the cup in this image.", answer))
        ids, count = glamm.ids(turns), glamm.answer_length(turns)
        assert glamm.tokenizer.encode(build_prompt(turns, answered=False)) == ids[:-count]
        assert glamm.tokenizer.seg_id in ids[-count:]
        row = row_of(glamm, encoding, parse("fastv")[0], 9, turns)
        cut = glamm._cutting(row, glamm._words(row).answer)
        assert cut is not None and cut.answer == count


def test_questions_that_clip_cuts_are_counted(glamm: GlammBackbone) -> None:
    short, long = "the dog", "the dog left of " * 77
    assert glamm.cut_off([short, long, short, long]) == 2 and glamm.cut_off([]) == 0
    assert glamm.text_embeds((long,)).equal(glamm.text_embeds((long + " the cat",))), "as officially"
