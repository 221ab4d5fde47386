"""SAM over transformers' `SamModel`: the one place that knows its parts.

Its image encoder and its mask decoder run by their own forward.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor
from transformers import SamConfig, SamModel


def build_sam(config: SamConfig, attn: str) -> Any:
    """A model of these numbers with new weights."""
    # SAM's relative positions are an additive attention bias, which flash attention cannot take
    return SamModel._from_config(config, attn_implementation="sdpa" if attn == "flash_attention_2" else attn)


def materialise_sam(sam: SamModel) -> None:
    """Tie the prompt encoder's positional code to the image's, which is the one that checkpoints hold."""
    sam.prompt_encoder.shared_embedding.positional_embedding = sam.shared_image_embedding.positional_embedding


def encode(sam: SamModel, pixels: Tensor) -> Tensor:
    """(B, 3, H', H') normalised and padded pixels -> (B, P, g, g) image embeddings."""
    return sam.vision_encoder(pixels)[0]  # type: ignore[no-any-return]


def positional(sam: SamModel) -> Tensor:
    """(1, P, g, g) code of every place of an image embedding."""
    return sam.get_image_wide_positional_embeddings()  # type: ignore[no-any-return]


def point_prompt(sam: SamModel, points: Tensor) -> Tensor:
    """Code of positive points (..., 2), x and y in 0..1: (..., P)."""
    return sam.shared_image_embedding(points[None, None])[0, 0] + sam.prompt_encoder.point_embed[1].weight[0]  # type: ignore


def decode(sam: SamModel, embeddings: Tensor, prompts: Tensor) -> tuple[Tensor, Tensor]:
    """Masks of prompts, the single one of each.

    Args:
        embeddings: (B, P, g, g) image embeddings.
        prompts: (B, M, P), one sparse prompt per mask.

    Returns:
        (B, M, 4g, 4g) logits, and (B, M) the decoder's own guess of their quality.
    """
    batch, grid = len(embeddings), embeddings.shape[-1]
    dense = sam.prompt_encoder.no_mask_embed.weight.view(1, -1, 1, 1).expand(batch, -1, grid, grid)
    place = positional(sam).expand(batch, -1, -1, -1)
    logits, quality = sam.mask_decoder(embeddings, place, prompts[:, :, None], dense, multimask_output=False)[
        :2
    ]
    return logits[:, :, 0], quality[:, :, 0]


def decode_masks(sam: SamModel, embeddings: Tensor, prompts: Tensor) -> Tensor:
    """(M, P, g, g) image embeddings and (M, P) prompts, one each -> (M, 4g, 4g) logits."""
    return decode(sam, embeddings, prompts[:, None])[0][:, 0]
