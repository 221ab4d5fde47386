"""One image and one conversation through GLaMM as its own forward runs them, in named stages that a meter can
watch.

Evaluation shares encodings, leaves out what no score reads and fills batches. Here a cell pays for all that
the released forward computes: all layers of the vision tower, logits and [SEG] head at every position, its
own grounding encoding.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from backbones.base import Turn
from backbones.costs import Passed, Prompt, Shape, Staged, Traced
from backbones.glamm.model import GlammModel
from backbones.glamm.preprocess import clip_pixels, masks_to_image, patch_shares, sam_pixels
from backbones.glamm.shapes import GlammShapes, without_weights
from backbones.glamm.signals import question_ids
from backbones.parts import clip, llama, sam
from backbones.parts.contexts import context_of
from backbones.parts.cuts import Choose, cutting
from backbones.parts.faithful import Stage
from backbones.parts.staged import prefill
from backbones.parts.tokenizer import IMAGE_TOKEN
from pruners import checks
from pruners.base import REFERENT, TEXT_EMBEDS, Need, Pruner, View
from pruners.views import LLM_PATCHES, LLM_TEXT_EMBEDS

if TYPE_CHECKING:
    from backbones.glamm.seeing import GlammSeeing


@dataclass(frozen=True)
class GlammInputs:
    """What the model is given, on its device; preparing it belongs to no stage.

    Attributes:
        small, large: (1, 3, s, s) pixels of the vision tower and of the grounding encoder.
        resized, original: height and width of the grounding branch before padding, and of the raw image.
        before, after: (1, a) and (1, b) token ids on the two sides of the image.
        seg: positions of the states that predict [SEG], counted from the end.
        words: CLIP's tokens of the questions, `input_ids` and `attention_mask`, each (M, W).
        grid: rows and columns of visual tokens.
        referent: (N,) share of each patch inside the truth, for controls that may see it.
        sample: seed of random draws.
        asked: (W,) token ids of the questions in the language model's vocabulary.
        answer: tokens of the last answer, with which `after` ends.
    """

    small: Tensor
    large: Tensor
    resized: tuple[int, int]
    original: tuple[int, int]
    before: Tensor
    after: Tensor
    seg: tuple[int, ...]
    words: dict[str, Tensor]
    grid: tuple[int, int]
    referent: Tensor | None = None
    sample: str = ""
    asked: Tensor | None = None
    answer: int = 0

    @property
    def text(self) -> int:
        """Tokens of the language model's sequence that are not visual."""
        return self.before.shape[1] + self.after.shape[1]

    @property
    def prompt(self) -> Prompt:
        """The conversation's lengths."""
        turns, words = self.words["input_ids"].shape
        return Prompt(self.text, self.before.shape[1], turns, words)


def split_ids(ids: list[int], seg_id: int) -> tuple[Tensor, Tensor, tuple[int, ...]]:
    """Ids before and behind the image's placeholder, and the places before [SEG] counted from the end."""
    image = ids.index(IMAGE_TOKEN)
    seg = tuple(k - 1 - len(ids) for k, token in enumerate(ids) if token == seg_id)
    return (
        torch.tensor([ids[:image]], dtype=torch.long),
        torch.tensor([ids[image + 1 :]], dtype=torch.long),
        seg,
    )


def prepare_inputs(
    backbone: GlammSeeing,
    image: NDArray[np.uint8],
    turns: Sequence[Turn],
    sample: str = "",
    masks: NDArray[np.bool_] | None = None,
) -> GlammInputs:
    """Pixels and tokens of one image and one conversation; `masks` (M, H, W) is the truth."""
    device, kind = backbone.device, next(backbone.model.parameters()).dtype
    questions = tuple(turn.question for turn in turns)
    large, resized = sam_pixels(image, backbone.sam_size)
    before, after, seg = split_ids(backbone.ids(turns), backbone.tokenizer.seg_id)
    referent = (
        patch_shares(masks, backbone.image_size, backbone.grid).to(device) if masks is not None else None
    )
    return GlammInputs(
        clip_pixels(image, backbone.image_size)[None].to(device, kind),
        large[None].to(device, kind),
        resized,
        image.shape[:2],
        before.to(device),
        after.to(device),
        seg,
        backbone.clip_words(questions),
        backbone.grid,
        referent,
        sample,
        torch.tensor(question_ids(backbone.tokenizer, questions), device=device),
        backbone.answer_length(turns),
    )


def visual_tokens(
    model: GlammModel, inputs: GlammInputs, states: tuple[Tensor, ...], text: Tensor | None
) -> View:
    """The image as a pruner sees it, nothing cached.

    Args:
        states: hidden states of the vision tower up to the penultimate layer, each (N+1, C).
        text: (M, P) text embeddings, None if the pruner reads none.
    """

    def answer(need: Need) -> Tensor:
        given = {TEXT_EMBEDS: text, REFERENT: inputs.referent}
        if need in given:
            found = given[need]
            if found is None:
                raise ValueError(f"{need.kind} was not prepared")
            return found
        if need == LLM_PATCHES:
            return model.projector(states[-1][None, 1:])[0]
        if need == LLM_TEXT_EMBEDS and inputs.asked is not None:
            return llama.embed_ids(model.language_model, inputs.asked)
        return clip.clip_signal(model.clip, states, need)

    heads = model.clip.config.vision_config.num_attention_heads
    return View(states[-1][1:], states[-1][0], inputs.grid, heads, answer, inputs.sample)


