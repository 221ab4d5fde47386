"""One picture of one expression: per pruner the patches that it keeps and the mask that follows."""

from __future__ import annotations

from pathlib import Path
from textwrap import fill
from typing import TYPE_CHECKING

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from numpy.typing import NDArray

from backbones.parts.geometry import seen
from reports.files import save_as_asked
from reports.kept import kept_words, lit
from reports.style import DIM, EDGE, TRUTH, WARNING, tinted

if TYPE_CHECKING:
    from harness.engine.single_image import Attempts

COLUMNS = 6  # pruners beside each other
CELL = 2.1  # inches
LETTERS, HEADING = 20, 12  # of the note and of the heading in an inch
NOTE = (
    "Above: bright patches are those that the language model's last layer still sees. Where the model sees "
    "a part of the image alone, the rest is dark. A merged token shows at its centre; class, mean and pooled "
    "tokens have no place and show nowhere, and where no token has one, nothing is dark.\n"
    "Below: the mask (pink), and the truth where it is known (white line). Seconds: choosing tokens and "
    "grounding one row "
    "(on CPU filled up to eight), image and text encoded, second of two runs; no benchmark."
)


def overlay(image: NDArray[np.uint8], mask: NDArray[np.bool_]) -> NDArray[np.uint8]:
    """The image in grey with a mask over it."""
    grey = np.repeat(image.mean(axis=2, keepdims=True), 3, axis=2) * 0.7
    return tinted(grey, mask)


def _show(axes: Axes, pixels: NDArray[np.uint8], title: str, truth: NDArray[np.bool_] | None = None) -> None:
    axes.imshow(pixels, interpolation="nearest")
    if truth is not None:
        axes.contour(truth, levels=[0.5], colors=[EDGE], linewidths=2.4)
        axes.contour(truth, levels=[0.5], colors=[TRUTH], linewidths=1.2)
    axes.set_title(title, fontsize=8, pad=3)


def heading(title: str, unlike: str | None, inches: float) -> str:
    """A picture's title, and above it what the model was not trained for."""
    return "\n".join([*([fill(unlike, int(HEADING * inches))] if unlike else []), title])


def draw_overlay(found: Attempts, grid: tuple[int, int], budget: int, path: Path) -> None:
    """Write the picture.

    Args:
        grid: rows and columns of a view's patches.
        path: PNG, SVG or PDF file.

    Raises:
        UserError: the file cannot be written, or its ending names no picture.
    """
    pairs = -(-(len(found.answers) + 1) // COLUMNS)
    columns = min(COLUMNS, len(found.answers) + 1)
    height = CELL * found.image.shape[0] / found.image.shape[1]
    figure = Figure(figsize=(max(columns, 3) * CELL, pairs * (2 * height + 0.65) + 1.0), layout="constrained")
    FigureCanvasAgg(figure)
    axes = np.atleast_2d(figure.subplots(2 * pairs, columns)).reshape(2 * pairs, columns)
    for one in axes.ravel():
        one.set_axis_off()
    _show(axes[0, 0], found.image, "image")
    if found.truth is not None:
        _show(axes[1, 0], found.image, "truth", found.truth)
    for number, one in enumerate(found.answers, start=1):
        band, column = 2 * (number // columns), number % columns
        bright = seen(found.image.shape[:2], lit(one.answer.kept), grid, found.regions)
        dimmed = np.where(bright[..., None], found.image, (found.image * DIM).astype(np.uint8))
        mean = (
            ""
            if one.answer.tokens_mean == one.answer.tokens_final
            else f" (mean {one.answer.tokens_mean:.4g})"
        )
        told = kept_words(one.answer.tokens_final, int(one.answer.kept.sum()))
        _show(axes[band, column], dimmed, f"{one.name}\n{told}{mean}")
        score = "" if one.iou is None else f", IoU {100 * one.iou:.0f} %"
        masked = overlay(found.image, one.answer.mask)
        _show(axes[band + 1, column], masked, f"{one.answer.seconds:.2f} s{score}", found.truth)
    figure.suptitle(
        heading(f"“{found.expression}”, {budget} visual tokens", found.unlike, figure.get_figwidth()),
        fontsize=11,
        color=WARNING if found.unlike else None,
    )
    figure.supxlabel(
        "\n".join(fill(line, int(LETTERS * figure.get_figwidth())) for line in NOTE.splitlines()),
        fontsize=6.5,
    )
    save_as_asked(figure, path)
