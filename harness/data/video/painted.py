"""Masks that lie as pictures of object ids, one per frame, and are read when asked for."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from backbones.parts.image_files import UnreadableImage, check_size
from harness.data.sample import DamagedSegmentation, Track
from harness.metrics.masks import IGNORED

VOID = 255  # of DAVIS: no object's pixels, and nobody's mistake
MODES = ("P", "L")  # palette ids, or the ids as grey values


@dataclass(frozen=True)
class Painted(Track):
    """One object of a clip in its frames' pictures of ids.

    Attributes:
        segmentation: per frame the picture's name, the object's id and, where the data set has one, the id
            of what is void.
        folder: of the pictures.
    """

    folder: Path

    def mask(self, height: int, width: int, frame: int = 0) -> NDArray[np.uint8]:
        """The object in one frame, (height, width) uint8: 1, 0, and 255 where the picture is void.

        Raises:
            DamagedSegmentation: the picture is gone, unreadable or of another size.
        """
        name, number, *void = self.segmentation[frame]
        ids = read_ids(self.folder / name, (height, width))
        mask = (ids == number).astype(np.uint8)
        for one in void:
            mask[ids == one] = IGNORED
        return mask

    def files(self) -> Sequence[Path]:
        return [self.folder / name for name, *_ in self.segmentation]


def painted(number: int, object_id: int, folder: Path, frames: Sequence[str], void: bool) -> Painted:
    """An object in the pictures of a folder.

    Args:
        number: annotation id.
        object_id: in the pictures.
        frames: their names without the ending.
        void: whether VOID is left out of all scores.
    """
    ids = [object_id, VOID] if void else [object_id]
    return Painted(number, tuple((f"{name}.png", *ids) for name in frames), folder)


def read_ids(path: Path, size: tuple[int, int] | None = None) -> NDArray[np.uint8]:
    """A picture's object ids, (H, W) uint8.

    Args:
        size: (height, width) that it must have.

    Raises:
        DamagedSegmentation: it is gone, unreadable, of another size, or holds colours instead of ids.
    """
    try:
        state = path.stat()
        return _decoded(path, size, state.st_mtime_ns, state.st_size)
    except FileNotFoundError:
        raise DamagedSegmentation(f"Mask '{path}' is gone") from None
    except Exception as error:  # a damaged file can raise nearly anything
        reason = " ".join(str(error).split()) or type(error).__name__
        raise DamagedSegmentation(f"Mask '{path}' cannot be used ({reason})") from None


@lru_cache(maxsize=1)  # all objects of a frame are read one after the other
def _decoded(path: Path, size: tuple[int, int] | None, *stamp: int) -> NDArray[np.uint8]:
    """A picture's object ids; the stamp only makes the memory forget a file that has changed."""
    with Image.open(path, formats=["PNG"]) as opened:
        width, height = opened.size
        check_size(height, width)
        if size is not None and size != (height, width):
            raise UnreadableImage(f"it has {width}x{height} px, and its frame {size[1]}x{size[0]}")
        if opened.mode not in MODES:
            raise UnreadableImage(f"it has the mode {opened.mode}, and object ids need a palette")
        ids = np.array(opened, dtype=np.uint8)
    ids.setflags(write=False)
    return ids


def palette() -> list[int]:
    """Colours of 256 ids as DAVIS and PASCAL VOC have them, red, green, blue one behind the other: the bits
    of an id, three by three, from the highest bit of the three colours down."""
    colours = np.zeros((256, 3), dtype=np.int64)
    for place in range(8):
        for channel in range(3):
            bits = (np.arange(256) >> (3 * place + channel)) & 1
            colours[:, channel] |= bits << (7 - place)
    return [int(value) for value in colours.ravel()]
