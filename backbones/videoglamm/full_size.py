"""VideoGLaMM by its numbers alone: the release on Phi-3-mini."""

from __future__ import annotations

from typing import Any

from transformers import CLIPConfig

from backbones.glamm.full_size import CLIP_TEXT, CLIP_VISION
from backbones.parts.internvideo2 import VideoNumbers
from backbones.parts.sam2 import Sam2Numbers
from backbones.videoglamm.checkpoint import build_meta
from backbones.videoglamm.model import VideoGlammModel

PHI3_MINI: dict[str, Any] = {
    "vocab_size": 32012,
    "hidden_size": 3072,
    "intermediate_size": 8192,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 32,
    "max_position_embeddings": 4096,
    "sliding_window": 2047,
}


def on_meta(attn: str = "sdpa") -> VideoGlammModel:
    """The model on the meta device: Phi-3-mini, CLIP ViT-L/14-336, InternVideo2 1B and SAM2 Hiera-L."""
    clip = CLIPConfig(
        vision_config=CLIP_VISION, text_config=CLIP_TEXT, projection_dim=CLIP_VISION["projection_dim"]
    )
    return build_meta(PHI3_MINI, clip, VideoNumbers(), Sam2Numbers(), attn).eval().requires_grad_(False)
