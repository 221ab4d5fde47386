"""Reading VideoGLaMM's checkpoints in the layout of the official release, and writing them."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
from collections.abc import Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors.torch import save_file
from torch import Tensor
from transformers import CLIPConfig, LlamaConfig, SamConfig

from backbones.glamm.checkpoint import Part, clip_part
from backbones.glamm.keys import TIED
from backbones.parts import clip as clips
from backbones.parts import llama
from backbones.parts import sam as sams
from backbones.parts.errors import sample
from backbones.parts.internvideo2 import VideoNumbers
from backbones.parts.reading import LLAMA_WORDS, packed, tensors
from backbones.parts.sam2_keys import COPY
from backbones.videoglamm import sizes
from backbones.videoglamm.keys import Names
from backbones.videoglamm.model import VideoGlammModel
from pruners.errors import UserError

if TYPE_CHECKING:
    from backbones.parts.sam2 import Sam2Numbers

OURS = (
    "language_model.",
    "projector.",
    "video_projector.",
    "text_hidden_fcs.",
    "lm_head.",
    "grounding_encoder.",
)
VIDEO = "video_tower."
PHI3_WORDS = ("special_tokens_map.json", "tokenizer_config.json")  # of the tokenizer, beside Llama's
WITHIN = ("model", "module")  # under which InternVideo2's own file has its tensors


def parted(folder: Path, config: LlamaConfig) -> Iterator[tuple[str, Tensor]]:
    """A folder's tensors, with Phi-3's fused matrices taken apart."""
    for name, tensor in tensors(folder):
        yield from llama.parted(name, tensor, config)


def second_copy(sam2: bool) -> str:
    """The segmenter's tensor that is another one under a second name, so that no checkpoint holds it."""
    return f"grounding_encoder.{COPY}" if sam2 else TIED


def main_part(model: VideoGlammModel, folder: Path, names: Names) -> Part:
    """The model and its official folder; with the video encoder, where the names say that it is read
    there."""
    prefixes = (*OURS, VIDEO) if names.video else OURS
    stored = partial(parted, config=model.language_model.config)
    return Part(model, folder, names.ours, names.official, prefixes, stored, (second_copy(names.sam2),))


def video_part(model: VideoGlammModel, file: Path, names: Names) -> Part:
    """The video encoder and its own file."""
    return Part(model, file, names.of_video, names.official, (VIDEO,), partial(packed, within=WITHIN))


def names_of(model: VideoGlammModel, video: Path | None = None) -> Names:
    """How a model's tensors are called.

    Args:
        video: the video encoder's own file, if it is read from one.
    """
    return Names(model.video_tower.numbers.depth, model.tracks, video is None)


def materialise(model: VideoGlammModel, device: str) -> None:
    """Give buffers that no checkpoint holds their values after a build on the meta device."""
    llama.materialise_llama(model.language_model, device)
    clips.materialise_clip(model.clip, device)
    if model.tracks:
        from backbones.parts.sam2 import materialise_sam2

        materialise_sam2(model.grounding_encoder, device)
    else:
        sams.materialise_sam(model.grounding_encoder)
    left = [name for name, tensor in (*model.named_parameters(), *model.named_buffers()) if tensor.is_meta]
    if left:
        raise RuntimeError(f"tensors without values after loading: {sample(left)}")


def build_meta(
    settings: dict[str, Any],
    clip: CLIPConfig,
    video: VideoNumbers,
    segmenter: SamConfig | Sam2Numbers,
    attn: str = "sdpa",
) -> VideoGlammModel:
    """The model on the meta device: shapes without weights, at any size on any machine.

    Args:
        settings: the checkpoint's config.json.

    Raises:
        UserError: numbers are missing, no numbers, or do not fit together.
    """
    try:
        with torch.device("meta"):
            return VideoGlammModel(clip, video, sizes.llm_config(settings), segmenter, attn)
    except UserError:
        raise
    except Exception as error:  # what transformers' configurations refuse has no common type
        reason = " ".join(str(error).split())
        raise UserError(
            f"No model can be built from config.json and its neighbours ({reason}); copy them again."
        ) from error


