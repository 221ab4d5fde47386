"""Regions and boundaries of frames, counted: what J and F of video object segmentation are ratios of.

The definitions are those of the official evaluation of DAVIS (davischallenge/davis2017-evaluation). A
predicted boundary pixel is matched if a target's boundary pixel lies within r of it (Euclidean, r
inclusive), and the other way round: it then lies in the target's boundary dilated by a disk of radius r.

A set of pixels is held as bits, 64 of a row in one number, so that shifts, unions and counts work on 64 px at
once. A disk is made of rows: that dy above its centre reaches isqrt(r^2 - dy^2) to both sides. So a map is
widened to the sides once for each reach, and the widened maps are shifted up and down and united. That takes
the same time however many boundary pixels there are, and is exact, as nothing in it is rounded.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import ArrayLike, NDArray

TOLERANCE = 0.008  # of the diagonal, official
WORD = 64
BITS = np.dtype("<u8")  # little-endian everywhere: bit k of a row is pixel k

Bits = NDArray[np.uint64]
Counts = NDArray[np.int64]
ONE, TOP = BITS.type(1), BITS.type(WORD - 1)


def radius(height: int, width: int) -> int:
    """How far apart matching boundary pixels may lie, in px, of a frame of this size (of the whole frame:
    never of a part cut out of it).

    >>> radius(480, 854), radius(300, 400)
    (8, 4)
    """
    return math.ceil(TOLERANCE * math.sqrt(height * height + width * width))


def boundary_map(mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Pixels that differ from their right, lower or lower right neighbour; where there is none, the pixel
    itself stands for it. The frame's edge is thus no boundary, and its lower right pixel never is one.

    Args:
        mask: (H, W) bool.

    Returns:
        (H, W) bool.
    """
    width = mask.shape[-1]
    found = _boundary(_packed(mask[None], 1), width)[0]
    return np.unpackbits(found.view(np.uint8), axis=-1, count=width, bitorder="little").astype(bool)


def pair_counts(
    predictions: NDArray[np.bool_], targets: NDArray[np.bool_], void: NDArray[np.bool_] | None = None
) -> Counts:
    """What J and F of every prediction against every target of one frame are made of.

    Args:
        predictions: (P, H, W) bool.
        targets: (G, H, W) bool.
        void: (H, W) bool, pixels that belong to neither; they are cleared before boundaries are looked for,
            so a boundary runs around them where they lie in a mask, as officially.

    Returns:
        (P, G, 6): pixels in the intersection and in the union; predicted boundary pixels that are matched,
        and all of them; the target's boundary pixels that are matched, and all of them.

    Raises:
        ValueError: these are no boolean masks of one size.
    """
    arrays = [predictions, targets, *([] if void is None else [void[None]])]
    if any(one.dtype != np.bool_ or one.ndim != 3 for one in arrays):
        raise ValueError(
            f"expected boolean masks (P, H, W) and (G, H, W), got {predictions.dtype} {predictions.shape} and "
            f"{targets.dtype} {targets.shape}"
        )
    if len({one.shape[1:] for one in arrays}) > 1:
        raise ValueError(f"expected masks of one size, got {' and '.join(str(a.shape[1:]) for a in arrays)}")
    height, width = predictions.shape[1:]
    reach = radius(height, width)
    packed = [_packed(one, reach) for one in arrays]
    for one in packed[2:]:
        packed[0] &= ~one
        packed[1] &= ~one
    drawn, edges = (_boundary(one, width) for one in packed[:2])
    both = _among(*packed[:2])
    sizes = [_count(one) for one in packed[:2]]
    found = np.empty((*both.shape, 6), dtype=np.int64)
    found[..., 0], found[..., 1] = both, sizes[0][:, None] + sizes[1] - both
    found[..., 3], found[..., 5] = _count(drawn)[:, None], _count(edges)
    found[..., 2] = found[..., 4] = 0
    if found[..., 3].any() and found[..., 5].any():
        drawn, edges = _cut(drawn, edges)
        found[..., 2] = _among(drawn, _dilated(edges, reach))
        found[..., 4] = _among(_dilated(drawn, reach), edges)
    return found


def region(intersection: ArrayLike, union: ArrayLike) -> NDArray[np.float64]:
    """J of frames, in 0..1: intersection over union; 1 where neither mask has a pixel.

    Args:
        intersection, union: whole numbers of any common shape.
    """
    outer = np.asarray(union)
    return np.where(outer > 0, np.asarray(intersection) / np.maximum(outer, 1), 1.0)


