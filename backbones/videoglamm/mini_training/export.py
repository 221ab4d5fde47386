"""Writes videoglamm-mini in the official layout: VideoGLaMM's names, Phi-3's fused matrices, one folder."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from backbones.glamm.keys import to_official
from backbones.glamm.release import GLAMM
from backbones.mini.training.config import SAM_DIMS
from backbones.videoglamm.mini_training import watch
from backbones.videoglamm.mini_training.data import SAMPLED
from backbones.videoglamm.mini_training.model import VideoParts
from backbones.videoglamm.mini_training.text import FILES

# the wheel's folder of CLIP, as seen from the checkpoint's
CLIP = "../../../../mini/weights/clip"
FUSED = {
    "self_attn.qkv_proj": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    "mlp.gate_up_proj": ("mlp.gate_proj", "mlp.up_proj"),
}


def official_state(parts: VideoParts) -> dict[str, Tensor]:
    """All tensors but CLIP's under their official names; the mask decoder's are SAM's own."""
    state: dict[str, Tensor] = {}
    llm = parts.language_model
    state["model.embed_tokens.weight"] = llm.embed_tokens.weight
    state["model.norm.weight"] = llm.norm.weight
    state["lm_head.weight"] = parts.lm_head.weight
    for number, layer in enumerate(llm.layers):
        own = layer.state_dict()
        for name, pieces in FUSED.items():
            own[f"{name}.weight"] = torch.cat([own.pop(f"{piece}.weight") for piece in pieces])
        state |= {f"model.layers.{number}.{name}": tensor for name, tensor in own.items()}
    for name, module in (
        ("image_mm_projector", parts.image_projector),
        ("mm_projector", parts.video_projector),
        ("text_hidden_fcs.0", parts.text_hidden_fcs),
        ("vision_tower.vision_encoder", parts.video),
    ):
        state |= {f"model.{name}.{key}": tensor for key, tensor in module.state_dict().items()}
    for key, tensor in parts.sam.state_dict().items():
        if official := to_official(f"grounding_encoder.{key}", GLAMM):
            state[official.replace(GLAMM.grounding, "model.visual_model.")] = tensor
    return state


def settings(parts: VideoParts) -> dict[str, Any]:
    """config.json: the official keys, and the numbers that the official code has in its source."""
    llm, video = parts.language_model.config, watch.NUMBERS
    return {
        "architectures": ["VideoGLaMMForCausalLM"],
        "model_type": "VideoGPT+",
        **{
            key: getattr(llm, key)
            for key in (
                "vocab_size",
                "hidden_size",
                "intermediate_size",
                "num_hidden_layers",
                "num_attention_heads",
                "num_key_value_heads",
                "rms_norm_eps",
                "max_position_embeddings",
            )
        },
        "rope_theta": 10000.0,
        "sliding_window": 2047,
        "mm_vision_tower": "InternVideo2",
        "image_mm_vision_tower": CLIP,
        "mm_projector_type": "mlp2x_gelu",
        "image_mm_projector_type": "mlp2x_gelu",
        "mm_vision_select_layer": -2,
        "mm_vision_select_feature": "patch",
        "mm_hidden_size": video.width,
        "image_mm_hidden_size": parts.image_projector[0].in_features,
        "mm_use_im_start_end": False,
        "num_frames": SAMPLED,
        "use_sam2": False,
        "out_dim": SAM_DIMS["out_chans"],
        "tie_word_embeddings": False,
        "torch_dtype": "float16",
    }


def export(parts: VideoParts, words: Path, folder: Path) -> None:
    """Write `folder`: settings, tensors in float16, the tokenizer and the numbers of the two towers."""
    folder.mkdir(parents=True, exist_ok=True)
    state = {name: t.detach().to(torch.float16).contiguous() for name, t in official_state(parts).items()}
    save_file(state, folder / "model.safetensors", {"format": "pt"})
    for name in FILES:
        shutil.copyfile(words / name, folder / name)
    for name, content in (
        ("config.json", settings(parts)),
        ("sam_dims.json", SAM_DIMS),
        ("video_dims.json", vars(watch.NUMBERS)),
    ):
        (folder / name).write_text(json.dumps(content, indent=2) + "\n")