@torch.no_grad()
def see(model: GlammModel, inputs: GlammInputs) -> tuple[Tensor, ...]:
    """Hidden states of the vision tower up to the penultimate layer, each (N+1, C); the last layer runs as
    well."""
    batch = clip.hidden_states(model.clip, inputs.small)
    clip.layer(model.clip, -1, batch[-1])
    return tuple(state[0] for state in batch)


@torch.no_grad()
def forward(
    model: GlammModel,
    inputs: GlammInputs,
    pruner: Pruner,
    budget: int,
    stage: Stage = nullcontext,
    checked: bool = True,
    seen: tuple[Tensor, ...] | None = None,
) -> Passed:
    """Run every stage once; `stage(name)` is entered around each, a cut's inside "prefill".

    Args:
        checked: False for clocks and memory meters: a choice that was checked before is taken as it is, so
            that the pruner's own work is all that the stage holds.
        seen: of `see`: neither the vision tower nor the grounding branch runs.
    """
    fixed, states = seen is None, seen
    del seen
    if states is None:
        with stage("vision"):
            states = see(model, inputs)
    text = None
    if TEXT_EMBEDS in pruner.needs:
        with stage("text"):
            text = clip.embed_text(model.clip, inputs.words)
    view = visual_tokens(model, inputs, states, text)
    patches, layers = len(view), model.language_model.config.num_hidden_layers
    with stage("pruner"):
        chosen = checks.select_views(pruner, [view], budget, layers, checked)
        features = chosen[0].gather(view) if chosen else view.patches
    context = context_of(pruner, chosen, patches)
    del states, view
    with stage("projector"):
        visual = model.projector(features[None].to(inputs.small.dtype))
    choose = partial(checks.cut, checked=checked)
    cut = cutting(pruner, budget, patches, layers, inputs.sample, choose, inputs.answer, inputs.grid)
    with stage("prefill"):
        run = prefill(model.language_model, inputs.before, visual, inputs.after, cut, context, stage)
    with stage("lm_head"):
        model.lm_head(run.hidden)
    with stage("seg_head"):
        prompts = model.text_hidden_fcs(run.hidden)[0, list(inputs.seg)]
    logits = None
    if fixed:
        with stage("grounding_encoder"):
            embedding = sam.encode(model.grounding_encoder, inputs.large)
        with stage("mask_decoder"):
            low = sam.decode_masks(
                model.grounding_encoder, embedding.expand(len(prompts), -1, -1, -1), prompts
            )
            logits = masks_to_image(low, inputs.large.shape[-1], inputs.resized, inputs.original)
    checks.lengths(pruner, budget, patches, [length - inputs.text for length in run.lengths])
    return Passed(run.lengths, logits)


class GlammStaged(Staged):
    """The forward pass of a loaded GLaMM."""

    stages = (
        "vision",
        "text",
        "pruner",
        "projector",
        "prefill",
        "lm_head",
        "seg_head",
        "grounding_encoder",
        "mask_decoder",
    )
    fixed = ("vision", "grounding_encoder", "mask_decoder")

    def __init__(self, backbone: GlammSeeing) -> None:
        self._backbone, self._model = backbone, backbone.model
        self.shape = Shape.of(self._model.language_model.config)
        self.patches = backbone.grid[0] * backbone.grid[1]
        self.device, self.dtype = backbone.device, next(self._model.parameters()).dtype

    def length(self, turns: Sequence[Turn]) -> int:
        """Ids of the conversation but the image's placeholder."""
        return len(self._backbone.ids(turns)) - 1

    def prepare(
        self,
        image: NDArray[np.uint8],
        turns: Sequence[Turn],
        sample: str = "",
        masks: NDArray[np.bool_] | None = None,
    ) -> GlammInputs:
        """Pixels of both branches, ids, CLIP's words."""
        return prepare_inputs(self._backbone, image, turns, sample, masks)

    def see(self, inputs: GlammInputs) -> tuple[Tensor, ...]:
        """The vision tower's states; see `see`."""
        return see(self._model, inputs)

    def forward(
        self,
        inputs: GlammInputs,
        pruner: Pruner,
        budget: int,
        stage: Stage = nullcontext,
        checked: bool = True,
        seen: tuple[Tensor, ...] | None = None,
    ) -> Passed:
        """The pass that the release runs; see `forward`."""
        return forward(self._model, inputs, pruner, budget, stage, checked, seen)

    def traced(
        self, inputs: GlammInputs, pruner: Pruner, budget: int, entering: int, choose: Choose
    ) -> Traced:
        """Llama's layers over zeros in place of the visual tokens."""
        llm = self._model.language_model
        layers, answer = self.shape.layers, inputs.answer
        cut = cutting(pruner, budget, self.patches, layers, inputs.sample, choose, answer, inputs.grid)
        visual = torch.zeros(1, entering, self.shape.width, device=self.device, dtype=self.dtype)
        return Traced(llm, lambda given: prefill(llm, inputs.before, given, inputs.after, cut).hidden, visual)

    def shapes(self, inputs: GlammInputs | None = None) -> GlammShapes:
        """The same model on the meta device."""
        return GlammShapes(without_weights(self._model))
