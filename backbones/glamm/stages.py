"""One image and one conversation through GLaMM as its own forward runs them, in named stages that a meter can
watch.

Evaluation shares encodings, leaves out what no score reads and fills batches. Here a cell pays for all that
the released forward computes: all layers of the vision tower, logits and [SEG] head at every position, its
own grounding encoding.
"""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import LlamaModel

from backbones.base import Turn
from backbones.glamm.conversation import build
from backbones.glamm.model import GlammModel
from backbones.glamm.preprocess import clip_pixels, masks_to_image, patch_shares, sam_pixels
from backbones.parts import clip, llama, sam
from backbones.parts.faithful import LayerRun, Stage, run_layers
from backbones.parts.tokenizer import IMAGE_TOKEN
from pruners import checks
from pruners.base import REFERENT, TEXT_EMBEDS, LayerPruner, Need, Pruner, VisualTokens

if TYPE_CHECKING:
    from backbones.glamm.backbone import GlammBackbone

STAGES = (
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


@dataclass(frozen=True)
class Inputs:
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

    @property
    def text(self) -> int:
        """Tokens of the language model's sequence that are not visual."""
        return self.before.shape[1] + self.after.shape[1]


@dataclass(frozen=True)
class Passed:
    """What a forward pass did.

    Attributes:
        lengths: sequence length that every layer of the language model saw.
        logits: (M, H, W) float32 masks at the raw image's size, one per [SEG].
    """

    lengths: tuple[int, ...]
    logits: Tensor


def split_ids(ids: list[int], seg_id: int) -> tuple[Tensor, Tensor, tuple[int, ...]]:
    """Ids before and behind the image's placeholder, and the places before [SEG] counted from the end."""
    image = ids.index(IMAGE_TOKEN)
    seg = tuple(k - 1 - len(ids) for k, token in enumerate(ids) if token == seg_id)
    return (
        torch.tensor([ids[:image]], dtype=torch.long),
        torch.tensor([ids[image + 1 :]], dtype=torch.long),
        seg,
    )


def prepare(
    backbone: GlammBackbone,
    image: NDArray[np.uint8],
    turns: tuple[Turn, ...],
    sample: str = "",
    masks: NDArray[np.bool_] | None = None,
) -> Inputs:
    """Pixels and tokens of one image and one conversation; `masks` (M, H, W) is the truth."""
    device, kind = backbone.device, next(backbone.model.parameters()).dtype
    large, resized = sam_pixels(image, backbone.sam_size)
    before, after, seg = split_ids(backbone.tokenizer.encode(build(turns)), backbone.tokenizer.seg_id)
    referent = (
        patch_shares(masks, backbone.image_size, backbone.grid).to(device) if masks is not None else None
    )
    return Inputs(
        clip_pixels(image, backbone.image_size)[None].to(device, kind),
        large[None].to(device, kind),
        resized,
        image.shape[:2],
        before.to(device),
        after.to(device),
        seg,
        backbone.clip_words(tuple(turn.question for turn in turns)),
        backbone.grid,
        referent,
        sample,
    )


def visual_tokens(
    model: GlammModel, inputs: Inputs, states: tuple[Tensor, ...], text: Tensor | None
) -> VisualTokens:
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
        return clip.signal(model.clip, states, need)

    heads = model.clip.config.vision_config.num_attention_heads
    return VisualTokens(states[-1][1:], states[-1][0], inputs.grid, heads, answer, inputs.sample)


def prefill(
    llm: LlamaModel,
    before: Tensor,
    visual: Tensor,
    after: Tensor,
    pruner: LayerPruner | None = None,
    keep: int = 0,
    stage: Stage = nullcontext,
) -> LayerRun:
    """The language model's layers over ids (1, a), visual tokens (1, n, width) and ids (1, b); `keep` as in
    `run_layers`."""
    embeds = torch.cat([llama.embed(llm, before), visual, llama.embed(llm, after)], dim=1)
    start, count = before.shape[1], visual.shape[1]
    return run_layers(
        llm, embeds, visual_start=start, visual_count=count, pruner=pruner, keep=keep, stage=stage
    )


@torch.no_grad()
def forward(
    model: GlammModel,
    inputs: Inputs,
    pruner: Pruner,
    budget: int,
    stage: Stage = nullcontext,
    checked: bool = True,
) -> Passed:
    """Run every stage once; `stage(name)` is entered around each, a layer-stage pruner's inside "prefill".

    Args:
        checked: False for clocks and memory meters: a choice that was checked before is taken as it is, so
            that the pruner's own work is all that the stage holds.
    """
    with stage("vision"):
        batch = clip.hidden_states(model.clip, inputs.small)
        clip.layer(model.clip, -1, batch[-1])
        states = tuple(state[0] for state in batch)
    text = None
    if TEXT_EMBEDS in pruner.needs:
        with stage("text"):
            text = clip.embed_text(model.clip, inputs.words)
    tokens = visual_tokens(model, inputs, states, text)
    features, layered, keep, patches = tokens.patches, None, 0, len(tokens)
    if isinstance(pruner, LayerPruner):
        layered = pruner
        keep = pruner.tokens_after(budget, patches, model.language_model.config.num_hidden_layers)
    else:
        with stage("pruner"):
            chosen = (
                checks.select(pruner, tokens, budget)
                if checked
                else pruner.select(tokens.only(pruner.needs), budget)
            )
            features = chosen.gather(tokens)
    del batch, states, tokens
    with stage("projector"):
        visual = model.projector(features[None].to(inputs.small.dtype))
    with stage("prefill"):
        run = prefill(model.language_model, inputs.before, visual, inputs.after, layered, keep, stage)
    with stage("lm_head"):
        model.lm_head(run.hidden)
    with stage("seg_head"):
        prompts = model.text_hidden_fcs(run.hidden)[0, list(inputs.seg)]
    with stage("grounding_encoder"):
        embedding = sam.encode(model.grounding_encoder, inputs.large)
    with stage("mask_decoder"):
        low = sam.decode_masks(model.grounding_encoder, embedding.expand(len(prompts), -1, -1, -1), prompts)
        logits = masks_to_image(low, inputs.large.shape[-1], inputs.resized, inputs.original)
    checks.lengths(pruner, budget, patches, [length - inputs.text for length in run.lengths])
    return Passed(run.lengths, logits)
