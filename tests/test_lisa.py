"""LISA's checkpoint as users have it, and what it says of parts that nobody trained; on the tiny official
checkpoint."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import huggingface_hub
import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

import backbones
from backbones.base import Turn
from backbones.glamm.backbone import GlammBackbone
from backbones.lisa.backbone import LisaBackbone
from backbones.lisa.release import LISA
from backbones.parts.trained import untrained
from harness import Plan
from harness.doctor import examine
from harness.engine import runner
from harness.engine.noise import IMAGES, NoiseWatch
from pruners import UserError
from tests.tiny_glamm import picture

Change = Callable[[dict[str, Tensor]], object]


@pytest.fixture
def folder(golden_lisa_dir: Path, tmp_path: Path) -> Path:
    """A checkpoint folder to change, with the grounding encoder's numbers inside."""
    for part in ("checkpoint", "clip"):
        shutil.copytree(golden_lisa_dir / part, tmp_path / part, copy_function=shutil.copyfile)
        (tmp_path / part).chmod(0o755)
    shutil.copyfile(golden_lisa_dir / "sam_dims.json", tmp_path / "checkpoint" / "sam_dims.json")
    return tmp_path


def load(folder: Path, **settings: Any) -> LisaBackbone:
    found = backbones.load("lisa", checkpoint=folder / "checkpoint", clip=str(folder / "clip"), **settings)
    assert isinstance(found, LisaBackbone)
    return found


def weights(folder: Path) -> dict[str, Tensor]:
    return torch.load(folder / "checkpoint" / "pytorch_model.bin", weights_only=True)  # type: ignore[no-any-return]


def store(folder: Path, content: dict[str, Tensor]) -> None:
    torch.save(content, folder / "checkpoint" / "pytorch_model.bin")


def mask(backbone: LisaBackbone) -> np.ndarray:
    return backbone.ground(picture(60, 90), "the red star").mask


# -- layouts


def test_sharded_and_safetensors(folder: Path) -> None:
    expected, content = load(folder), weights(folder)
    original = folder / "checkpoint" / "pytorch_model.bin"
    names = sorted(content)
    shards = {"pytorch_model-00001-of-00002.bin": names[::2], "pytorch_model-00002-of-00002.bin": names[1::2]}
    for file, part in shards.items():
        torch.save({name: content[name] for name in part}, folder / "checkpoint" / file)
    original.unlink()
    index = {"weight_map": {name: file for file, part in shards.items() for name in part}}
    (folder / "checkpoint" / "pytorch_model.bin.index.json").write_text(json.dumps(index))
    assert (mask(load(folder)) == mask(expected)).all()
    save_file({k: v.contiguous() for k, v in content.items()}, folder / "checkpoint" / "model.safetensors")
    assert (mask(load(folder)) == mask(expected)).all()


def test_a_base_that_had_a_token_more(folder: Path) -> None:
    """[SEG]'s id follows from the folder's own list, as where the base already had an image token."""
    content, rows = weights(folder), ("model.embed_tokens.weight", "lm_head.weight")
    seg = load(folder).tokenizer.seg_id
    for name in rows:
        held = content[name]
        content[name] = torch.cat([held[:seg], torch.zeros(1, held.shape[1]), held[seg:]])
    expected = mask(load(folder))
    store(folder, content)
    added = {"<im_patch>": seg, "[SEG]": seg + 1, "<im_start>": seg + 2, "<im_end>": seg + 3}
    (folder / "checkpoint" / "added_tokens.json").write_text(json.dumps(added))
    config = folder / "checkpoint" / "config.json"
    settings = json.loads(config.read_text())
    config.write_text(json.dumps(settings | {"vocab_size": settings["vocab_size"] + 1}))
    found = load(folder)
    assert found.tokenizer.seg_id == seg + 1 and (mask(found) == expected).all()


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda held: held.pop("model.mm_projector.bias"), r"missing: model\.mm_projector\.bias"),
        (
            lambda held: held.pop("model.visual_model.mask_decoder.iou_token.weight"),
            r"missing: model\.visual_model\.mask_decoder\.iou_token\.weight",
        ),
        (
            lambda held: held.update({"model.grounding_encoder.x": torch.zeros(1)}),
            r"unexpected: model\.grounding_encoder\.x",
        ),
        (
            lambda held: held.update({"model.region_encoder.x": torch.zeros(1)}),
            r"unexpected: model\.region_encoder\.x",
        ),
        (
            lambda held: held.update({"model.layers.0.self_attn.q_proj.lora_A.weight": torch.zeros(1)}),
            "holds an adapter beside its model",
        ),
        (
            lambda held: [held.pop(name) for name in [*held] if "text_hidden_fcs" in name],
            r"missing: .*model\.text_hidden_fcs\.0\.0\.weight",
        ),
    ],
)
def test_what_does_not_fit_is_named(folder: Path, change: Change, says: str) -> None:
    content = weights(folder)
    change(content)
    store(folder, content)
    with pytest.raises(UserError, match=says):
        load(folder)
    found = list(examine(None, [backbones.with_files(backbones.one("lisa"), **files(folder))]))
    assert any(line.level == "wrong" for line in found)


