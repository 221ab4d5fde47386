"""A person's own clips: a folder of frames, or a video file, which PyAV decodes frame by frame.

Of a video no more than one decoded frame is held. Frames are numbered by counting what the decoder gives,
since neither what a file says of its length nor its time stamps can be relied on; so going back to an earlier
frame decodes from the start again.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from backbones.parts.clips import Clip
from backbones.parts.image_files import UnreadableImage, check_size, read_image
from pruners.errors import UserError

FRAME_FILES = (".jpg", ".jpeg", ".png")
VIDEOS = (".mp4", ".mov", ".m4v", ".mkv", ".avi", ".webm", ".mpg", ".mpeg")  # the usual ones
MOST_FRAMES = 2000
GIVE = "give a folder of JPEG or PNG frames, or a video file"
INSTALL = "pip install 'groundprune[video]'"


def is_clip(path: str | Path) -> bool:
    """Whether a name is that of a folder or, by its ending, of a video."""
    return Path(path).is_dir() or Path(path).suffix.lower() in VIDEOS


def read_clip(path: str | Path, window: int = 0) -> Clip:
    """The clip in a folder of frames, in the order of their names (2 before 10), or in a video file.

    Args:
        window: as in `Clip`.

    Raises:
        UserError: there is none, it cannot be read, or it is a video and PyAV is not installed.
    """
    path = Path(path)
    if path.is_dir():
        return FrameFolder.of(path, window)
    if not path.is_file():
        raise UserError(f"The clip {str(path)!r} is not there; {GIVE}.")
    if path.suffix.lower() in FRAME_FILES:
        raise UserError(f"{str(path)!r} is a picture, not a clip; {GIVE}.")
    return VideoFile.of(path, window)


# -- frames in a folder


@dataclass(frozen=True)
class FrameFolder(Clip):
    """Image files of one size."""

    files: tuple[Path, ...] = ()

    @classmethod
    def of(cls, folder: Path, window: int = 0) -> FrameFolder:
        """The frames of a folder; other files in it are passed over.

        Raises:
            UserError: there are none, too many, or they differ in size.
        """
        files = sorted((one for one in folder.iterdir() if _is_frame(one)), key=_in_order)
        if not files:
            raise UserError(f"There are no JPEG or PNG files in the folder {str(folder)!r}; {GIVE}.")
        _check_length(folder, len(files))
        height, width = _read(files[0]).shape[:2]
        sizes = {_declared(one): one for one in reversed(files)}
        if None in sizes:
            _read(sizes[None])
        if len(sizes) > 1:
            (one, first), (other, second) = list(sizes.items())[:2]
            raise UserError(
                f"The frames of {str(folder)!r} differ in size ({first.name} {_told(one)}, {second.name} "
                f"{_told(other)}); scale them to one."
            )
        return cls(height, width, window, tuple(files))

    def __len__(self) -> int:
        return len(self.files)

    def frame(self, number: int) -> NDArray[np.uint8]:
        """As `Clip.frame`."""
        image = _read(self.files[number])
        if image.shape[:2] != (self.height, self.width):
            raise UserError(
                f"The frame {str(self.files[number])!r} is {_told(image.shape[1::-1])}, the first one is "
                f"{_told((self.width, self.height))}; scale them to one size."
            )
        return image


def _is_frame(path: Path) -> bool:
    """Whether a file is a frame; a link that leads nowhere is a lost one."""
    return path.suffix.lower() in FRAME_FILES and not path.name.startswith(".") and not path.is_dir()


def _in_order(path: Path) -> tuple[list[Any], str]:
    """Runs of digits compare as numbers: 2 comes before 10, and 002 before 010."""
    parts = re.split(r"([0-9]+)", path.name)
    return [int(part) if place % 2 else part for place, part in enumerate(parts)], path.name


def _read(path: Path) -> NDArray[np.uint8]:
    try:
        return read_image(path)
    except FileNotFoundError:
        raise UserError(f"The frame {str(path)!r} is gone; put it back.") from None
    except UnreadableImage as error:
        raise UserError(
            f"The frame {str(path)!r} cannot be read ({error}); take it out or save it anew."
        ) from None


def _declared(path: Path) -> tuple[int, int] | None:
    """Width and height in the head of a file; None where it is damaged, which is said when it is decoded."""
    try:
        with Image.open(path) as opened:
            return opened.size
    except Exception:  # a damaged file can raise nearly anything
        return None


def _told(size: tuple[int, ...] | None) -> str:
    return f"{size[0]}x{size[1]} px" if size else "unreadable"


def _check_length(path: Path, count: int) -> None:
    if count > MOST_FRAMES:
        raise UserError(
            f"The clip {str(path)!r} has more than {MOST_FRAMES} frames; cut it, or give every tenth "
            f"frame as a folder."
        )


# -- frames of a video


@dataclass(frozen=True)
class VideoFile(Clip):
    """The frames of a file's first video stream, turned as it says that they are to be shown."""

    path: Path = Path()
    count: int = 0
    _reader: _Reader = field(default_factory=lambda: _Reader(Path()), repr=False, compare=False)

    @classmethod
    def of(cls, path: Path, window: int = 0) -> VideoFile:
        """Decode all frames once, to see how many there are and that each is sound.

        Raises:
            UserError: PyAV is not installed, or the file is no video, damaged, empty or too long.
        """
        sizes: dict[tuple[int, int], int] = {}
        count = 0
        for frame in _decoded(path):
            sizes.setdefault(_size(frame), count)
            count += 1
            _check_length(path, count)
        if not count:
            raise UserError(f"The video {str(path)!r} has no frame; {GIVE}.")
        if len(sizes) > 1:
            told = " and ".join(
                f"{width}x{height} px from frame {at}" for (height, width), at in sizes.items()
            )
            raise UserError(
                f"The frames of the video {str(path)!r} differ in size ({told}); convert it anew."
            )
        ((height, width),) = sizes
        try:
            check_size(height, width)
        except UnreadableImage as error:
            raise UserError(f"The video {str(path)!r} cannot be used ({error}).") from None
        return cls(height, width, window, path, count, _Reader(path))

    def __len__(self) -> int:
        return self.count

    def frame(self, number: int) -> NDArray[np.uint8]:
        """As `Clip.frame`; quick for the frames of a clip in turn."""
        return self._reader.frame(range(self.count)[number])


