"""SAM2 with a text prompt over transformers' `Sam2VideoModel`: the one place that knows what is inside it.

Source: SAM 2 (Ravi et al., ICLR 2025), in the release of July 2024 ("2.0"); the text prompt is VideoGLaMM's
(Munasinghe et al., CVPR 2025). A frame is encoded once for all prompts; then `framewise` segments it by
itself, or a `Tracker` with what it remembers of earlier frames. transformers' own session, which wants a
whole video and runs one object at a time, is not used: its parts are, on many prompts at once.
"""

from __future__ import annotations

import inspect
from collections import deque
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import Sam2HieraDetConfig, Sam2VideoConfig, Sam2VideoModel, Sam2VisionConfig

from backbones import versions
from backbones.parts.errors import sample
from backbones.parts.sam2_sizes import MEMORY_WIDTH, PATCH, Sam2Numbers
from pruners.errors import UserError

ABSENT = -1024.0  # logit of a frame that does not show the object
MASK_SCALE, MASK_BIAS = 20.0, -10.0  # of probabilities on their way to the memory encoder
# all that is called or read below; point_embed and shared_embedding are what `_one_by_one` and
# `materialise_sam2` change
INSIDE = (
    "vision_encoder",
    "mask_decoder.conv_s0",
    "mask_decoder.conv_s1",
    "prompt_encoder.no_mask_embed.weight",
    "prompt_encoder.not_a_point_embed.weight",
    "prompt_encoder.point_embed.weight",
    "prompt_encoder.shared_embedding.positional_embedding",
    "shared_image_embedding.positional_embedding",
    "get_image_wide_positional_embeddings",
    "memory_attention.forward",
    "memory_encoder",
    "object_pointer_proj",
    "no_object_pointer",
    "no_memory_embedding",
    "memory_temporal_positional_encoding",
)
# the memory attention's first arguments, which are given by place, and the one that is given by name
ATTENDS = ("current_vision_features", "memory", "current_vision_position_embeddings")
POINTERS = "num_object_pointer_tokens"


def sam2_config(numbers: Sam2Numbers) -> Any:
    """transformers' configuration of a SAM 2.0 of these sizes."""
    grid, stages = numbers.image // PATCH, range(4)
    dims = [numbers.embed * 2**stage for stage in stages]
    backbone = Sam2HieraDetConfig(
        hidden_size=numbers.embed,
        num_attention_heads=numbers.heads,
        image_size=[numbers.image] * 2,
        window_positional_embedding_background_size=[numbers.background] * 2,
        blocks_per_stage=list(numbers.blocks),
        embed_dim_per_stage=dims,
        num_attention_heads_per_stage=[numbers.heads * 2**stage for stage in stages],
        window_size_per_stage=list(numbers.windows),
        global_attention_blocks=list(numbers.global_blocks),
    )
    vision = Sam2VisionConfig(
        backbone_config=backbone.to_dict(),
        backbone_channel_list=dims[::-1],
        backbone_feature_sizes=[[grid * factor] * 2 for factor in (4, 2, 1)],
        fpn_hidden_size=numbers.width,
    )
    return Sam2VideoConfig(
        vision_config=vision.to_dict(),
        prompt_encoder_config={
            "hidden_size": numbers.width,
            "image_size": numbers.image,
            "patch_size": PATCH,
        },
        mask_decoder_config={
            "hidden_size": numbers.width,
            "mlp_dim": numbers.decoder_hidden,
            "num_attention_heads": numbers.decoder_heads,
            "iou_head_hidden_dim": numbers.quality_hidden,
            "dynamic_multimask_via_stability": True,
            "dynamic_multimask_stability_delta": 0.05,
            "dynamic_multimask_stability_thresh": 0.98,
        },
        image_size=numbers.image,
        num_maskmem=numbers.memories,
        max_object_pointers_in_encoder=numbers.pointers,
        # both came with SAM 2.1
        enable_occlusion_spatial_embedding=False,
        enable_temporal_pos_encoding_for_object_pointers=False,
        memory_attention_hidden_size=numbers.width,
        memory_attention_num_layers=numbers.memory_layers,
        memory_attention_feed_forward_hidden_size=numbers.memory_hidden,
        memory_attention_rope_feat_sizes=[grid, grid],
        memory_encoder_hidden_size=numbers.width,
        memory_encoder_output_channels=MEMORY_WIDTH,
        mask_downsampler_embed_dim=numbers.width,
        memory_fuser_embed_dim=numbers.width,
        memory_fuser_intermediate_dim=4 * numbers.width,
    )


def build_sam2(numbers: Sam2Numbers, attn: str) -> Any:
    """A model of these numbers with new weights.

    Its tensors are named as `sam2_keys.own_name` says, one for every official one.

    Raises:
        UserError: the installed transformers has another model under this name.
    """
    # as for SAM: not compared with the official code under flash attention
    kind = "sdpa" if attn == "flash_attention_2" else attn
    model = Sam2VideoModel._from_config(sam2_config(numbers), attn_implementation=kind)
    check_inside(model)
    _one_by_one(model)
    return model


