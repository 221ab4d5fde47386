"""RefShapes scenes: seeded images of shapes with distractors that look alike, and the expressions that name
them.

Everything that a scene is follows from one integer seed. Pixels of an object are exactly the pixels of its
annotation: outlines are rounded to a tenth of a pixel, rasterised by pycocotools, and painted through that
mask.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cache

import numpy as np
from numpy.typing import NDArray
from pycocotools import mask as coco_mask

from harness.data.refshapes.language import describe_scene

SIZE = 192
SHAPES = ("circle", "square", "triangle", "star", "ring", "cross")
COLORS: dict[str, tuple[int, int, int]] = {
    "red": (214, 40, 44),
    "green": (40, 160, 60),
    "blue": (44, 84, 214),
    "yellow": (236, 210, 40),
    "purple": (150, 60, 190),
    "orange": (244, 130, 24),
}
TEXTURES = ("plain", "striped", "dotted")
SIZES = {"small": (13, 17), "big": (22, 28)}
# objects per scene: the real splits differ in the same way (testA few, testB crowded)
CROWDS = {"few": (3, 4), "normal": (4, 6), "crowded": (7, 9)}
GAP = 3  # free pixels between two objects


@dataclass(frozen=True)
class SceneObject:
    """One painted object.

    Attributes:
        center: (x, y) in pixels.
        polygons: COCO outline, empty for an object with a hole, whose annotation has to be an RLE.
        mask: (height, width) bool, the object's pixels.
    """

    shape: str
    color: str
    texture: str
    size: str
    center: tuple[float, float]
    radius: float
    polygons: tuple[tuple[float, ...], ...]
    mask: NDArray[np.bool_]

    @property
    def category_id(self) -> int:
        """1-based index of the shape, as COCO numbers its categories."""
        return SHAPES.index(self.shape) + 1

    @property
    def bbox(self) -> tuple[float, float, float, float]:
        """COCO box (x, y, width, height) in pixels."""
        ys, xs = np.nonzero(self.mask)
        return (
            float(xs.min()),
            float(ys.min()),
            float(xs.max() - xs.min() + 1),
            float(ys.max() - ys.min() + 1),
        )


@dataclass(frozen=True)
class Scene:
    """An image, its objects, and for every family the (object index, expression) pairs that are true of
    exactly one."""

    image: NDArray[np.uint8]
    objects: tuple[SceneObject, ...]
    expressions: dict[str, list[tuple[int, str]]]


def _outline(shape: str, center: tuple[float, float], radius: float, turn: float) -> list[float]:
    """Flat x, y list of the outline, rounded to 0.1 px so that every machine rasterises the same polygon."""
    unit: list[tuple[float, float]]
    if shape in ("circle", "ring"):
        unit = [(math.cos(a), math.sin(a)) for a in np.linspace(0, 2 * math.pi, 40, endpoint=False)]
    elif shape == "square":
        unit = [(0.86 * x, 0.86 * y) for x, y in ((-1, -1), (1, -1), (1, 1), (-1, 1))]
    elif shape == "triangle":
        unit = [(1.1 * math.sin(a), -1.1 * math.cos(a)) for a in (0.0, 2 * math.pi / 3, 4 * math.pi / 3)]
    elif shape == "star":
        unit = []
        for k in range(10):
            reach = 1.12 if k % 2 == 0 else 0.47
            unit.append((reach * math.sin(k * math.pi / 5), -reach * math.cos(k * math.pi / 5)))
    else:  # cross
        arm = 0.34
        corners = ((arm, -1), (arm, -arm), (1, -arm), (1, arm), (arm, arm), (arm, 1))
        unit = [*corners, *((-x, -y) for x, y in corners)]
    cos, sin = math.cos(turn), math.sin(turn)
    flat: list[float] = []
    for x, y in unit:
        flat.append(round(center[0] + radius * (x * cos - y * sin), 1))
        flat.append(round(center[1] + radius * (x * sin + y * cos), 1))
    return flat


def _raster(flat: list[float], height: int, width: int) -> NDArray[np.bool_]:
    rle = coco_mask.frPyObjects([flat], height, width)
    return coco_mask.decode(rle)[:, :, 0].astype(bool)


@cache
def _grid(height: int, width: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    ys, xs = np.mgrid[0:height, 0:width]
    return xs, ys


def _background(rng: np.random.Generator, height: int, width: int) -> NDArray[np.int16]:
    """Grey texture: coarse and fine noise, a few thin lines and specks that belong to no object."""
    base = int(rng.integers(90, 170))
    tint = rng.integers(-10, 11, size=3)
    coarse = rng.integers(-22, 23, size=(-(-height // 24), -(-width // 24)))
    field = np.kron(coarse, np.ones((24, 24), dtype=np.int64))[:height, :width]
    image = (base + field)[:, :, None] + tint
    xs, ys = _grid(height, width)
    for _ in range(int(rng.integers(2, 6))):
        a, b = rng.integers(-4, 5, size=2)
        line = np.abs(a * xs + b * ys - int(rng.integers(-4 * width, 4 * width))) <= 3
        image[line] = image[line] + int(rng.integers(-45, 46))
    for _ in range(int(rng.integers(4, 12))):
        x, y, r = rng.integers(0, width), rng.integers(0, height), rng.integers(1, 4)
        image[(xs - x) ** 2 + (ys - y) ** 2 <= r * r] = rng.integers(40, 200, size=3) // 2 + 40
    return image.astype(np.int16)


def _paint(
    image: NDArray[np.int16], mask: NDArray[np.bool_], color: str, texture: str, rng: np.random.Generator
) -> None:
    xs, ys = _grid(*mask.shape)
    shade = np.asarray(COLORS[color]) + rng.integers(-14, 15, size=3)
    image[mask] = shade
    phase = int(rng.integers(0, 8))
    if texture == "striped":
        direction = int(rng.integers(0, 4))
        along = (xs, ys, xs + ys, xs - ys)[direction]
        image[mask & ((along + phase) % 8 < 3)] = 245
    elif texture == "dotted":
        cell_x, cell_y = (xs + phase) % 7 - 3, (ys + phase) % 7 - 3
        image[mask & (cell_x**2 + cell_y**2 <= 4)] = 20


def _looks(rng: np.random.Generator, count: int) -> list[tuple[str, str, str, str]]:
    """(shape, color, texture, size) per object; about half are near copies of an earlier one."""
    sizes = list(SIZES)
    looks: list[tuple[str, str, str, str]] = []
    for k in range(count):
        fresh = (
            SHAPES[rng.integers(len(SHAPES))],
            list(COLORS)[rng.integers(len(COLORS))],
            TEXTURES[rng.integers(len(TEXTURES))],
            sizes[rng.integers(2)],
        )
        if k and rng.random() < 0.6:
            model = looks[rng.integers(k)]
            # a twin (identical looks) or a sibling that differs in one attribute
            change = int(rng.integers(-2, 4))
            fresh = tuple(fresh[i] if i == change else model[i] for i in range(4))  # type: ignore[assignment]
        looks.append(fresh)
    # with more than seven objects two big ones at most still find room
    big = [k for k, look in enumerate(looks) if look[3] == "big"]
    for k in big[3 if count > 6 else 5 :]:
        looks[k] = (*looks[k][:3], "small")
    return looks


def generate(seed: int, crowd: str = "normal", height: int = SIZE, width: int = SIZE) -> Scene:
    """Build one scene.

    Args:
        seed: any non-negative integer; the same seed gives the same scene on every machine.
        crowd: "few" (3-4 objects), "normal" (4-6) or "crowded" (7-9).
        height, width: pixels; the shipped splits are square because GLaMM's CLIP branch crops to a centred
            square.

    Returns:
        The scene with up to eight expressions per family.
    """
    rng = np.random.default_rng(seed)
    low, high = CROWDS[crowd]
    looks = _looks(rng, int(rng.integers(low, high + 1)))
    image = _background(rng, height, width)
    taken = np.zeros((height, width), dtype=bool)
    xs, ys = _grid(height, width)
    objects: list[SceneObject] = []
    for shape, color, texture, size in sorted(looks, key=lambda look: look[3]):  # big ones first
        for _ in range(60):
            radius = float(rng.integers(SIZES[size][0] * 10, SIZES[size][1] * 10 + 1)) / 10
            reach = int(radius * 1.15) + 2
            x = float(rng.integers(reach, width - reach))
            y = float(rng.integers(reach, height - reach))
            turn = math.radians(float(rng.integers(-180, 181)) / 10)
            room = (xs - x) ** 2 + (ys - y) ** 2 <= (radius * 1.15 + GAP) ** 2
            if taken[room].any():
                continue
            outline = _outline(shape, (x, y), radius, turn)
            mask = _raster(outline, height, width)
            if shape == "ring":
                mask &= ~_raster(_outline(shape, (x, y), radius * 0.5, turn), height, width)
            taken |= room
            _paint(image, mask, color, texture, rng)
            polygons = () if shape == "ring" else (tuple(outline),)
            objects.append(SceneObject(shape, color, texture, size, (x, y), radius, polygons, mask))
            break
    image += rng.integers(-7, 8, size=image.shape, dtype=np.int16)
    pixels = np.clip(image, 0, 255).astype(np.uint8)
    return Scene(pixels, tuple(objects), describe_scene(objects, rng))
