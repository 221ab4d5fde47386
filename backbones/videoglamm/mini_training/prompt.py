"""Answers that videoglamm-mini is trained to write, and its conversation in the family's own words."""

from __future__ import annotations

from backbones.base import Turn
from backbones.videoglamm.conversation import build_prompt, turn

# the three that end an answer stand first
ADDED = ("<|endoftext|>", "<|assistant|>", "<|end|>", "<|system|>", "<|user|>", "[SEG]")
ANSWERS = ("It is [SEG].", "Sure, it is [SEG].", "Sure, [SEG].", "[SEG].")
SHARES = (0.5, 0.2, 0.15, 0.15)  # of the answers, in training


def conversation(expression: str, answer: str = "") -> str:
    """The conversation about one expression, up to and with the answer; without, the answer is left to the
    model."""
    asked = turn(expression)
    return build_prompt([Turn(asked.question, answer or asked.answer)], answered=bool(answer))