def check_inside(model: nn.Module) -> None:
    """See that a model is the one that this file knows.

    Raises:
        UserError: names what it lacks, and the versions that have it.
    """
    missing = [name for name in INSIDE if not _has(model, name)]
    if not missing:
        given = tuple(inspect.signature(model.memory_attention.forward).parameters)  # type: ignore[operator, union-attr]
        if given[: len(ATTENDS)] != ATTENDS or POINTERS not in given:
            missing = [f"memory_attention({', '.join((*ATTENDS, '...', POINTERS))})"]
    if missing:
        (wanted,) = (one for one in versions.requirements() if one.name == "transformers")
        raise UserError(
            f"Sam2VideoModel of transformers {version('transformers')} lacks {sample(missing)}; "
            f"pip install '{wanted}'."
        )


def _has(model: nn.Module, name: str) -> bool:
    place: Any = model
    for part in name.split("."):
        if not hasattr(place, part):
            return False
        place = getattr(place, part)
    return True


def _one_by_one(model: Any) -> None:
    """Hold the four codes of points as four tensors, as checkpoints do; texts use none of them."""
    count, width = model.prompt_encoder.point_embed.weight.shape
    model.prompt_encoder.point_embed = nn.ModuleList(nn.Embedding(1, width) for _ in range(count))
    materialise_sam2(model, None)


def materialise_sam2(model: Any, device: str | None) -> None:
    """Tie the second copy of the positional code to the one that checkpoints hold, and give a model of the
    meta device the tables that none holds: the memory attention's positions.

    Args:
        device: None where only the code is tied.
    """
    model.shared_image_embedding.positional_embedding = (
        model.prompt_encoder.shared_embedding.positional_embedding
    )
    if device is None:
        return
    short = Sam2VideoConfig.from_dict(model.config.to_dict())
    short.memory_attention_num_layers = 1
    with torch.device(device):
        fresh = type(model.memory_attention)(short)
    for name, table in fresh.named_buffers():
        place, _, last = name.rpartition(".")
        setattr(model.memory_attention.get_submodule(place), last, table)


# -- frames and masks


@dataclass(frozen=True)
class Frame:
    """What all prompts share of a frame, or of N frames.

    Attributes:
        fine: what the decoder refines masks with, (N, P/8, 4g, 4g) and (N, P/4, 2g, 2g).
        top: (N, P, g, g) embedding.
        place: (N, P, g, g) code of its places for the memory attention.
    """

    fine: tuple[Tensor, Tensor]
    top: Tensor
    place: Tensor


def encode_frame(model: Any, pixels: Tensor) -> Frame:
    """(N, 3, H', H') pixels of `sam2_frames.sam2_pixels` -> what every prompt and both branches read."""
    found = model.vision_encoder(pixels, return_dict=True)
    first, second, top = found.fpn_hidden_states
    fine = model.mask_decoder.conv_s0(first), model.mask_decoder.conv_s1(second)
    return Frame(fine, top, found.fpn_position_encoding[-1])


def framewise(model: Any, frame: Frame, prompts: Tensor) -> Tensor:
    """Masks of frames by themselves, as VideoGLaMM is trained.

    Args:
        frame: of one frame for all prompts, or of B frames, one for each.
        prompts: (B, P).

    Returns:
        (B, 4g, 4g) logits. In evaluation mode a mask that is not stable gives way to the best of the
        decoder's three others.
    """
    return _decode(model, _alone(model, frame), frame, prompts[:, None], several=False)[0][:, 0]


def _alone(model: Any, frame: Frame) -> Tensor:
    """(N, P, g, g) embedding of a frame before which nothing was seen."""
    return frame.top + model.no_memory_embedding.view(1, -1, 1, 1)  # type: ignore[no-any-return]


