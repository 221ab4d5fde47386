"""glamm-mini: shipped weights, and the training that made them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from backbones.glamm.settings import Glamm, GlammFamily, read_model
from backbones.registry import Finding, Runtime, Settings, register

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from backbones.base import Backbone
    from backbones.costs import Shapes

MINI = Path(__file__).parent / "weights"


@register
@dataclass(frozen=True)
class GlammMini(GlammFamily, Settings):
    """The embedded small GLaMM, trained on RefShapes; no downloads."""

    name = "glamm-mini"
    reference = "backbones/mini/README.md"
    costs_by_default = "measured"
    images_by_default = 12  # a first run, costs included, ends within three minutes

    def load(self, how: Runtime) -> Backbone:
        """The shipped weights."""
        from backbones.glamm.backbone import GlammBackbone

        return read_model(GlammBackbone, self, str(MINI / "checkpoint"), str(MINI / "clip"), None, how)

    def unlike(self, image: NDArray[np.uint8]) -> str | None:
        """Whatever is no scene: see `backbones.mini.kind`."""
        from backbones.mini.kind import unlike_scenes

        return unlike_scenes(self.name, "glamm", "RefShapes", image)

    def examine(self) -> Iterator[Finding]:
        """The shipped files, as those of a release."""
        return Glamm(str(MINI / "checkpoint"), str(MINI / "clip")).examine()

    def shapes(self, attn: str = "sdpa") -> Shapes:
        """The mini on the meta device, with the shipped tokenizer."""
        from backbones.glamm.full_size import on_meta
        from backbones.glamm.shapes import GlammShapes

        return GlammShapes(on_meta(self.name, attn), MINI / "checkpoint")
