"""Names of folders and files in the official layouts, and what may be a name in them."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

JPEGS, MASKS, META = "JPEGImages", "Annotations", "meta_expressions"
IDS = "Annotations_unsupervised"  # DAVIS' masks of all objects
TEXTS = "davis_text_annotations"
# Ref-DAVIS' text files in the order of expression ids: two people, each from the first frame and from the
# full video. The second one's are not UTF-8
FILES = {
    "Davis17_annot1": "utf-8",
    "Davis17_annot1_full_video": "utf-8",
    "Davis17_annot2": "latin-1",
    "Davis17_annot2_full_video": "latin-1",
}
# ASCII; no dot in front, so neither `..` nor a hidden file
NAME = re.compile(r"[A-Za-z0-9_+-][A-Za-z0-9_.+-]{0,199}")


def plain(name: Any, what: str) -> str:
    """A name of one folder or file.

    Raises:
        ValueError: it is none, or leads elsewhere.
    """
    if not isinstance(name, str) or not NAME.fullmatch(name):
        raise ValueError(f"{str(name)[:60]!r} is no name of a {what}")
    return name


def below(root: Path | None, folders: Iterable[str]) -> Iterator[Path]:
    """Where a data set may lie in a data folder: in one of these folders, or the data folder is one itself;
    in that order."""
    if root is not None:
        yield from (root / folder for folder in folders if (root / folder).is_dir())
        if root.is_dir():
            yield root
