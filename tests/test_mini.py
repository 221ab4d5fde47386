"""The embedded backbone: its files, its training tool, and (as a floor, never a rank) what it can do."""

from __future__ import annotations

import csv
import json
import re
import runpy
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

import backbones
from backbones.base import Row, Turn
from backbones.glamm.backbone import GlammBackbone
from backbones.mini.training import ground, see, segment
from backbones.mini.training import train as train_mini
from backbones.mini.training.branches import run_branches
from backbones.mini.training.data import build_scenes, train_scene
from backbones.mini.training.ground import NAMING_LAYER, POINT_LAYERS, Conversations, reading_order
from backbones.mini.training.see import patch_targets, silhouette
from backbones.mini.training.text import written
from backbones.parts import llama
from harness import metrics
from pruners import Selection, parse

ROOT = Path(__file__).parent.parent
GOLDEN = Path(__file__).parent / "golden"
STEPS = "sam=2,patches=2,match=2,point=2"
SCENES = 4


@pytest.fixture(scope="module")
def mini() -> GlammBackbone:
    found = backbones.load("glamm-mini")
    assert isinstance(found, GlammBackbone)
    return found


def test_files_are_official_and_small() -> None:
    folder = backbones.MINI
    size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    assert size <= 16 * 2**20
    assert not list(folder.rglob("*.bin")) and not list(folder.rglob("*.p*kl*"))


def test_the_official_classes_find_their_settings() -> None:
    settings = json.loads((backbones.MINI / "checkpoint/config.json").read_text())
    assert settings["num_level_reg_features"] == 4
    for key in ("mm_vision_tower", "vision_tower"):
        assert (backbones.MINI / "checkpoint" / settings[key] / "vocab.json").is_file()


@pytest.mark.parametrize(
    "model", [*backbones.MINI.rglob("tokenizer.model"), *GOLDEN.rglob("tokenizer.model")]
)
def test_no_path_of_a_machine_is_left(model: Path) -> None:
    assert not re.search(rb"/(work|farm|tmp|home|root|Users)/", model.read_bytes())


def test_shape(mini: GlammBackbone) -> None:
    assert mini.grid == (24, 24) and mini.num_layers == 5 and mini.image_size == 192


def scores(mini: GlammBackbone, *counts: int) -> list[float]:
    """cIoU over all objects of a few held-out scenes, two of every family, by so many visual tokens."""
    inner, outer = [0] * len(counts), [0] * len(counts)
    rows, truths = [], []
    none = parse("none")[0]
    for index in range(40, 52):
        scene = train_scene(10**6 + index)
        encoding = mini.encode([scene.image])[0]
        for target, text in (pair for pairs in scene.expressions.values() for pair in pairs[:2]):
            turn = Turn(f"Can you segment the {text} in this image?", "It is [SEG].")
            for k, count in enumerate(counts):
                rows.append(Row(encoding, (turn,), none, count, (Selection(torch.arange(count)),)))
                truths.append((k, scene.objects[target].mask))
    for result, (k, truth) in zip(mini.ground_rows(rows), truths, strict=True):
        a, b = metrics.counts((result.logits[0] > 0).numpy(), truth.astype(np.uint8))
        inner[k], outer[k] = inner[k] + a, outer[k] + b
    return [a / b for a, b in zip(inner, outer, strict=True)]


def test_it_sees(mini: GlammBackbone) -> None:
    """A floor far below the card's figures; and without visual tokens it falls."""
    seeing, blind = scores(mini, 576, 0)
    assert seeing > 0.6 and blind < seeing / 2


def test_patch_targets() -> None:
    """Labels of a patch are its object's, offsets lead to the centre, and the silhouette is the object's
    outline."""
    split_owner = np.zeros((192, 192), dtype=np.uint8)
    split_owner[64:96, 80:112] = 1
    looks = np.full((9, 4), -1, dtype=np.int8)
    looks[0] = (1, 2, 0, 1)
    centers = np.zeros((9, 2), dtype=np.float32)
    centers[0] = (96, 80)
    whole = (slice(0, 192), slice(0, 192))
    labels, offsets, drawn = patch_targets(split_owner, whole, looks, centers)
    patch = 8 * 24 + 10  # rows 64-72, columns 80-88
    assert labels[patch].tolist() == [1, 1, 2, 0, 1] and labels[0].tolist() == [0, -1, -1, -1, -1]
    assert offsets[patch] * 32 == pytest.approx([96 - 84, 80 - 68]) and np.isnan(offsets[0]).all()
    assert (
        drawn[patch].sum() * 25 == 32 * 32
        and drawn[patch].tolist() == silhouette(split_owner, 0, centers[0]).tolist()
    )
    cut, away, _ = patch_targets(split_owner, (slice(80, 192), slice(0, 192)), looks, centers)
    assert cut[10].tolist() == [1, -1, 2, 0, -1] and np.isnan(away[10]).all(), (
        "of a cut object shape and size are not asked"
    )


