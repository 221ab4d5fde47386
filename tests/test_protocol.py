"""Conversations: every expression alone, or three drawn, and always the same ones."""

from __future__ import annotations

import os
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from backbones.base import Conversation
from backbones.glamm.backbone import GlammBackbone
from backbones.glamm.conversation import ANSWER_TEMPLATES, MOST_TURNS, QUESTION_TEMPLATES
from backbones.registry import UnknownProtocol


class Sample(NamedTuple):
    """An image's name and what is asked of it."""

    id: str
    texts: tuple[str, ...]


def sample(*texts: str, image: int = 7) -> Sample:
    return Sample(f"refcoco:val:{image}", texts)


def conversations(asked: Sample, protocol: str, seed: int) -> list[Conversation]:
    """Those of GLaMM, for which no model has to be there."""
    backbone = object.__new__(GlammBackbone)
    backbone.name = "glamm"
    return backbone.conversations(asked.id, asked.texts, protocol, seed)


TEXTS = st.lists(st.text(min_size=1, max_size=20), max_size=8)


@given(TEXTS, st.integers(0, 2**31))
def test_each_asks_every_expression_alone(texts: list[str], seed: int) -> None:
    got = conversations(sample(*texts), "each", seed)
    assert [c.expressions for c in got] == [(k,) for k in range(len(texts))]
    for text, conversation in zip(texts, got, strict=True):
        (turn,) = conversation.turns
        assert turn.question == f"Can you segment the {text.strip().lower()} in this image?"
        assert turn.answer == "It is [SEG]."


@given(TEXTS, st.integers(0, 2**31))
def test_glamm_draws_up_to_three_into_one_conversation(texts: list[str], seed: int) -> None:
    got = conversations(sample(*texts), "glamm", seed)
    if not texts:
        assert got == []
        return
    (conversation,) = got
    drawn = conversation.expressions
    assert len(drawn) == len(set(drawn)) == len(conversation.turns) == min(MOST_TURNS, len(texts))
    if len(texts) < MOST_TURNS:
        assert drawn == tuple(range(len(texts)))
    for position, turn in zip(drawn, conversation.turns, strict=True):
        assert turn.question in {t.format(texts[position].strip().lower()) for t in QUESTION_TEMPLATES}
        assert turn.answer in ANSWER_TEMPLATES


def test_expressions_are_stripped_and_lower_cased() -> None:
    for protocol in ("each", "glamm"):
        (conversation,) = conversations(sample(" Man in the {Red} Shirt "), protocol, 0)
        assert "man in the {red} shirt" in conversation.turns[0].question
        assert "  " not in conversation.turns[0].question


@pytest.mark.parametrize("placeholder", ["<image>", "<IMAGE>", "<Image>", "<im<image>age>"])
def test_the_images_placeholder_in_an_expression_is_no_second_image(placeholder: str) -> None:
    (conversation,) = conversations(sample(f"the {placeholder} star"), "each", 0)
    assert "<image>" not in conversation.turns[0].question and "star" in conversation.turns[0].question


def test_draws_depend_on_seed_and_sample_only() -> None:
    texts = [f"thing {k}" for k in range(9)]
    first = conversations(sample(*texts), "glamm", 3)
    assert first == conversations(sample(*texts), "glamm", 3)
    assert len({str(conversations(sample(*texts), "glamm", seed)) for seed in range(20)}) == 20
    assert len({str(conversations(sample(*texts, image=k), "glamm", 3)) for k in range(20)}) == 20


def test_draws_are_the_same_in_another_process() -> None:
    asked = sample(*"abcdefgh")
    code = (  # what the backbone calls; the model's own imports take seconds
        "from backbones.glamm.conversation import drawn_conversations;"
        f"print(drawn_conversations({asked.id!r}, {asked.texts!r}, 5))"
    )
    environment = os.environ | {
        "PYTHONHASHSEED": "2" if os.environ.get("PYTHONHASHSEED") == "1" else "1",
        "PYTHONPATH": str(Path(__file__).parent.parent),
    }
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=True
    )
    assert done.stdout.strip() == str(conversations(asked, "glamm", 5))


def test_draws_are_pinned() -> None:
    """Stored records of the glamm protocol stay comparable only while these stay the same."""
    (conversation,) = conversations(sample(*"abcdefgh"), "glamm", 0)
    assert conversation.expressions == (3, 6, 4)
    assert [(turn.question, turn.answer) for turn in conversation.turns] == [
        ("Can you segment the d in this image", "Sure, [SEG]."),
        (
            "Can you highlight the g in this image with a segmentation mask",
            "Sure, the segmentation result is [SEG].",
        ),
        (
            "Where is the e in this picture? Please respond with a segmentation mask.",
            "Sure, the segmentation result is [SEG].",
        ),
    ]


def test_draws_are_uniform() -> None:
    texts = [f"thing {k}" for k in range(6)]
    orders: Counter[tuple[int, ...]] = Counter()
    questions: Counter[str] = Counter()
    answers: Counter[str] = Counter()
    for seed in range(3000):
        (conversation,) = conversations(sample(*texts), "glamm", seed)
        orders[conversation.expressions] += 1
        for position, turn in zip(conversation.expressions, conversation.turns, strict=True):
            questions[turn.question.replace(texts[position], "{}")] += 1
            answers[turn.answer] += 1
    # chi-square at about p = 1e-6 for the degrees of freedom at hand; the seeds are fixed, so it passes or it
    # does not
    for drawn, classes, limit in ((orders, 120, 210), (questions, 16, 57), (answers, 5, 34)):
        seen = np.array(list(drawn.values()))  # type: ignore[attr-defined]
        mean = seen.sum() / classes
        assert len(seen) == classes
        assert ((seen - mean) ** 2 / mean).sum() < limit


@settings(max_examples=5)
@given(st.sampled_from(["eech", "GLAMM", "", "official"]))
def test_unknown_protocol(name: str) -> None:
    with pytest.raises(UnknownProtocol, match="glamm, each"):
        conversations(sample("a"), name, 0)
