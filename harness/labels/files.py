"""Which layout a file of labels has."""

from __future__ import annotations

from pathlib import Path

from backbones.parts.json_files import load_json
from harness.labels.base import BadLabels, Labels
from harness.labels.lists import read_csv, read_list
from harness.labels.ref_l4 import ANNOTATIONS, read_ref_l4
from harness.labels.refcoco_m import SUFFIX, read_refcoco_m

MOST_BYTES = 2**28  # the largest published file has 22 MB
LAYOUTS = (
    "RefCOCO-M (a folder, or a .parquet file), Ref-L4 (refcoco_val_reviewed.json), and lists of samples or "
    "expressions (.csv, .json)"
)


def read_labels(path: Path) -> Labels:
    """The labels in a file or a folder.

    Raises:
        BadLabels: it is missing, damaged or of no known layout.
    """
    if not path.exists():
        raise BadLabels(f"There is no {str(path)!r}; give --subset a file of labels: {LAYOUTS}.")
    if path.is_dir() or path.suffix.lower() == SUFFIX:
        return read_refcoco_m(path)
    if path.suffix.lower() == ".csv":
        return read_csv(path)
    if path.suffix.lower() != ".json":
        raise BadLabels(
            f"{str(path)!r} ends in {path.suffix!r}, which is no layout of labels; known are {LAYOUTS}."
        )
    try:
        content = load_json(path, MOST_BYTES)
    except (OSError, ValueError) as error:
        raise BadLabels(
            f"{str(path)!r} is not readable json ({error}); write or download it again."
        ) from None
    if isinstance(content, list):
        return read_list(path, content)
    if isinstance(content, dict) and "images" in content and any(name in content for name in ANNOTATIONS):
        return read_ref_l4(path, content)
    held = ", ".join(map(str, content)) if isinstance(content, dict) else f"a {type(content).__name__}"
    raise BadLabels(f"{str(path)!r} holds {held[:120]}, which is no layout of labels; known are {LAYOUTS}.")