def test_train_scenes_are_stored_as_painted(tmp_path: Path) -> None:
    scenes = build_scenes(tmp_path, 3)
    scene = train_scene(2)
    assert (scenes.images[2] == scene.image).all() and scenes.count(2) == len(scene.objects)
    for k, thing in enumerate(scene.objects):
        assert ((scenes.owner[2] == k + 1) == thing.mask).all()
    texts = [text for _, _, text in scenes.expressions(2, np.random.default_rng(0), 4)]
    assert texts == [text for _, _, text in scenes.expressions(2, np.random.default_rng(0), 4)] and texts


@pytest.mark.parametrize("seed", range(20))
def test_no_reading_order_leaves_a_patch_out(seed: int) -> None:
    order = reading_order(np.random.default_rng(seed))
    assert sorted(order) == list(range(576)) and {abs(int(d)) for d in np.diff(order[:24])} in ({1}, {24})


def test_branches_are_sequences_of_their_own(mini: GlammBackbone, tmp_path: Path) -> None:
    """A turn behind a shared image reads what it reads in a sequence without the other turns."""
    model, picks = mini.model, np.arange(2)
    talk = Conversations(mini.tokenizer)
    drawn = talk.draw(build_scenes(tmp_path, 2, workers=1), picks, 3, np.random.default_rng(0))
    visual = torch.randn(2, 40, 128, generator=torch.Generator().manual_seed(0))
    llm = model.language_model
    with torch.no_grad():
        states, _, _, _ = run_branches(llm, visual, drawn, POINT_LAYERS, NAMING_LAYER)
        for b, e in np.ndindex(2, 3):
            words = [llama.embed_ids(llm, ids) for ids in (drawn.prefix, drawn.lead, drawn.ids[b, e])]
            hidden = torch.cat([words[0], visual[b], *words[1:]])[None]
            by = llama.rotary(llm, torch.arange(hidden.shape[1])[None], hidden.dtype)
            for layer in llama.layers(llm):
                hidden = layer(hidden, by)
            asked = drawn.target[b, e] >= 0
            read = drawn.read[b, e, asked] - drawn.ids.shape[-1]
            alone = llama.norm(llm, hidden)[0, read]
            torch.testing.assert_close(states[b, e, asked], alone, rtol=1e-4, atol=1e-4)


def train(monkeypatch: pytest.MonkeyPatch, work: Path, *words: str) -> None:
    given = ["train", "--work", str(work), "--scenes", str(SCENES), "--device", "cpu", *words]
    monkeypatch.setattr(sys, "argv", given)
    train_mini.main()


def test_every_stage_trains_resumes_and_exports(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two steps of everything; a stopped stage goes on where it was; the result loads through the official
    layout."""
    for stage, defaults in (
        (segment.PointSegmentation, (2, 4)),
        (see.PatchReading, (2, 9)),
        (see.SceneMatching, (2,)),
    ):
        monkeypatch.setattr(stage.__init__, "__defaults__", defaults)  # smaller batches
    monkeypatch.setitem(ground.Pointing.__init__.__kwdefaults__, "batch", 2)
    monkeypatch.setattr(build_scenes, "__defaults__", (1,))
    sentences = tuple(written(60))  # of 400 scenes: enough words for the tokenizers
    monkeypatch.setattr("backbones.mini.training.text.corpus", lambda: sentences)
    train(monkeypatch, tmp_path, "--steps", STEPS)
    for stage in ("sam", "patches", "match", "point"):
        with (tmp_path / f"{stage}.csv").open() as handle:
            rows = list(csv.DictReader(handle))
        assert rows[-1]["step"] == "2" and np.isfinite(float(rows[-1]["loss"]))
    train(monkeypatch, tmp_path, "--stages", "point,export", "--steps", "point=3")
    assert torch.load(tmp_path / "point.pt", weights_only=True)["step"] == 3
    weights = tmp_path / "weights"
    backbone = backbones.load("glamm", checkpoint=weights / "checkpoint", clip=str(weights / "clip"))
    assert backbone.grid == (24, 24)
    again = tmp_path / "again"
    (again / "scenes").parent.mkdir()
    (again / "scenes").symlink_to(tmp_path / "scenes")
    train(monkeypatch, again, "--stages", "export", "--start", str(weights))
    assert (again / "weights/checkpoint/model.safetensors").read_bytes() == (
        weights / "checkpoint/model.safetensors"
    ).read_bytes()


@pytest.mark.filterwarnings("ignore:.*found in sys.modules")
def test_unknown_stage(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """By the module's entry, as a command has it."""
    monkeypatch.setattr(sys, "argv", ["train", "--work", str(tmp_path), "--stages", "sleep"])
    with pytest.raises(SystemExit) as stopped:
        runpy.run_module("backbones.mini.training.train", run_name="__main__")
    assert stopped.value.code == 2 and "sleep" in capsys.readouterr().err
