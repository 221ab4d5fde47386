"""What VideoGLaMM's files have of their own."""

from __future__ import annotations

from backbones.parts.release import Release

VIDEOGLAMM = Release(
    "VideoGLaMM",
    clip="openai/clip-vit-large-patch14-336",
    revision="ce19dc912ca5cd21c8a653c79e251e808ccabcd1",
    grounding="model.visual_model.",
    projector="mlp",
)
