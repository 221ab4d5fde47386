"""Colours of masks and warnings, how figures look, and how they are written; methods: `reports.looks`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

WARNING = "#b00020"
STYLE: Any = {
    "svg.hashsalt": "groundprune",
    "svg.fonttype": "none",
    "font.family": "DejaVu Sans",
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#e4e4e4",
    "legend.frameon": False,
}
DIM = 0.3  # brightness of what the language model does not see
COVER = 0.6  # of a mask over the image
MASK, TRUTH, EDGE = "#ff00d6", "#ffffff", "#101010"  # a mask, the truth's outline, and what sets that off

PAD = 0.1  # inches around all that a figure shows


def save(figure: Any, stem: Path) -> list[Path]:
    """Write a figure as SVG and PNG; the same figure gives the same bytes."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    canvas = FigureCanvasAgg(figure)
    # once for both, which would each draw everything to find it
    figure.draw_without_rendering()
    box = figure.get_tightbbox(canvas.get_renderer()).padded(PAD)
    written = []
    for kind, metadata in (("svg", {"Date": None, "Creator": None}), ("png", {"Software": None})):
        written.append(stem.parent / f"{stem.name}.{kind}")
        figure.savefig(written[-1], metadata=metadata, dpi=150, bbox_inches=box)
    return written


def tinted(picture: NDArray[Any], mask: NDArray[np.bool_]) -> NDArray[np.uint8]:
    """(H, W, 3) levels 0 to 255 with a mask over them."""
    from matplotlib.colors import to_rgb

    covered = (1 - COVER) * picture + COVER * 255 * np.array(to_rgb(MASK))
    return np.where(mask[..., None], covered, picture).astype(np.uint8)
