"""The numbers of a model's parts, from its own files to transformers' configurations."""

from __future__ import annotations

import re
import reprlib
from pathlib import Path
from typing import Any

from transformers import CLIPConfig, LlamaConfig, SamConfig

from backbones.parts.json_files import read_json
from backbones.parts.release import Release
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
# the largest value of each number that is still looked at; a model is built, on the meta device, before its
# weights are
MOST_LLM = {
    "vocab_size": 2**20,
    "hidden_size": 2**16,
    "intermediate_size": 2**18,
    "num_hidden_layers": 2**9,
    "num_attention_heads": 2**10,
}
MOST_LLM_OPTIONAL = {"num_key_value_heads": 2**10, "max_position_embeddings": 2**24}
MOST_SAM = {
    "img_size": 2**13,
    "patch_size": 2**9,
    "embed_dim": 2**14,
    "depth": 2**8,
    "num_heads": 2**9,
    "out_chans": 2**13,
    "mask_in_chans": 2**13,
    "decoder_mlp_dim": 2**16,
    "decoder_num_heads": 2**9,
    "iou_head_hidden_dim": 2**14,
}
_MOST_TOWER = {
    "hidden_size": 2**14,
    "intermediate_size": 2**16,
    "projection_dim": 2**14,
    "num_hidden_layers": 2**8,
    "num_attention_heads": 2**9,
}
MOST_VISION = _MOST_TOWER | {"image_size": 2**12, "patch_size": 2**9, "num_channels": 3}
MOST_TEXT = _MOST_TOWER | {"vocab_size": 2**20, "max_position_embeddings": 2**12}
# what else of CLIP's configuration reaches the model; anything else in the file is not handed on
CLIP_ALSO = ("hidden_act", "layer_norm_eps", "bos_token_id", "eos_token_id", "pad_token_id")
# what this project's preprocessing does, and the only values that a preprocessor_config.json may have
PREPROCESSING: dict[str, Any] = {
    "do_resize": True,
    "do_center_crop": True,
    "do_rescale": True,
    "do_normalize": True,
    "resample": 3,
    "image_mean": [0.48145466, 0.4578275, 0.40821073],
    "image_std": [0.26862954, 0.26130258, 0.27577711],
}
# settings that change the answer, and the only value of each that GLaMM-RefSeg and LISA were released with
ONLY: dict[str, Any] = {
    "mm_vision_select_layer": -2,
    "mm_vision_select_feature": "patch",
    "hidden_act": "silu",
    "rope_scaling": None,
    "rope_parameters": None,
    "attention_bias": False,
    "mlp_bias": False,
    "partial_rotary_factor": 1.0,
}


def _problem(name: str, value: object, most: int) -> list[str]:
    if isinstance(value, int) and not isinstance(value, bool) and 0 < value <= most:
        return []
    return [f"{name} is {reprlib.repr(value)}, not a whole number from 1 to {most}"]


def _refuse(what: str, problems: list[str], mend: str) -> None:
    if problems:
        raise UserError(f"{what} cannot be used ({'; '.join(problems)}); {mend}.")


def sam_config(dims: dict[str, Any]) -> SamConfig:
    """transformers' configuration of the grounding encoder from the official builder's numbers.

    Raises:
        UserError: a number is missing or no number.
    """
    problems = [f"{name} is missing" for name in SAM_VIT_H if name not in dims]
    for name in MOST_SAM.keys() & dims.keys():
        problems += _problem(name, dims[name], MOST_SAM[name])
    ratio = dims.get("mlp_ratio", 4.0)
    if isinstance(ratio, bool) or not isinstance(ratio, int | float) or not 0 < ratio <= 64:
        problems.append(f"mlp_ratio is {ratio!r}, not a number from 0 to 64")
    window = dims.get("window_size", 0)
    if not (isinstance(window, int) and 0 <= window <= MOST_SAM["img_size"]):
        problems.append(f"window_size is {window!r}, not a whole number of patches")
    layers = dims.get("global_attn_indexes", [])
    if not isinstance(layers, list) or not all(
        type(index) is int and 0 <= index < MOST_SAM["depth"] for index in layers
    ):
        problems.append(f"global_attn_indexes is {reprlib.repr(layers)}, not a list of layers")
    _refuse(
        "The grounding encoder's numbers (sam_dims.json)",
        sorted(problems),
        f"give all of {', '.join(SAM_VIT_H)}",
    )
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


