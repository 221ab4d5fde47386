"""Names of tensors in official checkpoints to this project's and back."""

from __future__ import annotations

from dataclasses import dataclass

from backbones.glamm import keys as glamm
from backbones.parts import internvideo2, llama
from backbones.videoglamm.release import VIDEOGLAMM

_VIDEO = "model.vision_tower."  # the official loader leaves these out and reads the encoder's own file
_ADAPTERS = (("model.image_mm_projector.", "projector."), ("model.mm_projector.", "video_projector."))
_SEGMENTER = "grounding_encoder."


@dataclass(frozen=True)
class Names:
    """How one model's tensors are called.

    Attributes:
        depth: blocks of the official video encoder.
        sam2: whether the segmenter is SAM2.
        video: whether the checkpoint's own tensors of the video encoder are read.
    """

    depth: int
    sam2: bool
    video: bool = True

    def ours(self, key: str) -> str | None:
        """Our name of a checkpoint's key; None for keys that are known and not needed.

        Raises:
            KeyError: the key is unknown.
        """
        if key.startswith(_VIDEO):
            rest = key[len(_VIDEO) :]
            if not self.video or not rest.startswith(internvideo2.PREFIX):
                return None
            return self.of_video(rest)
        for theirs, ours in _ADAPTERS:
            if key.startswith(theirs):
                return ours + key[len(theirs) :]
        if self.sam2 and key.startswith(VIDEOGLAMM.grounding):
            from backbones.parts.sam2_keys import own_name

            return _SEGMENTER + own_name(key[len(VIDEOGLAMM.grounding) :])
        return glamm.to_ours(key, VIDEOGLAMM)

    def of_video(self, key: str) -> str | None:
        """Our name of a key of InternVideo2's own file; None for those of its other parts."""
        if not key.startswith(internvideo2.PREFIX):
            return None
        # older transformers call every gamma a weight when they save
        own = internvideo2.own_name(key.removeprefix(internvideo2.PREFIX), self.depth)
        if own is None:
            return None
        for scale in ("ls1", "ls2"):
            own = own.replace(f".{scale}.weight", f".{scale}.gamma")
        return f"video_tower.{own}"

    def official(self, key: str) -> str | None:
        """A checkpoint's name of our key, parted matrices by their own; None for CLIP's and second copies."""
        for theirs, ours in _ADAPTERS:
            if key.startswith(ours):
                return theirs + key[len(ours) :]
        if key.startswith("video_tower."):
            return _VIDEO + internvideo2.PREFIX + key.removeprefix("video_tower.")
        if self.sam2 and key.startswith(_SEGMENTER):
            from backbones.parts.sam2_keys import official_name

            return VIDEOGLAMM.grounding + official_name(key.removeprefix(_SEGMENTER))
        for fused, parts in llama.FUSED.items():
            for part in parts:
                key = key.replace(f".{part}.", f".{fused}.") if key.startswith("language_model.") else key
        return glamm.to_official(key, VIDEOGLAMM)
