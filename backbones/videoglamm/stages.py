"""One clip and one conversation through VideoGLaMM in named stages that a meter can watch: one call of the
language model, and masks of all frames that it is about.

As in `backbones.glamm.stages`, a cell pays for all that the released forward computes. The answer is given,
so that every row runs the same tokens; the official evaluation, which lets the model write, runs towers and
language model again for every one of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from backbones.base import Turn
from backbones.costs import Passed, Prompt, Shape, Staged, Traced
from backbones.glamm.preprocess import clip_pixels, patch_shares
from backbones.glamm.signals import question_ids
from backbones.glamm.stages import split_ids
from backbones.parts import clip, llama
from backbones.parts.clips import Clip
from backbones.parts.contexts import Context
from backbones.parts.cuts import Choose, Cutting, cutting
from backbones.parts.faithful import Stage
from backbones.parts.staged import prefill
from backbones.videoglamm.budgets import CELLS, POOL, VIDEO_POOL
from backbones.videoglamm.placement import context_of, of_cells, over_cells, place, pooled
from backbones.videoglamm.preprocess import sampled, video_pixels
from backbones.videoglamm.segmenters import Prepared, segmenter
from backbones.videoglamm.shapes import MASKED, VideoGlammShapes, without_weights
from pruners import checks
from pruners.base import (
    CLS,
    LLM_PATCHES,
    LLM_TEXT_EMBEDS,
    REFERENT,
    TEXT_EMBEDS,
    Need,
    Pruner,
    Selection,
    View,
)
from pruners.errors import UserError

if TYPE_CHECKING:
    from backbones.videoglamm.backbone import VideoGlammBackbone


@dataclass(frozen=True)
class VideoInputs:
    """What the model is given, on its device; preparing it belongs to no stage.

    Attributes:
        small: (T, 3, s, s) pixels of the frames that CLIP sees.
        seen: (1, T, 3, s', s') the same frames for the video encoder.
        frames: all frames of the clip for the segmenter.
        before, after: (1, a) and (1, b) token ids on the two sides of the clip.
        seg: places of the states that predict [SEG], counted from the end.
        words: CLIP's tokens of the questions, `input_ids` and `attention_mask`, each (M, W).
        asked: (W,) token ids of the questions in the language model's vocabulary.
        answer: tokens of the answer, with which `after` ends.
        referent: (T, N) share of each token of a view inside the truth, for controls that may see it.
        sample: seed of random draws.
    """

    small: Tensor
    seen: Tensor
    frames: tuple[Prepared, ...]
    before: Tensor
    after: Tensor
    seg: tuple[int, ...]
    words: dict[str, Tensor]
    asked: Tensor
    answer: int
    referent: Tensor | None = None
    sample: str = ""

    @property
    def prompt(self) -> Prompt:
        """The conversation's lengths."""
        turns, words = self.words["input_ids"].shape
        return Prompt(self.before.shape[1] + self.after.shape[1], self.before.shape[1], turns, words)


