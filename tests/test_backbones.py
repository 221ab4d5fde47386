"""Loading official layouts, in-model pruning, and what can go wrong with files; on the tiny official checkpoint."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from importlib.util import find_spec
from itertools import product
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

import backbones
from backbones.base import Row, Turn
from backbones.glamm import checkpoint as files
from backbones.glamm.backbone import FULL_ROWS, GlammBackbone
from backbones.glamm.decoder import run_layers
from backbones.glamm.keys import to_official, to_ours
from backbones.glamm.preprocess import masks_to_image, patch_shares, sam_pixels, sam_pixels_mmcv
from pruners import LayerPruner, Selection, UserError, parse

TURN = Turn("Can you segment the left dog in this image?", "It is [SEG].")


def picture(height: int, width: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


@pytest.fixture(scope="session")
def folder(golden_glamm_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint folder as a user has it, with the grounding encoder's numbers inside."""
    target = tmp_path_factory.mktemp("glamm")
    shutil.copytree(golden_glamm_dir / "checkpoint", target / "checkpoint")
    shutil.copytree(golden_glamm_dir / "clip", target / "clip")
    shutil.copy(golden_glamm_dir / "sam_dims.json", target / "checkpoint" / "sam_dims.json")
    return target


@pytest.fixture(scope="session")
def glamm(folder: Path) -> GlammBackbone:
    return load(folder)


def load(folder: Path, **settings: object) -> GlammBackbone:
    found = backbones.load("glamm", checkpoint=folder / "checkpoint", clip=str(folder / "clip"), **settings)  # type: ignore[arg-type]
    assert isinstance(found, GlammBackbone)
    return found


@pytest.fixture
def broken(folder: Path, tmp_path: Path) -> Path:
    """A copy to damage."""
    target = tmp_path / "copy"
    shutil.copytree(folder, target)
    return target


def rewrite(folder: Path, change: dict[str, torch.Tensor | None]) -> None:
    path = folder / "checkpoint" / "model.safetensors"
    tensors = load_file(path)
    for name, value in change.items():
        if value is None:
            del tensors[name]
        else:
            tensors[name] = value
    path.unlink()
    save_file(tensors, path)


def test_names_map_both_ways(glamm: GlammBackbone) -> None:
    for name in glamm.model.state_dict():
        official = to_official(name)
        if official is not None:
            assert to_ours(official) == name
    with pytest.raises(KeyError):
        to_ours("model.something.else")


def test_every_misfit_is_named_at_once(broken: Path) -> None:
    nan = torch.full((64,), float("nan"))
    rewrite(
        broken,
        {
            "model.mm_projector.0.bias": None,
            "model.surprise": torch.zeros(2),
            "model.norm.weight": nan,
            "model.text_hidden_fcs.0.2.bias": torch.zeros(7),
            "model.region_encoder.anything.weight": torch.zeros(3),
            "model.vision_tower.anything": torch.zeros(3),
        },
    )
    with pytest.raises(UserError) as caught:
        load(broken)
    text = str(caught.value)
    assert "missing: model.mm_projector.0.bias" in text and "unexpected: model.surprise" in text
    assert "wrong shape: model.text_hidden_fcs.0.2.bias [7] instead of [32]" in text
    assert "NaN or infinite: model.norm.weight" in text
    assert "region_encoder" not in text and "vision_tower" not in text and "\n" not in text


def test_files_that_are_missing_or_damaged(broken: Path) -> None:
    for damage, says in (
        (lambda: (broken / "checkpoint" / "sam_dims.json").write_text("{"), "not readable json"),
        (lambda: (broken / "checkpoint" / "config.json").unlink(), "no config.json"),
    ):
        damage()
        with pytest.raises(UserError, match=says):
            load(broken)
    shutil.rmtree(broken / "checkpoint")
    with pytest.raises(UserError, match="no checkpoint folder"):
        load(broken)


def test_truncated_weights(broken: Path) -> None:
    path = broken / "checkpoint" / "model.safetensors"
    path.write_bytes(path.read_bytes()[:5000])
    with pytest.raises(UserError, match="damaged"):
        load(broken)
    path.unlink()
    with pytest.raises(UserError, match="no weights"):
        load(broken)


def test_sharded_bin_equals_safetensors(glamm: GlammBackbone, broken: Path) -> None:
    """The release's own layout: pytorch_model-0000k-of-0000n.bin."""
    path = broken / "checkpoint" / "model.safetensors"
    tensors = list(load_file(path).items())
    path.unlink()
    half = len(tensors) // 2
    for k, part in enumerate((tensors[:half], tensors[half:])):
        torch.save(dict(part), broken / "checkpoint" / f"pytorch_model-0000{k + 1}-of-00002.bin")
    again = load(broken).model.state_dict()
    for name, tensor in glamm.model.state_dict().items():
        assert tensor.equal(again[name]), name


