"""Loading official layouts, in-model pruning, and what can go wrong with files; on the tiny official
checkpoint."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.overrides import TorchFunctionMode

import backbones
from backbones.base import Row, Turn
from backbones.glamm import checkpoint as files
from backbones.glamm.backbone import GlammBackbone
from backbones.glamm.keys import to_official, to_ours
from backbones.glamm.preprocess import masks_to_image, patch_shares, sam_pixels, sam_pixels_mmcv
from backbones.glamm.release import GLAMM
from pruners import UserError, parse
from tests.tiny_glamm import TURN, load, picture


@pytest.fixture
def broken(glamm_folder: Path, tmp_path: Path) -> Path:
    """A copy to damage."""
    target = tmp_path / "copy"
    shutil.copytree(glamm_folder, target)
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
        official = to_official(name, GLAMM)
        if official is not None:
            assert to_ours(official, GLAMM) == name
    with pytest.raises(KeyError):
        to_ours("model.something.else", GLAMM)


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
        (
            lambda: [(broken / "checkpoint" / name).unlink() for name in ("sam_dims.json", "config.json")],
            "no config.json",
        ),
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
def test_save_and_load(glamm: GlammBackbone, glamm_folder: Path, tmp_path: Path, dtype: torch.dtype) -> None:
    dims = json.loads((glamm_folder / "checkpoint" / "sam_dims.json").read_text())
    files.save_checkpoint(
        glamm.model,
        tmp_path / "checkpoint",
        tmp_path / "clip",
        tokenizer=glamm_folder / "checkpoint",
        clip_tokenizer=glamm_folder / "clip",
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
        ({"device": "gpu"}, "no --device 'gpu'"),
        ({"attn": "flash_attention_2"}, r"groundprune\[flash\]"),
        ({"batch_size": 0}, "too small"),
        ({"image_backend": "mmvc"}, "Did you mean 'mmcv'"),
        ({"sam_dims": "no.json"}, "no no.json"),
    ],
)
def test_settings_that_cannot_be(glamm_folder: Path, settings: dict[str, object], says: str) -> None:
    with pytest.raises(UserError, match=says):
        load(glamm_folder, **settings)


def test_cuda_without_a_gpu(glamm_folder: Path) -> None:
    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    with pytest.raises(UserError, match="needs a CUDA GPU"):
        load(glamm_folder, device="cuda")


def test_unknown_backbone_and_missing_clip(glamm_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match="Did you mean 'glamm-mini'"):
        backbones.load("glam-mini")
    with pytest.raises(UserError, match="give --checkpoint DIR"):
        backbones.load("glamm")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(UserError, match="give --clip DIR"):
        backbones.load("glamm", checkpoint=glamm_folder / "checkpoint", clip="no-such/clip")


class Copies(TorchFunctionMode):
    """Notes which tensors are sent to a device without waiting."""

    def __init__(self) -> None:
        super().__init__()
        self.sent: list[torch.Tensor] = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        named = kwargs or {}
        if func is torch.Tensor.to and named.get("non_blocking"):
            self.sent.append(args[0])
        return func(*args, **named)


def test_what_is_copied_to_the_device_is_what_was_read_ahead(glamm: GlammBackbone) -> None:
    """Pinned pixels are copied beside the device's work; a batch made of them on the CPU would not be."""
    pixels = [glamm.preprocess(picture(40, side)) for side in (40, 52)]
    with Copies() as watched:
        glamm.encode_pixels(pixels)
    given = {id(part) for one in pixels for part in (one.vision, one.grounding)}
    assert {id(part) for part in watched.sent} == given and len(given) == 4


def test_signals_are_computed_once(glamm: GlammBackbone) -> None:
    encoding = glamm.encode([picture(40, 40)])[0]
    assert not encoding.signals
    tokens = glamm.views(encoding, (TURN,), "")[0]
    assert tokens.keys(-1) is tokens.keys(-1)
    assert len(encoding.signals) == 1
    with pytest.raises(UserError, match="sees the truth"):
        _ = tokens.referent


def test_attention_maps_are_those_of_the_tower(glamm: GlammBackbone) -> None:
    """Against transformers' own eager maps; what a token receives is the mean of its column."""
    from transformers import CLIPVisionModel

    image = picture(48, 48)
    view = glamm.views(glamm.encode([image])[0], (TURN,), "")[0]
    own = glamm.model.clip.vision_model
    eager = CLIPVisionModel._from_config(own.config, attn_implementation="eager")
    eager.load_state_dict(own.state_dict())
    pixels = glamm.preprocess(image).vision[None]
    maps = eager.eval().requires_grad_(False)(pixel_values=pixels, output_attentions=True).attentions
    for layer in (-1, -2):
        torch.testing.assert_close(view.attention(layer), maps[layer][0], atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(view.attention(layer)[:, 0], view.cls_attention(layer))
        torch.testing.assert_close(
            view.received_attention(layer), maps[layer][0].mean(1), atol=1e-5, rtol=1e-4
        )


def test_signals_of_the_language_models_space(glamm: GlammBackbone) -> None:
    """Patches as the projector hands them on, and the questions' tokens as they are embedded."""
    encoding = glamm.encode([picture(40, 40)])[0]
    turns = (TURN, Turn("Where is the cup?", TURN.answer))
    view = glamm.views(encoding, turns, "")[0]
    row = Row(encoding, (TURN,), parse("none")[0], 576, ())
    torch.testing.assert_close(view.llm_patches, glamm._project([row])[0])
    ids = [glamm.tokenizer.encode(turn.question)[1:] for turn in turns]
    table = glamm.model.language_model.embed_tokens.weight
    assert view.llm_text_embeds.equal(torch.cat([table[part] for part in ids]))
    alone = glamm.views(encoding, (TURN,), "")[0].llm_text_embeds
    assert alone.equal(view.llm_text_embeds[: len(ids[0])]) and len(alone) == len(ids[0])


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
    chosen = pruner.select(glamm.views(encoding, (TURN,), "")[0].only(pruner.needs), 64)
    assert chosen.tokens == 64 and list(encoding.signals) == [Need("values", 0)]