def llm_config(settings: dict[str, Any], release: Release) -> LlamaConfig:
    """transformers' configuration of the language model from the checkpoint's config.json.

    Raises:
        UserError: a number is missing or no number, or a setting asks for a model that this one is not.
    """
    settings = {name: value for name, value in settings.items() if value is not None}
    problems = [f"{name} is missing" for name in MOST_LLM if name not in settings]
    for name, most in (MOST_LLM | MOST_LLM_OPTIONAL).items():
        problems += _problem(name, settings[name], most) if name in settings else []
    for name in ("rms_norm_eps", "rope_theta"):
        value = settings.get(name, 1.0)
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < 1e30:
            problems.append(f"{name} is {reprlib.repr(value)}, not a number above 0")
    for name, only in ONLY.items():
        if settings.get(name, only) != only:
            problems.append(f"{name} is {settings[name]!r} where this backbone does {only!r} alone")
    _refuse("The checkpoint's config.json", problems, f"copy it from the {release.title} release")
    heads = settings["num_attention_heads"]
    if settings.get("head_dim", settings["hidden_size"] // heads) != settings["hidden_size"] // heads:
        problems = [
            f"head_dim is {settings['head_dim']!r} where hidden_size / num_attention_heads is expected"
        ]
        _refuse("The checkpoint's config.json", problems, f"copy it from the {release.title} release")
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


def clip_config(folder: Path, release: Release) -> CLIPConfig:
    """CLIP's configuration from its folder.

    Raises:
        UserError: config.json is missing or describes no CLIP model with both towers.
    """
    settings = read_json(folder / "config.json", f"--clip needs the files of {release.clip}")
    absent = [name for name in ("vision_config", "text_config") if not isinstance(settings.get(name), dict)]
    if absent:
        raise UserError(
            f"config.json in {str(folder)!r} has no {' and '.join(absent)}; --clip needs the files of "
            f"{release.clip}."
        )
    problems = []
    numbers: dict[str, dict[str, Any]] = {}
    for name, most in (("vision_config", MOST_VISION), ("text_config", MOST_TEXT)):
        # releases of 2022 repeat the numbers that differ from the defaults, and transformers lets those win
        held = settings[name] | (settings.get(f"{name}_dict") or {})
        numbers[name] = {key: held[key] for key in (*most, *CLIP_ALSO) if held.get(key) is not None}
        for key in most.keys() & numbers[name].keys():
            problems += _problem(f"{name}'s {key}", held[key], most[key])
    width = settings.get("projection_dim", 512)
    problems += _problem("projection_dim", width, MOST_VISION["projection_dim"])
    _refuse(f"config.json in {str(folder)!r}", sorted(problems), f"--clip needs the files of {release.clip}")
    try:
        found = CLIPConfig(**numbers, projection_dim=width)
    except Exception as error:
        reason = " ".join(str(error).split())
        raise UserError(
            f"config.json in {str(folder)!r} describes no CLIP ({reason}); --clip needs the files of "
            f"{release.clip}."
        ) from error
    _check_preprocessing(folder, found.vision_config.image_size, release)
    return found


def _check_preprocessing(folder: Path, size: int, release: Release) -> None:
    """A folder that was put together from two CLIPs shows in its preprocessor_config.json, if it has one."""
    path = folder / "preprocessor_config.json"
    if not path.is_file():
        return
    held = read_json(path, f"copy it from {release.clip}")
    problems = []
    for name in ("size", "crop_size"):
        value = held.get(name, size)
        sides = list(value.values()) if isinstance(value, dict) else [value]
        if any(side != size for side in sides):
            problems.append(f"{name} is {reprlib.repr(value)} where config.json's image_size is {size}")
    for name, only in PREPROCESSING.items():
        if held.get(name, only) != only:
            problems.append(f"{name} is {reprlib.repr(held[name])} where this backbone does {only!r} alone")
    _refuse(str(path), problems, f"copy all of {release.clip}")


def check_resolution(settings: dict[str, Any], clip: CLIPConfig, folder: Path) -> None:
    """See that CLIP has the visual tokens of the tower that config.json names, as clip-vit-large-patch14-336
    has 24 x 24.

    Widths do not tell: the 224-pixel model fits every shape of the 336-pixel one, with 16 x 16 tokens.

    Args:
        settings: the checkpoint's config.json.
        folder: CLIP's, for the message.

    Raises:
        UserError: it has others.
    """
    vision: Any = clip.vision_config
    side = vision.image_size // vision.patch_size
    for key in ("mm_vision_tower", "vision_tower"):
        named = settings.get(key)
        if isinstance(named, str) and (
            match := re.search(r"clip-vit-\w+-patch(\d+)(?:-(\d+))?$", named.rstrip("/"))
        ):
            wanted = int(match[2] or 224) // int(match[1])
            if side != wanted:
                raise UserError(
                    f"config.json names {named} as {key}, which has {wanted} x {wanted} visual tokens, and "
                    f"CLIP in "
                    f"{str(folder)!r} has {side} x {side}; give --clip the files of {named}."
                )


def sam_numbers(folder: Path, file: Path | None = None) -> dict[str, Any]:
    """The grounding encoder's numbers: those of a file, else of `sam_dims.json` beside config.json, else of
    ViT-H.

    Raises:
        UserError: the file is missing or damaged.
    """
    if file is None and not (folder / "sam_dims.json").exists():
        return SAM_VIT_H
    found = read_json(file or folder / "sam_dims.json", "it gives the numbers of the grounding encoder")
    return {name: found[name] for name in SAM_VIT_H if name in found}