class Boom:
    """Would write a file if it were unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, ...]:
        return (Path.touch, (self.path,))


def test_weights_cannot_run_code(broken: Path, tmp_path: Path) -> None:
    (broken / "checkpoint" / "model.safetensors").unlink()
    torch.save({"x": Boom(tmp_path / "ran")}, broken / "checkpoint" / "pytorch_model.bin")
    with pytest.raises(UserError, match="damaged or holds more than tensors"):
        load(broken)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_save_and_load(glamm: GlammBackbone, folder: Path, tmp_path: Path, dtype: torch.dtype) -> None:
    dims = json.loads((folder / "checkpoint" / "sam_dims.json").read_text())
    files.save_checkpoint(
        glamm.model,
        tmp_path / "checkpoint",
        tmp_path / "clip",
        tokenizer=folder / "checkpoint",
        clip_tokenizer=folder / "clip",
        sam_dims=dims,
        dtype=dtype,
    )
    again = load(tmp_path)
    for name, tensor in glamm.model.state_dict().items():
        assert tensor.to(dtype).float().equal(again.model.state_dict()[name]), name
    assert again.grid == glamm.grid and again.fingerprint != glamm.fingerprint


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"dtype": "float23"}, "Did you mean 'float32'"),
        ({"attn": "spda"}, "Did you mean 'sdpa'"),
        ({"device": "gpu"}, "no device"),
        ({"attn": "flash_attention_2"}, r"groundprune\[flash\]"),
        ({"batch_size": 0}, "too small"),
        ({"image_backend": "mmvc"}, "Did you mean 'mmcv'"),
        ({"sam_dims": "no.json"}, "no no.json"),
    ],
)
def test_settings_that_cannot_be(folder: Path, settings: dict[str, object], says: str) -> None:
    with pytest.raises(UserError, match=says):
        load(folder, **settings)


def test_cuda_without_a_gpu(folder: Path) -> None:
    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    with pytest.raises(UserError, match="needs a CUDA GPU"):
        load(folder, device="cuda")


def test_unknown_backbone_and_missing_clip(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match="Did you mean 'glamm-mini'"):
        backbones.load("glam-mini")
    with pytest.raises(UserError, match="give --checkpoint DIR"):
        backbones.load("glamm")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(UserError, match="give --clip DIR"):
        backbones.load("glamm", checkpoint=folder / "checkpoint", clip="no-such/clip")


@pytest.mark.parametrize("size", [(48, 48), (31, 200), (200, 31), (1, 7)])
def test_any_image_size(glamm: GlammBackbone, size: tuple[int, int]) -> None:
    encoding = glamm.encode([picture(*size)])[0]
    pruner = parse("uniform")[0]
    row = Row(encoding, (TURN,), pruner, 64, pruner.select(glamm.tokens(encoding, (TURN,), ""), 64))
    result = next(glamm.ground_rows([row]))
    assert result.logits.shape == (1, *size) and bool(result.logits.isfinite().all())


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float64"])
def test_precisions(folder: Path, dtype: str) -> None:
    backbone = load(folder, dtype=dtype)
    encoding = backbone.encode([picture(60, 80)])[0]
    for text in ("litelvlm", "fastv", "visionzip"):
        pruner = parse(text)[0]
        tokens = backbone.tokens(encoding, (TURN,), "")
        selection = None if isinstance(pruner, LayerPruner) else pruner.select(tokens, 64)
        result = next(backbone.ground_rows([Row(encoding, (TURN,), pruner, 64, selection)]))
        assert result.logits.dtype == torch.float32 and bool(result.logits.isfinite().all())
        assert result.tokens_final == 64


def test_fastv_counts_and_choice(glamm: GlammBackbone) -> None:
    """Two of three layers see all tokens; the mean is measured from the lengths that layers saw."""
    encoding = glamm.encode([picture(50, 50)])[0]
    result = next(glamm.ground_rows([Row(encoding, (TURN,), parse("fastv(layer=2)")[0], 100, None)]))
    assert result.tokens_final == 100 and result.tokens_mean == pytest.approx((576 + 576 + 100) / 3)
    assert len(result.retained) == 100 and result.retained.tolist() == sorted(result.retained.tolist())


def test_layer_pruner_that_keeps_all_changes_nothing(glamm: GlammBackbone) -> None:
    encoding = glamm.encode([picture(50, 50)])[0]
    none = parse("none")[0]
    whole = none.select(glamm.tokens(encoding, (TURN,), ""), 576)
    plain = next(glamm.ground_rows([Row(encoding, (TURN,), none, 576, whole)]))
    kept = next(glamm.ground_rows([Row(encoding, (TURN,), parse("fastv")[0], 576, None)]))
    assert plain.logits.allclose(kept.logits, atol=1e-4)


@pytest.mark.parametrize("error", [torch.OutOfMemoryError("full"), RuntimeError("DefaultCPUAllocator: can't allocate memory")])
def test_out_of_memory_halves_the_batch_and_goes_on(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], error: RuntimeError
) -> None:
    backbone = backbones.load("glamm-mini", batch_size=32)
    assert isinstance(backbone, GlammBackbone)
    encoding = backbone.encode([picture(60, 60)])[0]
    none = parse("none")[0]
    row = Row(encoding, (TURN,), none, 576, none.select(backbone.tokens(encoding, (TURN,), ""), 576))
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


def test_a_team_does_not_halve_the_batch_of_one(glamm: GlammBackbone, monkeypatch: pytest.MonkeyPatch) -> None:
    """The others would wait for the larger batch's sums for ever."""

    def full(embeddings: torch.Tensor, prompts: torch.Tensor) -> torch.Tensor:
        raise torch.OutOfMemoryError("full")

    row = Row(glamm.encode([picture(40, 60)])[0], (TURN,), parse("uniform")[0], 4, Selection(torch.arange(4)))
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
    rows = [Row(encoding, (TURN,), parse("uniform")[0], 4, Selection(torch.arange(4)))] * (glamm.batch_size + 3)
    for share in (True, False):
        found = glamm.ground_rows(rows, share)
        next(found)
        assert batches == [glamm.batch_size]
        assert len(list(found)) == len(rows) - 1 and batches == [glamm.batch_size, FULL_ROWS]
        batches.clear()


