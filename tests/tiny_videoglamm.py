"""A tiny VideoGLaMM of random weights in the layout of the official release, and clips for it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import torch

import backbones
from backbones.base import ClipEncoding, Row
from backbones.glamm.sizes import clip_config, sam_config
from backbones.parts.clips import Frames
from backbones.parts.internvideo2 import VideoNumbers
from backbones.parts.sam2 import Sam2Numbers
from backbones.videoglamm.backbone import VideoGlammBackbone
from backbones.videoglamm.checkpoint import save_checkpoint
from backbones.videoglamm.model import VideoGlammModel
from backbones.videoglamm.release import VIDEOGLAMM
from backbones.videoglamm.sizes import llm_config
from pruners import checks, parse

HERE = Path(__file__).parent
CLIP = HERE / "golden" / "glamm" / "clip"
WORDS = Path(backbones.MINI) / "checkpoint" / "tokenizer.model"
PHI3 = HERE / "golden" / "video" / "phi3_tokens.json"
FRAMES, WINDOW = 2, 60
VIDEO = VideoNumbers(width=32, depth=3, heads=4, hidden=48, patch=2, image=16, frames=2)
LLM = {
    "vocab_size": 647,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "max_position_embeddings": 4096,
    "sliding_window": WINDOW,
}
SAM: dict[str, Any] = {
    "img_size": 64,
    "patch_size": 16,
    "embed_dim": 32,
    "depth": 2,
    "num_heads": 2,
    "mlp_ratio": 2.0,
    "window_size": 2,
    "global_attn_indexes": [1],
    "out_chans": 16,
    "mask_in_chans": 8,
    "decoder_mlp_dim": 32,
    "decoder_num_heads": 2,
    "iou_head_hidden_dim": 16,
}
SAM2: dict[str, Any] = {
    "image": 64,
    "width": 64,
    "embed": 8,
    "heads": 1,
    "blocks": [1, 1, 2, 1],
    "global_blocks": [3],
    "windows": [4, 2, 4, 2],
    "background": 3,
    "memory_layers": 1,
    "memory_hidden": 32,
    "decoder_heads": 4,
    "decoder_hidden": 32,
    "quality_hidden": 16,
    "memories": 3,
    "pointers": 4,
}


def tokenizer(folder: Path) -> Path:
    """Phi-3's settings with few pieces."""
    folder.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(WORDS, folder / "tokenizer.model")
    held = json.loads(PHI3.read_text())
    (folder / "added_tokens.json").write_text(json.dumps(held["added"]))
    how = {"add_bos_token": True, "legacy": False, **held["config"]}
    (folder / "tokenizer_config.json").write_text(json.dumps(how))
    return folder


def random_model(sam2: bool) -> VideoGlammModel:
    """Weights that let a segmenter and a language model say different things of different clips."""
    torch.manual_seed(0)
    if sam2:
        numbers: Any = Sam2Numbers(**{k: tuple(v) if isinstance(v, list) else v for k, v in SAM2.items()})
    else:
        numbers = sam_config(SAM)
    model = VideoGlammModel(clip_config(CLIP, VIDEOGLAMM), VIDEO, llm_config(LLM), numbers, "sdpa")
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if name.startswith("clip."):
                continue
            if weight.ndim == 1:
                weight.uniform_(0.5, 1.5) if name.endswith(("weight", "gamma")) else weight.normal_(0, 0.2)
            else:
                weight.normal_(0, min(0.4, 1.6 * weight[0].numel() ** -0.5))
    return model


def write(folder: Path, sam2: bool = False) -> Path:
    """A checkpoint's folder."""
    words = tokenizer(folder / "words")
    how: Any = {"tokenizer": words, "frames": FRAMES, "segmenter": SAM2 if sam2 else SAM}
    save_checkpoint(random_model(sam2), folder / "checkpoint", CLIP, **how, dtype=torch.float32)
    return folder / "checkpoint"


def load(checkpoint: Path, batch_size: int = 16, **settings: Any) -> VideoGlammBackbone:
    """The backbone of a folder that `write` made."""
    asked = backbones.get("videoglamm")(checkpoint=str(checkpoint), clip=str(CLIP), **settings)
    found = backbones.load(asked, batch_size=batch_size)
    assert isinstance(found, VideoGlammBackbone)
    return found


def clip(length: int = 3, window: int = 0, seed: int = 0, size: tuple[int, int] = (30, 44)) -> Frames:
    """Frames of noise."""
    draw = np.random.default_rng(seed)
    return Frames.of(list(draw.integers(0, 256, (length, *size, 3), dtype=np.uint8)), window)


def row(
    backbone: VideoGlammBackbone,
    encoding: Any,
    text: str,
    budget: int = 0,
    expression: str = "the red star",
    **how: Any,
) -> Row:
    """One expression under one pruner; a budget of 0 is all there is."""
    assert isinstance(encoding, ClipEncoding)
    (pruner,) = parse(text)
    budget = budget or backbone.grid[0] * backbone.grid[1]
    turns = (backbone.turn(expression),)
    views = backbone.views(encoding, turns, "sample")
    chosen = checks.select_views(pruner, views, budget, backbone.num_layers)
    return Row(encoding, turns, pruner, budget, chosen, "sample", **{"answers": "generated", **how})
