"""videoglamm-mini's parts, put together for training."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from backbones.glamm.model import GlammModel
from backbones.mini.training.config import CLIP_PATCH, IMAGE, mini_llm_config
from backbones.mini.training.ground import init_heads
from backbones.parts.tokenizer import LlamaTokenizer
from backbones.videoglamm.budgets import POOL, VIDEO_POOL
from backbones.videoglamm.mini_training import watch
from backbones.videoglamm.model import VideoGlammModel

CLIP_SIDE = IMAGE // CLIP_PATCH
WINDOW = 2048  # of the language model's attention, longer than any sequence here


def pooled(tokens: Tensor, side: int, to: int) -> Tensor:
    """(B, T * side^2, C) -> (B, T * to^2, C): every frame's grid, averaged to a smaller one."""
    frames = tokens.unflatten(1, (-1, side, side)).flatten(0, 1).permute(0, 3, 1, 2)
    small = F.adaptive_avg_pool2d(frames, to).flatten(2).transpose(1, 2)
    return small.unflatten(0, (len(tokens), -1)).flatten(1, 2)


def build(seeing: GlammModel, vocab: int) -> VideoGlammModel:
    """The model with glamm-mini's CLIP and mask decoder; the rest has new weights."""
    config = mini_llm_config(vocab)
    config.sliding_window = WINDOW  # type: ignore[attr-defined]
    model = VideoGlammModel(seeing.clip.config, watch.NUMBERS, config, seeing.grounding_encoder.config)
    model.clip.load_state_dict(seeing.clip.state_dict())
    model.grounding_encoder.load_state_dict(seeing.grounding_encoder.state_dict())
    return model


def spliced(model: VideoGlammModel, images: Tensor, videos: Tensor) -> Tensor:
    """The visual tokens in their order.

    Args:
        images: (B, 4 * 576, C) CLIP's patch features, frame by frame.
        videos: (B, 4 * 256, C') the video encoder's.

    Returns:
        (B, 4 * 144 + 4 * 64, width).
    """
    first = pooled(model.projector(images), CLIP_SIDE, POOL)
    second = pooled(model.video_projector(videos), watch.NUMBERS.grid[0], VIDEO_POOL)
    return torch.cat([first, second], dim=1)


def warm_start(
    model: VideoGlammModel, seeing: GlammModel, words: LlamaTokenizer, known: LlamaTokenizer
) -> int:
    """Begin with glamm-mini's language side; returns how many tokens had a row to take over.

    Args:
        words: this model's tokenizer.
        known: glamm-mini's, whose rows go to the tokens of the same text.
    """
    init_heads(model)  # type: ignore[arg-type]
    old, new = seeing.language_model, model.language_model
    new.layers.load_state_dict(old.layers.state_dict())
    new.norm.load_state_dict(old.norm.state_dict())
    model.projector.load_state_dict(seeing.projector.state_dict())
    model.text_hidden_fcs[0].load_state_dict(seeing.text_hidden_fcs[0].state_dict())
    mine, theirs = words.tokens(), known.tokens()
    taken = 0
    with torch.no_grad():
        for text, row in mine.items():
            if text in theirs:
                taken += 1
                for a, b in (
                    (new.get_input_embeddings().weight, old.get_input_embeddings().weight),
                    (model.lm_head.weight, seeing.lm_head.weight),
                ):
                    a[row] = b[theirs[text]]
    return taken
