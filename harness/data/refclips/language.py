"""RefClips expressions: looks, places and motions, each true of exactly one object of its clip.

A place holds in every frame ("left": left of all rivals by at least MARGIN pixels from first to last), so
that it is no riddle which frame is meant. A motion is what the object does over the whole clip.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import combinations
from typing import Any, Protocol

import numpy as np

# private names of the still scenes: renamed, they would give RefShapes another generator version
from harness.data.refshapes.language import (
    LOCATIONS,
    MARGIN,
    _matches,
    _phrase,
    _some_words,
    _unique_words,
)
from harness.data.refshapes.language import Thing as Looks

FAMILIES = ("looks", "place", "motion")
MOTIONS = ("still", "left", "right", "up", "down")
WORDINGS = 2  # how many people would describe a clip
Point = tuple[float, float]

# of every motion the words of both people
_MOVING: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "still": (("standing still",), ("that does not move", "that stays in its place")),
    "left": (("moving left",), ("going to the left", "that moves to the left")),
    "right": (("moving right",), ("going to the right", "that moves to the right")),
    "up": (("moving up",), ("going up", "that moves upwards")),
    "down": (("moving down",), ("going down", "that moves downwards")),
    "enters": (("that enters late",), ("that comes in later", "that is not there at first")),
    "leaves": (("that leaves",), ("that goes out of the picture", "that is gone at the end")),
}
_PLURALS = {"cross": "crosses"}


class Mover(Looks, Protocol):
    """What the language needs to know of an object."""

    @property
    def motion(self) -> str: ...
    @property
    def enters(self) -> bool: ...
    @property
    def leaves(self) -> bool: ...
    @property
    def start(self) -> Point: ...
    @property
    def end(self) -> Point: ...


def does(thing: Mover, deed: str) -> bool:
    """Whether an object does what a key of the motions' words says."""
    return {"enters": thing.enters, "leaves": thing.leaves}.get(deed, thing.motion == deed)


def _place(things: Sequence[Mover], target: int, rng: np.random.Generator, wording: int) -> str | None:
    thing = things[target]
    if thing.enters or thing.leaves:
        return None
    words = _some_words(thing, rng)
    rivals = [t for k, t in enumerate(things) if k != target and _matches(t, words)]
    if not rivals and rng.random() < 0.7:  # mostly say where only if it is needed
        return None
    others = rivals or [t for k, t in enumerate(things) if k != target]
    # along straight ways a distance is smallest at the first or at the last frame
    holds = [
        word
        for word, rank in LOCATIONS
        if all(
            rank(a) - rank(b) >= MARGIN
            for t in others
            for a, b in ((thing.start, t.start), (thing.end, t.end))
        )
    ]
    if not holds:
        return None
    word, noun = str(rng.choice(holds)), _phrase(words)
    side = f"on the {word}" if word in ("left", "right") else f"at the {word}"
    return f"the {word} {noun}" if wording == 0 else f"the {noun} {side}"


def _looks(things: Sequence[Mover], target: int, rng: np.random.Generator, wording: int) -> str | None:
    words = _unique_words(things, target, rng)
    return None if words is None else ("the ", "a ")[wording] + _phrase(words)


def _motion(things: Sequence[Mover], target: int, rng: np.random.Generator, wording: int) -> str | None:
    thing = things[target]
    deeds = [deed for deed in _MOVING if does(thing, deed)]
    deed = deeds[int(rng.integers(len(deeds)))]

    def unique(words: dict[str, str]) -> bool:
        return sum(_matches(t, words) and does(t, deed) for t in things) == 1

    words: dict[str, str] = {key: getattr(thing, key) for key in ("size", "texture", "color", "shape")}
    if not unique(words):
        return None
    for key in rng.permutation(["size", "size", "texture", "texture", "color", "shape"]):
        shorter = {k: v for k, v in words.items() if k != key}
        if unique(shorter) and rng.random() < 0.8:
            words = shorter
    said = _MOVING[deed][wording]
    return f"the {_phrase(words)} {said[int(rng.integers(len(said)))]}"


_MAKERS: dict[str, Callable[[Sequence[Any], int, np.random.Generator, int], str | None]] = {
    "looks": _looks,
    "place": _place,
    "motion": _motion,
}


def describe(
    things: Sequence[Any], target: int, family: str, rng: np.random.Generator, wording: int
) -> str | None:
    """One expression that is true of one object alone; None if this draw found none.

    Args:
        things: all objects of the clip.
        target: index of the object.
        family: one of FAMILIES.
        wording: 0 or 1, whose words.
    """
    return _MAKERS[family](things, target, rng, wording)


def describe_surely(
    things: Sequence[Any], target: int, families: Sequence[str], rng: np.random.Generator, wording: int
) -> str | None:
    """As `describe`, of the first family that a few draws find one in; None if no family has one."""
    for family in families:
        for _ in range(8):
            text = describe(things, target, family, rng, wording)
            if text is not None:
                return text
    return None


def describe_clip(
    things: Sequence[Any], rng: np.random.Generator, per_family: int = 4
) -> list[tuple[int, str, str]]:
    """Distinct (object, family, expression) triples of a clip, at most `per_family` of each family."""
    found: dict[str, tuple[int, str]] = {}
    for family in FAMILIES:
        mine = 0
        for _ in range(3 * per_family):
            target, wording = int(rng.integers(len(things))), int(rng.integers(WORDINGS))
            text = describe(things, target, family, rng, wording)
            if text is not None and text not in found and mine < per_family:
                found[text] = (target, family)
                mine += 1
    return [(target, family, text) for text, (target, family) in found.items()]


def describe_groups(things: Sequence[Any], rng: np.random.Generator) -> list[tuple[tuple[int, ...], str]]:
    """(objects, expression) of every expression in the plural that is true of those objects and no others."""
    found: dict[str, tuple[int, ...]] = {}
    for size in (2, 3):
        for group in combinations(range(len(things)), size):
            members = [things[k] for k in group]
            common = {
                key: getattr(members[0], key)
                for key in ("color", "shape")
                if len({getattr(t, key) for t in members}) == 1
            }
            deeds = [deed for deed in _MOVING if all(does(t, deed) for t in members)]
            options: list[tuple[dict[str, str], str]] = [
                (words, deed)
                for words in ({}, common, {k: v for k, v in common.items() if k == "shape"})
                for deed in ("", *deeds)
                if words or deed
            ]
            for words, deed in options:
                true = [k for k, t in enumerate(things) if _matches(t, words) and (not deed or does(t, deed))]
                if tuple(true) == group and (words or len(group) < len(things)):
                    found.setdefault(_plural(words, deed, rng), group)
    return [(group, text) for text, group in found.items()]


def _plural(words: dict[str, str], deed: str, rng: np.random.Generator) -> str:
    shape = words.get("shape", "shape")
    noun = " ".join([*(words[key] for key in ("color",) if key in words), _PLURALS.get(shape, shape + "s")])
    said = _MOVING[deed][0] if deed else ()
    moving = f" {said[int(rng.integers(len(said)))]}" if said else ""
    plural = {" that leaves": " that leave", " that enters late": " that enter late"}
    return f"the {noun}{plural.get(moving, moving)}"
