"""What the doctor says of a model's files: configs, tokenizers, key lists and shapes; values are not read,
except for the fingerprint, and nothing is fetched."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from transformers import CLIPConfig, CLIPModel

from backbones.glamm import checkpoint as checkpoints
from backbones.glamm.sizes import check_resolution, clip_config, sam_numbers
from backbones.parts import hub, reading
from backbones.parts.json_files import read_json
from backbones.parts.release import Release
from backbones.parts.tokenizer import LlamaTokenizer, clip_tokenizer
from backbones.registry import Finding
from pruners.errors import UserError


def examine_files(
    checkpoint: str | None, clip: str | None, sam_dims: str | None, release: Release
) -> Iterator[Finding]:
    """Findings about a checkpoint and its CLIP; arguments are those of `settings.Glamm`. Without a
    checkpoint, of CLIP alone."""
    if checkpoint is None:
        if clip is not None:
            yield from examine_clip(local(clip, release), release)
        return
    tower = local(clip or release.clip, release)
    if clip is None and not tower.is_dir():
        yield Finding("note", "CLIP is not on this machine: the first run fetches 1.7 GB, or give --clip DIR")
        yield from _checkpoint(local(checkpoint, release), None, sam_dims, release)
        return
    yield from examine_clip(tower, release)
    yield from _checkpoint(local(checkpoint, release), tower, sam_dims, release)


def local(text: str, release: Release) -> Path:
    """The folder itself, or the hub cache's folder of a name, without asking the network."""
    from huggingface_hub import snapshot_download

    if Path(text).is_dir() or not hub.is_name(text):
        return Path(text)
    repository, revision = hub.split_revision(text)
    revision = release.revision if text == release.clip else revision
    try:
        return Path(snapshot_download(repository, revision=revision, local_files_only=True))
    except (OSError, ValueError):
        return Path(text)


def examine_clip(folder: Path, release: Release) -> Iterator[Finding]:
    """Key list and shapes of a CLIP folder."""
    try:
        if not folder.is_dir():
            raise UserError(
                f"There is no CLIP folder {str(folder)!r}; give --clip the files of {release.clip}."
            )
        config = clip_config(reading.clip_folder(str(folder), release), release)
        with torch.device("meta"):
            count = checkpoints.clip_part(CLIPModel(config), folder).check()
        vision: Any = config.vision_config
        text: Any = config.text_config
        clip_tokenizer(folder, text.vocab_size)
        side = vision.image_size // vision.patch_size
        yield Finding("ok", f"CLIP '{folder}': {count} tensors, {side} x {side} visual tokens")
    except UserError as error:
        yield Finding("wrong", str(error))


def _checkpoint(folder: Path, clip: Path | None, sam_dims: str | None, release: Release) -> Iterator[Finding]:
    """Config, tokenizer, key list and shapes of a checkpoint folder."""
    try:
        if not folder.is_dir():
            raise UserError(
                f"There is no checkpoint folder {str(folder)!r}; give --checkpoint the folder with "
                f"config.json."
            )
        settings = read_json(folder / "config.json", release.files)
        sam = sam_numbers(folder, Path(sam_dims) if sam_dims is not None else None)
        stub = CLIPConfig(
            vision_config={"hidden_size": settings.get("mm_hidden_size", 1024), "num_attention_heads": 1}
        )
        known = clip is not None and (clip / "config.json").is_file()
        tower = clip_config(clip, release) if clip is not None and known else stub
        if clip is not None and known:
            check_resolution(settings, tower, clip)
        model = checkpoints.build_meta(settings, tower, sam, release=release)
        count = checkpoints.main_part(model, folder, release).check()
        words, rows = LlamaTokenizer(folder), model.language_model.config.vocab_size
        words.check(rows)
        mark = reading.weights_fingerprint(folder, clip if clip is not None and clip.is_dir() else None, sam)
        yield Finding(
            "ok", f"checkpoint '{folder}': {count} tensors, {rows} embedding rows, fingerprint {mark}"
        )
    except UserError as error:
        yield Finding("wrong", str(error))
