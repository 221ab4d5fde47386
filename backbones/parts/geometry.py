"""Where a grid of patches lies in the raw medium: regions, the patches that a mask covers, the patch of a
pixel.

A region is top, left, bottom, right as shares of the medium's height and width; it may reach beyond 0..1
where a model sees padding. All here is exact for rectangles of any size, whole pixels or not.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Region = tuple[float, float, float, float]
WHOLE: Region = (0.0, 0.0, 1.0, 1.0)
# what a model sees of a medium: its largest centred square, all of it (squashed or not), or views whose
# regions only the model itself can tell
GEOMETRIES = ("centre-crop", "whole", "regions")


def centre_crop(height: int, width: int) -> Region:
    """The largest centred square."""
    side = min(height, width)
    top, left = (height - side) / 2 / height, (width - side) / 2 / width
    return top, left, 1 - top, 1 - left


def regions(geometry: str, height: int, width: int) -> tuple[Region, ...]:
    """The regions of a medium's views, in their order; none where only the model can tell.

    Args:
        geometry: one of GEOMETRIES.
    """
    match geometry:
        case "centre-crop":
            return (centre_crop(height, width),)
        case "whole":
            return (WHOLE,)
    return ()


def covered(masks: NDArray[np.bool_], region: Region, grid: tuple[int, int]) -> NDArray[np.float64]:
    """(N,) share of every patch that the union of (M, H, W) masks covers; padding is covered by none.

    Args:
        region: what the grid covers.
        grid: rows and columns of patches, N = rows * columns.
    """
    union = np.asarray(masks, dtype=bool).any(0)
    height, width = union.shape
    sums = np.zeros((height + 1, width + 1))
    sums[1:, 1:] = union.cumsum(0).cumsum(1)
    rows, columns = _edges(region[0], region[2], grid[0]), _edges(region[1], region[3], grid[1])
    down = _between(sums, rows * height)
    corners = _between(down.T, columns * width).T
    inside = np.diff(np.diff(corners, axis=0), axis=1)
    area = np.diff(rows)[:, None] * height * np.diff(columns) * width
    return (inside / area).clip(0, 1).ravel()


def _edges(start: float, end: float, count: int) -> NDArray[np.float64]:
    return start + (end - start) * np.arange(count + 1) / count


def _between(sums: NDArray[np.float64], places: NDArray[np.float64]) -> NDArray[np.float64]:
    """Rows of a table of sums at places that may lie between two of them or outside."""
    places = places.clip(0, len(sums) - 1)
    low = np.minimum(places.astype(int), len(sums) - 2)
    part = (places - low)[:, None]
    return (1 - part) * sums[low] + part * sums[low + 1]


def patch_of(shape: tuple[int, int], region: Region, grid: tuple[int, int]) -> NDArray[np.int64]:
    """(H, W) the patch in which each pixel of a medium lies with its middle; -1 where it lies in none."""
    places = []
    for size, start, end, count in zip(shape, region[:2], region[2:], grid, strict=True):
        middle = (np.arange(size) + 0.5) / size
        place = np.floor((middle - start) / (end - start) * count + 1e-9).astype(np.int64)
        places.append(np.where((place < 0) | (place >= count), -1, place))
    row, column = places[0][:, None], places[1][None]
    return np.where((row < 0) | (column < 0), -1, row * grid[1] + column)


def seen(
    shape: tuple[int, int], kept: NDArray[np.bool_], grid: tuple[int, int], views: Sequence[Region]
) -> NDArray[np.bool_]:
    """(H, W) bool: which pixels of a medium lie in a kept patch of any view.

    Args:
        shape: height and width of the medium.
        kept: (V * N,) bool, view after view, each in raster order.
        grid: rows and columns of a view's patches.
        views: the regions of the V views.
    """
    found = np.zeros(shape, dtype=np.bool_)
    for region, here in zip(views, kept.reshape(len(views), -1), strict=True):
        patch = patch_of(shape, region, grid)
        found |= (patch >= 0) & here[patch]
    return found
