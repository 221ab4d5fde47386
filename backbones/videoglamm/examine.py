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
from backbones.videoglamm.settings import BRANCHES, PLACEMENTS
from pruners.errors import UserError


def examine_files(checkpoint: str | None, clip: str | None, video: str | None) -> Iterator[Finding]:
    """Findings about a checkpoint and its towers; arguments are those of `settings.VideoGlamm`. Without a
    checkpoint, of CLIP alone."""
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
        yield from _checkpoint(local(checkpoint, VIDEOGLAMM), tower, Path(video) if video else None)
    except UserError as error:
        yield Finding("wrong", str(error))


def _checkpoint(folder: Path, tower: Path, video: Path | None) -> Iterator[Finding]:
    """Config, tokenizer, key list and shapes of a checkpoint folder and of the video encoder's file."""
    if not folder.is_dir():
        raise UserError(
            f"There is no checkpoint folder {str(folder)!r}; give --checkpoint the folder with config.json."
        )
    model, settings = loading.on_meta(folder, tower, "sdpa")
    names = files.names_of(model, video)
    count = files.main_part(model, folder, names).check()
    if video is not None:
        count += files.video_part(model, video, names).check()
    words, rows = Phi3Tokenizer(folder), model.language_model.config.vocab_size
    words.check(rows)
    frames = sizes.frame_count(settings, None, model.video_tower.numbers)
    branch = BRANCHES[0] if model.tracks else BRANCHES[1]
    mark = loading.fingerprint(folder, tower, video, PLACEMENTS[0], branch, frames)
    yield Finding(
        "ok",
        f"checkpoint '{folder}': {count} tensors, {rows} embedding rows, {frames} frames, fingerprint {mark}",
    )
