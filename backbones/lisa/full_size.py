"""LISA by its numbers alone: LISA-7B-v1 and LISA-13B-llama2-v1."""

from __future__ import annotations

from transformers import CLIPConfig

from backbones.glamm import full_size as glamm
from backbones.glamm.checkpoint import build_meta
from backbones.glamm.model import GlammModel
from backbones.lisa.release import LISA
from pruners.errors import UserError, nearest

LLM = {
    "lisa-7b": glamm.LLM | {"vocab_size": 32003, "max_position_embeddings": 2048},
    "lisa-13b": {
        "vocab_size": 32003,
        "hidden_size": 5120,
        "intermediate_size": 13824,
        "num_hidden_layers": 40,
        "num_attention_heads": 40,
        "max_position_embeddings": 4096,
    },
}
CLIP_VISION = glamm.CLIP_VISION | {"image_size": 224}


def on_meta(name: str, attn: str = "sdpa") -> GlammModel:
    """A model on the meta device, with CLIP ViT-L/14 at 224 pixels and SAM ViT-H.

    Raises:
        UserError: there are no numbers under that name.
    """
    if name not in LLM:
        raise UserError(
            f"There is no model {name!r} to project; there are {', '.join(LLM)}.{nearest(name, LLM)}"
        )
    clip = CLIPConfig(
        vision_config=CLIP_VISION, text_config=glamm.CLIP_TEXT, projection_dim=CLIP_VISION["projection_dim"]
    )
    return build_meta(LLM[name], clip, attn=attn, release=LISA).eval().requires_grad_(False)
