"""VideoGLaMM's conversation: Phi-3's chat template, one question in fixed words, and the clip before it.

The official evaluation asks for every expression in a conversation of its own and lets the model write its
answer; nothing is drawn.
"""

from __future__ import annotations

from collections.abc import Sequence

from backbones.base import Turn
from backbones.glamm.conversation import said

SYSTEM = "<|system|>\nYou are a helpful AI assistant.<|end|>"
# all frames' tokens stand as one block in the place of one mark
CLIP = "<image>\n"
QUESTION = "What is {} in this video? Please respond with segmentation masks."
ANSWER = "It is [SEG]."  # the first of those that it was trained on


def turn(expression: str) -> Turn:
    """The expression, lower-cased as officially, in the one wording of question and answer."""
    return Turn(QUESTION.format(said(expression)), ANSWER)


def build_prompt(turns: Sequence[Turn], answered: bool = True) -> str:
    """The conversation of all turns; the clip stands before the first question.

    Args:
        answered: False leaves the last answer to the model.
    """
    text, ends = SYSTEM, "<|end|>"
    for number, one in enumerate(turns):
        question = CLIP * (number == 0) + one.question
        text += f"\n<|user|>\n{question}{ends}\n<|assistant|>\n{one.answer}{ends}"
    return text if answered else text.removesuffix(f"{turns[-1].answer}{ends}")
