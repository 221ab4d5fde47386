"""The numbers of VideoGLaMM's parts, from its own files."""

from __future__ import annotations

import dataclasses
import reprlib
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from transformers import LlamaConfig, SamConfig

from backbones.glamm import sizes as glamm
from backbones.parts.internvideo2 import VideoNumbers
from backbones.parts.json_files import read_json
from backbones.videoglamm.budgets import POOL, VIDEO_POOL
from backbones.videoglamm.release import VIDEOGLAMM
from backbones.videoglamm.settings import FRAMES
from pruners.errors import UserError

if TYPE_CHECKING:
    from backbones.parts.sam2 import Sam2Numbers

T = TypeVar("T")
MOST = 2**20  # of any single number
# beside config.json, where a part has other sizes than the released one
VIDEO_FILE, SAM2_FILE = "video_dims.json", "sam2_dims.json"


def llm_config(settings: dict[str, Any]) -> LlamaConfig:
    """transformers' Llama configuration of the language model, with its sliding window.

    The official run, in transformers 4.41 without fused attention, lets a token see one token more than the
    window says; so does this one.

    Raises:
        UserError: a number is missing or no number, or a setting asks for a model that this one is not.
    """
    window = settings.get("sliding_window")
    if window is not None and not (type(window) is int and 0 < window <= MOST):
        raise UserError(
            f"The checkpoint's config.json cannot be used (sliding_window is {reprlib.repr(window)}, not a "
            f"whole number of tokens); copy it from the {VIDEOGLAMM.title} release."
        )
    config = glamm.llm_config(settings, VIDEOGLAMM)
    config.sliding_window = None if window is None else window + 1  # type: ignore[attr-defined]
    return config


def frame_count(settings: dict[str, Any], asked: int | None, video: VideoNumbers) -> int:
    """Frames that the language model sees of a clip.

    Args:
        asked: None for what config.json says as `num_frames`, else 16.

    Raises:
        UserError: the video encoder, which reads several at once, cannot share them out.
    """
    frames = asked if asked is not None else settings.get("num_frames", FRAMES)
    if type(frames) is not int or frames < 1 or frames % video.frames:
        raise UserError(
            f"The video encoder reads {video.frames} frames at once and {reprlib.repr(frames)} were asked; "
            f"give frames={video.frames} or a multiple."
        )
    return frames


def video_numbers(folder: Path) -> VideoNumbers:
    """The video encoder's sizes: those of `video_dims.json` beside config.json, else of InternVideo2 1B.

    Raises:
        UserError: the file is damaged, or its numbers are none.
    """
    found = _numbers(folder / VIDEO_FILE, VideoNumbers)
    if found.grid[0] % VIDEO_POOL:
        raise UserError(
            f"The video encoder has {found.grid[0]} x {found.grid[1]} patches a frame, which make no "
            f"{VIDEO_POOL} x {VIDEO_POOL} cells; mend {VIDEO_FILE}."
        )
    return found


def segmenter_numbers(settings: dict[str, Any], folder: Path) -> SamConfig | Sam2Numbers:
    """Sizes of SAM2, those of `sam2_dims.json` beside config.json, else of Hiera-L; or where config.json says
    `use_sam2: false` of SAM, as in `glamm.sizes.sam_numbers`.

    Raises:
        UserError: a file is damaged, or its numbers are none.
    """
    if settings.get("use_sam2", True) is False:
        return glamm.sam_config(glamm.sam_numbers(folder))
    from backbones.parts.sam2 import Sam2Numbers

    return _numbers(folder / SAM2_FILE, Sam2Numbers)


def described(folder: Path, settings: dict[str, Any]) -> dict[str, Any]:
    """All numbers beside config.json, for a fingerprint."""
    video = dataclasses.asdict(video_numbers(folder))
    if settings.get("use_sam2", True) is False:
        return {"video": video, "sam": glamm.sam_numbers(folder)}
    numbers: Any = segmenter_numbers(settings, folder)
    return {"video": video, "sam2": dataclasses.asdict(numbers)}


def check_grid(side: int, folder: Path) -> None:
    """Raise UserError unless CLIP's patches make the cells of the pool."""
    if side % POOL:
        raise UserError(
            f"CLIP in {str(folder)!r} has {side} x {side} visual tokens, which make no {POOL} x {POOL} "
            f"cells; give --clip the files of {VIDEOGLAMM.clip}."
        )


def _numbers(path: Path, kind: type[T]) -> T:
    """A dataclass of numbers, read from a file if it is there."""
    if not path.is_file():
        return kind()
    held = read_json(path, f"it gives the numbers of a part of {VIDEOGLAMM.title}")
    given, problems = {}, []
    for field in dataclasses.fields(kind):  # type: ignore[arg-type]
        if field.name not in held:
            continue
        value = held[field.name]
        several = isinstance(field.default, tuple)
        single = value if several and isinstance(value, list) else [value]
        if several != isinstance(value, list) or any(
            type(v) is not int or not 0 <= v <= MOST for v in single
        ):
            problems.append(f"{field.name} is {reprlib.repr(value)}")
        given[field.name] = tuple(value) if isinstance(value, list) else value
    problems += [f"{name} is unknown" for name in held.keys() - given.keys()]
    if problems:
        raise UserError(f"{str(path)!r} cannot be used ({'; '.join(sorted(problems))}); copy it again.")
    return kind(**given)
