"""LISA without weights: the numbers of LISA-7B-v1 and LISA-13B-llama2-v1, and a usual conversation."""

from __future__ import annotations

from dataclasses import replace

from transformers import CLIPConfig

from backbones.costs import Prompt
from backbones.glamm import full_size as glamm
from backbones.glamm.checkpoint import build_meta
from backbones.glamm.model import GlammModel
from backbones.glamm.shapes import GlammShapes
from backbones.lisa.conversation import TEMPLATES, build_prompt, turn
from backbones.lisa.release import LISA
from backbones.parts.tokenizer import IMAGE_TOKEN, LlamaTokenizer
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
# one expression of three words or four in LLaMA's tokens; a word more is a token or two more
USUAL = Prompt(text=60, before=35, turns=1, words=18, sentence=1)
LIKE = "man in red shirt"


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


class LisaShapes(GlammShapes):
    """The numbers of a LISA."""

    usual = USUAL

    def counted(self, tokenizer: LlamaTokenizer) -> Prompt:
        """A conversation of one expression, as long as this tokenizer makes it."""
        ids = tokenizer.encode(build_prompt([turn(LIKE)], TEMPLATES[0]))
        return replace(USUAL, text=len(ids) - 1, before=ids.index(IMAGE_TOKEN))
