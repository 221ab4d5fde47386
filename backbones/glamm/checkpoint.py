"""Reading checkpoints in the layout of the official releases, and writing GLaMM-RefSeg's."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import CLIPConfig

from backbones.glamm.keys import TIED, UNMERGED, to_official, to_ours
from backbones.glamm.model import GlammModel
from backbones.glamm.release import GLAMM
from backbones.glamm.sizes import (
    SAM_VIT_H,
    check_resolution,
    clip_config,
    llm_config,
    sam_config,
    sam_numbers,
)
from backbones.parts import clip as clips
from backbones.parts import llama
from backbones.parts import sam as sams
from backbones.parts.errors import sample
from backbones.parts.json_files import read_json
from backbones.parts.reading import clip_folder, tensors
from backbones.parts.release import Release
from pruners.base import UserError

TOKENIZER_FILES = ("tokenizer.model", "added_tokens.json", "special_tokens_map.json", "tokenizer_config.json")
CLIP_TOKENIZER_FILES = ("vocab.json", "merges.txt", "special_tokens_map.json", "tokenizer_config.json")


@dataclass(frozen=True)
class Part:
    """A module and the folder that holds its tensors.

    Attributes:
        rename: the folder's name of a tensor to the module's; None if it is not needed, KeyError if it is
            unknown.
        named: the module's name to the folder's.
        prefixes: which of the module's tensors the folder holds.
        stored: the folder's tensors by their names.
        copies: the module's names of second copies of a tensor, which no folder holds.
    """

    module: nn.Module
    folder: Path
    rename: Callable[[str], str | None]
    named: Callable[[str], str | None]
    prefixes: tuple[str, ...]
    stored: Callable[[Path], Iterable[tuple[str, Tensor]]] = tensors
    copies: tuple[str, ...] = (TIED,)

    def matching(self, problems: dict[str, list[str]]) -> Iterator[tuple[str, str, Tensor]]:
        """The folder's tensors that the module wants: (stored name, module's name, tensor).

        Args:
            problems: gets the names of all others, and of what is missing, by kind.
        """
        wanted = {
            name: p
            for name, p in self.module.state_dict().items()
            if name.startswith(self.prefixes) and name not in self.copies
        }
        seen: set[str] = set()
        for kind in (
            "missing:",
            "unexpected:",
            "stored twice:",
            "wrong shape:",
            "no floating-point numbers:",
        ):
            problems[kind] = []
        for name, tensor in self.stored(self.folder):
            try:
                ours = self.rename(name)
            except KeyError:
                problems["unexpected:"].append(name)
                continue
            if ours is None:
                continue
            if ours not in wanted:
                problems["unexpected:"].append(name)
            elif ours in seen:
                problems["stored twice:"].append(name)
            elif tensor.shape != wanted[ours].shape:
                seen.add(ours)
                problems["wrong shape:"].append(
                    f"{name} {list(tensor.shape)} instead of {list(wanted[ours].shape)}"
                )
            elif not tensor.is_floating_point():
                seen.add(ours)
                problems["no floating-point numbers:"].append(
                    f"{name} ({str(tensor.dtype).removeprefix('torch.')})"
                )
            else:
                seen.add(ours)
                yield name, ours, tensor
        problems["missing:"] = list({self.named(name) or name for name in wanted if name not in seen})

    def refuse(self, problems: dict[str, list[str]]) -> None:
        """Raise UserError with all problems, if there are any."""
        told = [f"{kind} {sample(names)}" for kind, names in problems.items() if names]
        if unmerged := [name for name in problems.get("unexpected:", ()) if UNMERGED.search(name)]:
            raise UserError(
                f"The checkpoint {str(self.folder)!r} holds an adapter beside its model (unexpected: "
                f"{sample(unmerged)}); "
                "merge it with peft's merge_and_unload() and save the result."
            )
        if told:
            raise UserError(
                f"The checkpoint {str(self.folder)!r} does not fit its config ({'; '.join(told)}); copy "
                f"both from one release."
            )

    def check(self) -> int:
        """How many tensors fit, by name and shape alone: values are not read.

        Raises:
            UserError: names all tensors that are missing, unexpected, stored twice or wrongly shaped.
        """
        problems: dict[str, list[str]] = {}
        count = sum(1 for _ in self.matching(problems))
        self.refuse(problems)
        return count

    def fill(self, dtype: torch.dtype, device: str) -> None:
        """Replace the module's meta tensors by the folder's, every one of them.

        Raises:
            UserError: as `check`, and names tensors that are not finite.
        """
        given: dict[str, Tensor] = {}
        problems: dict[str, list[str]] = {}
        broken: list[str] = []
        large: list[str] = []
        for name, ours, tensor in self.matching(problems):
            given[ours] = tensor.to(device=device, dtype=dtype)
            if not bool(torch.isfinite(given[ours]).all()):
                (large if bool(torch.isfinite(tensor).all()) else broken).append(name)
        problems |= {"NaN or infinite:": broken, f"too large for {str(dtype).removeprefix('torch.')}:": large}
        self.refuse(problems)
        self.module.load_state_dict(given, strict=False, assign=True)


def clip_part(module: nn.Module, folder: Path) -> Part:
    """CLIP and its folder."""
    # position_ids were saved by older transformers and follow from the config
    return Part(module, folder, lambda name: None if name.endswith("position_ids") else name, str, ("",))


def main_part(module: nn.Module, folder: Path, release: Release) -> Part:
    """The model and its official folder, which holds no CLIP."""
    ours = ("language_model.", "projector.", "text_hidden_fcs.", "lm_head.", "grounding_encoder.")
    names = partial(to_ours, release=release), partial(to_official, release=release)
    return Part(module, folder, *names, ours)


def materialise(model: GlammModel, device: str) -> None:
    """Give buffers that no checkpoint holds their values after a build on the meta device."""
    llama.materialise_llama(model.language_model, device)
    clips.materialise_clip(model.clip, device)
    sams.materialise_sam(model.grounding_encoder)
    left = [name for name, tensor in (*model.named_parameters(), *model.named_buffers()) if tensor.is_meta]
    if left:
        raise RuntimeError(f"tensors without values after loading: {sample(left)}")


def build_meta(
    settings: dict[str, Any],
    clip: CLIPConfig,
    sam: dict[str, Any] | None = None,
    attn: str = "sdpa",
    release: Release = GLAMM,
) -> GlammModel:
    """The model on the meta device: shapes without weights, at any size on any machine.

    Args:
        settings: the checkpoint's config.json.
        sam: the grounding encoder's numbers; by default SAM ViT-H.

    Raises:
        UserError: numbers are missing, no numbers, or do not fit together.
    """
    try:
        with torch.device("meta"):
            numbers = llm_config(settings, release), sam_config(SAM_VIT_H if sam is None else sam)
            return GlammModel(clip, *numbers, attn, release.projector)
    except UserError:
        raise
    except Exception as error:  # what transformers' configurations refuse has no common type
        reason = " ".join(str(error).split())
        raise UserError(
            f"No model can be built from config.json and its neighbours ({reason}); copy them again."
        ) from error


def load_checkpoint(
    folder: Path,
    clip: str | None,
    *,
    dtype: torch.dtype = torch.float32,
    device: str = "cpu",
    attn: str = "sdpa",
    sam: dict[str, Any] | None = None,
    release: Release = GLAMM,
) -> GlammModel:
    """Load a model from an official checkpoint folder and a CLIP folder or hub name.

    Args:
        sam: numbers of the grounding encoder; by default `sam_dims.json` beside config.json, else ViT-H.

    Raises:
        UserError: a file is missing or damaged, or tensors are missing, unexpected, wrongly shaped or not
            finite.
    """
    if not folder.is_dir():
        raise UserError(
            f"There is no checkpoint folder {str(folder)!r}; give --checkpoint the folder with config.json."
        )
    settings = read_json(folder / "config.json", release.files)
    tower = clip_folder(clip, release)
    towers = clip_config(tower, release)
    check_resolution(settings, towers, tower)
    model = build_meta(settings, towers, sam_numbers(folder) if sam is None else sam, attn, release)
    clip_part(model.clip, tower).fill(dtype, device)
    main_part(model, folder, release).fill(dtype, device)
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
    for target, source, files in (
        (folder, tokenizer, TOKENIZER_FILES),
        (clip, clip_tokenizer, CLIP_TOKENIZER_FILES),
    ):
        target.mkdir(parents=True, exist_ok=True)
        for name in files:
            shutil.copyfile(source / name, target / name)
    state = {
        official: v.to(dtype).contiguous()
        for k, v in model.state_dict().items()
        if (official := to_official(k, GLAMM))
    }
    save_file(state, folder / "model.safetensors", {"format": "pt"})  # type: ignore[arg-type]
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
        # the official classes open it from the current folder: start them in this one, or give them CLIP's
        # place
        "mm_vision_tower": os.path.relpath(clip, folder),
        "vision_tower": os.path.relpath(clip, folder),
        "num_level_reg_features": 4,
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
    (clip / "config.json").write_text(json.dumps(clips.described(model.clip), indent=2, default=str))
    size = vision.image_size
    (clip / "preprocessor_config.json").write_text(
        json.dumps({"crop_size": size, "size": size, "resample": 3, "do_center_crop": True}, indent=2)
    )
