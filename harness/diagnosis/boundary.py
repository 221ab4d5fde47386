"""Boundary IoU (Cheng et al., CVPR 2021): the IoU of the two masks' inner boundaries, the pixels of a mask
that lie within d of its outline.

As in the official code (bowenc0221/boundary-iou-api), d is 2 % of the image's diagonal, whole and at least 1
px; a mask is eroded d times by a 3 x 3 square, what lies outside the image counting as outside the mask, and
what erosion takes away is its boundary. d erosions by 3 x 3 are one by (2 d + 1) x (2 d + 1).

A mask is held as bits, 64 of a line in one number, so that shifts and unions work on 64 px at once. A square
is the same in both directions, so masks are taken as run lengths are decoded, column by column.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from pycocotools import mask as coco_mask

DISTANCE = 0.02  # of the diagonal, official
WORD = 64
BITS = np.dtype("<u8")  # little-endian everywhere: bit k of a line is pixel k

Bits = NDArray[np.uint64]


def boundary_distance(height: int, width: int) -> int:
    """How far a boundary reaches into a mask, in px.

    >>> boundary_distance(480, 640), boundary_distance(10, 10)
    (16, 1)
    """
    return max(1, round(DISTANCE * float(np.sqrt(height**2 + width**2))))


def decode_bits(counts: str, height: int, width: int) -> Bits:
    """(W, words) bits of a mask's columns, of the `counts` of COCO's compressed run lengths.

    Raises:
        ValueError: they are none of an image of this size.
    """
    try:
        mask = coco_mask.decode({"size": [height, width], "counts": counts.encode()})
    except Exception as error:  # pycocotools raises bare Exception for what it cannot read
        raise ValueError(f"run lengths that cannot be read ({error})") from None
    return packed(mask.T)


def packed(lines: NDArray[np.uint8] | NDArray[np.bool_]) -> Bits:
    """(..., L, P) pixels as bits (..., L, words)."""
    some = np.packbits(lines, axis=-1, bitorder="little")
    whole = np.zeros((*some.shape[:-1], -(-some.shape[-1] // 8) * 8), dtype=np.uint8)
    whole[..., : some.shape[-1]] = some
    return whole.view(BITS)


def pixels(bits: Bits) -> int:
    """How many pixels a set has."""
    return int(np.bitwise_count(bits).sum(dtype=np.int64))


def inner_boundary(bits: Bits, distance: int) -> Bits:
    """The pixels of a mask that erosion by a square of 2 * distance + 1 takes away, (L, words)."""
    found = bits.copy()
    used = np.flatnonzero(bits.any(axis=1))
    if not len(used):
        return found
    lines = slice(used[0], used[-1] + 1)  # outside them there is nothing to erode
    found[lines] &= ~_across(_along(bits[lines], distance), distance)
    return found


def boundary_iou(one: Bits, other: Bits) -> float:
    """IoU of two boundaries; 1 where neither has a pixel."""
    outer = pixels(one | other)
    return pixels(one & other) / outer if outer else 1.0


def _along(bits: Bits, distance: int) -> Bits:
    """Pixels whose neighbours on their line, up to a distance on both sides, are all in the set."""
    found, at = bits.copy(), 0
    while at < distance:
        step = min(distance - at, 2 * at + 1, WORD - 1)
        here, rest = BITS.type(step), BITS.type(WORD - step)
        above, below = found << here, found >> here
        above[:, 1:] |= found[:, :-1] >> rest
        below[:, :-1] |= found[:, 1:] << rest
        found, at = found & above & below, at + step
    return found


def _across(bits: Bits, distance: int) -> Bits:
    """The same across lines."""
    found, at = bits.copy(), 0
    while at < distance:
        step = min(distance - at, 2 * at + 1)
        less = np.zeros_like(found)
        if 2 * step < len(found):  # else every line lacks a neighbour
            less[step:-step] = found[step:-step] & found[2 * step :] & found[: -2 * step]
        found, at = less, at + step
    return found