class VideoGlammStaged(Staged):
    """The forward pass of a loaded VideoGLaMM."""

    stages = (
        "vision",
        "video_tower",
        "text",
        "pruner",
        "projector",
        "video_projector",
        "prefill",
        "lm_head",
        "seg_head",
        "grounding_encoder",
        "mask_decoder",
    )
    fixed = ("vision", "video_tower", "video_projector", "grounding_encoder", "mask_decoder")

    def __init__(self, backbone: VideoGlammBackbone) -> None:
        self._backbone, self._model = backbone, backbone.model
        self._placement, self._side = backbone.placement, backbone.side
        self.shape = Shape.of(self._model.language_model.config)
        # of a view, as what prunes inside the language model counts them
        self.patches = backbone.sent(backbone.grid[0] * backbone.grid[1])
        self.device, self.dtype = backbone.device, next(self._model.parameters()).dtype

    # -- what goes in

    def length(self, turns: Sequence[Turn]) -> int:
        """Ids of the conversation but the clip's mark."""
        return len(self._backbone.ids(turns)) - 1

    def shown(self, clip: Clip) -> tuple[int, ...]:
        """The frames of the first window that the language model sees."""
        (first, *_), frames = clip.windows(), self._backbone.frames
        assert frames is not None
        return tuple(first[number] for number in sampled(len(first), frames))

    def prepare(
        self,
        image: Clip,
        turns: Sequence[Turn],
        sample: str = "",
        masks: NDArray[np.bool_] | None = None,
    ) -> VideoInputs:
        """The first window of a clip, ids, CLIP's words."""
        own, device = self._backbone, self.device
        shown = [image.frame(number) for number in self.shown(image)]
        small = torch.stack([clip_pixels(frame, own.image_size) for frame in shown])
        size = self._model.video_tower.numbers.image
        seen = torch.stack([video_pixels(frame, size) for frame in shown])[None]
        makes = self._segmenter()
        frames = (makes.prepare(image.frame(number)) for number in image.windows()[0])
        questions = tuple(turn.question for turn in turns)
        before, after, seg = split_ids(own.ids(turns), own.tokenizer.seg_id)
        referent = None
        if masks is not None:
            shares = [patch_shares(one, own.image_size, own.grid) for one in masks]
            referent = torch.stack(shares).to(device)
        return VideoInputs(
            small.to(device, self.dtype),
            seen.to(device, self.dtype),
            tuple(one._replace(pixels=one.pixels.to(device, self.dtype)) for one in frames),
            before.to(device),
            after.to(device),
            seg,
            own.clip_words(questions),
            torch.tensor(question_ids(own.tokenizer, questions), device=device),
            own.answer_length(turns),
            referent,
            sample,
        )

    def _segmenter(self) -> Any:
        own = self._backbone
        return segmenter(self._model.grounding_encoder, own.sam_size, self._model.tracks, own.branch)

    # -- the pass

    @torch.no_grad()
    def see(self, inputs: VideoInputs) -> tuple[Sequence[Tensor], Tensor]:
        """Hidden states of the vision tower, each (T, N+1, C), and (W, width) tokens of the video encoder."""
        return self._vision(inputs), self._watched(self._video(inputs))

    def _vision(self, inputs: VideoInputs) -> Sequence[Tensor]:
        batch = clip.hidden_states(self._model.clip, inputs.small)
        clip.layer(self._model.clip, -1, batch[-1])
        return batch

    def _video(self, inputs: VideoInputs) -> Tensor:
        """(T, n, C) of the video encoder."""
        return self._model.video_tower.encode(inputs.seen)[0].unflatten(0, (len(inputs.small), -1))

    def _watched(self, embedding: Tensor) -> Tensor:
        return pooled(self._model.video_projector(embedding), VIDEO_POOL).flatten(0, 1)

    @torch.no_grad()
    def forward(
        self,
        inputs: VideoInputs,
        pruner: Pruner,
        budget: int,
        stage: Stage = nullcontext,
        checked: bool = True,
        seen: tuple[Sequence[Tensor], Tensor] | None = None,
    ) -> Passed:
        """Every stage once; encoder and decoder of masks take turns, frame by frame."""
        model, fixed = self._model, seen is None
        if seen is None:
            with stage("vision"):
                batch = self._vision(inputs)
            with stage("video_tower"):
                embedding = self._video(inputs)
        else:
            batch, watched = seen
        text = None
        if TEXT_EMBEDS in pruner.needs:
            with stage("text"):
                text = clip.embed_text(model.clip, inputs.words)
        views = [self._view(inputs, [one[k] for one in batch], k, text) for k in range(len(inputs.small))]
        with stage("pruner"):
            chosen = checks.select_views(pruner, views, budget, self.shape.layers, checked)
            features = [
                one.gather(view) if self._placement != "postpool" else one.features
                for one, view in zip(chosen, views, strict=False)
            ]
        states, context = batch[-1], self.context(chosen, len(views))
        del batch, views
        with stage("projector"):
            visual = self._projected(states, chosen, features)
        if fixed:
            with stage("video_projector"):
                watched = self._watched(embedding)
            del embedding
        given = torch.cat([visual, watched])[None]
        del states, features, visual, watched
        choose = partial(checks.cut, checked=checked)
        cut = self._cut(inputs, pruner, budget, choose)
        with stage("prefill"):
            run = prefill(model.language_model, inputs.before, given, inputs.after, cut, context, stage)
        with stage("lm_head"):
            model.lm_head(run.hidden)
        with stage("seg_head"):
            prompts = model.text_hidden_fcs(run.hidden)[0, list(inputs.seg)]
        logits = self._masks(inputs, prompts, stage) if fixed else None
        tail = len(inputs.small) * VIDEO_POOL**2
        ran = [length - inputs.prompt.text - tail for length in run.lengths]
        self._check_stated(pruner, budget, ran, len(inputs.small))
        return Passed(run.lengths, logits)

    def _check_stated(self, pruner: Pruner, budget: int, ran: list[int], views: int) -> None:
        """Raise UserError unless the layers saw of every view what the pruner had stated."""
        own = self._backbone
        stated = own.stated(pruner, budget, own.grid[0] * own.grid[1], self.shape.layers)
        if ran != [views * count for count in stated]:
            raise UserError(
                f"The layers saw {checks.told(ran)} visual tokens of {views} frames, and {pruner.spec()} had "
                f"stated {checks.told(stated)} of each."
            )

    def _view(self, inputs: VideoInputs, states: Sequence[Tensor], number: int, text: Tensor | None) -> View:
        """A frame as a pruner sees it, nothing cached."""
        model, side, pools = self._model, self._side, self._placement == "postpool"

        def of_patches(need: Need) -> Tensor:
            return clip.clip_signal(model.clip, tuple(states), need)

        def answer(need: Need) -> Tensor:
            if need in (TEXT_EMBEDS, REFERENT):
                found = text if need == TEXT_EMBEDS else inputs.referent
                if found is None:
                    raise ValueError(f"{need.kind} was not prepared")
                return found if need == TEXT_EMBEDS else found[number]
            if need == LLM_TEXT_EMBEDS:
                return llama.embed_ids(model.language_model, inputs.asked)
            if need == LLM_PATCHES:
                projected = model.projector(states[-1][1:])
                return over_cells(projected, side) if pools else projected
            return of_cells(need, of_patches, side) if pools else of_patches(need)

        tokens = over_cells(states[-1][1:], side) if pools else states[-1][1:]
        grid, heads, of = self._backbone.grid, self._backbone.num_heads, len(inputs.small)
        sample = f"{inputs.sample}#{number}"
        return View(tokens, states[-1][0], grid, heads, answer, sample, number=number, of=of)

    def context(self, chosen: Sequence[Selection], views: int) -> Context:
        """The clip's, whose tokens stand compactly."""
        return context_of(self._placement, chosen, views, self.patches, device=self.device)

    def _projected(
        self, states: Tensor, chosen: Sequence[Selection], features: Sequence[Tensor | None]
    ) -> Tensor:
        """(T, width) tokens of all frames.

        Args:
            states: (T', N + 1, C) of the vision tower.
            features: of every frame, what was chosen of its patches; in the placement postpool merged tokens
                alone.
        """
        project, placement = self._model.projector, self._placement
        if placement != "postpool":
            if not chosen:
                tokens = project(states[:, 1:])
                return (pooled(tokens, POOL) if placement == "grid" else tokens).flatten(0, 1)
            together = project(torch.cat([one for one in features if one is not None]).to(states.dtype))
            parts = together.split([one.tokens for one in chosen])
            return torch.cat([pooled(one, POOL) if placement == "grid" else one for one in parts])
        cells = over_cells(project(states[:, 1:]), self._side)
        if not chosen:
            return cells.flatten(0, 1)
        found = []
        for view, (one, merged) in enumerate(zip(chosen, features, strict=True)):
            own = None
            if merged is not None:
                merged = project(merged.to(states.dtype))
            elif bool((one.indices == CLS).any()):
                own = project(states[view, :1])[0]
            found.append(place(placement, cells[view], one.indices, merged, own))
        return torch.cat(found)

    def _cut(self, inputs: VideoInputs, pruner: Pruner, budget: int, choose: Choose) -> Cutting | None:
        grid = (POOL, POOL) if self.patches == CELLS else (self._side, self._side)
        layers, sample, answer = self.shape.layers, inputs.sample, inputs.answer
        return cutting(pruner, budget, self.patches, layers, sample, choose, answer, grid)

    def _masks(self, inputs: VideoInputs, prompts: Tensor, stage: Stage) -> Tensor:
        """(F * M, H, W) logits of all frames, frame by frame."""
        makes, found = self._segmenter(), []
        step = makes.start(prompts)
        for frame in inputs.frames:
            with stage("grounding_encoder"):
                encoded = makes.encode(frame.pixels[None])
            with stage("mask_decoder"):
                logits = step(encoded)
                found += [makes.back(one, frame).cpu() for one in logits]
        return torch.stack(found)

    # -- beside it

    def traced(
        self, inputs: VideoInputs, pruner: Pruner, budget: int, entering: int, choose: Choose
    ) -> Traced:
        """Llama's layers over zeros in place of the visual tokens."""
        llm, views = self._model.language_model, len(inputs.small)
        cut, tail = self._cut(inputs, pruner, budget, choose), views * VIDEO_POOL**2
        each = (entering - tail) // views
        numbers = torch.arange(views)[:, None] * self.patches + torch.arange(each)
        context = Context(numbers.flatten().to(self.device), views=views, tail=tail)
        visual = torch.zeros(1, entering, self.shape.width, device=self.device, dtype=self.dtype)

        def run(given: Tensor) -> Tensor:
            return prefill(llm, inputs.before, given, inputs.after, cut, context).hidden

        return Traced(llm, run, visual)

    def shapes(self, inputs: VideoInputs | None = None) -> VideoGlammShapes:
        """The same model on the meta device, and the same clip's length."""
        own, masked = self._backbone, MASKED if inputs is None else len(inputs.frames)
        assert own.frames is not None
        model = without_weights(self._model)
        return VideoGlammShapes(model, own.placement, own.branch, own.frames, masked)
