"""Clips of a few frames, as folders and as video files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

FRAMES = 5


def images(count: int = FRAMES, height: int = 24, width: int = 32) -> list[np.ndarray[Any, Any]]:
    """A bright box that moves to the right over a still picture."""
    found = []
    still = np.random.default_rng(0).integers(40, 90, (height, width, 3), dtype=np.uint8)
    for k in range(count):
        image = still.copy()
        image[4:12, 3 + 2 * k : 11 + 2 * k] = (220, 60, 60)
        found.append(image)
    return found


def folder_of(path: Path, frames: list[np.ndarray[Any, Any]], first: int = 8) -> Path:
    path.mkdir(parents=True)
    for number, frame in enumerate(frames, start=first):
        Image.fromarray(frame).save(path / f"frame{number}.png")
    (path / "notes.txt").write_text("of a walk")
    return path


def video_of(
    path: Path,
    frames: list[np.ndarray[Any, Any]],
    codec: str = "libx264",
    pixels: str = "yuv444p",
    **options: str,
) -> Path:
    """Nearly the same frames in a file."""
    av = pytest.importorskip("av", reason="videos are read with PyAV: pip install 'groundprune[video]'")
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=10, options=options)
        stream.height, stream.width = frames[0].shape[:2]
        stream.pix_fmt = pixels
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())
    return path


def turned_right(path: Path) -> None:
    """Say in an mp4's head that it is to be shown a quarter turn clockwise, as upright phones do."""
    content = bytearray(path.read_bytes())
    start = content.index(b"tkhd") + 44
    matrix = (0, 1 << 16, 0, (1 << 32) - (1 << 16), 0, 0, 0, 0, 1 << 30)
    content[start : start + 36] = b"".join(one.to_bytes(4, "big") for one in matrix)
    path.write_bytes(content)
