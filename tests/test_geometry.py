"""Regions, patches and pixels: exact against counting on a finer raster."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from backbones.glamm.preprocess import patch_shares
from backbones.parts.geometry import WHOLE, Region, centre_crop, covered, patch_of, regions, seen

SIDES = st.integers(1, 12)
FINE = 24  # parts of a pixel's side


def by_counting(mask: NDArray[np.bool_], region: Region, grid: tuple[int, int]) -> NDArray[np.float64]:
    """Shares by cutting pixels into FINE x FINE parts; regions end at parts."""
    height, width = mask.shape
    large = np.pad(np.kron(mask, np.ones((FINE, FINE), dtype=bool)), ((0, 0), (0, 0)))
    found = np.zeros(grid)
    edges = [
        np.rint(FINE * size * (start + (end - start) * np.arange(count + 1) / count)).astype(int)
        for size, start, end, count in zip((height, width), region[:2], region[2:], grid, strict=True)
    ]
    for i in range(grid[0]):
        for j in range(grid[1]):
            (top, bottom), (left, right) = edges[0][i : i + 2], edges[1][j : j + 2]
            inner = large[max(top, 0) : max(bottom, 0), max(left, 0) : max(right, 0)]
            found[i, j] = inner.sum() / ((bottom - top) * (right - left))
    return found.ravel()


@settings(max_examples=60, deadline=None)
@given(SIDES, SIDES, st.sampled_from([(1, 1), (2, 3), (4, 2)]), st.integers(0, 2**16), st.data())
def test_shares_are_exact_for_any_rectangle(
    height: int, width: int, grid: tuple[int, int], seed: int, data: st.DataObject
) -> None:
    """Whole and broken pixels, inside and beyond the image."""
    mask = np.random.default_rng(seed).random((height, width)) < 0.5
    region = []
    for size, count in zip((height, width), grid, strict=True):
        length = count * data.draw(st.integers(1, FINE * size // count + FINE)) / (FINE * size)
        start = data.draw(st.integers(-FINE, FINE * size)) / (FINE * size)
        region.append((start, start + length))
    (top, bottom), (left, right) = region
    box = (top, left, bottom, right)
    np.testing.assert_allclose(covered(mask[None], box, grid), by_counting(mask, box, grid), atol=1e-9)


def test_several_masks_count_once() -> None:
    one, other = np.zeros((2, 4, 4), dtype=bool)
    one[:2], other[:3] = True, True
    assert covered(np.stack([one, other]), WHOLE, (4, 1)).tolist() == [1, 1, 1, 0]


def test_the_central_square() -> None:
    assert centre_crop(4, 10) == pytest.approx((0, 0.3, 1, 0.7))
    assert centre_crop(10, 4) == pytest.approx((0.3, 0, 0.7, 1))
    assert centre_crop(5, 5) == WHOLE
    assert regions("centre-crop", 4, 10) == (centre_crop(4, 10),)
    assert regions("whole", 4, 10) == (WHOLE,)
    assert regions("regions", 4, 10) == ()


def test_pixels_lie_in_the_patch_of_their_middle() -> None:
    assert patch_of((4, 10), centre_crop(4, 10), (2, 2)).tolist() == [
        [-1, -1, -1, 0, 0, 1, 1, -1, -1, -1],
        [-1, -1, -1, 0, 0, 1, 1, -1, -1, -1],
        [-1, -1, -1, 2, 2, 3, 3, -1, -1, -1],
        [-1, -1, -1, 2, 2, 3, 3, -1, -1, -1],
    ]
    assert (patch_of((3, 3), (-1.0, 0.0, 1.0, 1.0), (2, 1)) == 1).all()  # the upper half is padding


def test_what_several_views_keep_is_seen_together() -> None:
    halves = [(0.0, 0.0, 1.0, 0.5), (0.0, 0.5, 1.0, 1.0), WHOLE]
    kept = np.array([1, 0, 0, 1, 0, 0], dtype=bool)  # two rows of one patch in each view
    assert seen((2, 4), kept, (2, 1), halves).tolist() == [[1, 1, 0, 0], [0, 0, 1, 1]]


@pytest.mark.parametrize("size", [(48, 48), (60, 90), (120, 84)])
def test_clips_own_resize_agrees_with_the_central_square(size: tuple[int, int]) -> None:
    """Up to what a bilinear resize blurs: the geometry that pictures are drawn with is the tower's own."""
    mask = np.zeros((1, *size), dtype=bool)
    mask[:, size[0] // 4 : size[0] // 2, size[1] // 3 : size[1] // 2] = True
    own = patch_shares(mask, 48, (12, 12)).numpy()
    np.testing.assert_allclose(own, covered(mask, centre_crop(*size), (12, 12)), atol=0.35)
    assert own.sum() == pytest.approx(covered(mask, centre_crop(*size), (12, 12)).sum(), rel=0.03)
