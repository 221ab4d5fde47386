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
WORDS_AT_ONCE = 2**13  # of one mask, 64 KiB: what a core's cache holds a few of
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
    found = _boundary(_packed(mask, 1), width)
    return np.unpackbits(found.view(np.uint8), axis=-1, count=width, bitorder="little").astype(bool)


def clip_counts(
    predictions: NDArray[np.bool_], targets: NDArray[np.bool_], void: NDArray[np.bool_] | None = None
) -> Counts:
    """What J and F of every prediction against every target of a clip are made of, frame by frame.

    Args:
        predictions: (P, T, H, W) bool.
        targets: (G, T, H, W) bool.
        void: (T, H, W) bool, pixels that belong to neither; they are cleared before boundaries are looked
            for, so a boundary runs around them where they lie in a mask, as officially.

    Returns:
        (P, G, T, 6): pixels in the intersection and in the union; predicted boundary pixels that are matched,
        and all of them; the target's boundary pixels that are matched, and all of them.

    Raises:
        ValueError: these are no boolean masks of one size and number of frames.
    """
    sides = [predictions, targets, *([] if void is None else [void[None]])]
    if any(one.dtype != np.bool_ or one.ndim != 4 for one in sides):
        told = " and ".join(f"{one.dtype} {one.shape}" for one in sides)
        raise ValueError(f"expected boolean masks (P, T, H, W) and (G, T, H, W), got {told}")
    if len({one.shape[1:] for one in sides}) > 1:
        raise ValueError(f"expected clips of one size, got {' and '.join(str(a.shape[1:]) for a in sides)}")
    frames, height, width = predictions.shape[1:]
    found = np.empty((len(predictions), len(targets), frames, 6), dtype=np.int64)
    # small frames go together, because calls cost more than their pixels
    step = max(1, WORDS_AT_ONCE * WORD // (height * (width + WORD)))
    for start in range(0, frames, step):
        part = slice(start, start + step)
        hidden = None if void is None or not void[part].any() else void[part]
        found[:, :, part] = _counts(predictions[:, part], targets[:, part], hidden)
    return found


def _counts(
    predictions: NDArray[np.bool_], targets: NDArray[np.bool_], void: NDArray[np.bool_] | None
) -> Counts:
    """`clip_counts` of frames that are looked at together."""
    height, width = predictions.shape[2:]
    reach = radius(height, width)
    one, other = _packed(predictions, reach), _packed(targets, reach)
    if void is not None:
        seen = ~_packed(void, reach)
        one, other = one & seen, other & seen
    drawn, edges = _boundary(one, width), _boundary(other, width)
    found = np.zeros((len(one), len(other), one.shape[1], 6), dtype=np.int64)
    found[..., 0] = _among(one, other)
    found[..., 1] = _count(one)[:, None] + _count(other) - found[..., 0]
    found[..., 3], found[..., 5] = _count(drawn)[:, None], _count(edges)
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
    """(..., H, W) bool as bits (..., H, words); behind a row `margin` bits or more are 0, so that shifts by
    as many do not carry a pixel into the row before or behind."""
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
    """(n, m, T) how many pixels each of n sets (T, H, words) has in common with each of m."""
    return np.stack([_count(single & other) for single in one])


def _boundary(bits: Bits, width: int) -> Bits:
    """`boundary_map` of sets (..., H, words) with a margin of 1 at least."""
    ended = bits.copy()
    last, behind = divmod(width - 1, WORD), divmod(width, WORD)
    edge = (bits[..., last[0]] >> BITS.type(last[1])) & ONE
    ended[..., behind[0]] |= edge << BITS.type(behind[1])  # the last column once more
    right = ended >> ONE
    _flat(right)[:-1] |= _flat(ended)[1:] << TOP
    right[..., -1] &= ~(ONE << TOP)  # the next row's first pixel
    found: Bits = bits ^ right
    above, below = bits[..., :-1, :], slice(1, None)
    found[..., :-1, :] |= (above ^ bits[..., below, :]) | (above ^ right[..., below, :])
    return found


def _cut(one: Bits, other: Bits) -> tuple[Bits, Bits]:
    """Both without the rows and words that no set has a pixel in at any time; the margin stays."""
    used = np.bitwise_or.reduce(one, axis=(0, 1)) | np.bitwise_or.reduce(other, axis=(0, 1))
    rows, words = np.flatnonzero(used.any(axis=1)), np.flatnonzero(used.any(axis=0))
    top, left = slice(rows[0], rows[-1] + 1), slice(words[0], words[-1] + 2)
    return np.ascontiguousarray(one[..., top, left]), np.ascontiguousarray(other[..., top, left])


def _dilated(bits: Bits, reach: int) -> Bits:
    """Pixels within `reach` of a set's; (..., H, words) with a margin of as many."""
    height = bits.shape[-2]
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
            found[..., dy:, :] |= wide[..., :-dy, :]
            found[..., :-dy, :] |= wide[..., dy:, :]
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
