"""Names of tensors in official checkpoints to this project's and back."""

from __future__ import annotations

import re

from backbones.parts.release import Release

_PAIRS: tuple[tuple[str, str], ...] = (
    ("model.embed_tokens.", "language_model.embed_tokens."),
    ("model.layers.", "language_model.layers."),
    ("model.norm.", "language_model.norm."),
    ("model.mm_projector.", "projector."),
    ("model.text_hidden_fcs.0.", "text_hidden_fcs."),
    ("lm_head.", "lm_head."),
)
_GROUNDING = "grounding_encoder."
_GROUNDING_PARTS: tuple[tuple[str, str], ...] = (
    ("image_encoder.pos_embed", "vision_encoder.pos_embed"),
    ("image_encoder.patch_embed.proj.", "vision_encoder.patch_embed.projection."),
    ("image_encoder.blocks.", "vision_encoder.layers."),
    ("image_encoder.neck.0.", "vision_encoder.neck.conv1."),
    ("image_encoder.neck.1.", "vision_encoder.neck.layer_norm1."),
    ("image_encoder.neck.2.", "vision_encoder.neck.conv2."),
    ("image_encoder.neck.3.", "vision_encoder.neck.layer_norm2."),
    (
        "prompt_encoder.pe_layer.positional_encoding_gaussian_matrix",
        "shared_image_embedding.positional_embedding",
    ),
    ("prompt_encoder.point_embeddings.", "prompt_encoder.point_embed."),
    ("prompt_encoder.mask_downscaling.0.", "prompt_encoder.mask_embed.conv1."),
    ("prompt_encoder.mask_downscaling.1.", "prompt_encoder.mask_embed.layer_norm1."),
    ("prompt_encoder.mask_downscaling.3.", "prompt_encoder.mask_embed.conv2."),
    ("prompt_encoder.mask_downscaling.4.", "prompt_encoder.mask_embed.layer_norm2."),
    ("prompt_encoder.mask_downscaling.6.", "prompt_encoder.mask_embed.conv3."),
    ("mask_decoder.output_upscaling.0.", "mask_decoder.upscale_conv1."),
    ("mask_decoder.output_upscaling.1.", "mask_decoder.upscale_layer_norm."),
    ("mask_decoder.output_upscaling.3.", "mask_decoder.upscale_conv2."),
    ("mask_decoder.transformer.norm_final_attn.", "mask_decoder.transformer.layer_norm_final_attn."),
)
# transformers keeps a second copy of the point code, tied to the first
TIED = "grounding_encoder.prompt_encoder.shared_embedding.positional_embedding"
SHARED = "grounding_encoder.shared_image_embedding.positional_embedding"
# in all families' checkpoints, but not needed for referring segmentation
UNNEEDED = re.compile(
    r"\.rotary_emb\.inv_freq$|^model\.vision_tower\.|^model\.(image_newline|mm_vision_resampler)"
)
# what peft leaves beside or in front of the base model's names until an adapter is merged
UNMERGED = re.compile(r"lora_|^base_model\.|\.modules_to_save\.|\.base_layer\.")
_HEADS = r"(mask_decoder\.(?:output_hypernetworks_mlps\.\d+|iou_prediction_head)\.)"


def to_ours(key: str, release: Release) -> str | None:
    """Our name of a release's key; None for keys that are known and not needed.

    Raises:
        KeyError: the key is unknown.
    """
    if UNNEEDED.search(key) or key.startswith(release.unneeded):
        return None
    for theirs, ours in _PAIRS:
        if key.startswith(theirs):
            return ours + key[len(theirs) :]
    if key.startswith(release.grounding):
        rest = key[len(release.grounding) :]
        for theirs, ours in _GROUNDING_PARTS:
            if rest.startswith(theirs):
                rest = ours + rest[len(theirs) :]
                break
        rest = re.sub(
            r"^(vision_encoder\.layers\.\d+\.|mask_decoder\.transformer\.layers\.\d+\.)norm(\d)",
            r"\1layer_norm\2",
            rest,
        )
        if found := re.match(_HEADS + r"layers\.(\d)\.(.*)", rest):
            part = {"0": "proj_in", "1": "layers.0", "2": "proj_out"}[found[2]]
            rest = f"{found[1]}{part}.{found[3]}"
        return _GROUNDING + rest
    raise KeyError(key)


def to_official(key: str, release: Release) -> str | None:
    """A release's name of our key; None for CLIP's and the tied copy, which its checkpoints do not hold."""
    if key.startswith("clip.") or key == TIED:
        return None
    for theirs, ours in _PAIRS:
        if key.startswith(ours):
            return theirs + key[len(ours) :]
    rest = key.removeprefix(_GROUNDING)
    if found := re.match(_HEADS + r"(proj_in|layers\.0|proj_out)\.(.*)", rest):
        part = {"proj_in": "0", "layers.0": "1", "proj_out": "2"}[found[2]]
        rest = f"{found[1]}layers.{part}.{found[3]}"
    rest = re.sub(
        r"^(vision_encoder\.layers\.\d+\.|mask_decoder\.transformer\.layers\.\d+\.)layer_norm(\d)",
        r"\1norm\2",
        rest,
    )
    for theirs, ours in _GROUNDING_PARTS:
        if rest.startswith(ours):
            rest = theirs + rest[len(ours) :]
            break
    return release.grounding + rest
