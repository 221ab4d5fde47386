"""Bundles: a finished run as one small file that others can check and show; no pictures, texts or paths."""

from harness.bundle.content import Bundle, pack, unpack
from harness.bundle.files import SUFFIX, read, write

__all__ = ["SUFFIX", "Bundle", "pack", "read", "unpack", "write"]
