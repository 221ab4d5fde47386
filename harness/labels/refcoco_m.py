"""RefCOCO-M: RefCOCO's validation split with masks drawn anew, as
https://huggingface.co/datasets/moondream/refcoco-m releases it.

    DIR/data/validation-00000-of-00002.parquet, validation-00001-of-00002.parquet

One row is an image: `image_id` of COCO, and `samples`, a list of objects with `id`, `sentences`, `bbox` (x,
y, width, height) and `mask` (COCO's compressed run lengths, `counts` and `size`). No ref, sentence or
annotation is named. The pixels beside them are not read.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from harness.labels.base import BadLabels, Label, Labels, box, number, plain

SUFFIX = ".parquet"
WANTED = ("image_id", "samples")
SHARD = re.compile(r"(.*)-(\d{5})-of-(\d{5})")
AGAIN = "download https://huggingface.co/datasets/moondream/refcoco-m again"
ROWS_AT_ONCE = 64


def read_refcoco_m(path: Path) -> Labels:
    """All labels of a folder's, or a file's, shards.

    Raises:
        BadLabels: a shard is missing, damaged or of another layout.
    """
    found: dict[tuple[int, str], list[Label]] = {}
    seen: dict[int, str] = {}
    for file in _shards(path):
        for image, row in _rows(file):
            for place, sample in enumerate(row):
                where = f"image {image}, sample {place}"
                try:
                    key, sentences, label = _label(where, sample)
                except ValueError as error:
                    raise BadLabels(f"{where} of {str(file)!r} is damaged ({error}); {AGAIN}.") from None
                if key in seen:
                    raise BadLabels(
                        f"{str(path)!r} holds the object {key} twice ({seen[key]} and {where}); keep one "
                        f"copy of every file."
                    )
                seen[key] = where
                for text in dict.fromkeys(map(plain, sentences)):
                    found.setdefault((image, text), []).append(label)
    return Labels(
        "RefCOCO-M",
        path,
        "expressions that it does not hold are dropped, and masks are its own",
        "MIT",
        ("refcoco", "refcoco(unc)"),
        ("val",),
        found,
    )


def _shards(path: Path) -> list[Path]:
    """The files, of which a name may say how many there are."""
    files = sorted(path.rglob(f"*{SUFFIX}")) if path.is_dir() else [path]
    if not files:
        raise BadLabels(f"There is no {SUFFIX} file in {str(path)!r}; {AGAIN}.")
    named = SHARD.fullmatch(files[0].stem)
    if named is None:
        return files
    wanted = [
        files[0].with_name(f"{named[1]}-{place:05d}-of-{named[3]}{SUFFIX}") for place in range(int(named[3]))
    ]
    lost = [file.name for file in wanted if not file.is_file()]
    if lost:
        raise BadLabels(
            f"{len(lost)} of {len(wanted)} files of RefCOCO-M are missing in {str(files[0].parent)!r}, the "
            f"first is {lost[0]!r}; its expressions would pass as dropped, so {AGAIN}."
        )
    return wanted


def _rows(file: Path) -> Iterator[tuple[int, list[Any]]]:
    """Number of every image and what is said of it, a few rows at a time."""
    import pyarrow
    from pyarrow import parquet

    try:
        with parquet.ParquetFile(file) as opened:
            names = opened.schema_arrow.names
            if lost := [name for name in WANTED if name not in names]:
                raise BadLabels(
                    f"{str(file)!r} has no column {lost[0]!r} and is not RefCOCO-M; it has "
                    f"{', '.join(names)}."
                )
            for batch in opened.iter_batches(ROWS_AT_ONCE, columns=list(WANTED)):
                for row in batch.to_pylist():
                    if not isinstance(row["samples"], list):
                        raise BadLabels(f"A row of {str(file)!r} has no samples; {AGAIN}.")
                    try:
                        yield number(row["image_id"], "image_id"), row["samples"]
                    except ValueError as error:
                        raise BadLabels(f"A row of {str(file)!r} is damaged ({error}); {AGAIN}.") from None
    except (pyarrow.ArrowException, OSError) as error:
        reason = " ".join(str(error).split())[:120]
        raise BadLabels(f"{str(file)!r} cannot be read as Parquet ({reason}); {AGAIN}.") from None


def _label(where: str, sample: Any) -> tuple[int, list[str], Label]:
    """Its id, its sentences, and what is said of them.

    Raises:
        ValueError: something is missing or of another type.
    """
    if not isinstance(sample, dict):
        raise ValueError(f"it is a {type(sample).__name__}")
    if lost := [name for name in ("id", "sentences", "bbox", "mask") if sample.get(name) is None]:
        raise ValueError(f"it has no {lost[0]}")
    mask = sample["mask"]
    if not isinstance(mask, dict) or not {"counts", "size"} <= mask.keys():
        raise ValueError("its mask has no counts or no size")
    sentences = sample["sentences"]
    if not isinstance(sentences, list) or not all(isinstance(one, str) for one in sentences):
        raise ValueError("its sentences are no list of texts")
    return number(sample["id"], "id"), sentences, Label(where, True, box(sample["bbox"]), mask)
