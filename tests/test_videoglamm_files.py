"""VideoGLaMM's checkpoint as users have it, and its words; on tiny random weights in the official layout."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

import backbones
from backbones.parts import llama
from backbones.parts.tokenizer import IMAGE_TOKEN, LlamaTokenizer, Phi3Tokenizer
from backbones.videoglamm import checkpoint as files
from backbones.videoglamm.full_size import on_meta
from pruners import UserError
from tests import tiny_videoglamm as tiny

MANIFEST = Path(__file__).parent / "golden" / "video" / "checkpoint_manifest.json"


@pytest.fixture(scope="module")
def checkpoint2(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """With SAM2."""
    return tiny.write(tmp_path_factory.mktemp("videoglamm2"), sam2=True)


@pytest.fixture
def copy(checkpoint2: Path, tmp_path: Path) -> Path:
    shutil.copytree(checkpoint2, tmp_path / "checkpoint")
    return tmp_path / "checkpoint"


def change(folder: Path, work: Any) -> dict[str, Tensor]:
    held = load_file(folder / "model.safetensors")
    found: dict[str, Tensor] = work(held) or held
    plain = {name: part.contiguous() for name, part in found.items()}
    save_file(plain, folder / "model.safetensors", {"format": "pt"})
    return found


def without(held: dict[str, Tensor], name: str) -> dict[str, Tensor]:
    return {key: value for key, value in held.items() if key != name}


def test_official_names(checkpoint2: Path) -> None:
    names = load_file(checkpoint2 / "model.safetensors").keys()
    for part in (
        "model.layers.0.self_attn.qkv_proj.weight",
        "model.layers.3.mlp.gate_up_proj.weight",
        "model.vision_tower.vision_encoder.blocks.1.ls1.gamma",
        "model.visual_model.memory_encoder.fuser.layers.0.weight",
        "model.mm_projector.0.weight",
        "model.image_mm_projector.2.bias",
        "model.text_hidden_fcs.0.2.bias",
    ):
        assert part in names
    assert not [name for name in names if "gamma" in name and "visual_model" in name]


def test_other_ways_to_store_the_same(copy: Path, checkpoint2: Path, tmp_path: Path) -> None:
    """Shards of torch's own format, the fuser's other name, matrices apart, the video encoder's own file."""
    clip = tiny.clip(3)
    model = tiny.load(checkpoint2)
    wanted = model.encode([clip])[0].embedding
    states = {k: v for k, v in model.model.state_dict().items()}

    def equal(**how: Any) -> None:
        other = tiny.load(copy, **how)
        assert all(states[k].equal(v) for k, v in other.model.state_dict().items())
        assert other.encode([clip])[0].embedding.equal(wanted)

    equal()
    fuser = "model.visual_model.memory_encoder.fuser.layers."
    held = change(
        copy,
        lambda held: {
            k.replace("weight", "gamma") if k in (f"{fuser}0.weight", f"{fuser}1.weight") else k: v
            for k, v in held.items()
        },
    )
    assert f"{fuser}0.gamma" in held
    equal()
    numbers = model.model.language_model.config
    held = change(
        copy, lambda held: dict(one for pair in held.items() for one in llama.parted(*pair, numbers))
    )
    assert "model.layers.0.self_attn.k_proj.weight" in held
    held = {name: part.contiguous() for name, part in held.items()}
    equal()
    first, second = (dict(list(held.items())[k::2]) for k in (0, 1))
    for number, part in enumerate((first, second)):
        torch.save(part, copy / f"pytorch_model-0000{number}-of-00002.bin")
    (copy / "model.safetensors").unlink()
    equal()
    own = {k.removeprefix("model.vision_tower."): v for k, v in held.items() if "vision_tower" in k}
    rest = {k: v for k, v in held.items() if "vision_tower" not in k}
    for number in (0, 1):
        (copy / f"pytorch_model-0000{number}-of-00002.bin").unlink()
    save_file(rest, copy / "model.safetensors", {"format": "pt"})
    with pytest.raises(UserError, match=r"missing: model\.vision_tower\.vision_encoder"):
        tiny.load(copy)
    for top in ("model", "module"):
        more = {"vision_proj.weight": torch.zeros(2, 2), "vision_encoder.clip_pos_embed": torch.zeros(1)}
        torch.save({top: {**own, **more}}, tmp_path / "video.pt")
        equal(video=str(tmp_path / "video.pt"))
    # the official loader leaves out what the checkpoint has of the encoder, and so do we
    spoilt = {k: torch.zeros_like(v) if "vision_tower" in k else v for k, v in held.items()}
    save_file(spoilt, copy / "model.safetensors", {"format": "pt"})
    equal(video=str(tmp_path / "video.pt"))


