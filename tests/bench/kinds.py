"""`python -m tests.bench.kinds [FOLDER ...]`: how often the embedded models' word on what they know
is wrong: of generated scenes and clips, which it must not warn of, and of what is none, which it must.

Scenes as they are made and as they come back to somebody: as JPEG, resized, on a screenshot. None are
drawings, charts, text, plain, noisy and graded pictures, screenshots of this project's report, and every
picture below the folders; photos and screenshots whole and in quarters.
"""

from __future__ import annotations

import argparse
import io
from collections import defaultdict
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from backbones.mini.kind import LIMITS, is_scene, statistics
from harness.data.refclips.writer import SETS, videos
from harness.data.refshapes.writer import scene
from harness.engine.single_clip import LOOKED_AT
from harness.store.run_folder import shown_frames

Pixels = NDArray[np.uint8]
SPLITS = ("val", "testA", "testB", "test", "train")
KINDS = (".png", ".jpg", ".jpeg")
DOCS = Path(__file__).parents[2] / "docs"


def compressed(image: Pixels, quality: int) -> Pixels:
    """Through JPEG."""
    file = io.BytesIO()
    Image.fromarray(image).save(file, "JPEG", quality=quality)
    return np.asarray(Image.open(file).convert("RGB"))


def resized(image: Pixels, scale: float, how: int = Image.Resampling.BICUBIC) -> Pixels:
    """By a factor."""
    size = (round(image.shape[1] * scale), round(image.shape[0] * scale))
    return np.asarray(Image.fromarray(image).resize(size, how))


