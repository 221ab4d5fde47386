"""The released GLaMM-RefSeg (7B) by its numbers, for what can be said of it without its weights."""

from __future__ import annotations

from transformers import CLIPConfig

from backbones.glamm.checkpoint import build_meta
from backbones.glamm.model import GlammModel

LLM = {
    "vocab_size": 32007,
    "hidden_size": 4096,
    "intermediate_size": 11008,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
}
CLIP_VISION = {
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "num_hidden_layers": 24,
    "num_attention_heads": 16,
    "image_size": 336,
    "patch_size": 14,
    "projection_dim": 768,
}
CLIP_TEXT = {
    "hidden_size": 768,
    "intermediate_size": 3072,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "projection_dim": 768,
}


def meta_7b(attn: str = "sdpa") -> GlammModel:
    """GLaMM-7B with CLIP ViT-L/14-336 and SAM ViT-H on the meta device."""
    clip = CLIPConfig(vision_config=CLIP_VISION, text_config=CLIP_TEXT, projection_dim=CLIP_VISION["projection_dim"])
    return build_meta(LLM, clip, attn=attn).eval().requires_grad_(False)
