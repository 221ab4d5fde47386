"""Reading and writing checkpoints in the layout of the official GLaMM-RefSeg release."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import CLIPConfig, LlamaConfig, SamConfig
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

from backbones.glamm.keys import TIED, sample, to_official, to_ours
from backbones.glamm.model import GlammModel
from pruners.base import UserError

CLIP_HUB = "openai/clip-vit-large-patch14-336"
CLIP_REVISION = "ce19dc912ca5cd21c8a653c79e251e808ccabcd1"
TOKENIZER_FILES = ("tokenizer.model", "added_tokens.json", "special_tokens_map.json", "tokenizer_config.json")
CLIP_TOKENIZER_FILES = ("vocab.json", "merges.txt", "special_tokens_map.json", "tokenizer_config.json")
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


def sam_config(dims: dict[str, Any]) -> SamConfig:
    """transformers' configuration of the grounding encoder from the official builder's numbers."""
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
    """transformers' configuration of the language model from the checkpoint's config.json."""
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
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
        tie_word_embeddings=False,
    )


def read_json(path: Path, mend: str) -> dict[str, Any]:
    """A json file, or one sentence that says what is wrong with it."""
    if not path.is_file():
        raise UserError(f"There is no {path.name} in {str(path.parent)!r}; {mend}.")
    try:
        return json.loads(path.read_text())  # type: ignore[no-any-return]
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise UserError(f"{str(path)!r} is not readable json ({error}); {mend}.") from error


def weight_files(folder: Path) -> list[Path]:
    """The weight files of a folder: safetensors if there are any, else pytorch_model*.bin."""
    for pattern in ("*.safetensors", "pytorch_model*.bin"):
        if found := sorted(folder.glob(pattern)):
            return found
    raise UserError(f"There are no weights in {str(folder)!r}: expected *.safetensors or pytorch_model*.bin beside config.json.")


def tensors(folder: Path) -> Iterator[tuple[str, Tensor]]:
    """All (name, tensor) pairs of a folder; .bin files are read with weights_only, which runs no code."""
    for path in weight_files(folder):
        try:
            if path.suffix == ".safetensors":
                with safe_open(path, framework="pt") as handle:
                    for name in handle.keys():  # noqa: SIM118
                        yield name, handle.get_tensor(name)
            else:
                yield from torch.load(path, map_location="cpu", weights_only=True, mmap=True).items()
        except UserError:
            raise
        except Exception as error:
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise UserError(f"{str(path)!r} is damaged or holds more than tensors ({reason}); copy it again.") from error


def fill(module: nn.Module, folder: Path, rename: Any, prefixes: tuple[str, ...], dtype: torch.dtype, device: str) -> None:
    """Replace the module's meta tensors by the folder's, every one of them, and name all that does not fit."""
    wanted = {name: p for name, p in module.state_dict().items() if name.startswith(prefixes) and name != TIED}
    given: dict[str, Tensor] = {}
    unexpected, shapes, broken = [], [], []
    for name, tensor in tensors(folder):
        try:
            ours = rename(name)
        except KeyError:
            unexpected.append(name)
            continue
        if ours is None:
            continue
        if ours not in wanted:
            unexpected.append(name)
        elif tensor.shape != wanted[ours].shape:
            shapes.append(f"{name} {list(tensor.shape)} instead of {list(wanted[ours].shape)}")
        elif not bool(torch.isfinite(tensor).all()):
            broken.append(name)
        else:
            given[ours] = tensor.to(device=device, dtype=dtype)
    spoiled = {text.split()[0] for text in shapes} | set(broken)
    missing = [name for name in wanted if name not in given and name not in {rename(bad) for bad in spoiled}]
    problems = [
        f"{label} {sample(names)}"
        for label, names in (
            ("missing:", [to_official(name) or name for name in missing]),
            ("unexpected:", unexpected),
            ("wrong shape:", shapes),
            ("NaN or infinite:", broken),
        )
        if names
    ]
    if problems:
        raise UserError(f"The checkpoint {str(folder)!r} does not fit its config ({'; '.join(problems)}).")
    module.load_state_dict(given, strict=False, assign=True)


def materialise(model: GlammModel, device: str) -> None:
    """Give buffers that no checkpoint holds their values after a build on the meta device."""
    llm, clip = model.language_model, model.clip
    llm.rotary_emb = LlamaRotaryEmbedding(llm.config).to(device)
    for embeddings in (clip.text_model.embeddings, clip.vision_model.embeddings):
        count = embeddings.position_embedding.num_embeddings
        embeddings.register_buffer("position_ids", torch.arange(count, device=device)[None], persistent=False)
    sam = model.grounding_encoder
    sam.prompt_encoder.shared_embedding.positional_embedding = sam.shared_image_embedding.positional_embedding
    left = [name for name, tensor in (*model.named_parameters(), *model.named_buffers()) if tensor.is_meta]
    if left:
        raise RuntimeError(f"tensors without values after loading: {sample(left)}")


def clip_folder(clip: str) -> Path:
    """A directory, or a hub name fetched at the pinned revision."""
    if Path(clip).is_dir():
        return Path(clip)
    from huggingface_hub import snapshot_download

    try:
        revision = CLIP_REVISION if clip == CLIP_HUB else None
        return Path(snapshot_download(clip, revision=revision, allow_patterns=["*.json", "*.txt", "*.safetensors", "*.bin"]))
    except Exception as error:
        raise UserError(
            f"CLIP {clip!r} is neither a directory nor reachable on the hub; copy {CLIP_HUB} (revision "
            f"{CLIP_REVISION[:8]}) to this machine and give --clip DIR."
        ) from error


def clip_config(folder: Path) -> CLIPConfig:
    """CLIP's configuration from its folder."""
    settings = read_json(folder / "config.json", f"--clip needs the files of {CLIP_HUB}")
    return CLIPConfig.from_dict(settings)


