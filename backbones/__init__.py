"""Models that see and segment, by name; heavy imports happen in `load`."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING

from backbones import versions
from backbones.device import make_current
from backbones.glamm.settings import Glamm, Glamm7B
from backbones.lisa.settings import Lisa, Lisa7B, Lisa13B
from backbones.mini import MINI, GlammMini
from backbones.registry import (
    Family,
    Finding,
    Runtime,
    Settings,
    check_attention,
    get,
    names,
    parse,
    register,
)
from backbones.videoglamm.mini import VideoGlammMini
from backbones.videoglamm.settings import VideoGlamm, VideoGlamm3B8
from pruners.errors import UserError

if TYPE_CHECKING:
    from backbones.base import Backbone

__all__ = [
    "MINI",
    "Family",
    "Finding",
    "Runtime",
    "Settings",
    "check_attention",
    "get",
    "load",
    "names",
    "one",
    "parse",
    "register",
    "with_files",
]
_BUILT_IN = (
    Glamm,
    Glamm7B,
    GlammMini,
    Lisa,
    Lisa7B,
    Lisa13B,
    VideoGlamm,
    VideoGlammMini,
    VideoGlamm3B8,
)


def one(text: str) -> Settings:
    """The one backbone that a text names.

    Raises:
        UserError: it names none or several.
    """
    found = parse(text)
    if len(found) > 1:
        raise UserError(
            f"{text!r} names {len(found)} backbones, and one is asked at a time; give one of them."
        )
    return found[0]


def with_files(settings: Settings, **files: str | Path | None) -> Settings:
    """The settings with parameters that were given apart from the text; what the text says counts, and what a
    backbone does not have is meant for another one."""
    own = {field.name for field in dataclasses.fields(settings)}
    return dataclasses.replace(
        settings,
        **{
            name: str(file)
            for name, file in files.items()
            if file is not None and name in own and getattr(settings, name) is None
        },
    )


def load(
    name: str | Settings,
    *,
    checkpoint: str | Path | None = None,
    clip: str | Path | None = None,
    sam_dims: str | Path | None = None,
    device: str = "cpu",
    dtype: str = "float32",
    attn: str = "sdpa",
    batch_size: int = 16,
    image_backend: str = "pil",
    tensor_parallel: int = 1,
) -> Backbone:
    """Load a backbone.

    Args:
        name: as on the command line, "glamm-mini" or "glamm(checkpoint='DIR')", or what `parse` made of it.
        checkpoint, clip, sam_dims: parameters of `glamm` and `lisa`, for texts without them.
        device, dtype, attn, batch_size, image_backend, tensor_parallel: as in `Runtime`.

    Raises:
        UserError: unknown name or setting, missing or unfit files, or a device that is not there.
    """
    asked = one(name) if isinstance(name, str) else name
    how = Runtime(device, dtype, attn, batch_size, image_backend, tensor_parallel)
    make_current(how.device)
    asked = with_files(asked, checkpoint=checkpoint, clip=clip, sam_dims=sam_dims)
    versions.warn()
    try:
        return asked.load(how)
    except (ImportError, AttributeError, TypeError, KeyError) as error:  # how a changed interface shows
        if not (strange := versions.untested()):
            raise
        raise UserError(
            f"The model cannot be built with what is installed ({error!r}); {strange[0]}."
        ) from error
