"""The size of an image without decoding it."""

from __future__ import annotations

from pathlib import Path

from PIL import Image

from backbones.parts.image_files import FORMATS, ORIENTATION

SIDEWAYS = (5, 6, 7, 8)  # EXIF orientations that swap height and width


def size_of(path: Path) -> tuple[int, int]:
    """Height and width of an image as its reader turns it, from the head of the file; (1, 1) of one that
    cannot be read, which is said when it is."""
    Image.init()
    try:
        with Image.open(path, formats=[name for name in FORMATS if name in Image.OPEN]) as opened:
            width, height = opened.size
            content = opened.info.get("exif", b"")
    except Exception:  # a damaged file can raise nearly anything
        return 1, 1
    return (width, height) if _orientation(content) in SIDEWAYS else (height, width)


def _orientation(content: bytes) -> int:
    exif = Image.Exif()
    try:
        exif.load(content)
        return int(exif.get(ORIENTATION, 1))
    except Exception:  # damaged metadata do not spoil the pixels
        return 1
