"""Writes RefShapes in the official REFER layout, so that the reader of RefCOCO/+/g reads it back.

The two short families share their images, and the long one shares those of val, as the real sets share
COCO's.
"""

from __future__ import annotations

import hashlib
import json
import os
import pickle
import shutil
import struct
import tempfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pycocotools import mask as coco_mask

from harness.data.refer import FOLDER, IMAGES, SPLIT_BY, load_refer
from harness.data.refshapes import language, scenes
from harness.data.refshapes.scenes import CROWDS, SHAPES, Scene, generate
from harness.data.sample import DataError, fingerprint
from harness.progress import stage

SPLITS: dict[str, tuple[str, ...]] = {
    "refshapes": ("val", "testA", "testB"),
    "refshapes+": ("val", "testA", "testB"),
    "refshapesg": ("val", "test"),
}
CROWD = {"val": "normal", "testA": "few", "testB": "crowded", "test": "normal"}
IMAGES_PER_SPLIT = 200
# leading digit of the image ids of a split
NUMBER = {
    "val": 1,
    "testA": 2,
    "testB": 3,
    "test": 4,
    "train": 5,
}
MANIFEST = "refshapes.json"
CACHE_VARIABLE = "GROUNDPRUNE_CACHE"


def scene_seed(split: str, index: int) -> int:
    """Seed of a split's index-th scene; no two splits share one."""
    return int.from_bytes(hashlib.sha256(f"refshapes:{split}:{index}".encode()).digest()[:8], "big")


def scene(split: str, index: int) -> Scene:
    """The index-th scene of 'val', 'testA' (few objects), 'testB' (crowded), 'test' or 'train' (all crowds in
    turn)."""
    crowd = tuple(CROWDS)[index % len(CROWDS)] if split == "train" else CROWD[split]
    return generate(scene_seed(split, index), crowd)


def version() -> str:
    """Generator version: 8 hex digits of the sources that decide what a scene is and how it is written."""
    digest = hashlib.sha256()
    for source in (scenes.__file__, language.__file__, __file__):
        digest.update(Path(source).read_bytes())
    return digest.hexdigest()[:8]


def cache_folder() -> Path:
    """Where generated data live: $GROUNDPRUNE_CACHE, else ~/.cache/groundprune."""
    return Path(os.environ.get(CACHE_VARIABLE) or Path.home() / ".cache" / "groundprune")


def prepare_refshapes(
    cache_dir: str | Path | None = None, *, images: int = IMAGES_PER_SPLIT, train: int = 0
) -> Path:
    """Generate RefShapes unless it is there, and return the folder that holds its Refer_Segm.

    The folder appears at once and complete (written aside, then renamed), so a killed run leaves nothing half
    done and two processes may race. Every byte follows from the generator version and the two sizes.

    Args:
        cache_dir: parent of the generated folders, default `cache_folder()`.
        images: images per evaluation split.
        train: images of an additional 'train' split.

    Raises:
        DataError: a size is out of range or the cache cannot be written.
    """
    if not 1 <= images < 1_000_000 or not 0 <= train < 1_000_000:
        raise DataError(
            f"RefShapes takes 1 to 999999 images and 0 to 999999 for train, not {images} and {train}."
        )
    cache = Path(cache_dir) if cache_dir is not None else cache_folder()
    sizes = f"-{images}" if images != IMAGES_PER_SPLIT else ""
    root = cache / f"refshapes-{version()}{sizes}{f'-train{train}' if train else ''}"
    if (root / MANIFEST).is_file():
        return root
    aside: Path | None = None
    try:
        cache.mkdir(parents=True, exist_ok=True)
        aside = Path(tempfile.mkdtemp(prefix=f".{root.name}-", dir=cache))
        aside.chmod(0o755)  # mkdtemp's 0700 would shut out the others of a shared cache
        _write(aside, images, train)
        try:
            aside.rename(root)
        except OSError:  # another process was first: same generator, same bytes
            if root.exists() and not (root / MANIFEST).is_file():
                raise DataError(f"'{root}' is incomplete; delete it and run again.") from None
            if not root.exists():
                raise
    except OSError as error:
        raise DataError(
            f"RefShapes cannot be written to '{cache}' ({error.strerror or error}); set {CACHE_VARIABLE} "
            f"to a writable folder."
        ) from None
    finally:
        if aside is not None and aside.exists():
            shutil.rmtree(aside, ignore_errors=True)
    return root


