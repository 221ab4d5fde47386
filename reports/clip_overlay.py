"""A clip's answers as a strip of frames and as a film: per pruner the patches that it keeps and its mask."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from textwrap import fill
from typing import TYPE_CHECKING

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from backbones.parts.geometry import seen
from harness.metrics.boundary import boundary_map
from harness.store.run_folder import shown_frames
from pruners.errors import UserError
from reports.clips import kept_near, nearest_view
from reports.files import save_as_asked
from reports.kept import lit
from reports.overlay import heading
from reports.style import DIM, EDGE, TRUTH, WARNING, tinted

if TYPE_CHECKING:
    from harness.engine.single_clip import ClipAttempt, ClipAttempts

SHOWN = 6  # frames of a strip
PANEL = 320  # pixels of a strip's longest side of a frame
CELL = 1.9  # inches
COLUMNS = 4  # pruners beside each other in a film
FILM_FRAMES, FILM_PIXELS = 48, 12_000_000  # of a film at most, the pixels of all its frames together
FILM_SIDE = 240  # longest side of a frame in it
BAR, LETTERS = 15, 11  # height of a panel's title and of its letters in pixels
COLOURS = 96  # of a frame
PACE = 120  # milliseconds of a frame, more where frames are left out
SLOWEST = 500
NOTE = (
    "Bright patches are those that the language model's last layer still sees in the view whose frame is "
    "nearest in time; where it sees a part of a frame alone, the rest is dark; a merged token shows at its "
    "centre; class, mean and pooled tokens have no place and show nowhere, and where no token has one, "
    "nothing is dark. Pink: the mask. White line: the truth where it is known. Seconds: choosing tokens and "
    "grounding all frames, the clip encoded; no benchmark."
)


@dataclass(frozen=True)
class _Painter:
    """Paints frames of one clip, scaled down, the same way for strip and film."""

    found: ClipAttempts
    grid: tuple[int, int]
    side: int

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of a panel."""
        clip = self.found.clip
        scale = min(1.0, self.side / max(clip.height, clip.width))
        return max(1, round(clip.height * scale)), max(1, round(clip.width * scale))

    def frame(self, number: int) -> NDArray[np.uint8]:
        """(h, w, 3) pixels."""
        image = Image.fromarray(self.found.clip.frame(number))
        return np.asarray(image.resize(self.size[::-1], Image.Resampling.BILINEAR))

    def answer(self, image: NDArray[np.uint8], one: ClipAttempt, number: int) -> NDArray[np.uint8]:
        """A scaled frame with what an answer keeps and paints there."""
        regions = self.found.regions
        kept = kept_near(lit(one.answer.kept), one.answer.shown, number, len(regions))
        bright = seen(self.size, kept, self.grid, regions)
        shown = np.where(bright[..., None], image, image * DIM)
        mask = self._small(one.answer.mask(number))
        return self.outlined(tinted(shown, mask), number)

    def outlined(self, image: NDArray[np.uint8], number: int) -> NDArray[np.uint8]:
        """The truth's outline over it, where it is known."""
        if self.found.truth is None:
            return image
        line = boundary_map(self._small(self.found.truth[number]))
        found = image.copy()
        found[_thick(line)] = np.array(to_rgb(EDGE)) * 255
        found[line] = np.array(to_rgb(TRUTH)) * 255
        return found

    def _small(self, mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
        resized = Image.fromarray(mask).resize(self.size[::-1], Image.Resampling.NEAREST)
        return np.asarray(resized, dtype=bool)


def _thick(line: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """A line and its four neighbours."""
    padded = np.pad(line, 1)
    return padded[:-2, 1:-1] | padded[2:, 1:-1] | padded[1:-1, :-2] | padded[1:-1, 2:] | line


# -- strip


def draw_strip(found: ClipAttempts, grid: tuple[int, int], budget: int, path: Path) -> None:
    """Write some frames beside each other, the raw ones in the first line and below a line for every pruner.

    Args:
        grid: rows and columns of a view's patches.
        path: PNG, SVG or PDF file.

    Raises:
        UserError: the file cannot be written, its ending names no picture, or a frame cannot be read.
    """
    numbers = shown_frames(len(found.clip), SHOWN)
    painter = _Painter(found, grid, PANEL)
    height = CELL * found.clip.height / found.clip.width
    lines = len(found.answers) + 1
    size = (max(3, len(numbers)) * CELL + 1.6, lines * (height + 0.12) + 1.3)
    figure = Figure(figsize=size, layout="constrained")
    FigureCanvasAgg(figure)
    axes = np.asarray(figure.subplots(lines, len(numbers), squeeze=False))
    for column, number in enumerate(numbers):
        image = painter.frame(number)
        saw = nearest_view(found.answers[0].answer.shown, number)
        where = "seen" if saw == number else f"nearest seen: {saw}"
        _show(axes[0, column], painter.outlined(image, number), f"frame {number}\n({where})")
        for line, one in enumerate(found.answers, start=1):
            _show(axes[line, column], painter.answer(image, one, number), "")
    for line, one in enumerate(found.answers, start=1):
        axes[line, 0].set_ylabel(_label(one), fontsize=7, rotation=0, ha="right", va="center")
    axes[0, 0].set_ylabel("clip", fontsize=7, rotation=0, ha="right", va="center")
    title = f"“{found.expression}”, {budget} visual tokens of every view"
    figure.suptitle(
        heading(title, found.unlike, size[0]), fontsize=11, color=WARNING if found.unlike else None
    )
    figure.supxlabel(fill(NOTE, int(18 * size[0])), fontsize=6.5)
    save_as_asked(figure, path)


def _show(axes: Axes, pixels: NDArray[np.uint8], title: str) -> None:
    axes.imshow(pixels, interpolation="nearest")
    axes.set_xticks([])
    axes.set_yticks([])
    axes.set_frame_on(False)
    axes.set_title(title, fontsize=7, pad=3)


def _label(one: ClipAttempt) -> str:
    scores = (
        "" if one.j is None or one.f is None else f"\nJ {100 * one.j.mean():.0f} F {100 * one.f.mean():.0f} %"
    )
    return f"{one.name}\n{one.answer.tokens_final} tokens\n{one.answer.seconds:.2f} s{scores}"


# -- film


def write_film(found: ClipAttempts, grid: tuple[int, int], path: Path) -> int:
    """Write an animated GIF: the frames with the masks of all pruners beside each other.

    Of a long clip evenly spread frames are taken, and frames are scaled down until the film is small enough
    (FILM_FRAMES, FILM_PIXELS). One frame is painted at a time.

    Returns:
        How many frames it has.

    Raises:
        UserError: the file cannot be written, or a frame cannot be read.
    """
    numbers = shown_frames(len(found.clip), FILM_FRAMES)
    painter = _Painter(found, grid, _film_side(found, len(numbers)))
    pace = min(SLOWEST, round(PACE * len(found.clip) / len(numbers)))
    pictures = _pictures(painter, numbers)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        next(pictures).save(path, "GIF", save_all=True, append_images=pictures, duration=pace, loop=0)
    except OSError as error:
        raise UserError(
            f"Cannot write {str(path)!r} ({error}); give --out a file beside which you may write."
        ) from error
    return len(numbers)


def _tiles(found: ClipAttempts) -> tuple[int, int]:
    """Lines and columns of a film."""
    count = len(found.answers) + 1
    columns = min(COLUMNS, count)
    return -(-count // columns), columns


def _film_side(found: ClipAttempts, frames: int) -> int:
    """Longest side of a frame, so that the film stays small."""
    lines, columns = _tiles(found)
    clip = found.clip
    shape = clip.height * clip.width / max(clip.height, clip.width) ** 2
    return max(48, min(FILM_SIDE, int((FILM_PIXELS / (frames * lines * columns * shape)) ** 0.5)))


def _pictures(painter: _Painter, numbers: list[int]) -> Iterator[Image.Image]:
    found, (lines, columns), (height, width) = painter.found, _tiles(painter.found), painter.size
    font = ImageFont.load_default(LETTERS)
    shown = set(found.answers[0].answer.shown)
    for number in numbers:
        image = painter.frame(number)
        panels = [(f"frame {number}{' (seen)' if number in shown else ''}", painter.outlined(image, number))]
        panels += [(one.name, painter.answer(image, one, number)) for one in found.answers]
        sheet = Image.new("RGB", (columns * width, lines * (height + BAR)), EDGE)
        pen = ImageDraw.Draw(sheet)
        for place, (title, pixels) in enumerate(panels):
            left, top = place % columns * width, place // columns * (height + BAR)
            pen.text((left + 3, top + 1), _cut(title, font, width - 6), fill=TRUTH, font=font)
            sheet.paste(Image.fromarray(pixels), (left, top + BAR))
        yield sheet.quantize(COLOURS, method=Image.Quantize.FASTOCTREE, dither=Image.Dither.NONE)


def _cut(title: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont, room: int) -> str:
    """As much of a title as there is room for."""
    while len(title) > 1 and font.getlength(title) > room:
        title = title[:-1]
    return title
