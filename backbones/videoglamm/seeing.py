"""VideoGLaMM's eyes behind the harness's interface: how it is asked, the frames that it sees encoded once,
and signals answered when a pruner reads them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from backbones.base import Backbone, ClipEncoding, ClipPixels, Conversation, Encoding, Turn
from backbones.glamm import signals
from backbones.glamm.language import GlammLanguage
from backbones.glamm.preprocess import clip_pixels
from backbones.parts import clip as clips
from backbones.parts.clips import Clip
from backbones.parts.errors import not_finite
from backbones.parts.geometry import Region
from backbones.parts.tokenizer import LlamaTokenizer
from backbones.videoglamm import conversation
from backbones.videoglamm.budgets import POOL, VIDEO_POOL
from backbones.videoglamm.model import VideoGlammModel
from backbones.videoglamm.placement import of_cells, over_cells, pooled
from backbones.videoglamm.preprocess import sampled, video_pixels
from backbones.videoglamm.release import VIDEOGLAMM
from backbones.videoglamm.settings import VideoGlammFamily
from pruners.base import LLM_PATCHES, Need, View
from pruners.errors import UserError


@dataclass(frozen=True)
class Window(ClipEncoding):
    """The views of one call of the language model.

    Attributes:
        first: number of the first of them in its clip.
    """

    first: int = 0


class VideoGlammSeeing(VideoGlammFamily, GlammLanguage):  # type: ignore[misc]
    """The half of a loaded VideoGLaMM that ends where the language model begins; arguments are those of
    `GlammSeeing`, and where and how it prunes and segments, as in `VideoGlammFamily`."""

    branch: str
    release = VIDEOGLAMM
    image_sentence = f"{conversation.CLIP}What is"

    def __init__(
        self,
        model: VideoGlammModel,
        tokenizer: LlamaTokenizer,
        clip_folder: Path,
        *,
        placement: str,
        branch: str,
        frames: int,
        **how: Any,
    ) -> None:
        self.placement, self.branch, self.frames = placement, branch, frames
        super().__init__(cast("Any", model), tokenizer, clip_folder, **how)
        self.model: Any = model
        self.side = self.grid[0]  # of CLIP's patches
        if placement == "postpool":
            self.grid = (POOL, POOL)

    @property
    def probes(self) -> None:
        """None: a diagnosis looks at images."""
        return None

    @property
    def staged(self) -> Any:
        """Its forward pass in stages."""
        from backbones.videoglamm.stages import VideoGlammStaged

        return VideoGlammStaged(cast("Any", self))

    def _grounding_size(self) -> int:
        config = self.model.grounding_encoder.config
        return int(config.image_size if self.model.tracks else config.vision_config.image_size)

    @property
    def facts(self) -> dict[str, str]:
        """As of the family, the frames by their number."""
        return {**super().facts, "frames": str(self.frames)}

    # -- once per clip

    def preprocess(self, image: NDArray[np.uint8]) -> Any:
        """Refuse: it sees clips."""
        raise UserError(f"{self.name} sees clips; give an image backbone or a video data set.")

    def preprocess_clip(self, clip: Clip) -> ClipPixels:
        """The frames that the towers see of every window, resized and normalised.

        Raises:
            UserError: a frame cannot be read.
        """
        assert self.frames is not None
        shown = tuple(
            window[number] for window in clip.windows() for number in sampled(len(window), self.frames)
        )
        size = self.model.video_tower.numbers.image
        found: dict[int, tuple[Tensor, Tensor]] = {}
        for number in dict.fromkeys(shown):
            frame = clip.frame(number)
            found[number] = clip_pixels(frame, self.image_size), video_pixels(frame, size)
        vision, video = (torch.stack([found[number][k] for number in shown]) for k in (0, 1))
        return ClipPixels(vision, video, shown, clip, (clip.height, clip.width))

    def encode(self, images: Sequence[Any]) -> list[Encoding]:
        """Encode clips."""
        return self.encode_pixels([self.preprocess_clip(clip) for clip in images])

    def encode_pixels(self, pixels: Sequence[Any]) -> list[Encoding]:
        """Both towers, window by window, so that one in company rounds as one alone.

        Raises:
            UserError: what a tower says of a clip is not finite in this precision.
        """
        return self._within_memory(lambda: [self._encoded(one) for one in pixels])

    def _encoded(self, pixels: ClipPixels) -> ClipEncoding:
        assert self.frames is not None
        states, embeddings = [], []
        for start in range(0, len(pixels.shown), self.frames):
            vision, video = (
                part[start : start + self.frames].to(self.device, self._kind, non_blocking=True)
                for part in (pixels.vision, pixels.video)
            )
            states.append(clips.hidden_states(self.model.clip, vision))
            watched = self.model.video_tower.encode(video[None])[0]
            embeddings.append(watched.unflatten(0, (self.frames, -1)))
        together = tuple(torch.cat(parts) for parts in zip(*states, strict=True))
        embedding = torch.cat(embeddings)
        if not (together[-1].isfinite().all() and embedding.isfinite().all()):
            raise UserError(not_finite(self.dtype))
        original = pixels.original
        return ClipEncoding(together, embedding, original, original, shown=pixels.shown, clip=pixels.clip)

    def window(self, encoding: ClipEncoding, number: int) -> Window:
        """One call's views; what is computed for one of them is known to all that look at the clip."""
        assert self.frames is not None
        first = number * self.frames
        part = slice(first, first + self.frames)
        states = tuple(state[part] for state in encoding.hidden_states)
        return Window(
            states,
            encoding.embedding[part],
            encoding.resized,
            encoding.original,
            encoding.signals,
            encoding.shown[part],
            encoding.clip,
            first,
        )

    # -- how it is asked

    def turn(self, expression: str) -> Turn:
        """The expression in the one wording of question and answer."""
        return conversation.turn(expression)

    def conversations(
        self,
        sample_id: str,
        expressions: Sequence[str],
        protocol: str,
        seed: int,
        forms: Sequence[str] = (),
    ) -> list[Conversation]:
        """Every expression by itself."""
        return Backbone.conversations(self, sample_id, expressions, protocol, seed, forms)

    def prompt(self, turns: Sequence[Turn], answered: bool = True) -> str:
        """As `GlammSeeing.prompt`, in Phi-3's template; all frames stand in the place of one mark."""
        return conversation.build_prompt(turns, answered)

    # -- what pruners read

    def regions_of(self, encoding: Encoding) -> tuple[Region, ...]:
        """The region that each view of an encoded clip covers: of all of them the centred square."""
        (region,) = self.regions(*encoding.original)
        return (region,) * len(encoding.hidden_states[-1])

    def views(
        self, encoding: Encoding, turns: Sequence[Turn], sample: str, masks: NDArray[np.bool_] | None = None
    ) -> list[View]:
        """The frames that the language model sees, all windows' one after the other; in the placement
        postpool the cells of each, whose features are the means of their patches'."""
        questions = tuple(turn.question for turn in turns)
        regions = self.regions_of(encoding)
        found = []
        for number, (states, region) in enumerate(zip(encoding.hidden_states[-1], regions, strict=True)):
            truth = masks[number] if masks is not None else None
            found.append(
                View(
                    self._features(states),
                    states[0],
                    self.grid,
                    self.num_heads,
                    partial(self._of_view, encoding, questions, truth, number),
                    f"{sample}#{number}",
                    number=number,
                    of=len(regions),
                    region=region,
                )
            )
        return found

    def _features(self, states: Tensor) -> Tensor:
        """(N, C) what a view's tokens are of a frame's states (N + 1, C)."""
        return over_cells(states[1:], self.side) if self.placement == "postpool" else states[1:]

    @torch.inference_mode()
    def _of_view(
        self,
        encoding: Encoding,
        questions: tuple[str, ...],
        truth: NDArray[np.bool_] | None,
        view: int,
        need: Need,
    ) -> Tensor:
        if (told := self._beside(questions, truth, need)) is not None:
            return told
        key = need.named(self._depth), view
        if key not in encoding.signals:
            encoding.signals[key] = self._signal(encoding, view, need)
        return encoding.signals[key]

    def _signal(self, encoding: Encoding, view: int, need: Need) -> Tensor:
        """A signal of one view, as the placement shows it."""
        if need == LLM_PATCHES:
            return self.projected(encoding, view, view)
        states = tuple(state[view] for state in encoding.hidden_states)
        of_patches = partial(signals.of_image, self.model, states)
        return of_cells(need, of_patches, self.side) if self.placement == "postpool" else of_patches(need)

    # -- what the language model gets of them

    def projected(self, encoding: Encoding, view: int, known: int) -> Tensor:
        """(N, width) what a view's tokens enter the language model as, in front of the pool of the placement
        grid; computed once per clip.

        Args:
            view: place of the view in the encoding.
            known: its number in the clip.
        """
        key = "projected", known
        if key not in encoding.signals:
            found = self.model.projector(encoding.hidden_states[-1][view, 1:])
            encoding.signals[key] = over_cells(found, self.side) if self.placement == "postpool" else found
        return encoding.signals[key]

    def watched(self, window: Window) -> Tensor:
        """(T * 64, width) the video encoder's tokens of a window, pooled; computed once per clip."""
        key = "watched", window.first
        if key not in window.signals:
            frames = pooled(self.model.video_projector(window.embedding), VIDEO_POOL)
            window.signals[key] = frames.flatten(0, 1)
        return window.signals[key]
