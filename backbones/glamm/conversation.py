"""GLaMM-RefSeg's conversation: templates, system text and the joining of turns (template `llava_v1`), and how
the expressions of an image become conversations.

Protocol `each` asks for every expression alone in fixed words: deterministic, and nothing is left out.
`glamm` is the official evaluation: up to three expressions of an image in one conversation, expressions and
wordings drawn at random. The official draws are unseeded; ours follow from (seed, sample) alone, so neither
the order of samples nor the number of workers can change them.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

from backbones.base import Conversation, Turn
from pruners.errors import UserError

MOST_TURNS = 3
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
    """The expression as it goes into a question.

    Raises:
        UserError: it holds half a character, which no tokenizer takes.
    """
    if any("\ud800" <= letter <= "\udfff" for letter in expression):
        raise UserError(f"The expression {expression[:60]!r} is no text in UTF-8; type it anew.")
    # the image's placeholder inside an expression, in capitals too, would be taken for a second image
    return expression.lower().replace("<image>", " ").strip()


def build_prompt(turns: Sequence[Turn], answered: bool = True) -> str:
    """The teacher-forced conversation of all turns; the image stands before the first question.

    Args:
        answered: False leaves the last answer to the model.
    """
    text = SYSTEM + " "
    for number, turn in enumerate(turns):
        question = IMAGE_SENTENCE + turn.question if number == 0 else turn.question
        text += f"USER: {question} ASSISTANT: {turn.answer}</s>"
    return text if answered else text.removesuffix(f" {turns[-1].answer}</s>")


def drawn_conversations(sample: str, expressions: Sequence[str], seed: int) -> list[Conversation]:
    """The official evaluation's conversation of an image, protocol `glamm`.

    Args:
        sample: stable id of the image.
        seed: source of the draws, together with `sample`.

    Returns:
        One conversation of three expressions drawn without replacement, or of all of them in order if there
        are fewer than three; none of an image without expressions.
    """
    turns = []
    positions = _drawn(sample, len(expressions), seed)
    for place, position in enumerate(positions):
        question = QUESTION_TEMPLATES[_draw(seed, sample, "question", place) % len(QUESTION_TEMPLATES)]
        answer = ANSWER_TEMPLATES[_draw(seed, sample, "answer", place) % len(ANSWER_TEMPLATES)]
        turns.append(Turn(question.format(said(expressions[position])), answer))
    return [Conversation(tuple(turns), positions)] if turns else []


def _drawn(sample: str, count: int, seed: int) -> tuple[int, ...]:
    """Positions of the expressions in turn order: the first of a random order, which is a draw without
    replacement."""
    positions = range(count)
    if count < MOST_TURNS:
        return tuple(positions)
    return tuple(sorted(positions, key=lambda k: _draw(seed, sample, "expression", k))[:MOST_TURNS])


def _draw(seed: int, sample: str, what: str, place: int) -> int:
    """A uniform 64-bit number for one purpose; hashing, so that it is the same under every Python and
    NumPy."""
    return int.from_bytes(hashlib.sha256(f"{seed}:{sample}:{what}:{place}".encode()).digest()[:8], "big")
