"""SAM2's official tensor names and those of `backbones.parts.sam2`, both ways.

A pair stands for all names that begin with it, the first that fits counts; `#` is a number that both sides
share. What no pair changes keeps its name.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

Pairs = tuple[tuple[str, str], ...]
# a second copy of the positional code, so that no checkpoint holds it
COPY = "shared_image_embedding.positional_embedding"


def _chain(theirs: str, ours: str, names: Iterable[str]) -> Pairs:
    """Layers of a numbered official sequence, of which those without tensors are named ""."""
    return tuple((f"{theirs}{index}.", f"{ours}{name}.") for index, name in enumerate(names) if name)


def _perceptron(theirs: str, ours: str) -> Pairs:
    """Three linear layers."""
    return _chain(f"{theirs}.layers.", f"{ours}.", ("proj_in", "layers.0", "proj_out"))


_DECODER, _TWO_WAY = "sam_mask_decoder.", "sam_mask_decoder.transformer."
_TRUNK, _MEMORY = "image_encoder.trunk.", "memory_encoder."
_PROMPT = "sam_prompt_encoder."
# four times a convolution, a norm and a GELU, then the last convolution
_MASK_LAYERS = [f"layers.{i}.{part}" for i in range(4) for part in ("conv", "layer_norm", "")] + [
    "final_conv"
]

PAIRS: Pairs = (
    ("maskmem_tpos_enc", "memory_temporal_positional_encoding"),
    ("no_mem_embed", "no_memory_embedding"),
    ("no_mem_pos_enc", "no_memory_positional_encoding"),
    ("no_obj_ptr", "no_object_pointer"),
    *_perceptron("obj_ptr_proj", "object_pointer_proj"),
    # the image encoder
    (f"{_TRUNK}patch_embed.proj.", "vision_encoder.backbone.patch_embed.projection."),
    (f"{_TRUNK}blocks.#.norm#.", "vision_encoder.backbone.blocks.#.layer_norm#."),
    *_chain(
        f"{_TRUNK}blocks.#.mlp.layers.", "vision_encoder.backbone.blocks.#.mlp.", ("proj_in", "proj_out")
    ),
    (_TRUNK, "vision_encoder.backbone."),
    ("image_encoder.neck.convs.#.conv.", "vision_encoder.neck.convs.#."),
    # memory
    ("memory_attention.norm.", "memory_attention.layer_norm."),
    ("memory_attention.layers.#.norm#.", "memory_attention.layers.#.layer_norm#."),
    ("memory_attention.layers.#.self_attn.out_proj.", "memory_attention.layers.#.self_attn.o_proj."),
    (
        "memory_attention.layers.#.cross_attn_image.out_proj.",
        "memory_attention.layers.#.cross_attn_image.o_proj.",
    ),
    *_chain(f"{_MEMORY}mask_downsampler.encoder.", f"{_MEMORY}mask_downsampler.", _MASK_LAYERS),
    (f"{_MEMORY}pix_feat_proj.", f"{_MEMORY}feature_projection."),
    (f"{_MEMORY}out_proj.", f"{_MEMORY}projection."),
    # the official name is `gamma`; checkpoints written by older transformers have `weight`, as VideoGLaMM's
    (f"{_MEMORY}fuser.layers.#.weight", f"{_MEMORY}memory_fuser.layers.#.scale"),
    (f"{_MEMORY}fuser.layers.#.gamma", f"{_MEMORY}memory_fuser.layers.#.scale"),
    (f"{_MEMORY}fuser.layers.#.dwconv.", f"{_MEMORY}memory_fuser.layers.#.depthwise_conv."),
    (f"{_MEMORY}fuser.layers.#.norm.", f"{_MEMORY}memory_fuser.layers.#.layer_norm."),
    (f"{_MEMORY}fuser.layers.#.pwconv#.", f"{_MEMORY}memory_fuser.layers.#.pointwise_conv#."),
    # prompts
    (
        f"{_PROMPT}pe_layer.positional_encoding_gaussian_matrix",
        "prompt_encoder.shared_embedding.positional_embedding",
    ),
    (f"{_PROMPT}point_embeddings.", "prompt_encoder.point_embed."),
    *_chain(
        f"{_PROMPT}mask_downscaling.",
        "prompt_encoder.mask_embed.",
        ("conv1", "layer_norm1", "", "conv2", "layer_norm2", "", "conv3"),
    ),
    (_PROMPT, "prompt_encoder."),
    # the mask decoder
    (f"{_TWO_WAY}norm_final_attn.", "mask_decoder.transformer.layer_norm_final_attn."),
    (
        f"{_TWO_WAY}final_attn_token_to_image.out_proj.",
        "mask_decoder.transformer.final_attn_token_to_image.o_proj.",
    ),
    (f"{_TWO_WAY}layers.#.norm#.", "mask_decoder.transformer.layers.#.layer_norm#."),
    *(
        (f"{_TWO_WAY}layers.#.{name}.out_proj.", f"mask_decoder.transformer.layers.#.{name}.o_proj.")
        for name in ("self_attn", "cross_attn_token_to_image", "cross_attn_image_to_token")
    ),
    *_chain(
        f"{_TWO_WAY}layers.#.mlp.layers.", "mask_decoder.transformer.layers.#.mlp.", ("proj_in", "proj_out")
    ),
    *_chain(
        f"{_DECODER}output_upscaling.",
        "mask_decoder.",
        ("upscale_conv1", "upscale_layer_norm", "", "upscale_conv2"),
    ),
    *(
        pair
        for name in ("output_hypernetworks_mlps.#", "iou_prediction_head", "pred_obj_score_head")
        for pair in _perceptron(_DECODER + name, f"mask_decoder.{name}")
    ),
    (_DECODER, "mask_decoder."),
)


def _compiled(pairs: Iterable[tuple[str, str]]) -> list[tuple[re.Pattern[str], str]]:
    return [
        (re.compile(re.escape(one).replace(r"\#", r"(\d+)")), other.replace("#", "{}"))
        for one, other in pairs
    ]


_THEIRS = _compiled(PAIRS)
_OURS = _compiled((ours, theirs) for theirs, ours in PAIRS)


def _renamed(name: str, pairs: list[tuple[re.Pattern[str], str]]) -> str:
    for pattern, other in pairs:
        if found := pattern.match(name):
            return other.format(*found.groups()) + name[found.end() :]
    return name


def own_name(name: str) -> str:
    """An official name as the module of `sam2.build_sam2` has it."""
    return _renamed(name, _THEIRS)


def official_name(name: str) -> str:
    """The official name of a tensor of that module, the fuser's scale as VideoGLaMM's checkpoint has it."""
    return _renamed(name, _OURS)