def on_screen(image: Pixels, rng: np.random.Generator) -> Pixels:
    """As an image viewer shows it: enlarged, a title above, a light or dark border of 2 to 6 %."""
    large = resized(image, 2.0)
    side, margin = large.shape[0], int(rng.uniform(0.02, 0.06) * large.shape[0])
    bar = side // 20
    paper = int(rng.choice([255, 240, 32, 24]))
    page = Image.new("RGB", (side + 2 * margin, side + 2 * margin + bar), (paper,) * 3)
    page.paste(Image.fromarray(large), (margin, bar + margin))
    ImageDraw.Draw(page).text((margin, bar // 3), "refshapes_1000001.png", fill=(128, 128, 128))
    return np.asarray(page)


def scenes(count: int) -> Iterator[tuple[str, Pixels]]:
    """So many scenes of every split, each in eight ways."""
    rng = np.random.default_rng(1)
    for split in SPLITS:
        for index in range(count):
            made = scene(split, index).image
            shot = on_screen(made, rng)
            yield "scene, as made", made
            yield "scene, JPEG 75", compressed(made, 75)
            yield "scene, JPEG 40", compressed(made, 40)
            yield "scene, half size", resized(made, 0.5)
            yield "scene, 1.7 times", resized(made, 1.7)
            yield "scene, 4 times, nearest", resized(made, 4, Image.Resampling.NEAREST)
            yield "scene, screenshot", shot
            yield "scene, JPEG 70 of a screenshot", compressed(shot, 70)


def clips(count: int) -> Iterator[tuple[str, list[Pixels]]]:
    """The frames by which so many clips of every data set are judged."""
    for name in SETS:
        for clip, _ in islice(videos(name), count):
            yield f"clip of {name}", [clip.frames[k] for k in shown_frames(len(clip.frames), LOOKED_AT)]


def quarters(image: Pixels) -> Iterator[Pixels]:
    """The whole and its quarters."""
    yield image
    height, width = image.shape[0] // 2, image.shape[1] // 2
    for top in (0, height):
        for left in (0, width):
            yield image[top : top + height, left : left + width]


def read(folder: Path) -> Iterator[Pixels]:
    """All pictures below a folder, on grey where they are transparent."""
    for path in sorted(folder.rglob("*")):
        if path.suffix.lower() in KINDS:
            with Image.open(path) as opened:
                picture = opened.convert("RGBA")
            paper = Image.new("RGBA", picture.size, (128, 128, 128, 255))
            paper.alpha_composite(picture)
            yield np.asarray(paper.convert("RGB"))


def others(folders: list[Path]) -> Iterator[tuple[str, Pixels]]:
    """What is no scene."""
    rng = np.random.default_rng(7)
    for folder in folders:
        yield from ((f"picture of {folder.name}", part) for one in read(folder) for part in quarters(one))
    samples = Path(matplotlib.get_data_path()) / "sample_data"
    yield from (("sample of matplotlib", part) for one in read(samples) for part in quarters(one))
    yield from (("screenshot of the report", part) for one in read(DOCS / "images") for part in quarters(one))
    yield from (("text", one) for one in texts())
    for level in (0, 90, 128, 170, 255):
        yield "plain", np.full((300, 400, 3), level, np.uint8)
    for colour in ((214, 40, 44), (40, 160, 60), (44, 84, 214), (120, 110, 100)):
        yield "plain", np.full((300, 400, 3), colour, np.uint8)
    yield from (("noise", one) for one in noises(rng))
    yield from (("gradient", one) for one in gradients())
    yield from (("drawing", one) for one in drawings(rng))
    yield from (("chart", one) for one in charts(rng))


def texts() -> Iterator[Pixels]:
    """A page in six colours."""
    font = ImageFont.truetype(f"{matplotlib.get_data_path()}/fonts/ttf/DejaVuSans.ttf", 14)
    text = (DOCS / "first-run.md").read_text(encoding="utf-8")[:2500]
    inks = (("black", "white"), ("white", "#202020"), ("#333", "#eee"), ("#a00", "#fff8e0"), ("#222", "#888"))
    for ink, paper in (*inks, ("#d22", "#999")):
        page = Image.new("RGB", (800, 600), paper)
        ImageDraw.Draw(page).text((20, 20), text, fill=ink, font=font)
        yield np.asarray(page)


def noises(rng: np.random.Generator) -> Iterator[Pixels]:
    """Of single pixels, grey and coloured, of blocks and of clouds."""
    for spread in (10, 20, 30, 40, 60):
        yield rng.integers(0, 256, (240, 320, 3), dtype=np.uint8)
        yield np.repeat(rng.integers(0, 256, (240, 320, 1), dtype=np.uint8), 3, 2)
        yield np.clip(rng.normal(128, spread, (240, 320, 3)), 0, 255).astype(np.uint8)
        coarse = rng.integers(0, 256, (12, 16, 3), dtype=np.uint8)
        yield resized(coarse, 20, Image.Resampling.NEAREST)
        yield resized(coarse, 20)
        grey = np.repeat(rng.integers(60, 200, (8, 10, 1), dtype=np.uint8), 3, 2)
        yield resized(grey, 30, Image.Resampling.NEAREST)


def gradients() -> Iterator[Pixels]:
    """Grey, coloured, a sky, all hues."""
    down, across = np.mgrid[0:1:240j, 0:1:320j]
    yield np.repeat((across * 255).astype(np.uint8)[..., None], 3, 2)
    yield (255 * np.stack([across, down, 1 - across], -1)).astype(np.uint8)
    yield np.stack([100 + 100 * down, 150 + 80 * down, 230 + 20 * down], -1).astype(np.uint8)
    hues = np.stack([255 * across, np.full_like(across, 200), np.full_like(across, 220)], -1)
    yield np.asarray(Image.fromarray(hues.astype(np.uint8), "HSV").convert("RGB"))


def drawings(rng: np.random.Generator) -> Iterator[Pixels]:
    """Filled and outlined shapes on paper."""
    for number in range(12):
        page = Image.new("RGB", (400, 300), ("white", "#f4ecd8", "#dde8f0")[number % 3])
        pen = ImageDraw.Draw(page)
        for _ in range(6):
            left, top, side = (int(rng.integers(*ends)) for ends in ((0, 340), (0, 240), (20, 90)))
            colour = tuple(int(one) for one in rng.integers(0, 256, 3))
            look = {"fill": colour} if number % 2 else {"outline": colour, "width": 4}
            shape = (pen.ellipse, pen.rectangle)[int(rng.integers(2))]
            shape((left, top, left + side, top + side), **look)  # type: ignore[arg-type]
        yield np.asarray(page)


def charts(rng: np.random.Generator) -> Iterator[Pixels]:
    """Bars, lines, maps and pies, by day and by night."""
    for number in range(8):
        figure = Figure(figsize=(5, 4), facecolor="white" if number < 4 else "#303030")
        canvas = FigureCanvasAgg(figure)
        axes = figure.subplots()
        match number % 4:
            case 0:
                axes.bar(range(6), rng.random(6), color=[f"C{k}" for k in range(6)])
            case 1:
                axes.plot(rng.random((20, 5)).cumsum(0))
            case 2:
                axes.imshow(rng.random((8, 8)), cmap="viridis")
            case _:
                axes.pie([1, 2, 3, 4])
        canvas.draw()
        yield np.asarray(canvas.buffer_rgba())[..., :3].copy()


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.bench.kinds", description=__doc__)
    parser.add_argument("folders", nargs="*", type=Path, help="pictures that are no scenes")
    parser.add_argument("--count", type=int, default=40, help="scenes per split, and half as many clips")
    given = parser.parse_args()
    print("warned without need:")
    _tell((kind, not is_scene(image)) for kind, image in scenes(given.count))
    _tell((kind, not any(map(is_scene, frames))) for kind, frames in clips(given.count // 2))
    print("not warned of what is none:")
    _tell((kind, _missed(kind, image)) for kind, image in others(given.folders))


def _missed(kind: str, image: Pixels) -> bool:
    found = is_scene(image)
    if found:
        print(f"  {kind}: { ({name: round(statistics(image)[name], 3) for name in LIMITS}) }")
    return found


def _tell(judged: Iterator[tuple[str, bool]]) -> None:
    wrong: dict[str, list[bool]] = defaultdict(list)
    for kind, bad in judged:
        wrong[kind].append(bad)
    for kind, all_of in wrong.items():
        print(f"  {kind}: {sum(all_of)} of {len(all_of)}")
    print(f"  together: {sum(map(sum, wrong.values()))} of {sum(map(len, wrong.values()))}", flush=True)


if __name__ == "__main__":
    main()
