"""What LISA's files have of their own (models v1, `xinlai/LISA-7B-v1` and `LISA-13B-llama2-v1`)."""

from __future__ import annotations

from backbones.parts.release import Release

LISA = Release(
    "LISA",
    clip="openai/clip-vit-large-patch14",
    # the release names no revision; the weights have been the same in all of them
    revision="32bd64288804d66eefd0ccbe215aa642df71cc41",
    grounding="model.visual_model.",
    projector="linear",
)
