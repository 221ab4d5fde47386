"""videoglamm-mini: shipped weights."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from backbones.mini import MINI
from backbones.registry import Finding, Runtime, Settings, register
from backbones.videoglamm.settings import VideoGlamm, VideoGlammFamily, check_choices
from pruners.errors import UserError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from backbones.base import Backbone
    from backbones.costs import Shapes

CHECKPOINT = Path(__file__).parent / "weights" / "checkpoint"


@register
@dataclass(frozen=True)
class VideoGlammMini(VideoGlammFamily, Settings):
    """The embedded small VideoGLaMM, trained on RefClips; no downloads. Its segmenter is SAM's, which sees
    every frame by itself and follows nothing.

    Attributes:
        placement, branch, frames: as in `VideoGlammFamily`.
    """

    placement: str = "grid"
    branch: str = "framewise"
    frames: int | None = 4
    name = "videoglamm-mini"
    reference = "backbones/videoglamm/mini/README.md"
    images_by_default = 5

    def __post_init__(self) -> None:
        super().__post_init__()
        check_choices(self)
        if self.branch != "framewise":
            raise UserError(f"{self.name} follows nothing through a clip; leave out branch={self.branch!r}.")

    def load(self, how: Runtime) -> Backbone:
        """The shipped weights, and glamm-mini's CLIP."""
        from backbones.videoglamm.loading import read_model

        return read_model(self, str(CHECKPOINT), str(MINI / "clip"), None, how)

    def unlike(self, image: NDArray[np.uint8]) -> str | None:
        """Whatever is no scene: see `backbones.mini.kind`."""
        from backbones.mini.kind import unlike_scenes

        return unlike_scenes(self.name, "videoglamm", "RefClips", image)

    def examine(self) -> Iterator[Finding]:
        """The shipped files, as those of a release."""
        how = {"placement": self.placement, "branch": self.branch, "frames": self.frames}
        return VideoGlamm(str(CHECKPOINT), str(MINI / "clip"), **how).examine()  # type: ignore[arg-type]

    def shapes(self, attn: str = "sdpa") -> Shapes:
        """The embedded model's numbers."""
        from backbones.videoglamm.full_size import of_folder

        return of_folder(self, str(CHECKPOINT), str(MINI / "clip"), attn)