def fill(
    model: VideoGlammModel, folder: Path, clip: Path, video: Path | None, dtype: torch.dtype, device: str
) -> VideoGlammModel:
    """Give a model of the meta device its weights.

    Args:
        folder, clip: the checkpoint's and CLIP's.
        video: InternVideo2's own file; without, the checkpoint has to hold that encoder.

    Raises:
        UserError: tensors are missing, unexpected, wrongly shaped or not finite.
    """
    names = names_of(model, video)
    clip_part(model.clip, clip).fill(dtype, device)
    main_part(model, folder, names).fill(dtype, device)
    if video is not None:
        video_part(model, video, names).fill(dtype, device)
    materialise(model, device)
    return model.eval().requires_grad_(False)


# -- writing


def fused(state: Iterable[tuple[str, Tensor]]) -> Iterator[tuple[str, Tensor]]:
    """Official names and tensors, with the matrices that Phi-3 stores as one put together."""
    together: dict[str, list[Tensor]] = {}
    for name, tensor in state:
        if any(f".{one}." in name for one in llama.FUSED):
            together.setdefault(name, []).append(tensor)
        else:
            yield name, tensor
    yield from ((name, torch.cat(parts)) for name, parts in together.items())


def save_checkpoint(
    model: VideoGlammModel,
    folder: Path,
    clip: Path,
    *,
    tokenizer: Path,
    frames: int,
    segmenter: dict[str, Any],
    dtype: torch.dtype = torch.float16,
) -> None:
    """Write the official layout without CLIP, which has its own folder.

    Args:
        clip: CLIP's folder, whose place config.json names.
        tokenizer: folder with the tokenizer's files.
        frames: that the language model sees of a clip.
        segmenter: its numbers: SAM's, or SAM2's where the model has one.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for words in (*LLAMA_WORDS, *PHI3_WORDS):
        if (tokenizer / words).is_file():
            shutil.copyfile(tokenizer / words, folder / words)
    names = names_of(model)
    official = (
        (said, tensor.to(dtype))
        for key, tensor in model.state_dict().items()
        if key != second_copy(model.tracks) and (said := names.official(key)) is not None
    )
    state = {name: tensor.contiguous() for name, tensor in fused(official)}
    save_file(state, folder / "model.safetensors", {"format": "pt"})
    llm = model.language_model.config
    numbers = (
        "vocab_size",
        "hidden_size",
        "intermediate_size",
        "num_hidden_layers",
        "num_attention_heads",
        "num_key_value_heads",
        "rms_norm_eps",
        "max_position_embeddings",
    )
    window = getattr(llm, "sliding_window", None)
    settings = {
        "architectures": ["VideoGPTPlusPhi3ForCausalLM"],
        "model_type": "VideoGPT+",
        **{name: getattr(llm, name) for name in numbers},
        "sliding_window": None if window is None else window - 1,
        "image_mm_vision_tower": os.path.relpath(clip, folder),
        "mm_projector_type": "mlp2x_gelu",
        "image_mm_projector_type": "mlp2x_gelu",
        "mm_vision_select_layer": -2,
        "mm_use_im_start_end": False,
        "use_sam2": model.tracks,
        "out_dim": model.text_hidden_fcs[2].out_features,
        "num_frames": frames,
        "tie_word_embeddings": False,
        "torch_dtype": str(dtype).removeprefix("torch."),
    }
    held = {
        "config.json": settings,
        sizes.VIDEO_FILE: dataclasses.asdict(model.video_tower.numbers),
        sizes.SAM2_FILE if model.tracks else "sam_dims.json": segmenter,
    }
    for name, content in held.items():
        (folder / name).write_text(json.dumps(content, indent=2))
