"""The numbers of GLaMM's parts, from its own files to transformers' configurations."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from transformers import CLIPConfig, LlamaConfig, SamConfig

from backbones.glamm.reading import CLIP_HUB, read_json
from pruners.base import UserError

# what the official builder hard-codes: SAM ViT-H
SAM_VIT_H: dict[str, Any] = {
    "img_size": 1024,
    "patch_size": 16,
    "embed_dim": 1280,
    "depth": 32,
    "num_heads": 16,
    "mlp_ratio": 4.0,
    "window_size": 14,
    "global_attn_indexes": [7, 15, 23, 31],
    "out_chans": 256,
    "mask_in_chans": 16,
    "decoder_mlp_dim": 2048,
    "decoder_num_heads": 8,
    "iou_head_hidden_dim": 256,
}
LLM_NUMBERS = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")
# settings that change the answer, and the only value of each that GLaMM-RefSeg was released with
ONLY: dict[str, Any] = {
    "mm_vision_select_layer": -2,
    "mm_vision_select_feature": "patch",
    "hidden_act": "silu",
    "rope_scaling": None,
}


def _is_number(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value > 0


def _refuse(what: str, problems: list[str], mend: str) -> None:
    if problems:
        raise UserError(f"{what} cannot be used ({'; '.join(problems)}); {mend}.")


def sam_config(dims: dict[str, Any]) -> SamConfig:
    """transformers' configuration of the grounding encoder from the official builder's numbers.

    Raises:
        UserError: a number is missing or no number.
    """
    problems = [f"{name} is missing" for name in SAM_VIT_H if name not in dims]
    for name in SAM_VIT_H.keys() & dims.keys() - {"mlp_ratio", "global_attn_indexes", "window_size"}:
        if not _is_number(dims[name]):
            problems.append(f"{name} is {dims[name]!r}, not a whole number")
    if not isinstance(dims.get("mlp_ratio", 4.0), int | float) or isinstance(dims.get("mlp_ratio"), bool):
        problems.append(f"mlp_ratio is {dims['mlp_ratio']!r}, not a number")
    window = dims.get("window_size", 0)
    if not (window == 0 or _is_number(window)):
        problems.append(f"window_size is {window!r}, not a whole number")
    layers = dims.get("global_attn_indexes", [])
    if not isinstance(layers, list) or not all(index == 0 or _is_number(index) for index in layers):
        problems.append(f"global_attn_indexes is {layers!r}, not a list of layers")
    _refuse("The grounding encoder's numbers (sam_dims.json)", sorted(problems), f"give all of {', '.join(SAM_VIT_H)}")
    size, patch, width = dims["img_size"], dims["patch_size"], dims["out_chans"]
    return SamConfig(
        vision_config={
            "hidden_size": dims["embed_dim"],
            "output_channels": width,
            "num_hidden_layers": dims["depth"],
            "num_attention_heads": dims["num_heads"],
            "image_size": size,
            "patch_size": patch,
            "window_size": dims["window_size"],
            "global_attn_indexes": list(dims["global_attn_indexes"]),
            "num_pos_feats": width // 2,
            "mlp_dim": int(dims["embed_dim"] * dims["mlp_ratio"]),
            "scale": 1.0,
        },
        prompt_encoder_config={
            "hidden_size": width,
            "image_size": size,
            "patch_size": patch,
            "mask_input_channels": dims["mask_in_chans"],
        },
        mask_decoder_config={
            "hidden_size": width,
            "mlp_dim": dims["decoder_mlp_dim"],
            "num_attention_heads": dims["decoder_num_heads"],
            "iou_head_hidden_dim": dims["iou_head_hidden_dim"],
        },
    )


def llm_config(settings: dict[str, Any]) -> LlamaConfig:
    """transformers' configuration of the language model from the checkpoint's config.json.

    Raises:
        UserError: a number is missing or no number, or a setting asks for a model that this one is not.
    """
    settings = {name: value for name, value in settings.items() if value is not None}
    problems = [f"{name} is missing" for name in LLM_NUMBERS if name not in settings]
    for name in (*LLM_NUMBERS, "num_key_value_heads", "max_position_embeddings"):
        if name in settings and not _is_number(settings[name]):
            problems.append(f"{name} is {settings[name]!r}, not a whole number")
    for name in ("rms_norm_eps", "rope_theta"):
        value = settings.get(name, 1.0)
        if isinstance(value, bool) or not isinstance(value, int | float) or value <= 0:
            problems.append(f"{name} is {value!r}, not a number above 0")
    for name, only in ONLY.items():
        if settings.get(name, only) != only:
            problems.append(f"{name} is {settings[name]!r} where this backbone does {only!r} alone")
    _refuse("The checkpoint's config.json", problems, "copy it from the GLaMM-RefSeg release")
    heads = settings["num_attention_heads"]
    return LlamaConfig(
        vocab_size=settings["vocab_size"],
        hidden_size=settings["hidden_size"],
        intermediate_size=settings["intermediate_size"],
        num_hidden_layers=settings["num_hidden_layers"],
        num_attention_heads=heads,
        num_key_value_heads=settings.get("num_key_value_heads", heads),
        rms_norm_eps=settings.get("rms_norm_eps", 1e-5),
        max_position_embeddings=settings.get("max_position_embeddings", 4096),
        rope_parameters={"rope_type": "default", "rope_theta": float(settings.get("rope_theta", 10000.0))},
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
        tie_word_embeddings=False,
    )


def clip_config(folder: Path) -> CLIPConfig:
    """CLIP's configuration from its folder.

    Raises:
        UserError: config.json is missing or describes no CLIP model with both towers.
    """
    settings = read_json(folder / "config.json", f"--clip needs the files of {CLIP_HUB}")
    absent = [name for name in ("vision_config", "text_config") if not isinstance(settings.get(name), dict)]
    if absent:
        raise UserError(f"config.json in {str(folder)!r} has no {' and '.join(absent)}; --clip needs the files of {CLIP_HUB}.")
    try:
        return CLIPConfig.from_dict(settings)
    except Exception as error:
        reason = " ".join(str(error).split())
        raise UserError(
            f"config.json in {str(folder)!r} describes no CLIP ({reason}); --clip needs the files of {CLIP_HUB}."
        ) from error
