"""What GLaMM answers a pruner about an image or its questions, on both sides of the projector."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from backbones.glamm.model import GlammModel
from backbones.parts import clip
from backbones.parts.tokenizer import LlamaTokenizer
from pruners.base import LLM_PATCHES, Need


def of_image(model: GlammModel, states: tuple[Tensor, ...], need: Need) -> Tensor:
    """One signal of one image; kinds and shapes are those of `Need`.

    Args:
        states: hidden states of the vision tower up to the penultimate layer, each (N+1, C).
    """
    if need == LLM_PATCHES:
        return model.projector(states[-1][1:])  # type: ignore[no-any-return]
    return clip.clip_signal(model.clip, states, need)


def question_ids(tokenizer: LlamaTokenizer, questions: Sequence[str]) -> list[int]:
    """The language model's ids of the questions, one after the other, without a start token."""
    return [number for question in questions for number in tokenizer.words(question)]