def files(folder: Path) -> dict[str, str]:
    return {"checkpoint": str(folder / "checkpoint"), "clip": str(folder / "clip")}


def test_the_doctor_looks_at_its_files(folder: Path) -> None:
    told = [str(one) for one in backbones.with_files(backbones.one("lisa"), **files(folder)).examine()]
    assert any("16 x 16 visual tokens" in line for line in told)
    assert any(load(folder).fingerprint in line for line in told)
    assert not any(line.startswith("wrong") for line in told)


def test_the_clip_of_another_model_is_refused(folder: Path, golden_glamm_dir: Path) -> None:
    with pytest.raises(UserError, match=r"16 x 16 visual tokens.*has 24 x 24"):
        backbones.load("lisa", checkpoint=folder / "checkpoint", clip=golden_glamm_dir / "clip")


def test_clip_from_the_hub_is_pinned(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[str, str]] = []

    def snapshot(name: str, revision: str, **_how: object) -> str:
        asked.append((name, revision))
        return str(folder / "clip")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot)
    assert backbones.load("lisa", checkpoint=folder / "checkpoint").grid == load(folder).grid
    assert asked == [(LISA.clip, LISA.revision)]


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_precision(folder: Path, dtype: str) -> None:
    """As officially by default: near the masks of float32, not equal to them."""
    exact, half = mask(load(folder)), mask(load(folder, dtype=dtype))
    assert (exact & half).sum() / (exact | half).sum() > 0.7


# -- words


def test_templates(folder: Path) -> None:
    text = f"lisa(checkpoint={str(folder / 'checkpoint')!r}, clip={str(folder / 'clip')!r}"
    plain, other = backbones.load(f"{text})"), backbones.load(f"{text}, template='llava_llama_2')")
    assert isinstance(plain, LisaBackbone) and isinstance(other, LisaBackbone)
    assert (
        plain.fingerprint
        != other.fingerprint
        == backbones.load(f"{text}, template='llava_llama_2')").fingerprint
    )
    turns = [Turn("One?", "[SEG]."), Turn("Two?", "Sure, [SEG].")]
    assert plain.prompt(turns).endswith(
        "USER: <im_start><image><im_end>\n One? ASSISTANT: [SEG].</s>USER: Two? ASSISTANT: Sure, [SEG].</s>"
    )
    assert other.prompt(turns).endswith(
        "<im_start><image><im_end>\n One? [/INST] [SEG]. </s><s>[INST] Two? [/INST] Sure, [SEG]. </s>"
    )
    assert plain.prompt(turns, answered=False).endswith("USER: Two? ASSISTANT:")
    assert other.prompt(turns, answered=False).endswith("[INST] Two? [/INST]")
    with pytest.raises(UserError, match="lisa has no template 'llava', there are llava_v1, llava_llama_2"):
        backbones.load(f"{text}, template='llava')")


def test_a_reasoning_text_keeps_its_capitals(folder: Path) -> None:
    lisa = load(folder)
    assert lisa.turn(" The Dog ").question.startswith("What is the dog in this image?")
    assert lisa.turn_of(" The Dog ", "phrase").question.startswith("What is The Dog in this image?")
    said = " Where would you sit? "
    assert lisa.turn_of(said, "sentence").question == f"{said.strip()} Please output segmentation mask."
    (talk,) = lisa.conversations("a", [said], "lisa", 0, ["sentence"])
    assert talk.turns == (lisa.turn_of(said, "sentence"),)


@pytest.mark.parametrize("name", ["lisa", "lisa-7b", "lisa-13b"])
def test_without_weights(name: str) -> None:
    with pytest.raises(UserError, match="lisa"):
        backbones.load(name)


# -- parts that nobody trained


