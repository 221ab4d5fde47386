"""Which clip is which: seeds of the splits."""

from __future__ import annotations

import hashlib

from harness.data.refclips.scenes import PaintedClip, generate


def clip_seed(split: str, index: int) -> int:
    """Seed of a split's index-th clip; no two splits share one."""
    return int.from_bytes(hashlib.sha256(f"refclips:{split}:{index}".encode()).digest()[:8], "big")


def painted(split: str, index: int) -> PaintedClip:
    """The index-th clip of 'train', 'davis', 'mevis' or 'youtube'."""
    return generate(clip_seed(split, index))
