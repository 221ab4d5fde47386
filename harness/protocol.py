"""How the expressions of an image become conversations.

`each` asks for every expression alone in fixed words: deterministic, and nothing is left out. `glamm` is the
official evaluation: up to three expressions of an image in one conversation, expressions and wordings drawn
at random. The official draws are unseeded; ours follow from (seed, sample) alone, so neither the order of
samples nor the number of workers can change them.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

from backbones.base import Turn
from backbones.glamm.conversation import ANSWER_TEMPLATES, QUESTION_TEMPLATES, plain_turn, said
from harness.data import Sample
from pruners.base import UserError, nearest

PROTOCOLS = ("each", "glamm")
DRAWN = ("glamm",)  # those whose conversations follow from a seed
MOST_TURNS = 3


class UnknownProtocol(UserError):
    """A protocol name that does not exist."""


@dataclass(frozen=True)
class Conversation:
    """Turns that the language model sees together.

    Attributes:
        turns: templated question and answer, in order.
        expressions: for each turn, the position of its expression in `sample.expressions`.
    """

    turns: tuple[Turn, ...]
    expressions: tuple[int, ...]


def check_protocol(name: str) -> str:
    """The name, if it is a protocol.

    Raises:
        UnknownProtocol: it is none.
    """
    if name not in PROTOCOLS:
        raise UnknownProtocol(
            f"Unknown protocol '{name}', there are {', '.join(PROTOCOLS)}.{nearest(name, PROTOCOLS)}"
        )
    return name


def conversations(sample: Sample, protocol: str, seed: int) -> list[Conversation]:
    """Conversations of one image.

    Args:
        sample: the image and its expressions.
        protocol: 'each' or 'glamm'.
        seed: source of the draws of 'glamm'; 'each' has none.

    Returns:
        `each`: one conversation of one turn per expression, in order. `glamm`: one conversation of three
        expressions drawn without replacement, or of all of them in order if there are fewer than three.

    Raises:
        UnknownProtocol: no such protocol.
    """
    if check_protocol(protocol) == "each":
        return [
            Conversation((plain_turn(spoken.text),), (position,))
            for position, spoken in enumerate(sample.expressions)
        ]
    turns = []
    positions = _drawn(sample, seed)
    for place in range(len(positions)):
        question = QUESTION_TEMPLATES[_draw(seed, sample.id, "question", place) % len(QUESTION_TEMPLATES)]
        answer = ANSWER_TEMPLATES[_draw(seed, sample.id, "answer", place) % len(ANSWER_TEMPLATES)]
        turns.append(Turn(question.format(said(sample.expressions[positions[place]].text)), answer))
    return [Conversation(tuple(turns), positions)] if turns else []


def _drawn(sample: Sample, seed: int) -> tuple[int, ...]:
    """Positions of the expressions in turn order: the first of a random order, which is a draw without
    replacement."""
    positions = range(len(sample.expressions))
    if len(positions) < MOST_TURNS:
        return tuple(positions)
    return tuple(sorted(positions, key=lambda k: _draw(seed, sample.id, "expression", k))[:MOST_TURNS])


def _draw(seed: int, sample: str, what: str, place: int) -> int:
    """A uniform 64-bit number for one purpose; hashing, so that it is the same under every Python and
    NumPy."""
    return int.from_bytes(hashlib.sha256(f"{seed}:{sample}:{what}:{place}".encode()).digest()[:8], "big")