def _decode(
    model: Any, states: Tensor, frame: Frame, sparse: Tensor, several: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Masks of B prompts with S tokens each.

    Args:
        states: (B or 1, P, g, g) embeddings.
        sparse: (B, S, P).
        several: three masks of each prompt instead of one.

    Returns:
        (B, M, 4g, 4g) logits, (B, M) their quality, (B, M, P) tokens, (B, 1) whether the object is there.
    """
    count, grid = len(sparse), states.shape[-1]
    dense = model.prompt_encoder.no_mask_embed.weight.view(1, -1, 1, 1).expand(count, -1, grid, grid)
    found = model.mask_decoder(
        image_embeddings=states.expand(count, -1, -1, -1),
        image_positional_embeddings=model.get_image_wide_positional_embeddings().expand(count, -1, -1, -1),
        sparse_prompt_embeddings=sparse[:, None],
        dense_prompt_embeddings=dense,
        multimask_output=several,
        high_resolution_features=list(frame.fine),
    )
    logits, quality, tokens, present = (one[:, 0] for one in found)
    return logits, quality, tokens, present


# -- tracking


class Tracker:
    """Masks of B prompts through a clip, frame after frame, prompted on the first one.

    What it holds is bounded: features of the first frame and the `memories` - 1 latest ones, vectors of the
    first frame and the `pointers` - 1 latest ones.

    Args:
        prompts: (B, P) one vector per object; they do not see each other.
    """

    def __init__(self, model: Any, prompts: Tensor) -> None:
        self.model, self.prompts = model, prompts
        memories, pointers = model.config.num_maskmem, model.config.max_object_pointers_in_encoder
        self._first: tuple[Tensor, Tensor] | None = None
        self._features: deque[Tensor] = deque(maxlen=memories - 1)  # each (g * g, B, 64), the latest last
        self._pointers: deque[Tensor] = deque(maxlen=pointers - 1)  # each (B, P)
        self._place: Tensor | None = None  # (g * g, 1, 64), the same for all frames

    @torch.no_grad()  # what is held stays bounded; no tracker is trained, officially either
    def step(self, frame: Frame) -> Tensor:
        """The next frame's masks, without gradients.

        Args:
            frame: of a single frame.

        Returns:
            (B, 4g, 4g) logits, ABSENT throughout where the object is not there.
        """
        starts = self._first is None
        states = _alone(self.model, frame) if starts else self._remembering(frame)
        # prompts without points come as two that are none
        blank = self.model.prompt_encoder.not_a_point_embed.weight.expand(len(self.prompts), 2, -1)
        sparse = torch.cat([blank, self.prompts[:, None]], dim=1) if starts else blank
        logits, quality, tokens, score = _decode(self.model, states, frame, sparse, several=True)
        best = quality.argmax(-1)
        rows = torch.arange(len(best), device=best.device)
        present = score > 0
        mask = torch.where(present[..., None], logits[rows, best], ABSENT)
        self._remember(frame, mask, self._pointer(tokens[rows, best], present))
        return mask

    def _pointer(self, tokens: Tensor, present: Tensor) -> Tensor:
        """(B, P) what is remembered of masks by one vector: of their tokens, or that there was no object."""
        found = self.model.object_pointer_proj(tokens)
        return torch.where(present, found, self.model.no_object_pointer.to(found.dtype))

    def _remember(self, frame: Frame, mask: Tensor, pointer: Tensor) -> None:
        """Add a frame's features, in bfloat16 as officially, and its pointer."""
        size = [side * PATCH for side in frame.top.shape[-2:]]
        large = F.interpolate(mask[:, None].float(), size, mode="bilinear", align_corners=False)
        # the prompted frame's mask is remembered with hard edges
        share = (large > 0).to(mask.dtype) if self._first is None else large.to(mask.dtype).sigmoid()
        features, place = self.model.memory_encoder(
            frame.top.expand(len(mask), -1, -1, -1), share * MASK_SCALE + MASK_BIAS
        )
        flat = features.to(torch.bfloat16).flatten(2).permute(2, 0, 1)
        if self._first is None:
            self._first = flat, pointer
            self._place = place[:1].to(mask.dtype).flatten(2).permute(2, 0, 1)
        else:
            self._features.append(flat)
            self._pointers.append(pointer)

    def _remembering(self, frame: Frame) -> Tensor:
        """(B, P, g, g) the frame's embedding after it looked at all memories."""
        assert self._first is not None and self._place is not None
        count, (height, width) = len(self.prompts), frame.top.shape[-2:]
        codes = self.model.memory_temporal_positional_encoding
        # codes[i] is of the frame i + 1 steps back; the last one is the prompted frame's, however far it is
        features = [self._first[0], *self._features]
        steps = [len(codes), *range(len(self._features), 0, -1)]
        places = [(self._place + codes[step - 1]).expand(-1, count, -1) for step in steps]
        vectors = torch.stack([self._first[1], *self._pointers])  # (V, B, P), with nothing on when they were
        pieces = vectors.unflatten(-1, (-1, features[0].shape[-1])).transpose(1, 2).flatten(0, 1)
        memory = torch.cat([*(one.to(frame.top.dtype) for one in features), pieces])
        looked = self.model.memory_attention(
            _flat(frame.top, count),
            memory,
            _flat(frame.place, count),
            torch.cat([*places, torch.zeros_like(pieces)]),
            **{POINTERS: len(pieces)},
        )
        return looked.reshape(count, height * width, -1).transpose(1, 2).unflatten(2, (height, width))


def _flat(states: Tensor, count: int) -> Tensor:
    """(1, C, h, w) -> (h * w, `count`, C)."""
    return states.flatten(2).permute(2, 0, 1).expand(-1, count, -1)
