"""VideoGLaMM without weights: its parts on the meta device, a usual conversation, and a clip of random
numbers.

All is of one call of the language model: the frames that it sees, and the clip whose frames get masks.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from copy import deepcopy
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from backbones.costs import CostPart, Prompt
from backbones.glamm.shapes import SEED, GlammShapes, over_tokens
from backbones.parts import clip, sam
from backbones.parts.tokenizer import IMAGE_TOKEN, LlamaTokenizer, Phi3Tokenizer, behind_image
from backbones.videoglamm import conversation
from backbones.videoglamm.budgets import CELLS, POOL, VIDEO_POOL
from backbones.videoglamm.model import VideoGlammModel
from backbones.videoglamm.placement import of_cells, over_cells, pooled
from backbones.videoglamm.settings import MASKED
from pruners.base import (
    CLS,
    LLM_PATCHES,
    LLM_TEXT_EMBEDS,
    REFERENT,
    TEXT_EMBEDS,
    Need,
    Selection,
    View,
)

# one expression of five words in LLaMA's tokens, and in CLIP's
USUAL = Prompt(text=41, before=12, turns=1, words=20, sentence=4)
LIKE = "man in the red shirt"


def without_weights(model: VideoGlammModel) -> VideoGlammModel:
    """The same model on the meta device, nothing of it copied."""
    held = (*model.parameters(), *model.buffers())
    known: dict[int, Any] = {id(one): torch.empty_like(one, device="meta") for one in held}
    known |= {id(one): nn.Parameter(known[id(one)], requires_grad=False) for one in model.parameters()}
    return deepcopy(model, known)


def projected(placement: str, patches: int, chosen: Sequence[Selection], views: int) -> int:
    """Patches that CLIP's adapter sees: what was chosen of them; in the placement postpool, where it stands
    in front of the choice, all of them and tokens that a method merged, or a class token that it chose."""
    own = sum(one.tokens for one in chosen)
    if placement != "postpool":
        return own if chosen else views * patches
    merged = sum(one.tokens for one in chosen if one.features is not None)
    classes = sum(int((one.indices == CLS).any()) for one in chosen if one.features is None)
    return views * patches + merged + classes


class VideoGlammShapes(GlammShapes):
    """The numbers of a VideoGLaMM.

    Args:
        model: on the meta device.
        placement, branch, frames: as in `VideoGlammFamily`; the frames that the language model sees.
        masked: frames of the clip, all of which get masks.
        checkpoint: as in `GlammShapes`.
    """

    usual = USUAL

    def __init__(
        self,
        model: VideoGlammModel,
        placement: str,
        branch: str,
        frames: int,
        masked: int = MASKED,
        checkpoint: Path | None = None,
    ) -> None:
        super().__init__(model, checkpoint)  # type: ignore[arg-type]
        self.placement, self.frames, self.masked = placement, frames, masked
        self.follows = model.tracks and branch == "video"
        self.side = self.grid[0]  # of CLIP's patches
        if placement == "postpool":
            self.grid = (POOL, POOL)
        self.tail = frames * VIDEO_POOL**2
        self.places = int(model.language_model.config.max_position_embeddings)

    # -- tokens

    def sent(self, count: int) -> int:
        """In the placement grid always the cells of the pool."""
        return CELLS if self.placement == "grid" else count

    @property
    def cells(self) -> tuple[int, int]:
        """Of the pool, where all patches go through it."""
        return (self.side, self.side) if self.placement == "direct" else (POOL, POOL)

    def projected(self, chosen: Sequence[Selection], views: int) -> int:
        """See `projected`."""
        return projected(self.placement, self.side**2, chosen, views)

    def prompt(self, text: int | None = None, checkpoint: str | Path | None = None) -> Prompt:
        """A conversation of one expression, its answer with a [SEG] given."""
        folder = checkpoint or self._checkpoint
        if text is not None:
            return replace(self.usual, text=text)
        return self.usual if folder is None else self.counted(Phi3Tokenizer(Path(folder)))

    def counted(self, tokenizer: LlamaTokenizer) -> Prompt:
        """That conversation, as long as this tokenizer makes it."""
        ids = tokenizer.encode(conversation.build_prompt([conversation.turn(LIKE)]))
        sentence = len(behind_image(tokenizer.encode(f"{conversation.CLIP}What is")))
        return replace(USUAL, text=len(ids) - 1, before=ids.index(IMAGE_TOKEN), sentence=sentence)

    # -- parts

    def parts(self, prompt: Prompt, dtype: torch.dtype) -> tuple[CostPart, ...]:
        """Towers and adapters over the frames that are seen, both heads, and a mask per turn in every frame
        of the clip."""
        model: Any = self.model.to(dtype)
        numbers, side = model.video_tower.numbers, self._vision.image_size
        with torch.device("meta"):
            small = torch.empty(self.frames, 3, side, side, dtype=dtype)
            seen = torch.empty(1, self.frames, 3, numbers.image, numbers.image, dtype=dtype)
            watched = torch.empty(self.frames, numbers.tokens, numbers.width, dtype=dtype)
            words = {
                "input_ids": torch.zeros(prompt.turns, prompt.words, dtype=torch.long),
                # as in `GlammShapes`
                "attention_mask": torch.zeros(prompt.turns, 1, prompt.words, prompt.words, dtype=dtype),
            }

        def see(_: int) -> None:
            states = clip.hidden_states(model.clip, small)  # held until pruners have read them
            clip.layer(model.clip, -1, states[-1])

        chunks, frames = self.frames // numbers.frames, self.frames
        text = (
            f"text tower (CLIP, {prompt.turns} x {prompt.words} tokens of questions; only for pruners that "
            f"read text)"
        )
        return (
            CostPart("vision_tower", "image", see, f"vision tower (CLIP, {frames} frames)", frames=frames),
            CostPart(
                "video_tower",
                "image",
                lambda _: model.video_tower.encode(seen),
                f"video encoder (InternVideo2, {chunks} chunks of {numbers.frames} frames, "
                f"{numbers.depth - 1} of {numbers.depth} blocks; nothing of it is pruned)",
                frames=frames,
            ),
            CostPart("text_tower", "questions", lambda _: clip.embed_text(model.clip, words), text),
            CostPart("projector", "entering", self._project),
            CostPart(
                "video_projector",
                "image",
                lambda _: pooled(model.video_projector(watched), VIDEO_POOL),
                f"adapter and pool of the video encoder ({self.tail} tokens; nothing of them is pruned)",
                frames=frames,
            ),
            CostPart("lm_head", "sequence", partial(over_tokens, model.lm_head)),
            CostPart("seg_head", "marks", partial(over_tokens, model.text_hidden_fcs)),
            *self._segmenting(prompt.turns, dtype),
        )

    def _project(self, tokens: int) -> Tensor:
        """CLIP's adapter, and the pool if there is one."""
        found = over_tokens(self.model.projector, tokens)[0]
        if self.placement == "direct":
            return found
        views = found[: self.frames * self.side**2].unflatten(0, (self.frames, -1))
        return pooled(views, POOL) if self.placement == "grid" else over_cells(views, self.side)

    def _segmenting(self, masks: int, dtype: torch.dtype) -> tuple[CostPart, CostPart]:
        """Encoder and decoder over all frames of the clip, one after the other."""
        encoder: Any = self.model.grounding_encoder
        config = encoder.config
        size = config.image_size if self._tracks else config.vision_config.image_size
        width = config.prompt_encoder_config.hidden_size
        with torch.device("meta"):
            frame = torch.empty(1, 3, size, size, dtype=dtype)
            prompts = torch.empty(masks, width, dtype=dtype)
        name, memory = ("SAM2", "memory, ") if self._tracks else ("SAM", "")
        encode, first, more = self._sam2(frame, prompts) if self._tracks else self._sam(frame, prompts)
        return (
            CostPart(
                "grounding_encoder",
                "image",
                encode,
                f"grounding encoder ({name}, {self.masked} frames)",
                self.masked,
                frames=self.masked,
            ),
            CostPart(
                "mask_decoder",
                "conversation",
                first,
                f"mask decoder ({memory if self.follows else ''}{masks} mask in {self.masked} frames)",
                1 if self.follows else self.masked,
                more,
                self.masked,
            ),
        )

    @property
    def _tracks(self) -> bool:
        model: Any = self.model
        return bool(model.tracks)

    def _sam(self, frame: Tensor, prompts: Tensor) -> _Segmenting:
        """SAM, every frame by itself."""
        encoder, config = self.model.grounding_encoder, self.model.grounding_encoder.config
        grid = frame.shape[-1] // config.vision_config.patch_size
        top = torch.empty(len(prompts), prompts.shape[1], grid, grid, device="meta", dtype=frame.dtype)
        return (
            lambda _: sam.encode(encoder, frame),
            lambda _: sam.decode_masks(encoder, top, prompts),
            (),
        )

    def _sam2(self, pixels: Tensor, prompts: Tensor) -> _Segmenting:
        """SAM2, every frame by itself or with what it remembers.

        A frame's work is linear in the remembered frames f and vectors v: c + a f + b v. With n frames behind
        the first, F and V the sums of f - 1 and v - 1 over them, and C(f, v) the work of a frame, all of them
        are n C(1, 1) + F (C(2, 1) - C(1, 1)) + V (C(1, 2) - C(1, 1)).
        """
        from backbones.parts import sam2
        from backbones.parts.sam2_shapes import blank_frame, remembering

        model = self.model.grounding_encoder
        with torch.device("meta"):
            frame = blank_frame(model, pixels.dtype)
        encode: Run = lambda _: sam2.encode_frame(model, pixels)  # noqa: E731
        if not self.follows:
            return encode, lambda _: sam2.framewise(model, frame, prompts), ()
        most = model.config.num_maskmem, model.config.max_object_pointers_in_encoder

        def after(features: int, vectors: int) -> Run:
            def run(_: int) -> Tensor:
                with torch.device("meta"):
                    tracker = remembering(model, prompts, features, vectors)
                return tracker.step(frame)

            return run

        behind = range(1, self.masked)
        further, vectors = (sum(min(k, limit) - 1 for k in behind) for limit in most)
        full = (min(self.masked - 1, limit) for limit in most)
        more = (
            (len(behind) - further - vectors, after(1, 1)),
            (further, after(2, 1)),
            (vectors, after(1, 2)),
            (0, after(*full)),
        )
        return encode, lambda _: sam2.Tracker(model, prompts).step(frame), more if behind else ()

    # -- views

    def views(self, prompt: Prompt) -> list[View]:
        """All frames that are seen; every layer of the vision tower costs what the last two do."""
        config, draw = self.model.clip.config, torch.Generator().manual_seed(SEED)
        end = clip.random_end(config, draw)
        return [self._view(number, prompt, end, draw) for number in range(self.frames)]

    def _view(self, number: int, prompt: Prompt, end: Any, draw: torch.Generator) -> View:
        patches, pools = self.side**2, self.placement == "postpool"
        states = tuple(torch.randn(patches + 1, self._vision.hidden_size, generator=draw) for _ in range(2))
        tokens = over_cells(states[-1][1:], self.side) if pools else states[-1][1:]
        text = torch.randn(prompt.turns, self.model.clip.config.projection_dim, generator=draw)
        referent = torch.rand(len(tokens), generator=draw)

        def of_patches(need: Need) -> Tensor:
            near = need.layer if need.layer in (None, -1, -2) else -2
            return clip.clip_signal(end, states, replace(need, layer=near))

        def answer(need: Need) -> Tensor:
            if need in (TEXT_EMBEDS, REFERENT):
                return text if need == TEXT_EMBEDS else referent
            if need == LLM_PATCHES:  # through the adapter, in postpool a pool behind it
                over_tokens(self.model.projector, patches)
                return torch.randn(len(tokens), self.shape.width, generator=draw)
            if need == LLM_TEXT_EMBEDS:
                return torch.randn(prompt.turns * prompt.words, self.shape.width, generator=draw)
            return of_cells(need, of_patches, self.side) if pools else of_patches(need)

        heads, of = self._vision.num_attention_heads, self.frames
        sample = f"projection#{number}"
        return View(tokens, states[-1][0], self.grid, heads, answer, sample, number=number, of=of)

    def notes(self, prompt: Prompt) -> tuple[str, ...]:
        """What a clip is, and what is not pruned."""
        last = "what is kept in front of it"
        if self.placement == "grid":
            last = f"{CELLS} tokens of a frame, whatever is kept in front of it"
        return (
            f"Placement {self.placement}: the language model gets {last}, of {self.frames} frames, and "
            f"behind them {self.tail} tokens of the video encoder, which no pruner sees. Tokens here are of "
            f"the clip, budgets of a frame.",
            f"One pass of the language model over a given answer, and masks in a clip of {self.masked} "
            f"frames. The official evaluation runs both towers and the language model again for every token "
            f"that it writes.",
        )


Run = Callable[[int], object]
_Segmenting = tuple[Run, Run, tuple[tuple[int, Run], ...]]