def build_meta(settings: dict[str, Any], clip: CLIPConfig, sam: dict[str, Any] | None = None, attn: str = "sdpa") -> GlammModel:
    """The model on the meta device: shapes without weights, at any size on any machine."""
    with torch.device("meta"):
        return GlammModel(clip, llm_config(settings), sam_config(sam or SAM_VIT_H), attn)


def load_checkpoint(
    folder: Path,
    clip: str,
    *,
    dtype: torch.dtype = torch.float32,
    device: str = "cpu",
    attn: str = "sdpa",
    sam: dict[str, Any] | None = None,
) -> GlammModel:
    """Load GLaMM from an official checkpoint folder and a CLIP folder or hub name.

    Args:
        sam: numbers of the grounding encoder; by default `sam_dims.json` beside config.json, else ViT-H.

    Raises:
        UserError: a file is missing or damaged, or tensors are missing, unexpected, wrongly shaped or not finite.
    """
    if not folder.is_dir():
        raise UserError(f"There is no checkpoint folder {str(folder)!r}; give --checkpoint the folder with config.json.")
    settings = read_json(folder / "config.json", "--checkpoint needs the files of a GLaMM-RefSeg release")
    if sam is None and (folder / "sam_dims.json").exists():
        sam = read_json(folder / "sam_dims.json", "it gives the numbers of the grounding encoder")
    tower = clip_folder(clip)
    model = build_meta(settings, clip_config(tower), sam, attn)
    # position_ids were saved by older transformers and follow from the config
    fill(model.clip, tower, lambda name: None if name.endswith("position_ids") else name, ("",), dtype, device)
    ours = ("language_model.", "projector.", "text_hidden_fcs.", "lm_head.", "grounding_encoder.")
    fill(model, folder, to_ours, ours, dtype, device)
    materialise(model, device)
    return model.eval().requires_grad_(False)


def save_checkpoint(
    model: GlammModel,
    folder: Path,
    clip: Path,
    *,
    tokenizer: Path,
    clip_tokenizer: Path,
    sam_dims: dict[str, Any],
    dtype: torch.dtype = torch.float16,
) -> None:
    """Write the official layout: `folder` with GLaMM and its tokenizer, `clip` with CLIP's own files."""
    for target, source, files in ((folder, tokenizer, TOKENIZER_FILES), (clip, clip_tokenizer, CLIP_TOKENIZER_FILES)):
        target.mkdir(parents=True, exist_ok=True)
        for name in files:
            shutil.copyfile(source / name, target / name)
    state = {to_official(k): v.to(dtype).contiguous() for k, v in model.state_dict().items() if to_official(k)}
    save_file(state, folder / "model.safetensors", {"format": "pt"})
    llm, vision = model.language_model.config, model.clip.config.vision_config
    settings = {
        "architectures": ["GLaMMForCausalLM"],
        "model_type": "llava",
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
        "mm_hidden_size": vision.hidden_size,
        "mm_use_im_start_end": True,
        "mm_vision_select_layer": -2,
        "mm_vision_select_feature": "patch",
        "out_dim": sam_dims["out_chans"],
        "tie_word_embeddings": False,
        "torch_dtype": str(dtype).removeprefix("torch."),
    }
    (folder / "config.json").write_text(json.dumps(settings, indent=2))
    (folder / "sam_dims.json").write_text(json.dumps(sam_dims, indent=2))
    tower = {k: v.to(dtype).contiguous() for k, v in model.clip.state_dict().items()}
    save_file(tower, clip / "model.safetensors", {"format": "pt"})
    described = model.clip.config.to_dict()
    described.pop("_attn_implementation", None)
    (clip / "config.json").write_text(json.dumps(described, indent=2, default=str))
    size = vision.image_size
    (clip / "preprocessor_config.json").write_text(
        json.dumps({"crop_size": size, "size": size, "resample": 3, "do_center_crop": True}, indent=2)
    )


def fingerprint(*folders: Path) -> str:
    """16 hex digits of the contents of all weight and config files."""
    digest = hashlib.sha256()
    for folder in folders:
        for path in [*weight_files(folder), *sorted(folder.glob("*.json"))]:
            with path.open("rb") as handle:
                digest.update(hashlib.file_digest(handle, "sha256").digest())
    return digest.hexdigest()[:16]
