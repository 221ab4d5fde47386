"""The reader of image files: what `cv2.imread` gives, for a user's file and for a data set's, and little cost
for bad ones."""

from __future__ import annotations

import io
import os
import resource
import warnings
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from backbones.image_answer import as_pixels
from backbones.parts.image_files import MOST_RATIO, UnreadableImage, WrongSize, check_size, read_image
from pruners import UserError

SEEN = np.random.default_rng(0).integers(0, 256, (4, 6, 3), dtype=np.uint8)
# EXIF orientation: what has to be done to the stored pixels, from the definition of the eight values
TURNED = {
    1: SEEN,
    2: SEEN[:, ::-1],
    3: SEEN[::-1, ::-1],
    4: SEEN[::-1],
    5: SEEN.transpose(1, 0, 2),
    6: np.rot90(SEEN, -1),
    7: SEEN[::-1, ::-1].transpose(1, 0, 2),
    8: np.rot90(SEEN),
}


def stored(path: Path, image: Image.Image, kind: str = "PNG", **options: object) -> Path:
    image.save(path, kind, **options)
    return path


def with_orientation(path: Path, number: int) -> Path:
    exif = Image.Exif()
    exif[0x0112] = number
    return stored(path, Image.fromarray(SEEN), exif=exif)


@pytest.mark.parametrize("number", TURNED)
def test_exif_orientation(tmp_path: Path, number: int) -> None:
    path, seen = with_orientation(tmp_path / "photo.png", number), TURNED[number]
    assert (as_pixels(path) == seen).all()
    assert (as_pixels(Image.open(path)) == seen).all()
    assert (read_image(path, seen.shape[:2]) == seen).all()  # annotated as shown


@pytest.mark.parametrize("number", [5, 6, 7, 8])
def test_annotations_of_the_stored_geometry_keep_it(tmp_path: Path, number: int) -> None:
    path = with_orientation(tmp_path / "photo.png", number)
    assert (read_image(path, SEEN.shape[:2]) == SEEN).all()
    with pytest.raises(WrongSize, match="is 4x6 px, but its annotations are for 5x5"):
        read_image(path, (5, 5))


def test_damaged_exif_turns_nothing(tmp_path: Path) -> None:
    path = stored(tmp_path / "a.png", Image.fromarray(SEEN), exif=b"Exif\0\0II*\0\xff\xff\xff\xff")
    assert (as_pixels(path) == SEEN).all()


RAMP = (np.arange(24, dtype=np.uint32).reshape(4, 6) * 2849).astype(np.uint16)  # to 65527


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_sixteen_bits_by_their_high_byte(tmp_path: Path, kind: str) -> None:
    path = stored(tmp_path / "deep", Image.fromarray(RAMP), kind)
    assert (as_pixels(path) == (RAMP >> 8)[..., None]).all()
    assert (as_pixels(Image.open(path)) == (RAMP >> 8)[..., None]).all()


def test_big_endian_sixteen_bits(tmp_path: Path) -> None:
    image = Image.frombytes("I;16B", (6, 4), RAMP.astype(">u2").tobytes())
    assert (as_pixels(stored(tmp_path / "deep.tif", image, "TIFF")) == (RAMP >> 8)[..., None]).all()


@pytest.mark.parametrize(
    ("values", "seen"),
    [
        ((RAMP >> 8).astype(np.int32), RAMP >> 8),
        (RAMP.astype(np.int32), RAMP >> 8),
        ((RAMP >> 8).astype(np.float32), RAMP >> 8),
        (
            np.linspace(0, 1, 24, dtype=np.float32).reshape(4, 6),
            np.rint(np.linspace(0, 255, 24)).reshape(4, 6),
        ),
    ],
)
def test_wider_values_by_their_range(tmp_path: Path, values: np.ndarray, seen: np.ndarray) -> None:
    assert (
        as_pixels(stored(tmp_path / "deep.tif", Image.fromarray(values), "TIFF")) == seen[..., None]
    ).all()


@pytest.mark.parametrize("value", [-5, float("nan"), 1e9])
def test_values_that_are_no_grey_levels(tmp_path: Path, value: float) -> None:
    path = stored(tmp_path / "deep.tif", Image.fromarray(np.full((4, 6), value, dtype=np.float32)), "TIFF")
    with pytest.raises(UserError, match="its values go from"):
        as_pixels(path)


