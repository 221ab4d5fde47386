"""GLaMM without weights: its parts on the meta device, a usual conversation, and an image of random
numbers."""

from __future__ import annotations

from copy import deepcopy
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn

from backbones.base import Turn
from backbones.costs import CostPart, Prompt, Shape, Shapes
from backbones.glamm.conversation import ANSWER_TEMPLATES, IMAGE_SENTENCE, QUESTION_TEMPLATES, build_prompt
from backbones.glamm.model import GlammModel
from backbones.parts import clip, sam
from backbones.parts.staged import LlamaLayers
from backbones.parts.tokenizer import IMAGE_TOKEN, LlamaTokenizer, behind_image
from pruners.base import LLM_PATCHES, LLM_TEXT_EMBEDS, REFERENT, TEXT_EMBEDS, Need, View

SEED = 0
# a usual conversation of three expressions in LLaMA's tokens; the official draws give 125 to 140
USUAL = Prompt(text=129, before=37, turns=3, words=24, sentence=9)
# expressions to count a prompt with
LIKE = ("man in the red shirt", "left dog", "the second cup from the right")


def without_weights(model: GlammModel) -> GlammModel:
    """The same model on the meta device."""
    parts = (model.clip, model.language_model, model.grounding_encoder)
    # building a model writes its attention into its configuration
    clip_config, llm_config, sam_config = (deepcopy(part.config) for part in parts)
    projector = "linear" if isinstance(model.projector, nn.Linear) else "mlp"
    with torch.device("meta"):
        twin = GlammModel(clip_config, llm_config, sam_config, projector=projector)
    return twin.eval().requires_grad_(False)


def counted_prompt(tokenizer: LlamaTokenizer) -> Prompt:
    """A conversation of three expressions, as long as this tokenizer makes it."""
    turns = zip(QUESTION_TEMPLATES, LIKE, ANSWER_TEMPLATES, strict=False)
    ids = tokenizer.encode(
        build_prompt([Turn(question.format(said), answer) for question, said, answer in turns])
    )
    sentence = len(behind_image(tokenizer.encode(IMAGE_SENTENCE)))
    return replace(
        USUAL, text=len(ids) - 1, before=ids.index(IMAGE_TOKEN), turns=len(LIKE), sentence=sentence
    )


class GlammShapes(Shapes):
    """The numbers of a GLaMM.

    Args:
        model: on the meta device.
        checkpoint: folder whose tokenizer counts conversations; None takes the usual length.

    Attributes:
        usual: lengths of a conversation where no tokenizer counts one.
    """

    usual = USUAL

    def __init__(self, model: GlammModel, checkpoint: Path | None = None) -> None:
        self.model, self._checkpoint = model, checkpoint
        self.shape = Shape.of(model.language_model.config)
        self._vision = model.clip.config.vision_config
        side = self._vision.image_size // self._vision.patch_size
        self.grid = (side, side)

    def prompt(self, text: int | None = None, checkpoint: str | Path | None = None) -> Prompt:
        """A conversation as this model usually has it."""
        folder = checkpoint or self._checkpoint
        if text is not None:
            return replace(self.usual, text=text)
        return self.usual if folder is None else self.counted(LlamaTokenizer(Path(folder)))

    def counted(self, tokenizer: LlamaTokenizer) -> Prompt:
        """That conversation, as long as this tokenizer makes it."""
        return counted_prompt(tokenizer)

    def parts(self, prompt: Prompt, dtype: torch.dtype) -> tuple[CostPart, ...]:
        """Whole towers, projector and both heads, one mask per turn."""
        model, encoder = self.model.to(dtype), self.model.grounding_encoder.config
        side, large = self._vision.image_size, encoder.vision_config.image_size
        width, grid = encoder.prompt_encoder_config.hidden_size, large // encoder.vision_config.patch_size
        with torch.device("meta"):
            small, big = (torch.empty(1, 3, pixels, pixels, dtype=dtype) for pixels in (side, large))
            words = {
                "input_ids": torch.zeros(prompt.turns, prompt.words, dtype=torch.long),
                # four dimensions are taken as they are; a mask per word would be asked for its values, which
                # meta has not
                "attention_mask": torch.zeros(prompt.turns, 1, prompt.words, prompt.words, dtype=dtype),
            }
            image = torch.empty(prompt.turns, width, grid, grid, dtype=dtype)
            prompts = torch.empty(prompt.turns, width, dtype=dtype)
        text = (
            f"text tower (CLIP, {prompt.turns} questions of {prompt.words} tokens; only for pruners "
            f"that read text)"
        )

        def see(_: int) -> None:
            states = clip.hidden_states(model.clip, small)  # held until pruners have read them
            clip.layer(model.clip, -1, states[-1])

        def decode(_: int) -> None:
            sam.decode_masks(model.grounding_encoder, image, prompts)

        return (
            CostPart("vision_tower", "image", see, "vision tower (CLIP)"),
            CostPart("text_tower", "questions", lambda _: clip.embed_text(model.clip, words), text),
            CostPart("projector", "entering", partial(over_tokens, model.projector)),
            CostPart("lm_head", "sequence", partial(over_tokens, model.lm_head)),
            CostPart("seg_head", "marks", partial(over_tokens, model.text_hidden_fcs)),
            CostPart(
                "grounding_encoder",
                "image",
                lambda _: sam.encode(model.grounding_encoder, big),
                "grounding encoder (SAM)",
            ),
            CostPart("mask_decoder", "conversation", decode, f"mask decoder ({prompt.turns} masks)"),
        )

    def layers(self, count: int, attn: str, dtype: torch.dtype) -> LlamaLayers:
        """Llama's first layers."""
        return LlamaLayers(self.model.language_model.config, count, attn, dtype)

    def views(self, prompt: Prompt) -> list[View]:
        """The one view of an image; every layer of the vision tower costs what the last two do."""
        config, draw = self.model.clip.config, torch.Generator().manual_seed(SEED)
        end, patches = clip.random_end(config, draw), self.grid[0] * self.grid[1]
        states = tuple(torch.randn(patches + 1, self._vision.hidden_size, generator=draw) for _ in range(2))
        given = {
            TEXT_EMBEDS: torch.randn(prompt.turns, config.projection_dim, generator=draw),
            REFERENT: torch.rand(patches, generator=draw),
        }

        def answer(need: Need) -> Tensor:
            if need in given:
                return given[need]
            if need == LLM_PATCHES:
                return torch.randn(over_tokens(self.model.projector, patches)[0].shape, generator=draw)
            if need == LLM_TEXT_EMBEDS:
                return torch.randn(prompt.turns * prompt.words, self.shape.width, generator=draw)
            near = need.layer if need.layer in (None, -1, -2) else -2
            return clip.clip_signal(end, states, replace(need, layer=near))

        heads = self._vision.num_attention_heads
        return [View(states[-1][1:], states[-1][0], self.grid, heads, answer, "projection")]


def over_tokens(module: nn.Module, tokens: int) -> Tensor:
    """A part that works token by token, over so many of them."""
    width = next(m for m in module.modules() if isinstance(m, nn.Linear)).in_features
    dtype = next(module.parameters()).dtype
    return module(torch.empty(1, tokens, width, device="meta", dtype=dtype))  # type: ignore[no-any-return]
