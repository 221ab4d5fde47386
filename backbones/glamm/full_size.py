"""Models by their numbers alone, for what can be said of them without weights: the released GLaMM-RefSeg
(7B), the mini."""

from __future__ import annotations

from pathlib import Path

from transformers import CLIPConfig

from backbones.glamm.checkpoint import build_meta
from backbones.glamm.model import GlammModel
from backbones.glamm.release import GLAMM
from backbones.glamm.sizes import clip_config, sam_numbers
from backbones.mini import MINI
from backbones.parts.json_files import read_json
from backbones.parts.reading import checkpoint_folder, clip_folder
from backbones.parts.release import Release
from pruners.errors import UserError, nearest

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
        return of_folder(str(MINI / "checkpoint"), str(MINI / "clip"), None, attn)
    raise UserError(
        f"There is no model {name!r} to project; there are {', '.join(NAMES)}.{nearest(name, NAMES)}"
    )


def of_folder(
    checkpoint: str, clip: str | None, sam_dims: str | None, attn: str = "sdpa", release: Release = GLAMM
) -> GlammModel:
    """A checkpoint's model on the meta device; arguments are those of `settings.Glamm`, weights are not read.

    Raises:
        UserError: a configuration is missing or unfit.
    """
    folder = checkpoint_folder(checkpoint, weights=False)
    settings = read_json(folder / "config.json", release.files)
    sam = sam_numbers(folder, Path(sam_dims) if sam_dims is not None else None)
    tower = clip_config(clip_folder(clip, release, weights=False), release)
    return build_meta(settings, tower, sam, attn, release).eval().requires_grad_(False)
