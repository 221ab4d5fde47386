"""What an expression calls its referent, by a closed list of words instead of a parser: the words before the
first one that begins a relation, without articles, places and counts; the last of them is the head noun."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

WORD = re.compile(r"[^\W_]+(?:['’-][^\W_]+)*")


def _words(*lines: str) -> frozenset[str]:
    return frozenset(" ".join(lines).split())


# what follows says where the referent is, or what is beside it
RELATIONS = _words(
    "of in on at by with without to from for near next beside besides behind between above below over",
    "under underneath against along across inside outside around before after beneath toward towards",
    "facing who whom whose which that where is are was were has have having being and or but if then",
    "closest nearest farthest furthest",
)
# words that say nothing of a look: articles, places, order
EMPTY = _words(
    "a an the this these those his her its their my your our left leftmost right rightmost top topmost",
    "bottom bottommost upper lower middle center centre centermost front frontmost back rear far farther",
    "close closer near first second third fourth fifth last most very only just side hand corner edge",
    "end up down there here not no",
)
# nouns that stand for any thing
ANY = _words(
    "one ones thing things object objects item items something it he she him they them",
)


@dataclass(frozen=True)
class Said:
    """What one expression says of its referent's look.

    Attributes:
        words: of the whole expression, how many.
        look: words of the referent's look, head noun included where there is one.
        noun: the head noun; empty where a word for any thing stands for it, or none.
    """

    words: int
    look: frozenset[str]
    noun: str


def said(text: str) -> Said:
    """What an expression says.

    >>> found = said("the small red star that is left of the ring")
    >>> found.words, sorted(found.look), found.noun
    (10, ['red', 'small', 'star'], 'star')
    >>> said("left blue one").noun, said("star on the left").noun
    ('', 'star')
    """
    words = [word.lower() for word in WORD.findall(text)]
    head: list[str] = []
    for word in words:
        if word in RELATIONS and head:
            break
        if word not in EMPTY and word not in RELATIONS:
            head.append(word)
    noun = _singular(head[-1]) if head and head[-1] not in ANY else ""
    look = frozenset(_singular(word) for word in head if word not in ANY)
    return Said(len(words), look, noun)


def named_alike(named: Iterable[frozenset[str]]) -> list[int]:
    """Of every referent of an image how many others share one of its head nouns; -1 of one that has none.

    Args:
        named: head nouns of each referent, of all that was said about it.

    >>> named_alike([frozenset({"star"}), frozenset({"star", "shape"}), frozenset({"ring"}), frozenset()])
    [1, 1, 0, -1]
    """
    each = list(named)
    return [
        sum(bool(one & other) for k, other in enumerate(each) if k != place) if one else -1
        for place, one in enumerate(each)
    ]


def _singular(word: str) -> str:
    """Without a plural's s; words as `bus` and `glass` keep theirs."""
    return word[:-1] if len(word) > 3 and word.endswith("s") and word[-2] not in "su'’" else word
