"""LISA's conversation: its fixed question and answer, and both of its templates.

Its evaluation asks for every expression in a conversation of its own; nothing is drawn. The template is an
option of the official scripts, `llava_v1` by default, for the Llama-2 models too.
"""

from __future__ import annotations

from collections.abc import Sequence

from backbones.base import Turn
from backbones.glamm.conversation import SYSTEM, said
from pruners.errors import UserError, nearest

# the blank is the official reader's; beside <im_end> the tokenizer strips it, as the newline
IMAGE_SENTENCE = "<im_start><image><im_end>\n "
QUESTION = "What is {} in this image? Please output segmentation mask."
SENTENCE = "{} Please output segmentation mask."
ANSWER = "[SEG]."
SYSTEM_LLAMA_2 = (
    "You are a helpful language and vision assistant. "
    "You are able to understand the visual content that the user provides, "
    "and assist the user with a variety of tasks using natural language."
)
TEMPLATES = ("llava_v1", "llava_llama_2")


def turn(expression: str, form: str = "") -> Turn:
    """The expression in its wording, stripped as officially; a referring one is lower-cased, too.

    Args:
        form: "phrase" or "sentence" of a reasoning data set, else "".
    """
    # an image's placeholder inside an expression would be taken for a second image
    words = expression.replace("<image>", " ").strip() if form else said(expression)
    return Turn((SENTENCE if form == "sentence" else QUESTION).format(words), ANSWER)


def build_prompt(turns: Sequence[Turn], template: str, answered: bool = True) -> str:
    """The teacher-forced conversation of all turns; the image stands before the first question.

    Args:
        template: one of TEMPLATES.
        answered: False leaves the last answer to the model.
    """
    questions = [IMAGE_SENTENCE * (number == 0) + one.question for number, one in enumerate(turns)]
    if template == "llava_llama_2":
        questions[0] = f"<<SYS>>\n{SYSTEM_LLAMA_2}\n<</SYS>>\n\n{questions[0]}"
        asked = [f"[INST] {question} [/INST]" for question in questions]
        start, end, between = "", " </s>", "<s>"
    else:
        asked = [f"USER: {question} ASSISTANT:" for question in questions]
        start, end, between = SYSTEM + " ", "</s>", ""
    text = start + between.join(
        f"{question} {one.answer}{end}" for question, one in zip(asked, turns, strict=True)
    )
    return text if answered else text.removesuffix(f" {turns[-1].answer}{end}")


def check_template(name: str) -> str:
    """The name, if it is a template.

    Raises:
        UserError: it is none.
    """
    if name not in TEMPLATES:
        raise UserError(
            f"lisa has no template {name!r}, there are {', '.join(TEMPLATES)}.{nearest(name, TEMPLATES)}"
        )
    return name