def _write(root: Path, images: int, train: int) -> None:
    counts = {split: images for split in CROWD} | ({"train": train} if train else {})
    folder = root / FOLDER / IMAGES
    folder.mkdir(parents=True)
    writers = {family: _Family(family) for family in SPLITS}
    with stage("painting RefShapes", sum(counts.values()), "images") as progress:
        for split, count in counts.items():
            for index in range(count):
                painted = scene(split, index)
                image_id = NUMBER[split] * 1_000_000 + index
                name = f"refshapes_{image_id}.png"
                (folder / name).write_bytes(png(painted.image))
                for family, writer in writers.items():
                    if split in SPLITS[family] or split == "train":
                        writer.add(painted, split, image_id, name)
                progress.advance()
    for family, writer in writers.items():
        writer.write(root / FOLDER / family)
    prints = {
        f"{family}:{split}": fingerprint(load_refer(root, family, split))
        for family, splits in SPLITS.items()
        for split in (*splits, *(["train"] if train else []))
        if split in writers[family].splits
    }
    manifest = {"generator": version(), "images": images, "train": train, "fingerprints": prints}
    (root / MANIFEST).write_text(json.dumps(manifest, indent=1) + "\n", encoding="utf-8")


class _Family:
    """Refs and instances of one family, gathered scene by scene."""

    def __init__(self, family: str) -> None:
        self.family = family
        self.refs: list[dict[str, Any]] = []
        self.images: list[dict[str, Any]] = []
        self.annotations: list[dict[str, Any]] = []
        self.sentences = 0
        self.splits: set[str] = set()

    def add(self, painted: Scene, split: str, image_id: int, name: str) -> None:
        """Take one scene; an object's expressions make one ref, as in the real sets."""
        height, width = painted.image.shape[:2]
        self.images.append({"id": image_id, "file_name": name, "height": height, "width": width})
        self.annotations += _annotations(painted, image_id)
        said: dict[int, list[str]] = {}
        for target, text in painted.expressions[self.family]:
            said.setdefault(target, []).append(text)
        for target, texts in sorted(said.items()):
            sentences = [
                {"tokens": text.split(), "raw": text, "sent_id": self.sentences + k, "sent": text}
                for k, text in enumerate(texts, start=1)
            ]
            self.sentences += len(texts)
            self.splits.add(split)
            self.refs.append(
                {
                    "ref_id": len(self.refs) + 1,
                    "ann_id": _annotation_id(image_id, target),
                    "category_id": painted.objects[target].category_id,
                    "image_id": image_id,
                    "file_name": name,
                    "split": split,
                    "sent_ids": [sentence["sent_id"] for sentence in sentences],
                    "sentences": sentences,
                }
            )

    def write(self, folder: Path) -> None:
        """Write `refs(<author>).p` and `instances.json`."""
        folder.mkdir()
        author = SPLIT_BY.get(self.family, "unc")
        (folder / f"refs({author}).p").write_bytes(pickle.dumps(self.refs, protocol=2))
        instances = {
            "images": self.images,
            "annotations": self.annotations,
            "categories": [{"id": k, "name": shape} for k, shape in enumerate(SHAPES, start=1)],
        }
        (folder / "instances.json").write_text(json.dumps(instances, separators=(",", ":")), encoding="utf-8")


def _annotation_id(image_id: int, target: int) -> int:
    return image_id * 100 + target + 1


def _annotations(painted: Scene, image_id: int) -> Iterator[dict[str, Any]]:
    """One COCO annotation per object: its outline, or a list of one compressed RLE if it has a hole."""
    for target, thing in enumerate(painted.objects):
        if thing.polygons:
            segmentation: list[Any] = [list(polygon) for polygon in thing.polygons]
        else:
            rle = coco_mask.encode(np.asfortranarray(thing.mask, dtype=np.uint8))
            segmentation = [{"size": list(thing.mask.shape), "counts": rle["counts"].decode()}]
        yield {
            "id": _annotation_id(image_id, target),
            "image_id": image_id,
            "category_id": thing.category_id,
            "segmentation": segmentation,
            "bbox": list(thing.bbox),
            "area": int(thing.mask.sum()),
            "iscrowd": 0,
        }


def png(image: NDArray[np.uint8]) -> bytes:
    """Encode (H, W, 3) uint8 as PNG with stored deflate blocks.

    What a compressor writes differs between zlib builds; stored blocks are the same bytes on every machine,
    and the noise of the scenes would hardly compress.
    """
    height, width, _ = image.shape
    rows = np.zeros((height, 1 + 3 * width), dtype=np.uint8)  # leading 0: row filter "none"
    rows[:, 1:] = image.reshape(height, -1)
    data = rows.tobytes()
    stream = b"\x78\x01"
    for start in range(0, len(data), 0xFFFF):
        block = data[start : start + 0xFFFF]
        last = start + 0xFFFF >= len(data)
        stream += struct.pack("<BHH", last, len(block), len(block) ^ 0xFFFF) + block
    stream += struct.pack(">I", zlib.adler32(data))
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)  # 8 bit RGB
    return b"\x89PNG\r\n\x1a\n" + _chunk(b"IHDR", header) + _chunk(b"IDAT", stream) + _chunk(b"IEND", b"")


def _chunk(tag: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + tag + body + struct.pack(">I", zlib.crc32(tag + body))