@pytest.mark.parametrize(
    ("work", "says"),
    [
        (
            lambda held: without(held, "model.mm_projector.0.bias"),
            r"missing: model\.mm_projector\.0\.bias",
        ),
        (
            lambda held: without(held, "model.layers.1.self_attn.qkv_proj.weight"),
            r"missing: model\.layers\.1\.self_attn\.qkv_proj\.weight",
        ),
        (lambda held: {**held, "model.other.x": torch.zeros(1)}, r"unexpected: model\.other\.x"),
        (
            lambda held: {**held, "model.visual_model.other": torch.zeros(1)},
            r"unexpected: model\.visual_model\.other",
        ),
        (
            lambda held: {**held, "model.layers.0.self_attn.qkv_proj.weight": torch.zeros(8, 64)},
            r"wrong shape: model\.layers\.0\.self_attn\.q_proj\.weight",
        ),
        (
            lambda held: {**held, "model.layers.0.x.lora_A.weight": torch.zeros(1)},
            "holds an adapter beside its model",
        ),
    ],
)
def test_what_does_not_fit_is_named(copy: Path, work: Any, says: str) -> None:
    change(copy, work)
    with pytest.raises(UserError, match=says):
        tiny.load(copy)
    settings = backbones.get("videoglamm")(checkpoint=str(copy), clip=str(tiny.CLIP))
    assert any(found.level == "wrong" for found in settings.examine())


def test_the_doctor_looks_at_its_files(checkpoint2: Path) -> None:
    settings = backbones.get("videoglamm")(checkpoint=str(checkpoint2), clip=str(tiny.CLIP))
    told = list(settings.examine())
    assert [one.level for one in told] == ["ok", "ok"]
    assert tiny.load(checkpoint2).fingerprint in told[1].what and "2 frames" in told[1].what


def test_a_part_as_it_was_made_is_named(copy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tiny.load(copy)
    assert "not trained" not in capsys.readouterr().err
    draw = torch.Generator().manual_seed(0)

    def fresh(held: dict[str, Tensor]) -> None:
        for name in [name for name in held if "text_hidden_fcs" in name]:
            held[name] = (torch.rand(held[name].shape, generator=draw) * 2 - 1) / 8

    change(copy, fresh)
    tiny.load(copy)
    assert "[SEG] head" in capsys.readouterr().err


def test_sizes_that_are_none(copy: Path) -> None:
    (copy / "sam2_dims.json").write_text(json.dumps({"width": "wide", "colour": 3}))
    with pytest.raises(UserError, match="colour is unknown; width is 'wide'"):
        tiny.load(copy)


def test_the_full_size_has_the_official_tensors() -> None:
    """Every name and shape that the public code asks for, and no others; on the meta device."""
    held: dict[str, Tensor] = {}
    for name, shape, numbers in json.loads(MANIFEST.read_text())["tensors"]:
        whole = torch.empty(shape, device="meta")
        for span in numbers.split(","):
            first, _, last = span.partition("-")
            for number in range(int(first), int(last) + 1) if span else (0,):
                held[name.replace("#", str(number))] = whole
    model = on_meta()
    part = files.main_part(model, Path(), files.names_of(model))

    def stored(_folder: Path) -> Iterator[tuple[str, Tensor]]:
        for pair in held.items():
            yield from llama.parted(*pair, model.language_model.config)

    parted = replace(part, stored=stored)
    left_out = sum("vision_tower.vision_encoder.blocks.39." in name for name in held)
    assert parted.check() == len(held) - left_out + 32 * 3  # matrices that are stored as one
    assert len(held) > 1000 and left_out
    llm = model.language_model.config
    assert llm.sliding_window == 2048 and model.grounding_encoder.config.image_size == 1024
    assert [len(one) for one in (model.video_tower.blocks, model.clip.vision_model.encoder.layers)] == [
        39,
        24,
    ]


@pytest.mark.parametrize("name", ["videoglamm", "videoglamm-3.8b"])
def test_without_weights(name: str) -> None:
    with pytest.raises(UserError, match="videoglamm"):
        backbones.load(name)


# -- words


def test_words_are_transformers(tmp_path: Path) -> None:
    """Against the slow tokenizer of transformers 4.41, with and without its older rules."""
    held = json.loads(tiny.PHI3.read_text())
    for way, wanted in held["ids"].items():
        folder = tiny.tokenizer(tmp_path / way)
        how = {name: value == "1" for name, _, value in (part.partition("=") for part in way.split(","))}
        settings = {"add_bos_token": how["bos"], "legacy": how["legacy"], **held["config"]}
        (folder / "tokenizer_config.json").write_text(json.dumps(settings))
        words = Phi3Tokenizer(folder)
        assert [words.encode(text) for text in held["texts"]] == wanted
        assert words.end_ids == {640, 641, 644} and words.seg_id == 646


def test_words_without_flags_are_those_of_the_older_rule(tmp_path: Path) -> None:
    folder = tiny.tokenizer(tmp_path)
    (folder / "tokenizer_config.json").write_text(json.dumps({"legacy": True}))

    class Older(LlamaTokenizer):
        needed = ("[SEG]",)

    texts = json.loads(tiny.PHI3.read_text())["texts"]
    assert [Phi3Tokenizer(folder).encode(one) for one in texts] == [
        Older(folder).encode(one) for one in texts
    ]


def test_prompt(checkpoint2: Path) -> None:
    model = tiny.load(checkpoint2)
    turn = model.turn("  The RED <image> Star ")
    assert model.prompt([turn], answered=False) == (
        "<|system|>\nYou are a helpful AI assistant.<|end|>\n<|user|>\n<image>\n"
        "What is the red   star in this video? Please respond with segmentation masks.<|end|>\n"
        "<|assistant|>\n"
    )
    assert model.ids([turn], answered=False).count(IMAGE_TOKEN) == 1
