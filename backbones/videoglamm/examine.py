"""What the doctor says of VideoGLaMM's files: configs, tokenizers, key lists and shapes; values are not read,
except for the fingerprint, and nothing is fetched."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from backbones.glamm.examine import examine_clip, local
from backbones.parts.tokenizer import Phi3Tokenizer
from backbones.registry import Finding
from backbones.videoglamm import checkpoint as files
from backbones.videoglamm import loading, sizes
from backbones.videoglamm.release import VIDEOGLAMM
from backbones.videoglamm.settings import VideoGlamm, branch_of
from pruners.errors import UserError


def examine_files(asked: VideoGlamm) -> Iterator[Finding]:
    """Findings about a checkpoint and its towers; without a checkpoint, of CLIP alone."""
    checkpoint, clip = asked.checkpoint, asked.clip
    if checkpoint is None:
        if clip is not None:
            yield from examine_clip(local(clip, VIDEOGLAMM), VIDEOGLAMM)
        return
    tower = local(clip or VIDEOGLAMM.clip, VIDEOGLAMM)
    if clip is None and not tower.is_dir():
        yield Finding("note", "CLIP is not on this machine: the first run fetches 1.7 GB, or give --clip DIR")
        return
    yield from examine_clip(tower, VIDEOGLAMM)
    try:
        yield from _checkpoint(local(checkpoint, VIDEOGLAMM), tower, asked)
    except UserError as error:
        yield Finding("wrong", str(error))


def _checkpoint(folder: Path, tower: Path, asked: VideoGlamm) -> Iterator[Finding]:
    """Config, tokenizer, key list and shapes of a checkpoint folder and of the video encoder's file."""
    if not folder.is_dir():
        raise UserError(
            f"There is no checkpoint folder {str(folder)!r}; give --checkpoint the folder with config.json."
        )
    video = Path(asked.video) if asked.video is not None else None
    model, settings = loading.on_meta(folder, tower, "sdpa")
    names = files.names_of(model, video)
    count = files.main_part(model, folder, names).check()
    if video is not None:
        count += files.video_part(model, video, names).check()
    words, rows = Phi3Tokenizer(folder), model.language_model.config.vocab_size
    words.check(rows)
    frames = sizes.frame_count(settings, asked.frames, model.video_tower.numbers)
    branch = branch_of(asked, model.tracks)
    mark = loading.fingerprint(folder, tower, video, asked.placement, branch, frames)
    yield Finding(
        "ok",
        f"checkpoint '{folder}': {count} tensors, {rows} embedding rows, {frames} frames, fingerprint {mark}",
    )
