"""Models by their numbers alone, for what can be said of them without weights: the released GLaMM-RefSeg
(7B), the mini."""

from __future__ import annotations

from transformers import CLIPConfig

from backbones import MINI
from backbones.glamm.checkpoint import build_meta
from backbones.glamm.model import GlammModel
from backbones.glamm.reading import read_json
from backbones.glamm.sizes import clip_config
from pruners.base import UserError, nearest

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


NAMES = ("glamm-7b", "glamm-mini")


def on_meta(name: str, attn: str = "sdpa") -> GlammModel:
    """A model on the meta device: glamm-7b has CLIP ViT-L/14-336 and SAM ViT-H.

    Raises:
        UserError: there are no numbers under that name.
    """
    if name == "glamm-7b":
        clip = CLIPConfig(
            vision_config=CLIP_VISION, text_config=CLIP_TEXT, projection_dim=CLIP_VISION["projection_dim"]
        )
        return build_meta(LLM, clip, attn=attn).eval().requires_grad_(False)
    if name == "glamm-mini":
        settings, sam = (
            read_json(MINI / "checkpoint" / file, "get it again") for file in ("config.json", "sam_dims.json")
        )
        return build_meta(settings, clip_config(MINI / "clip"), sam, attn).eval().requires_grad_(False)
    raise UserError(
        f"There is no model {name!r} to project; there are {', '.join(NAMES)}.{nearest(name, NAMES)}"
    )