def fresh(content: dict[str, Tensor], part: str, bias: float | None) -> None:
    """Numbers as torch draws them for a part's linear layers, or with one bias; norms as they are made."""
    for name in [name for name in content if part in name]:
        held = content[name]
        if name.endswith("bias"):
            weight = content[name.replace("bias", "weight")]
            edge = 0.0 if bias is not None or weight.ndim != 2 else weight.shape[1] ** -0.5
            content[name] = torch.empty_like(held).uniform_(-edge, edge) if edge else torch.zeros_like(held)
        elif held.ndim == 2 and "token" not in name.split(".")[-2]:
            edge = held.shape[1] ** -0.5
            content[name] = (
                torch.empty_like(held).uniform_(-edge, edge) if bias is None else torch.randn_like(held)
            )
        elif held.ndim == 1:
            content[name] = torch.ones_like(held)


@pytest.mark.parametrize(
    ("part", "named"),
    [
        ("text_hidden_fcs", "the [SEG] head (text_hidden_fcs)"),
        ("mask_decoder", "the mask decoder"),
        ("mm_projector", "the projector"),
    ],
)
@pytest.mark.parametrize("bias", [None, 0.0], ids=["torch", "transformers"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_part_as_it_was_made_is_named(
    folder: Path, part: str, named: str, bias: float | None, dtype: str, capsys: pytest.CaptureFixture[str]
) -> None:
    load(folder, dtype=dtype)
    assert "trained" not in capsys.readouterr().err
    content = weights(folder)
    fresh(content, part, bias)
    store(folder, content)
    load(folder, dtype=dtype)
    told = [line for line in capsys.readouterr().err.splitlines() if "not trained" in line]
    assert len(told) == 1 and told[0].startswith(named)


def test_shipped_and_official_weights_look_trained(
    capsys: pytest.CaptureFixture[str], golden_glamm_dir: Path
) -> None:
    backbones.load("glamm-mini")
    where = {"checkpoint": golden_glamm_dir / "checkpoint", "clip": golden_glamm_dir / "clip"}
    backbones.load("glamm", **where, sam_dims=golden_glamm_dir / "sam_dims.json")
    assert "not trained" not in capsys.readouterr().err


def test_a_step_of_training_shows() -> None:
    head = nn.Sequential(nn.Linear(512, 512), nn.ReLU(), nn.Linear(512, 32))
    assert untrained({"head": head}) == ["head"]
    step = torch.optim.AdamW(head.parameters(), lr=3e-4)
    for _ in range(10):
        step.zero_grad()
        head(torch.randn(8, 512)).square().sum().backward()
        step.step()
    assert untrained({"head": head}) == []


# -- a run whose masks are noise


def rows_of(images: range, iou: float, **more: object) -> list[dict[str, Any]]:
    plain = {"status": "ok", "pruner": "none", "coverage": 0.5, "iou": iou}
    return [plain | {"sample": f"refcoco:val:{k}"} | more for k in images for _ in range(2)]


def test_noise_is_told_once_when_enough_images_are_there() -> None:
    watch = NoiseWatch()
    assert not watch.look(rows_of(range(IMAGES - 1), 0.07))
    assert not watch.look(rows_of(range(IMAGES, 2 * IMAGES), 0.07, pruner="random"))
    assert not watch.look(rows_of(range(IMAGES, 2 * IMAGES), 0.0, coverage=None))
    assert not watch.look([{"status": "failed", "sample": "refcoco:val:99", "pruner": "none"}])
    assert "first 20 images is 0.07" in watch.look(rows_of(range(IMAGES, IMAGES + 1), 0.07))
    assert not watch.look(rows_of(range(40, 80), 0.0))


def test_a_model_that_finds_something_is_no_noise() -> None:
    watch = NoiseWatch()
    assert not watch.look(rows_of(range(IMAGES), 0.3)) and not watch.look(rows_of(range(20, 80), 0.0))


def test_a_run_says_that_its_masks_are_noise(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """A head of random numbers on generated scenes; a trained one is said nothing of."""
    for change, told in ((False, False), (True, True)):
        mini = backbones.load("glamm-mini")
        assert isinstance(mini, GlammBackbone)
        if change:
            torch.manual_seed(0)
            for layer in mini.model.text_hidden_fcs:
                if isinstance(layer, nn.Linear):
                    layer.reset_parameters()
        plan = Plan(pruners="none", budgets="64", datasets="refshapes:val", limit=IMAGES, costs="off")  # type: ignore[arg-type]
        runner.run(plan, mini, runner.prepare(plan, mini), tmp_path / str(change))
        assert ("as of masks at random" in capfd.readouterr().err) is told
