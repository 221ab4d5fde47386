"""VideoGLaMM by its numbers alone: the release on Phi-3-mini."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from transformers import CLIPConfig

from backbones.glamm.full_size import CLIP_TEXT, CLIP_VISION
from backbones.parts.internvideo2 import VideoNumbers
from backbones.parts.sam2 import Sam2Numbers
from backbones.videoglamm.checkpoint import build_meta
from backbones.videoglamm.model import VideoGlammModel

if TYPE_CHECKING:
    from backbones.registry import Settings
    from backbones.videoglamm.shapes import VideoGlammShapes

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


def of_folder(settings: Settings, checkpoint: str, clip: str | None, attn: str = "sdpa") -> VideoGlammShapes:
    """A checkpoint's numbers; weights are not read.

    Args:
        settings: where budgets act, and how masks are made.
        checkpoint, clip: as in `settings.VideoGlamm`.

    Raises:
        UserError: a configuration is missing or unfit.
    """
    from backbones.parts import reading
    from backbones.videoglamm import loading, sizes
    from backbones.videoglamm.release import VIDEOGLAMM
    from backbones.videoglamm.settings import branch_of
    from backbones.videoglamm.shapes import VideoGlammShapes

    placement, asked = (getattr(settings, name) for name in ("placement", "frames"))
    folder = reading.checkpoint_folder(checkpoint, weights=False)
    tower = reading.clip_folder(clip, VIDEOGLAMM, weights=False)
    model, config = loading.on_meta(Path(folder), Path(tower), attn)
    frames = sizes.frame_count(config, asked, model.video_tower.numbers)
    model = model.eval().requires_grad_(False)
    branch = branch_of(settings, model.tracks)
    return VideoGlammShapes(model, placement, branch, frames, checkpoint=Path(folder))
