"""What a diagnosis reads of CLIP and no pruner does: the projected class token, and where [EOS] looks in the text."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from backbones.base import Encoding
from backbones.glamm.backbone import GlammBackbone


@torch.inference_mode()
def projected_class(backbone: GlammBackbone, encoding: Encoding) -> Tensor:
    """(P,) the class token beside the visual tokens, through the same norm and projection as they go to text."""
    clip = backbone.model.clip
    return clip.visual_projection(clip.vision_model.post_layernorm(encoding.hidden_states[-1][0]))


@torch.inference_mode()
def end_attention(backbone: GlammBackbone, texts: Sequence[str]) -> tuple[Tensor, Tensor]:
    """What the [EOS] token attends to, from stored hidden states.

    Args:
        texts: M texts, tokenised as the pruners' questions are.

    Returns:
        (M, layers) share of the attention that goes to the start token, mean over heads; (M,) tokens from start to [EOS].
    """
    words = backbone.clip_tokenizer(list(texts), padding=True, truncation=True, max_length=77, return_tensors="pt")
    words = words.to(backbone.device)
    ids, text = words["input_ids"], backbone.model.clip.text_model
    states = text(input_ids=ids, attention_mask=words["attention_mask"], output_hidden_states=True).hidden_states
    end = (ids == backbone.clip_tokenizer.eos_token_id).int().argmax(1)
    rows = torch.arange(len(ids), device=ids.device)
    behind = torch.arange(ids.shape[1], device=ids.device) > end[:, None]
    shares = []
    for layer, state in zip(text.encoder.layers, states[:-1], strict=True):
        attention, normed = layer.self_attn, layer.layer_norm1(state)
        query = attention.q_proj(normed[rows, end]).unflatten(-1, (attention.num_heads, -1))
        keys = attention.k_proj(normed).unflatten(-1, (attention.num_heads, -1))
        logits = torch.einsum("mhd,mnhd->mhn", query, keys).float() * attention.scale
        shares.append(logits.masked_fill(behind[:, None], -torch.inf).softmax(-1)[..., 0].mean(1))
    return torch.stack(shares, dim=1), end + 1
