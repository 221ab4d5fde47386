"""videoglamm-mini's conversation, as the official evaluation writes it for Phi-3, and its tokens.

Words and ids here are what the weights were trained on. A line break beside an added token vanishes, as with
the slow tokenizer of the release; the line break between the frames' places and the question stays.
"""

from __future__ import annotations

from backbones.parts.tokenizer import IMAGE, LlamaTokenizer

SYSTEM = "You are a helpful AI assistant."
QUESTION = "What is {} in this video? Please respond with segmentation masks."
SEG = "[SEG]"
# an answer ends with any of the first three
ADDED = ("<|endoftext|>", "<|assistant|>", "<|end|>", "<|system|>", "<|user|>", SEG)
ANSWERS = ("It is [SEG].", "Sure, it is [SEG].", "Sure, [SEG].", "[SEG].")
SHARES = (0.5, 0.2, 0.15, 0.15)  # of the answers, in training


class Words(LlamaTokenizer):
    """The tokenizer, which needs other added tokens than the models of single images."""

    needed = ADDED


def build_prompt(expression: str, frames: int, answer: str = "") -> str:
    """The conversation about one expression, up to and with the answer."""
    question = QUESTION.format(expression.lower().strip())
    return (
        f"<|system|>\n{SYSTEM}<|end|>\n<|user|>\n{IMAGE * frames}\n{question}<|end|>\n<|assistant|>\n{answer}"
    )
