"""What a run should say beforehand of questions that a model does not see whole."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from backbones.base import Backbone
from harness import data
from harness.protocol import conversations
from pruners.base import TEXT_EMBEDS, Pruner


def say_what_is_cut(
    backbone: Backbone, pruners: Sequence[Pruner], samples: Sequence[data.Sample], protocol: str, seed: int
) -> None:
    """One sentence on stderr, if pruners read text and some questions are longer than the text tower."""
    if not any(TEXT_EMBEDS in pruner.needs for pruner in pruners):
        return
    talks = (talk for sample in samples for talk in conversations(sample, protocol, seed))
    questions = [turn.question for talk in talks for turn in talk.turns]
    if cut := backbone.cut_off(questions):
        print(
            f"{cut} of {len(questions)} questions are longer than the text tower reads: "
            "pruners that read text see their beginning alone, as the official code does",
            file=sys.stderr,
        )
