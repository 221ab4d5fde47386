"""What a diagnosis reads of CLIP and no pruner does: the projected class token, and where [EOS] looks in the
text."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from backbones.base import Encoding
from backbones.glamm.backbone import GlammBackbone
from backbones.parts import clip


@torch.inference_mode()
def projected_class(backbone: GlammBackbone, encoding: Encoding) -> Tensor:
    """(P,) the class token beside the visual tokens, through the same norm and projection as they go to
    text."""
    return clip.project(backbone.model.clip, encoding.hidden_states[-1][0])


@torch.inference_mode()
def end_attention(backbone: GlammBackbone, texts: Sequence[str]) -> tuple[Tensor, Tensor]:
    """What the [EOS] token attends to, from stored hidden states.

    Args:
        texts: M texts, tokenised as the pruners' questions are.

    Returns:
        (M, layers) share of the attention that goes to the start token, mean over heads; (M,) tokens from
        start to [EOS].
    """
    words = backbone.clip_words(tuple(texts))
    end = (words["input_ids"] == backbone.clip_tokenizer.eos_token_id).int().argmax(1)
    return clip.end_attention(backbone.model.clip, words, end), end + 1
