"""RefClips' clips: RefShapes' objects in straight, even motion, with twins that motion alone tells apart.

Everything that a clip is follows from one integer seed. An object is painted once and moves by whole pixels;
its pixels in a frame are exactly those of its mask there. The ways of two objects never come close to each
other, so that an object is known in every frame by the way it takes: a model that decodes every frame with
one and the same prompt can be right in all of them.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from harness.data.refclips.language import Point

# private names of the still scenes: renamed, they would give RefShapes another generator version
from harness.data.refshapes.scenes import (
    COLORS,
    GAP,
    SHAPES,
    TEXTURES,
    _background,
    _grid,
    _outline,
    _paint,
    _raster,
)

HEIGHT, WIDTH = 192, 240
SIZES = {"small": (14, 17), "big": (22, 27)}  # radii in pixels
FRAMES = (10, 16)
LONG = (17, 24)  # frames of every tenth clip
REACH = 1.15  # of an outline, in radii
WAY = (40, 95)  # pixels that a moving object goes in all
DRIFT = 0.15  # most that it goes aside, in parts of its way
DIRECTION: dict[str, Point] = {
    "still": (0.0, 0.0),
    "left": (-1.0, 0.0),
    "right": (1.0, 0.0),
    "up": (0.0, -1.0),
    "down": (0.0, 1.0),
}
OPPOSITE = {"left": "right", "right": "left", "up": "down", "down": "up"}
Look = tuple[str, str, str, str]  # shape, color, texture, size


@dataclass(frozen=True)
class Actor:
    """One object of a clip.

    Attributes:
        motion: "still", "left", "right", "up" or "down".
        enters: not there at first.
        leaves: gone at the end.
        start, end: (x, y) of its centre in the first and the last frame, in pixels; may lie outside.
        radius: in pixels.
        twin: number of the object that looks the same to the pixel, -1 if there is none.
    """

    shape: str
    color: str
    texture: str
    size: str
    motion: str
    enters: bool
    leaves: bool
    start: Point
    end: Point
    radius: float
    twin: int = -1

    @property
    def center(self) -> Point:
        """Centre in the first frame."""
        return self.start

    def place(self, share: float) -> tuple[int, int]:
        """(x, y) of the centre in whole pixels when that share of the clip, 0 to 1, is over."""
        x, y = (a + share * (b - a) for a, b in zip(self.start, self.end, strict=True))
        return math.floor(x + 0.5), math.floor(y + 0.5)


@dataclass(frozen=True)
class PaintedClip:
    """A clip and its truth.

    Attributes:
        frames: (T, H, W, 3) uint8.
        actors: its objects.
        masks: (objects, T, H, W) bool, visible pixels; empty where an object is outside or behind the bar.
        bar: left and right end of a bar in front of everything, in pixels; None without one.
    """

    frames: NDArray[np.uint8]
    actors: tuple[Actor, ...]
    masks: NDArray[np.bool_]
    bar: tuple[int, int] | None


def ways_apart(a: Actor, b: Actor) -> float:
    """Pixels between the bands that two objects pass over in all; negative where they meet."""
    points = np.linspace(0, 1, 25)[:, None]
    one, other = (np.asarray(t.start) + points * (np.asarray(t.end) - np.asarray(t.start)) for t in (a, b))
    nearest = np.linalg.norm(one[:, None] - other[None], axis=-1).min()
    return float(nearest) - REACH * (a.radius + b.radius)


def _any_look(rng: np.random.Generator) -> Look:
    return (
        SHAPES[int(rng.integers(len(SHAPES)))],
        list(COLORS)[int(rng.integers(len(COLORS)))],
        TEXTURES[int(rng.integers(len(TEXTURES)))],
        list(SIZES)[int(rng.integers(2))],
    )


def _look(rng: np.random.Generator, before: list[Look]) -> Look:
    """Looks that no earlier object has; half the time near copies, which differ in one attribute."""
    while True:
        look = _any_look(rng)
        if before and rng.random() < 0.55:
            model, change = before[int(rng.integers(len(before)))], int(rng.integers(4))
            look = tuple(look[i] if i == change else model[i] for i in range(4))  # type: ignore[assignment]
        if look not in before:
            return look


def _between(rng: np.random.Generator, low: float, high: float) -> float:
    return float(rng.integers(int(low), max(int(high), int(low)) + 1))


def _course(rng: np.random.Generator, motion: str, radius: float, edge: str) -> tuple[Point, Point] | None:
    """First and last centre of a way that fits into the frame; of one that `enters` or `leaves`, one end
    outside."""
    reach = REACH * radius + 2
    low, high = np.array([reach, reach]), np.array([WIDTH - reach, HEIGHT - reach])
    way = np.asarray(DIRECTION[motion])
    length = _between(rng, *WAY)
    side = (1, 0) if way[0] == 0 else (0, 1)
    aside = np.asarray(side) * length * DRIFT * float(rng.integers(-10, 11)) / 10
    if motion == "still":
        at = tuple(_between(rng, low[k], high[k]) for k in (0, 1))
        return at, at  # type: ignore[return-value]
    end = np.array([_between(rng, low[k], high[k]) for k in (0, 1)])
    start = end - length * way - aside
    if edge:
        # wholly outside for 30 to 45 % of the clip, then `length` of pixels into the frame
        hidden, axis = float(rng.integers(30, 46)) / 100, int(np.abs(way).argmax())
        border = -reach if way[axis] > 0 else (WIDTH, HEIGHT)[axis] + reach
        inner = border + way[axis] * (reach * 2 + length * 0.6)
        if not low[axis] <= inner <= high[axis]:
            return None
        end[axis] = inner
        start = end - aside
        start[axis] = border - (inner - border) * hidden / (1 - hidden)
        if edge == "leaves":  # the same way in the mirror, walked backwards
            start, end = end, start
    for point in (start, end) if not edge else (end if edge == "enters" else start,):
        if (point < low).any() or (point > high).any():
            return None
    first, last = ((round(float(p[0])), round(float(p[1]))) for p in (start, end))
    return first, last


def _cast(rng: np.random.Generator) -> list[Actor] | None:
    """Two to four objects whose ways stay apart; None if this draw had no room."""
    twins = rng.random() < 0.6
    count = int(rng.choice((2, 3, 4), p=(0.25, 0.45, 0.3)))
    looks: list[Look] = []
    actors: list[Actor] = []
    for k in range(count):
        twin = k == 1 and twins
        look = looks[0] if twin else _look(rng, looks)
        least, most = SIZES[look[3]]
        radius = actors[0].radius if twin else float(rng.integers(10 * least, 10 * most)) / 10
        edge, motion = "", str(rng.choice(list(DIRECTION), p=(0.2, 0.2, 0.2, 0.2, 0.2)))
        if twin:
            first = actors[0].motion
            motion = OPPOSITE.get(first, str(rng.choice(list(OPPOSITE))))
            if first in OPPOSITE and rng.random() < 0.25:
                motion = str(rng.choice([way for way in DIRECTION if way != first]))
        elif motion != "still" and not (k == 0 and twins):
            edge = str(rng.choice(("", "enters", "leaves"), p=(0.65, 0.2, 0.15)))
        for _ in range(40):
            course = _course(rng, OPPOSITE[motion] if edge == "leaves" else motion, radius, edge)
            if course is None:
                continue
            actor = Actor(
                *look, motion, edge == "enters", edge == "leaves", *course, radius, 0 if twin else -1
            )
            if all(ways_apart(actor, other) >= GAP for other in actors):
                break
        else:
            return None
        looks.append(look)
        actors.append(actor)
    if twins:
        actors[0] = replace(actors[0], twin=1)
    return actors


def _sprite(actor: Actor, rng: np.random.Generator) -> tuple[NDArray[np.int16], NDArray[np.bool_]]:
    """The painted object in the middle of a square, and its pixels."""
    half = math.ceil(actor.radius * REACH) + 2
    side = 2 * half + 1
    turn = math.radians(float(rng.integers(-180, 181)) / 10)
    middle = (half + 0.5, half + 0.5)
    mask = _raster(_outline(actor.shape, middle, actor.radius, turn), side, side)
    if actor.shape == "ring":
        mask &= ~_raster(_outline(actor.shape, middle, actor.radius * 0.5, turn), side, side)
    picture = np.zeros((side, side, 3), dtype=np.int16)
    _paint(picture, mask, actor.color, actor.texture, rng)
    return picture, mask


def _paste(
    frame: NDArray[np.int16],
    truth: NDArray[np.bool_],
    sprite: tuple[NDArray[np.int16], NDArray[np.bool_]],
    at: tuple[int, int],
) -> None:
    picture, mask = sprite
    half = len(mask) // 2
    top, left = at[1] - half, at[0] - half
    rows = slice(max(0, top), max(0, min(HEIGHT, top + len(mask))))
    columns = slice(max(0, left), max(0, min(WIDTH, left + len(mask))))
    inside = (slice(rows.start - top, rows.stop - top), slice(columns.start - left, columns.stop - left))
    if rows.start >= rows.stop or columns.start >= columns.stop:
        return
    truth[rows, columns] = mask[inside]
    frame[rows, columns][mask[inside]] = picture[inside][mask[inside]]


def _bar(rng: np.random.Generator, actors: list[Actor]) -> tuple[int, int] | None:
    """In every fourth clip a bar, unless an object would spend the whole clip behind it."""
    left = int(rng.integers(50, WIDTH - 70))
    right = left + int(rng.integers(12, 19))
    for actor in actors:
        xs = (actor.start[0], actor.end[0])
        if left - 0.5 * actor.radius < min(xs) and max(xs) < right + 0.5 * actor.radius:
            return None
    return (left, right) if rng.random() < 0.35 else None


def generate(seed: int) -> PaintedClip:
    """Build one clip.

    Args:
        seed: any non-negative integer; the same seed gives the same clip on every machine.
    """
    rng = np.random.default_rng(seed)
    while (actors := _cast(rng)) is None:
        pass
    length = int(
        rng.integers(*LONG, endpoint=True) if rng.random() < 0.1 else rng.integers(*FRAMES, endpoint=True)
    )
    still = _background(rng, HEIGHT, WIDTH)
    sprites: list[tuple[NDArray[np.int16], NDArray[np.bool_]]] = []
    for k, actor in enumerate(actors):
        sprites.append(sprites[0] if k == 1 and actor.twin == 0 else _sprite(actor, rng))
    bar = _bar(rng, actors)
    shade = rng.integers(30, 70, size=3)
    frames = np.zeros((length, HEIGHT, WIDTH, 3), dtype=np.uint8)
    masks = np.zeros((len(actors), length, HEIGHT, WIDTH), dtype=bool)
    xs, _ = _grid(HEIGHT, WIDTH)
    for t in range(length):
        frame = still.copy()
        for k, (actor, sprite) in enumerate(zip(actors, sprites, strict=True)):
            _paste(frame, masks[k, t], sprite, actor.place(t / (length - 1)))
        if bar is not None:
            frame[:, bar[0] : bar[1]] = shade + (xs[:, bar[0] : bar[1], None] % 5 == 0) * 12
            masks[:, t, :, bar[0] : bar[1]] = False
        frame += rng.integers(-7, 8, size=frame.shape, dtype=np.int16)
        frames[t] = np.clip(frame, 0, 255)
    return PaintedClip(frames, tuple(actors), masks, bar)
