"""CLIP's two towers and SAM's mask decoder, piece by piece; no layer is asked for its attention map."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from pruners.base import Need


def hidden_states(vision: Any, pixels: Tensor) -> list[Tensor]:
    """CLIP's vision transformer: embeddings and every layer's output up to the penultimate, each (B, N+1, C).

    The last layer's output is read by nothing that GLaMM or a pruner uses, so that layer does not run.
    """
    states = [vision.pre_layrnorm(vision.embeddings(pixels))]
    for layer in vision.encoder.layers[:-1]:
        states.append(layer(states[-1], attention_mask=None))
    return states


def vision_signal(vision: Any, projection: nn.Module, states: tuple[Tensor, ...], need: Need) -> Tensor:
    """One signal of one image; kinds and shapes are those of `Need`.

    Args:
        vision: CLIP's vision transformer.
        projection: CLIP's visual projection.
        states: outputs of `hidden_states` for the image, each (N+1, C).
    """
    if need.kind == "projected_patches":
        return projection(vision.post_layernorm(states[-1][1:]))
    if need.layer is None:
        raise ValueError(f"there is no signal {need}")
    layer = vision.encoder.layers[need.layer]
    attention = layer.self_attn
    normed = layer.layer_norm1(states[need.layer])  # the last layer reads the last stored state
    match need.kind:
        case "cls_query":
            return attention.q_proj(normed[0])
        case "keys":
            return attention.k_proj(normed)
        case "values":
            return attention.v_proj(normed)
        case "cls_attention":
            return class_row(attention.q_proj(normed[0]), attention.k_proj(normed), attention.num_heads)
    raise ValueError(f"there is no signal {need}")


def class_row(query: Tensor, keys: Tensor, heads: int) -> Tensor:
    """(H, N+1) softmax of one query (C,) over keys (N+1, C), head by head, in at least float32."""
    query, keys = query.unflatten(-1, (heads, -1)), keys.unflatten(-1, (heads, -1))
    logits = torch.einsum("hd,nhd->hn", query, keys) * query.shape[-1] ** -0.5
    return logits.to(torch.promote_types(logits.dtype, torch.float32)).softmax(-1)


def embed_text(clip: Any, words: dict[str, Tensor]) -> Tensor:
    """(M, P) text projection of CLIP's tokens `input_ids` and `attention_mask`, each (M, W); not normalised."""
    return clip.text_projection(clip.text_model(**words).pooler_output)


def decode_masks(sam: Any, embeddings: Tensor, prompts: Tensor) -> Tensor:
    """Mask decoder: (M, P, g, g) image embeddings and (M, P) prompts -> (M, 4g, 4g) logits of the single mask."""
    grid = embeddings.shape[-1]
    dense = sam.prompt_encoder.no_mask_embed.weight.view(1, -1, 1, 1).expand(len(embeddings), -1, grid, grid)
    position = sam.get_image_wide_positional_embeddings().expand(len(embeddings), -1, -1, -1)
    logits, _ = sam.mask_decoder(embeddings, position, prompts[:, None, None], dense, multimask_output=False)
    return logits[:, 0, 0]