def test_alpha_is_dropped_and_colours_stay(tmp_path: Path) -> None:
    clear = np.dstack([SEEN, np.zeros(SEEN.shape[:2], dtype=np.uint8)])
    assert (as_pixels(stored(tmp_path / "a.png", Image.fromarray(clear))) == SEEN).all()
    grey = Image.fromarray(SEEN[..., 0])
    both = Image.merge("LA", [grey, Image.new("L", grey.size, 0)])
    assert (as_pixels(stored(tmp_path / "b.png", both)) == SEEN[..., :1]).all()
    palette = Image.fromarray(SEEN[..., 0] // 86).convert("P")
    palette.putpalette([10, 20, 30, 40, 50, 60, 70, 80, 90])
    colours = np.array([[10, 20, 30], [40, 50, 60], [70, 80, 90]], dtype=np.uint8)
    path = stored(tmp_path / "c.png", palette, transparency=b"\0\x80\xff")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert (as_pixels(path) == colours[np.asarray(palette)]).all()
    bits = Image.fromarray(SEEN[..., 0] > 127)
    assert (as_pixels(stored(tmp_path / "d.png", bits)) == np.asarray(bits)[..., None] * 255).all()


def test_cmyk(tmp_path: Path) -> None:
    inks = np.zeros((4, 6, 4), dtype=np.uint8)
    inks[..., 1] = 255  # magenta alone
    assert (
        as_pixels(stored(tmp_path / "a.tif", Image.fromarray(inks, "CMYK"), "TIFF")) == (255, 0, 255)
    ).all()


@pytest.mark.parametrize("kind", ["GIF", "PNG", "TIFF"])
def test_the_first_of_several_frames(tmp_path: Path, kind: str) -> None:
    first = Image.new("RGB", (6, 4), (255, 0, 0))
    path = stored(tmp_path / "film", first, kind, save_all=True, append_images=[Image.new("RGB", (6, 4))] * 2)
    assert (as_pixels(path) == (255, 0, 0)).all()


def png(width: int, height: int, rows: bytes, extra: bytes = b"") -> bytes:
    def chunk(kind: bytes, content: bytes) -> bytes:
        return (
            len(content).to_bytes(4, "big") + kind + content + zlib.crc32(kind + content).to_bytes(4, "big")
        )

    head = width.to_bytes(4, "big") + height.to_bytes(4, "big") + bytes([8, 2, 0, 0, 0])
    text = chunk(b"zTXt", b"a\0\0" + zlib.compress(extra)) if extra else b""
    content = chunk(b"IHDR", head) + text + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + content


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (
            png(12_000, 12_000, bytes(3 * 12_000)),
            "it has 12000x12000 px, more than 67 million; scale it down",
        ),
        (png(100_000, 1, bytes(300_001)), "one side more than 100 times the other; crop it"),
        (png(4, 4, bytes(52), bytes(50_000_000)), "too large"),
        (b"P6 60000 60000 255\n", "exceeds limit"),
        # would start Ghostscript
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n", "cannot identify"),
        (b"", "cannot identify"),
    ],
)
def test_bad_files_cost_little(tmp_path: Path, content: bytes, said: str) -> None:
    path = tmp_path / "x.jpg"
    path.write_bytes(content)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(UserError, match=said) as caught:
        as_pixels(path)
    assert "\n" not in str(caught.value) and caught.value.args[0].count(str(path)) >= 1
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 300 * 1024  # KiB


def test_what_is_no_regular_file(tmp_path: Path) -> None:
    (tmp_path / "folder.jpg").mkdir()
    os.mkfifo(tmp_path / "pipe.jpg")  # a reader of it would wait for ever
    (tmp_path / "loop.jpg").symlink_to(tmp_path / "loop.jpg")
    for name, said in (
        ("folder.jpg", "no regular file"),
        ("pipe.jpg", "no regular file"),
        ("loop.jpg", "no such file"),
    ):
        with pytest.raises(UserError, match=said):
            as_pixels(tmp_path / name)
    for name, said in (("x" * 5000, "name too long"), ("a\0b", "no such file")):
        with pytest.raises(UserError, match=said):
            as_pixels(name)


def test_sizes_of_arrays() -> None:
    check_size(1, MOST_RATIO)
    for height, width in ((0, 5), (1, MOST_RATIO + 1)):
        with pytest.raises(UnreadableImage):
            check_size(height, width)
        with pytest.raises(UserError, match="cannot be used"):
            as_pixels(np.zeros((height, width, 3), dtype=np.uint8))


def test_a_truncated_file(tmp_path: Path) -> None:
    file = io.BytesIO()
    Image.fromarray(np.tile(SEEN, (30, 30, 1))).save(file, "JPEG")
    (tmp_path / "a.jpg").write_bytes(file.getvalue()[:1200])
    with pytest.raises(UserError, match="truncated"):
        as_pixels(tmp_path / "a.jpg")
