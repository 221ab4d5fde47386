"""GLaMM-RefSeg's conversation: templates, system text and the joining of turns (template `llava_v1`)."""

from __future__ import annotations

from collections.abc import Sequence

from backbones.base import Turn

SYSTEM = (
    "A chat between a curious human and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the human's questions."
)
IMAGE_SENTENCE = "The <im_start><image><im_end> provides an overview of the picture.\n"
SEG = "[SEG]"

_WORDINGS = (
    "Can you segment the {} in this image?",
    "Please segment {} in this image.",
    "What is {} in this image? Please respond with segmentation mask.",
    "What is {} in this image? Please output segmentation mask.",
    "Could you provide a segmentation mask for the {} in this image?",
    "Please identify and segment the {} in this image.",
    "Where is the {} in this picture? Please respond with a segmentation mask.",
    "Can you highlight the {} in this image with a segmentation mask?",
)
# every wording with and without its final punctuation mark; evaluation draws uniformly from the sixteen
QUESTION_TEMPLATES = (*_WORDINGS, *(wording[:-1] for wording in _WORDINGS))
ANSWER_TEMPLATES = (
    "It is [SEG].",
    "Sure, [SEG].",
    "Sure, it is [SEG].",
    "Sure, the segmentation result is [SEG].",
    "[SEG].",
)


def plain_turn(expression: str) -> Turn:
    """The expression in the first wording of question and answer, stripped and lower-cased as officially."""
    return Turn(QUESTION_TEMPLATES[0].format(said(expression)), ANSWER_TEMPLATES[0])


def said(expression: str) -> str:
    """The expression as it goes into a question."""
    # the image's placeholder inside an expression, in capitals too, would be taken for a second image
    return expression.lower().replace("<image>", " ").strip()


def build(turns: Sequence[Turn]) -> str:
    """The teacher-forced conversation of all turns, answers included; the image stands before the first
    question."""
    text = SYSTEM + " "
    for number, turn in enumerate(turns):
        question = IMAGE_SENTENCE + turn.question if number == 0 else turn.question
        text += f"USER: {question} ASSISTANT: {turn.answer}</s>"
    return text
