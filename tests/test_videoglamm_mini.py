"""The embedded model of clips: its files, and (as a floor, never a rank) what it can do."""

from __future__ import annotations

import json
import re
from typing import cast

import numpy as np
import pytest
import torch

import backbones
from backbones.mini import MINI
from backbones.parts import sam as sams
from backbones.parts.tokenizer import Phi3Tokenizer
from backbones.videoglamm.backbone import VideoGlammBackbone
from backbones.videoglamm.mini import CHECKPOINT
from backbones.videoglamm.mini_training import judge
from backbones.videoglamm.mini_training.data import seen_frames
from backbones.videoglamm.mini_training.teach import grounding_pixels
from harness.data.refclips.splits import painted

CLIPS = range(100, 105)


@pytest.fixture(scope="module")
def mini() -> VideoGlammBackbone:
    return cast(VideoGlammBackbone, backbones.load("videoglamm-mini"))


def test_files_are_official_and_small() -> None:
    files = [path for path in CHECKPOINT.parent.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) <= 8 * 2**20
    assert {path.name for path in files} == {
        "added_tokens.json",
        "config.json",
        "model.safetensors",
        "sam_dims.json",
        "special_tokens_map.json",
        "tokenizer.model",
        "tokenizer_config.json",
        "video_dims.json",
    }
    assert not re.search(rb"/(work|farm|tmp|home|root|Users)/", (CHECKPOINT / "tokenizer.model").read_bytes())


def test_config_leads_to_clip() -> None:
    config = json.loads((CHECKPOINT / "config.json").read_text())
    assert config["model_type"] == "VideoGPT+" and config["num_frames"] == 4
    assert (CHECKPOINT / config["image_mm_vision_tower"]).resolve() == (MINI / "clip").resolve()


def test_it_sees(mini: VideoGlammBackbone) -> None:
    """A floor far below the card's figures; it needs its tokens, and says [SEG] by itself."""
    words, model = Phi3Tokenizer(CHECKPOINT), mini.model
    found: dict[str, list[float]] = {"seeing": [], "elsewhere": []}
    said, other = [], None
    for index in CLIPS:
        clip = painted("held", index)
        visual = judge.visual_tokens(model, clip.frames[seen_frames(len(clip.frames))])
        asked = judge.asked_of(clip, np.random.default_rng(index))
        with torch.no_grad():
            embeddings = sams.encode(model.grounding_encoder, grounding_pixels(clip.frames))
        for name, tokens in (("seeing", visual), ("elsewhere", other)):
            if tokens is None:
                continue
            answers = judge.written(model, words, tokens, [one.text for one in asked])
            for one, (prompt, ids) in zip(asked, answers, strict=True):
                truth = clip.masks[one.target]
                mask = np.zeros_like(truth) if prompt is None else judge.masks(model, embeddings, prompt)
                found[name].append(judge.overlap(mask, truth))
                said += [ids[-1] == words.seg_id] if name == "seeing" else []
        other = visual
    assert np.mean(found["seeing"]) > 0.6 and np.mean(said) > 0.9
    assert np.mean(found["elsewhere"]) < 0.6 * np.mean(found["seeing"])
