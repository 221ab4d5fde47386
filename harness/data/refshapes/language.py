"""RefShapes expressions: three families that mirror RefCOCO (location), RefCOCO+ (appearance) and RefCOCOg
(relations).

Every expression is true of exactly one object of its scene, with a margin: "left" means left by at least
MARGIN pixels.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

import numpy as np

FAMILIES = ("refshapes", "refshapes+", "refshapesg")
MARGIN = 20  # pixels by which a location or a relation has to hold, and by which a near miss has to fail
PER_FAMILY = 8


class Thing(Protocol):
    """What the language needs to know of an object."""

    @property
    def shape(self) -> str: ...
    @property
    def color(self) -> str: ...
    @property
    def texture(self) -> str: ...
    @property
    def size(self) -> str: ...
    @property
    def center(self) -> tuple[float, float]: ...


# word(s), signed position along the axis that the word ranks
LOCATIONS: tuple[tuple[str, Callable[[tuple[float, float]], float]], ...] = (
    ("left", lambda c: -c[0]),
    ("right", lambda c: c[0]),
    ("top", lambda c: -c[1]),
    ("bottom", lambda c: c[1]),
)
RELATIONS: dict[str, tuple[str, ...]] = {
    "left": ("to the left of", "left of"),
    "right": ("to the right of", "right of"),
    "above": ("above", "over"),
    "below": ("below", "under"),
}


def _matches(thing: Thing, words: dict[str, str]) -> bool:
    return all(getattr(thing, key) == value for key, value in words.items())


def _phrase(words: dict[str, str]) -> str:
    noun = words.get("shape", "one")
    return " ".join([*(words[key] for key in ("size", "texture", "color") if key in words), noun])


def _some_words(thing: Thing, rng: np.random.Generator, keep_shape: float = 0.8) -> dict[str, str]:
    """A random part of what can be said of the object's looks."""
    chance = {"size": 0.3, "texture": 0.35, "color": 0.6, "shape": keep_shape}
    words = {key: getattr(thing, key) for key, p in chance.items() if rng.random() < p}
    return words or {"shape": thing.shape}


def _unique_words(things: Sequence[Thing], target: int, rng: np.random.Generator) -> dict[str, str] | None:
    """Looks that single the object out, dropping words at random as long as they stay unique; None if it has
    a twin."""
    words = {key: getattr(things[target], key) for key in ("size", "texture", "color", "shape")}

    def unique(some: dict[str, str]) -> bool:
        return sum(_matches(thing, some) for thing in things) == 1

    if not unique(words):
        return None
    for key in rng.permutation(["size", "size", "texture", "color", "shape"]):
        shorter = {k: v for k, v in words.items() if k != key}
        if shorter and unique(shorter) and rng.random() < 0.85:
            words = shorter
    return words


def _location(things: Sequence[Thing], target: int, rng: np.random.Generator) -> str | None:
    words = _some_words(things[target], rng)
    rivals = [t for k, t in enumerate(things) if k != target and _matches(t, words)]
    if not rivals and rng.random() < 0.7:  # mostly say where only if it is needed
        return None
    others = rivals or [t for k, t in enumerate(things) if k != target]
    holds = [
        word
        for word, rank in LOCATIONS
        if all(rank(things[target].center) - rank(t.center) >= MARGIN for t in others)
    ]
    if not holds:
        return None
    word, noun = str(rng.choice(holds)), _phrase(words)
    side = f"on the {word}" if word in ("left", "right") else f"at the {word}"
    forms = (f"{word} {noun}", f"{noun} {side}", f"the {noun} {side}", f"{word}most {noun}")
    return forms[int(rng.integers(4))]


def _appearance(things: Sequence[Thing], target: int, rng: np.random.Generator) -> str | None:
    words = _unique_words(things, target, rng)
    if words is None:
        return None
    return ("", "the ")[int(rng.integers(2))] + _phrase(words)


def _holds(relation: str, a: tuple[float, float], b: tuple[float, float]) -> float:
    """Pixels by which `a` stands in the relation to `b`; negative if it does not."""
    dx, dy = a[0] - b[0], a[1] - b[1]
    return {"left": -dx, "right": dx, "above": -dy, "below": dy}[relation]


def _relation(things: Sequence[Thing], target: int, rng: np.random.Generator) -> str | None:
    words = _some_words(things[target], rng, keep_shape=0.9)
    rivals = [k for k, t in enumerate(things) if k != target and _matches(t, words)]
    for other in rng.permutation(len(things)):
        mark = int(other)
        if mark == target or mark in rivals:
            continue
        landmark = _unique_words(things, mark, rng)
        if landmark is None or landmark == words:
            continue
        for relation in rng.permutation(list(RELATIONS)):
            own = _holds(relation, things[target].center, things[mark].center)
            fails = all(_holds(relation, things[k].center, things[mark].center) <= -8 for k in rivals)
            if own >= MARGIN and fails and (rivals or rng.random() < 0.3):
                said = RELATIONS[str(relation)][int(rng.integers(2))]
                link = ("", "that is ", "which is ")[int(rng.integers(3))]
                return f"the {_phrase(words)} {link}{said} the {_phrase(landmark)}"
    return None


_MAKERS: dict[str, Callable[[Sequence[Thing], int, np.random.Generator], str | None]] = {
    "refshapes": _location,
    "refshapes+": _appearance,
    "refshapesg": _relation,
}


def describe_scene(
    things: Sequence[Any], rng: np.random.Generator, per_family: int = PER_FAMILY
) -> dict[str, list[tuple[int, str]]]:
    """Draw expressions for a scene.

    Args:
        things: the scene's objects.
        rng: source of every choice.
        per_family: most expressions per family; distinct texts.

    Returns:
        family -> list of (index into `things`, expression).
    """
    found: dict[str, list[tuple[int, str]]] = {}
    for family, make in _MAKERS.items():
        pairs: dict[str, int] = {}
        for _ in range(3 * per_family):
            target = int(rng.integers(len(things)))
            text = make(things, target, rng)
            if text is not None and len(pairs) < per_family:
                pairs.setdefault(text, target)
        found[family] = [(target, text) for text, target in pairs.items()]
    return found