def test_sharing_changes_no_pixel(glamm: GlammBackbone) -> None:
    """Rows of several images, expressions, cuts and budgets together, against every row whole."""
    encodings = glamm.encode([picture(60, 60, seed) for seed in range(2)])
    mute, early = Turn(TURN.question, "There is none."), Turn("[SEG] is what?", "It is that.")
    talks = [
        (TURN,),
        (Turn(TURN.question.replace("it", "them"), TURN.answer),),
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
            chosen = None if isinstance(pruner, LayerPruner) else pruner.select(glamm.tokens(encoding, turns, "s"), budget)
            rows.append(Row(encoding, turns, pruner, budget, chosen))
    shared, apart = glamm.ground_rows(rows), glamm.ground_rows(rows, share=False)
    for row, one, other in zip(rows, shared, apart, strict=True):
        assert one.retained.equal(other.retained), row.pruner
        assert (one.tokens_final, one.tokens_mean) == (other.tokens_final, pytest.approx(other.tokens_mean))
        assert one.logits.shape == other.logits.shape
        # fused kernels sum in another order: far below what decides a pixel, unless its logit is zero to five digits
        torch.testing.assert_close(one.logits, other.logits, atol=2e-4, rtol=1e-4)


def test_rows_do_not_depend_on_their_company(glamm: GlammBackbone) -> None:
    """Bit for bit: alone, in a crowd, and with another batch size."""
    encodings = glamm.encode([picture(60, 60, seed) for seed in range(3)])
    rows = []
    for k, encoding in enumerate(encodings):
        for text in ("uniform", "litelvlm", "fastv", "none"):
            pruner = parse(text)[0]
            tokens = glamm.tokens(encoding, (TURN,), str(k))
            budget = 576 if text == "none" else 64
            selection = None if isinstance(pruner, LayerPruner) else pruner.select(tokens, budget)
            rows.append(Row(encoding, (TURN,), pruner, budget, selection))
    together = list(glamm.ground_rows(rows))
    for row, result in zip(rows, together, strict=True):
        assert next(glamm.ground_rows([row])).logits.equal(result.logits)
    alone = glamm.encode([picture(60, 60, 1)])[0]
    assert alone.embedding.equal(encodings[1].embedding) and alone.hidden_states[-1].equal(encodings[1].hidden_states[-1])
    assert glamm.batch_size % FULL_ROWS == 0


@pytest.mark.parametrize("attn", ["sdpa", "eager"])
@torch.inference_mode()
def test_fill_behind_a_row_changes_nothing(folder: Path, attn: str) -> None:
    """Right fill is seen by nobody: same states, same tokens kept inside the model."""
    llm = load(folder, attn=attn).model.language_model
    generator = torch.Generator().manual_seed(0)
    embeds = torch.randn(2, 150, llm.config.hidden_size, generator=generator)
    filled = torch.cat([embeds, torch.randn(2, 42, llm.config.hidden_size, generator=generator)], dim=1)
    last = torch.full((2,), 149)
    for pruner in (None, parse("fastv(layer=1)")[0]):
        settings = {"visual_start": 10, "visual_count": 100, "pruner": pruner, "keep": 30}
        plain, other = run_layers(llm, embeds, **settings), run_layers(llm, filled, last=last, **settings)  # type: ignore[arg-type]
        assert plain.hidden.allclose(other.hidden[:, : plain.hidden.shape[1]], atol=1e-5)
        if pruner is not None:
            assert plain.kept is not None and other.kept is not None and plain.kept.equal(other.kept)


def test_conversation_without_seg(glamm: GlammBackbone) -> None:
    encoding = glamm.encode([picture(40, 60)])[0]
    row = Row(encoding, (Turn("Hello?", "Sure."),), parse("uniform")[0], 4, Selection(torch.arange(4)))
    assert next(glamm.ground_rows([row])).logits.shape == (0, 40, 60)
    assert list(glamm.ground_rows([])) == list(glamm.ground_rows([], share=False)) == []


def test_signals_are_computed_once(glamm: GlammBackbone) -> None:
    encoding = glamm.encode([picture(40, 40)])[0]
    assert not encoding.signals
    tokens = glamm.tokens(encoding, (TURN,), "")
    assert tokens.keys(-1) is tokens.keys(-1)
    assert len(encoding.signals) == 1
    with pytest.raises(UserError, match="sees the truth"):
        _ = tokens.referent


def test_truth_in_patches() -> None:
    """A mask's left half covers the left patches; what the centre crop cuts off is in none."""
    mask = np.zeros((1, 48, 48), dtype=bool)
    mask[:, :, :24] = True
    assert patch_shares(mask, 48, (24, 24)).view(24, 24)[:, :12].min() == 1
    wide = np.zeros((1, 48, 480), dtype=bool)
    wide[:, :, :100] = True
    assert float(patch_shares(wide, 48, (24, 24)).sum()) == 0


def test_masks_find_their_way_back() -> None:
    """A mask drawn in the padded square comes back where it was, for wide and for high images."""
    for height, width in ((75, 110), (110, 75)):
        pixels, resized = sam_pixels(picture(height, width), 160)
        assert pixels.shape == (3, 160, 160) and max(resized) == 160
        low = torch.full((1, 40, 40), -1.0)
        low[:, : resized[0] // 8, : resized[1] // 8] = 1.0  # upper left quarter of the image
        back = masks_to_image(low, 160, resized, (height, width))[0] > 0
        rows, columns = back.any(1).nonzero(), back.any(0).nonzero()
        assert abs(int(rows.max()) - height / 2) < 3 and abs(int(columns.max()) - width / 2) < 3


@pytest.mark.skipif(find_spec("mmcv") is None, reason="the optional extra mmcv is not installed")
@pytest.mark.parametrize("size", [(75, 110), (120, 84), (480, 640), (333, 500), (48, 48)])
def test_mmcv_gives_the_same_pixels(size: tuple[int, int]) -> None:
    """The optional image backend may be faster; it may not change a pixel."""
    pixels, resized = sam_pixels(picture(*size), 1024)
    other, again = sam_pixels_mmcv(picture(*size), 1024)
    assert again == resized and other.equal(pixels)


def test_plugin_with_its_own_needs(glamm: GlammBackbone) -> None:
    """A method may ask for signals of any layer; nothing else is computed for it."""
    from pruners import Need, ScorePruner, VisualTokens

    @dataclass(frozen=True)
    class Deep(ScorePruner):
        name = "deep"
        reference = "here"
        needs = frozenset({Need("values", -3)})

        def score(self, tokens: VisualTokens) -> torch.Tensor:
            return tokens.values(-3)[1:].norm(dim=1)

    encoding = glamm.encode([picture(40, 40)])[0]
    pruner = Deep()
    chosen = pruner.select(glamm.tokens(encoding, (TURN,), "").only(pruner.needs), 64)
    assert chosen.tokens == 64 and list(encoding.signals) == [Need("values", -3)]
