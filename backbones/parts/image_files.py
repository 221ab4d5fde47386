"""Image files to (H, W, 3) uint8 RGB: one reader for data sets and for a user's own files.

It follows what the official evaluation's `cv2.imread(path)` gives: the first frame, turned as its EXIF
orientation says, alpha dropped, 16 bits reduced to their high byte. The size is looked at before anything is
decoded.
"""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from pruners.base import UserError

MOST_PIXELS = 2**26  # 64 Mpx, about 0.5 GB while it is decoded
# of the sides: both vision towers scale by one side, and the other one's memory follows from the ratio
MOST_RATIO = 100
# what OpenCV reads, and GIF; Pillow's other readers run Ghostscript or are hardly ever exercised
FORMATS = ("JPEG", "MPO", "PNG", "WEBP", "TIFF", "BMP", "DIB", "GIF", "PPM", "JPEG2000", "AVIF")
ORIENTATION = 0x0112
TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


class UnreadableImage(ValueError):
    """An image that cannot be used; the message is the reason alone."""


class WrongSize(UnreadableImage):
    """An image of another size than its annotations."""


def check_size(height: int, width: int) -> None:
    """Refuse an image that is empty, too large to decode cheaply, or too long and thin to be scaled.

    Raises:
        UnreadableImage: it is one of these.
    """
    if min(height, width) < 1:
        raise UnreadableImage(f"it has {width}x{height} px")
    if height * width > MOST_PIXELS:
        raise UnreadableImage(
            f"it has {width}x{height} px, more than {MOST_PIXELS / 1e6:.0f} million; scale it down"
        )
    if max(height, width) > MOST_RATIO * min(height, width):
        raise UnreadableImage(
            f"it has {width}x{height} px, one side more than {MOST_RATIO} times the other; crop it"
        )


def read_image(path: str | Path, size: tuple[int, int] | None = None) -> NDArray[np.uint8]:
    """Decode an image file.

    The EXIF orientation is applied, as `cv2.imread` applies it. Annotations were made on one of the two
    geometries, so where `size` tells which, and it is that of the stored pixels alone, they stay as they are
    stored. (COCO's images carry no orientation.)

    Args:
        size: (height, width) of the image's annotations.

    Returns:
        (H, W, 3) uint8 RGB.

    Raises:
        FileNotFoundError: there is no such file.
        UnreadableImage: the file is no image of a known format, damaged, too large, or not of `size`.
    """
    path = Path(path)
    try:
        if not path.is_file():
            if path.exists():
                raise UnreadableImage("it is no regular file")
            raise FileNotFoundError(path)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of doubtful metadata and of sizes below our own limit
            Image.init()
            with Image.open(path, formats=[name for name in FORMATS if name in Image.OPEN]) as opened:
                return to_rgb(opened, size)
    except (UnreadableImage, FileNotFoundError):
        raise
    except Exception as error:  # a damaged file can raise nearly anything
        raise UnreadableImage(_reason(error)) from error


def picture_rgb(picture: Image.Image) -> NDArray[np.uint8]:
    """A pillow image as `read_image` would read it from a file.

    Raises:
        UnreadableImage: as `read_image`.
    """
    try:
        return to_rgb(picture, None)
    except UnreadableImage:
        raise
    except Exception as error:
        raise UnreadableImage(_reason(error)) from error


def _reason(error: Exception) -> str:
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return " ".join(str(error).split()) or type(error).__name__


def to_rgb(opened: Image.Image, size: tuple[int, int] | None) -> NDArray[np.uint8]:
    """Pixels of an opened image, turned and of 8 bits; nothing is decoded before the size is known to be
    fit."""
    width, height = opened.size
    check_size(height, width)
    turn = TURNS.get(_orientation(opened))
    stored = (height, width)
    shown = stored[::-1] if turn is not None and turn in _SWAPPING else stored
    if size is not None and size not in (stored, shown):
        raise WrongSize(f"is {shown[1]}x{shown[0]} px, but its annotations are for {size[1]}x{size[0]}")
    if size is not None and size != shown:
        turn = None
    opened.load()
    image = _eight_bits(opened)
    return np.array(image.transpose(turn) if turn is not None else image, dtype=np.uint8)


_SWAPPING = (TURNS[5], TURNS[6], TURNS[7], TURNS[8])


def _orientation(opened: Image.Image) -> int:
    """EXIF orientation 1 to 8; 1 where there is none or it cannot be read. XMP's is not looked at, as by
    OpenCV."""
    content = opened.info.get("exif")
    if not content:
        return 1
    exif = Image.Exif()
    try:
        exif.load(content)
        return int(exif.get(ORIENTATION, 1))
    except Exception:  # damaged metadata do not spoil the pixels
        return 1


def _eight_bits(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I") or image.mode == "F":
        return Image.fromarray(
            _scaled(np.asarray(image), sixteen=";16" in image.mode or image.format == "PNG")
        ).convert("RGB")
    # through RGBA, which keeps the colours below
    if "transparency" in image.info or image.mode in ("PA", "La", "RGBa"):
        return image.convert("RGBA").convert("RGB")
    return image.convert("RGB")


def _scaled(values: NDArray[np.generic], sixteen: bool) -> NDArray[np.uint8]:
    """Deep grey values as 8 bits: 16-bit ones by their high byte, wider ones by the range that they use."""
    if sixteen:
        return (values.astype(np.uint32) >> 8).astype(np.uint8)
    low, high = float(values.min()), float(values.max())
    if not (low >= 0 and high <= 65535):  # NaN too
        raise UnreadableImage(f"its values go from {low:g} to {high:g}; save it with 8 or 16 bits")
    if high <= 1 and values.dtype.kind == "f":
        return np.rint(values.astype(np.float64) * 255).astype(np.uint8)
    return (values if high <= 255 else values.astype(np.uint32) >> 8).astype(np.uint8)


def user_image(image: str | Path | Image.Image) -> NDArray[np.uint8]:
    """A user's own file or pillow image, (H, W, 3) uint8 RGB.

    Raises:
        UserError: it cannot be read.
    """
    name = str(image) if isinstance(image, str | Path) else "given"
    try:
        return read_image(image) if isinstance(image, str | Path) else picture_rgb(image)
    except FileNotFoundError:
        raise UserError(
            f"The image {name!r} cannot be read (there is no such file); give a PNG or JPEG file."
        ) from None
    except UnreadableImage as error:
        raise UserError(f"The image {name!r} cannot be read ({error}); give a PNG or JPEG file.") from error
