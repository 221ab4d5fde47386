"""A VideoGLaMM from its files."""

from __future__ import annotations

import hashlib
import json
import sys
from pathlib import Path
from typing import Any

import torch

from backbones.glamm.sizes import check_resolution, clip_config
from backbones.parts import reading
from backbones.parts.json_files import read_json
from backbones.parts.tensor_parallel import mesh, split_layers
from backbones.parts.tokenizer import Phi3Tokenizer
from backbones.parts.trained import untrained
from backbones.registry import Runtime, Settings
from backbones.videoglamm import checkpoint as files
from backbones.videoglamm import sizes
from backbones.videoglamm.backbone import VideoGlammBackbone
from backbones.videoglamm.release import VIDEOGLAMM
from backbones.videoglamm.settings import branch_of, called
from pruners.errors import UserError


def on_meta(folder: Path, tower: Path, attn: str) -> tuple[files.VideoGlammModel, dict[str, Any]]:
    """A checkpoint's model without weights, and its config.json.

    Raises:
        UserError: a configuration is missing or unfit.
    """
    settings = read_json(folder / "config.json", VIDEOGLAMM.files)
    clip = clip_config(tower, VIDEOGLAMM)
    named = {"mm_vision_tower": settings.get("image_mm_vision_tower")}
    check_resolution(named, clip, tower)
    vision: Any = clip.vision_config
    sizes.check_grid(vision.image_size // vision.patch_size, tower)
    numbers = sizes.video_numbers(folder), sizes.segmenter_numbers(settings, folder)
    return files.build_meta(settings, clip, *numbers, attn), settings


def read_model(
    settings: Settings, checkpoint: str, clip: str | None, video: str | None, how: Runtime
) -> VideoGlammBackbone:
    """Load a checkpoint.

    Args:
        settings: what the loaded backbone is called, where budgets act, and what it does by default.
        checkpoint, clip, video: as in `settings.VideoGlamm`.

    Raises:
        UserError: files are missing or unfit, or the model does not fit into the device.
    """
    placement, asked = (getattr(settings, name) for name in ("placement", "frames"))
    folder = reading.checkpoint_folder(checkpoint)
    tower, own = reading.clip_folder(clip, VIDEOGLAMM), Path(video) if video is not None else None
    tokenizer = Phi3Tokenizer(folder)
    model, config = on_meta(folder, tower, how.attn)
    frames = sizes.frame_count(config, asked, model.video_tower.numbers)
    branch = branch_of(settings, model.tracks)
    team = mesh(how.tensor_parallel, how.device) if how.tensor_parallel > 1 else None
    try:
        # a model that is shared is read into main memory, and each device gets its part
        first = "cpu" if team is not None else how.device
        files.fill(model, folder, tower, own, getattr(torch, how.dtype), first)
        if team is not None:
            split_layers(model.language_model, team)
            model.to(how.device)
    except torch.OutOfMemoryError as error:
        raise UserError(
            f"The model does not fit into {how.device} in {how.dtype}; give --dtype bfloat16 or another "
            f"--device."
        ) from error
    tokenizer.check(model.language_model.config.vocab_size)
    for part in untrained(model.learned()):
        print(
            f"{part} of {checkpoint!r} looks as it was made, not trained, and its masks are noise then; take "
            f"the {VIDEOGLAMM.title} release, or merge and save it again with all its parts",
            file=sys.stderr,
        )
    return VideoGlammBackbone(
        model,
        tokenizer,
        tower,
        placement=placement,
        branch=branch,
        frames=frames,
        name=called(settings.name, placement),
        fingerprint=fingerprint(folder, tower, own, placement, branch, frames),
        device=how.device,
        dtype=how.dtype,
        attn=how.attn,
        batch_size=how.batch_size,
        image_backend=how.image_backend,
        costs_by_default=settings.costs_by_default,
        images_by_default=settings.images_by_default,
    )


def fingerprint(
    folder: Path, tower: Path, video: Path | None, placement: str, branch: str, frames: int
) -> str:
    """Identity of a loaded model, as `reading.weights_fingerprint`, and of how it is run."""
    config = read_json(folder / "config.json", VIDEOGLAMM.files)
    files_of = reading.weights_fingerprint(folder, tower, sizes.described(folder, config))
    digest = hashlib.sha256(f"{files_of}:{placement}:{branch}:{frames}".encode())
    words = folder / "tokenizer_config.json"
    if words.is_file():
        digest.update(json.dumps(read_json(words, "copy it again"), sort_keys=True).encode())
    if video is not None:
        with video.open("rb") as handle:
            digest.update(hashlib.file_digest(handle, "sha256").digest())
    return digest.hexdigest()[:16]
