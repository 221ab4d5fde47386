"""Whether a picture is of the kind that the embedded models were trained on: RefShapes scenes, and frames of
RefClips.

A scene is some vivid objects in six colours, plain, striped in white or dotted in black, on grey of one tint
whose brightness changes from cell to cell. That is told by eight statistics of the centred square that the
models see, each inside LIMITS; a photo, a drawing, a page of text, a plain or a noisy picture leaves at least
one. docs/first-run.md has how often it errs, and the command that counts it.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from PIL import Image

SIDE = 96  # pixels of the square at which the statistics are taken
# of objects, as harness.data.refshapes.scenes paints them (a test holds them equal)
COLOURS = ((214, 40, 44), (40, 160, 60), (44, 84, 214), (236, 210, 40), (150, 60, 190), (244, 130, 24))
INK = ((245, 245, 245), (20, 20, 20))  # stripes and dots
TINT, BRIGHTNESS = 26.0, 80.0  # most by which background leaves the median's tint and brightness
VIVID, MIXED = 60.0, 36.0  # most distance in RGB to an object's colour, and to a mixture with what is around
# least and most in levels 0..255 or shares of the square; what scenes have, enlarged, compressed and
# photographed from a screen, and some room beside it
LIMITS = {
    "background": (0.55, 0.995),  # share
    "vivid": (0.002, 0.3),  # share
    "neither": (0.0, 0.05),  # share
    "brightness": (70.0, 190.0),  # median
    "tint": (0.0, 24.0),  # of the median
    "spread": (9.0, 40.0),  # standard deviation of the background's brightness
    "step": (1.0, 6.2),  # of the background's brightness between neighbours, mean
    "grain": (0.0, 2.5),  # the same, median
}


def statistics(image: NDArray[np.uint8]) -> dict[str, float]:
    """What the test looks at, by the names of LIMITS.

    Args:
        image: (H, W, 3) uint8 RGB.
    """
    height, width = image.shape[:2]
    side = min(height, width)
    top, left = (height - side) // 2, (width - side) // 2
    square = Image.fromarray(np.ascontiguousarray(image[top : top + side, left : left + side]))
    pixels = np.asarray(square.resize((SIDE, SIDE), Image.Resampling.BOX), dtype=np.float64)
    brightness = pixels.mean(axis=2)
    tint = pixels[..., :2] - pixels[..., 1:]
    middle, median = np.median(tint, axis=(0, 1)), float(np.median(brightness))
    background = np.abs(tint - middle).max(axis=2) < TINT
    background &= np.abs(brightness - median) < BRIGHTNESS
    mixed = np.stack([_distance(pixels, around) for around in (np.median(pixels, axis=(0, 1)), *INK)])
    vivid = np.stack([np.linalg.norm(pixels - colour, axis=2) for colour in COLOURS]).min(axis=0)
    steps = np.abs(np.diff(brightness, axis=1))[background[:, 1:] & background[:, :-1]]
    return {
        "background": float(background.mean()),
        "vivid": float((vivid < VIVID).mean()),
        "neither": float(((mixed.min(axis=0) > MIXED) & ~background).mean()),
        "brightness": median,
        "tint": float(np.abs(middle).max()),
        "spread": float(brightness[background].std()) if background.any() else 0.0,
        "step": float(steps.mean()) if steps.size else 0.0,
        "grain": float(np.median(steps)) if steps.size else 0.0,
    }


def _distance(
    pixels: NDArray[np.float64], around: NDArray[np.float64] | tuple[int, ...]
) -> NDArray[np.float64]:
    """(H, W) distance in RGB to the nearest mixture of an object's colour and what is around it."""
    start = np.asarray(around, dtype=np.float64)
    found = np.full(pixels.shape[:2], np.inf)
    for colour in COLOURS:
        way = np.asarray(colour) - start
        share = ((pixels - start) @ way / max(float(way @ way), 1.0)).clip(0, 1)
        found = np.minimum(found, np.linalg.norm(pixels - start - share[..., None] * way, axis=2))
    return found


def is_scene(image: NDArray[np.uint8]) -> bool:
    """Whether a (H, W, 3) uint8 RGB picture looks like a generated scene.

    Example:
        >>> is_scene(np.full((192, 192, 3), 128, dtype=np.uint8))
        False
    """
    found = statistics(image)
    return all(low <= found[name] <= high for name, (low, high) in LIMITS.items())


def unlike_scenes(name: str, real: str, data: str, image: NDArray[np.uint8]) -> str | None:
    """What `unlike` of an embedded model says.

    Args:
        name: of the embedded model.
        real: of the family that reads the official weights.
        data: what it was trained on.
    """
    if is_scene(image):
        return None
    return (
        f"{name} was trained on generated scenes of coloured shapes on grey ({data}), which this does not "
        f"look like: its masks mean nothing here; for photos give the real model, --backbone {real} "
        f"--checkpoint DIR."
    )
