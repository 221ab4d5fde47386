"""videoglamm-mini's parts, put together for training."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from backbones.glamm.model import GlammModel
from backbones.mini.training.config import PROMPT_WIDTH, mini_llm_config
from backbones.mini.training.ground import init_heads
from backbones.parts import llama
from backbones.parts.internvideo2 import VideoEncoder
from backbones.parts.tokenizer import LlamaTokenizer
from backbones.videoglamm.mini_training import watch

CLIP_SIDE, CLIP_POOL = 24, 12  # patches of a frame's side, and tokens after the pool
VIDEO_SIDE, VIDEO_POOL = watch.NUMBERS.grid[0], 8


def adapter(width: int, out: int) -> nn.Sequential:
    """Linear-GELU-Linear."""
    return nn.Sequential(nn.Linear(width, out), nn.GELU(), nn.Linear(out, out))


def pooled(tokens: Tensor, side: int, to: int) -> Tensor:
    """(B, T * side^2, C) -> (B, T * to^2, C): every frame's grid, averaged to a smaller one."""
    frames = tokens.unflatten(1, (-1, side, side)).flatten(0, 1).permute(0, 3, 1, 2)
    small = F.adaptive_avg_pool2d(frames, to).flatten(2).transpose(1, 2)
    return small.unflatten(0, (len(tokens), -1)).flatten(1, 2)


class VideoParts(nn.Module):
    """What is trained after CLIP: video encoder, two adapters, language model, [SEG] head, mask decoder."""

    def __init__(self, seeing: GlammModel, vocab: int) -> None:
        super().__init__()
        config = mini_llm_config(vocab)
        width = config.hidden_size
        self.video = VideoEncoder(watch.NUMBERS)
        self.image_projector = adapter(seeing.clip.config.vision_config.hidden_size, width)
        self.video_projector = adapter(watch.NUMBERS.width, width)
        self.language_model = llama.build_llama(config, "sdpa")
        self.text_hidden_fcs = nn.Sequential(
            nn.Linear(width, width), nn.ReLU(), nn.Linear(width, PROMPT_WIDTH)
        )
        self.lm_head = nn.Linear(width, vocab, bias=False)
        self.sam = seeing.grounding_encoder
        self.clip = seeing.clip

    def visual(self, images: Tensor, videos: Tensor) -> Tensor:
        """The visual tokens in their order.

        Args:
            images: (B, 4 * 576, C) CLIP's patch features, frame by frame.
            videos: (B, 4 * 256, C') the video encoder's.

        Returns:
            (B, 4 * 144 + 4 * 64, width).
        """
        first = pooled(self.image_projector(images), CLIP_SIDE, CLIP_POOL)
        second = pooled(self.video_projector(videos), VIDEO_SIDE, VIDEO_POOL)
        return torch.cat([first, second], dim=1)


def warm_start(parts: VideoParts, seeing: GlammModel, words: LlamaTokenizer, known: LlamaTokenizer) -> int:
    """Begin with glamm-mini's language side; returns how many tokens had a row to take over.

    Args:
        words: this model's tokenizer.
        known: glamm-mini's, whose rows go to the tokens of the same text.
    """
    init_heads(parts)  # type: ignore[arg-type]
    old, new = seeing.language_model, parts.language_model
    new.layers.load_state_dict(old.layers.state_dict())
    new.norm.load_state_dict(old.norm.state_dict())
    parts.image_projector.load_state_dict(seeing.projector.state_dict())
    parts.text_hidden_fcs[0].load_state_dict(seeing.text_hidden_fcs[0].state_dict())
    mine, theirs = words.tokens(), known.tokens()
    taken = 0
    with torch.no_grad():
        for text, row in mine.items():
            if text in theirs:
                taken += 1
                for a, b in (
                    (new.embed_tokens.weight, old.embed_tokens.weight),
                    (parts.lm_head.weight, seeing.lm_head.weight),
                ):
                    a[row] = b[theirs[text]]
    return taken