class _Reader:
    """Walks through a video, and holds the frame at which it stands."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._frames: Iterator[Any] = iter(())
        self._at = -1
        self._image: NDArray[np.uint8] | None = None

    def frame(self, number: int) -> NDArray[np.uint8]:
        if self._image is None or number != self._at:
            if number <= self._at or self._at < 0:
                self._frames, self._at = _decoded(self._path), -1
            frame = None
            while self._at < number:
                frame, self._at = next(self._frames, None), self._at + 1
                if frame is None:
                    raise UserError(f"The video {str(self._path)!r} has become shorter; give it once more.")
            self._image = _pixels(frame)
        return self._image.copy()


def _decoded(path: Path) -> Iterator[Any]:
    """PyAV's frames in the order in which they are shown.

    Raises:
        UserError: PyAV is not installed, or the file cannot be decoded to its end.
    """
    try:
        import av
    except ImportError as error:
        raise UserError(
            f"The video {str(path)!r} cannot be read without PyAV ({error}); {INSTALL}, or give a folder of "
            f"its frames, which needs none."
        ) from None
    count = 0
    try:
        # a playlist may name addresses, of which none is fetched
        with av.open(str(path.resolve()), container_options={"protocol_whitelist": "file"}) as container:
            if not container.streams.video:
                raise UserError(f"The file {str(path)!r} holds no video; {GIVE}.")
            for frame in container.decode(container.streams.video[0]):
                yield frame
                count += 1
    except UserError:
        raise
    except Exception as error:  # a damaged file can raise nearly anything
        reason = " ".join(str(getattr(error, "strerror", "") or error).split()) or type(error).__name__
        where = f"behind frame {count - 1} " if count else ""
        raise UserError(
            f"The video {str(path)!r} cannot be read {where}({reason}); convert it anew, or {GIVE}."
        ) from None


def _quarters(frame: Any) -> int:
    """Quarter turns, counterclockwise, by which a frame is to be shown."""
    return round(frame.rotation / 90) % 4


def _size(frame: Any) -> tuple[int, int]:
    """Height and width as shown."""
    stored = int(frame.height), int(frame.width)
    return stored[::-1] if _quarters(frame) % 2 else stored


def _pixels(frame: Any) -> NDArray[np.uint8]:
    """(H, W, 3) RGB as shown."""
    return np.ascontiguousarray(np.rot90(frame.to_ndarray(format="rgb24"), _quarters(frame)))