def contour(hits: ArrayLike, drawn: ArrayLike, found: ArrayLike, edge: ArrayLike) -> NDArray[np.float64]:
    """F of frames, in 0..1: harmonic mean of the matched shares of both boundaries.

    Where one of the two has no pixel its own share is 1 and the other's 0, so F is 0; where neither has, both
    are 1. A mask that covers the whole frame has none either.

    Args:
        hits, drawn: predicted boundary pixels that are matched, and all of them.
        found, edge: the target's that are matched, and all of them.
    """
    precision, recall = region(hits, drawn), region(found, edge)  # the same rule for nothing
    both = precision + recall
    return np.where(both > 0, 2 * precision * recall / np.where(both > 0, both, 1), 0.0)


def _packed(masks: NDArray[np.bool_], margin: int) -> Bits:
    """(n, H, W) bool as bits (n, H, words); behind a row `margin` bits or more are 0, so that shifts by as
    many do not carry a pixel into the row before or behind."""
    some = np.packbits(masks, axis=-1, bitorder="little")
    words = -(-(masks.shape[-1] + margin) // WORD)
    whole = np.zeros((*masks.shape[:-1], words * WORD // 8), dtype=np.uint8)
    whole[..., : some.shape[-1]] = some
    return whole.view(BITS)


def _count(bits: Bits) -> Counts:
    """(...,) how many pixels sets (..., H, words) have."""
    counts: Counts = np.bitwise_count(bits).sum(axis=(-2, -1), dtype=np.int64)
    return counts


def _among(one: Bits, other: Bits) -> Counts:
    """(n, m) how many pixels each of n sets has in common with each of m."""
    return np.stack([_count(single & other) for single in one])


def _boundary(bits: Bits, width: int) -> Bits:
    """`boundary_map` of sets (n, H, words) with a margin of 1 at least."""
    ended = bits.copy()
    last, behind = divmod(width - 1, WORD), divmod(width, WORD)
    edge = (bits[..., last[0]] >> BITS.type(last[1])) & ONE
    ended[..., behind[0]] |= edge << BITS.type(behind[1])  # the last column once more
    right = ended >> ONE
    _flat(right)[:-1] |= _flat(ended)[1:] << TOP
    right[..., -1] &= ~(ONE << TOP)  # the next row's first pixel
    found: Bits = bits ^ right
    found[:, :-1] |= (bits[:, :-1] ^ bits[:, 1:]) | (bits[:, :-1] ^ right[:, 1:])
    return found


def _cut(one: Bits, other: Bits) -> tuple[Bits, Bits]:
    """Both without the rows and words that no set has a pixel in; the margin stays."""
    used = np.bitwise_or.reduce(one) | np.bitwise_or.reduce(other)
    rows, words = np.flatnonzero(used.any(axis=1)), np.flatnonzero(used.any(axis=0))
    top, left = slice(rows[0], rows[-1] + 1), slice(words[0], words[-1] + 2)
    return np.ascontiguousarray(one[:, top, left]), np.ascontiguousarray(other[:, top, left])


def _dilated(bits: Bits, reach: int) -> Bits:
    """Pixels within `reach` of a set's; (n, H, words) with a margin of as many."""
    height = bits.shape[1]
    reaches = [math.isqrt(reach * reach - dy * dy) for dy in range(reach + 1)]
    wide, at = bits, 0
    found = np.zeros_like(bits)
    for dy in range(reach, -1, -1):  # from the disk's narrowest row
        while at < reaches[dy]:
            step = min(reaches[dy] - at, 2 * at + 1)  # no gap between what is united
            wide, at = _widened(wide, step), at + step
        if dy == 0:
            found |= wide
        elif dy < height:
            found[:, dy:] |= wide[:, :-dy]
            found[:, :-dy] |= wide[:, dy:]
    return found


def _widened(bits: Bits, step: int) -> Bits:
    """A set, itself shifted `step` px to the right and itself shifted to the left, united."""
    here, rest = BITS.type(step), BITS.type(WORD - step)
    found = bits | (bits << here) | (bits >> here)
    _flat(found)[1:] |= _flat(bits)[:-1] >> rest
    _flat(found)[:-1] |= _flat(bits)[1:] << rest
    return found


def _flat(bits: Bits) -> Bits:
    """All rows behind each other, without a copy."""
    return bits.reshape(-1)
