"""Reader of the official REFER layout that GLaMM, LISA and their kin evaluate on.

    DIR/Refer_Segm/refcoco/{refs(unc).p, instances.json}
    DIR/Refer_Segm/coco_2014/train2014/<images>

The same for refcoco+, refcocog (`refs(umd).p`), grefcoco and RefShapes. Split rules are those of the REFER API
(https://github.com/lichengunc/refer) as mbzuai-oryx/groundingLMM uses it.
"""

from __future__ import annotations

import io
import json
import pickle
import pickletools
import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from harness.data.sample import Annotation, DataError, Expression, Sample
from pruners.base import nearest

FOLDER = "Refer_Segm"
IMAGES = Path("coco_2014") / "train2014"
EVALUATION_SPLITS = ("val", "testA", "testB", "testC", "test")
SPLIT_BY = {"refcocog": "umd", "refshapesg": "umd"}  # all others: unc, as the official evaluation has it
NO_TARGET = -1
MOST_PIXELS = 2**28  # a larger image record is a broken one, and its masks would not fit in memory
FIELDS: dict[str, tuple[type, ...]] = {
    "ref_id": (int,),
    "ann_id": (int, list),
    "image_id": (int,),
    "split": (str,),
    "sentences": (list,),
}


class _PlainUnpickler(pickle.Unpickler):
    """Builds containers, strings and numbers; every class or function that a file names is refused unseen."""

    def find_class(self, module: str, name: str) -> Any:
        raise pickle.UnpicklingError(f"it asks for {module}.{name}")


@dataclass(frozen=True)
class _Tree:
    """The two files of a data set: refs of all splits, image records by id, the annotations that any ref names."""

    refs: list[dict[str, Any]]
    images: dict[int, dict[str, Any]]
    annotations: dict[int, Annotation]


def split_name(dataset: str) -> tuple[str, str]:
    """Folder and author of the split: 'refcocog' -> ('refcocog', 'umd'), 'refcocog(google)' -> ('refcocog', 'google').

    Raises:
        DataError: not of the form `name` or `name(author)`.
    """
    match = re.fullmatch(r"([\w+.-]+)(?:\((\w+)\))?", dataset)
    if not match or set(match[1]) == {"."}:
        raise DataError(f"Data set '{dataset}' is not a name like refcoco or refcocog(google).")
    return match[1], match[2] or SPLIT_BY.get(match[1], "unc")


def expected(root: Path, dataset: str) -> str:
    """The tree that a data set needs, on one line."""
    folder, author = split_name(dataset)
    base = root if root.name == FOLDER else root / FOLDER
    return f"expected {base}/{{{folder}/{{refs({author}).p, instances.json}}, {IMAGES.as_posix()}/<images>}}"


def names(root: Path) -> list[str]:
    """Data sets below `root` (DIR or DIR/Refer_Segm), sorted: folders with an instances.json or a refs file.

    Raises:
        DataError: there is no such folder.
    """
    return _held(_base(root))


def splits(root: Path, dataset: str) -> tuple[list[str], list[str]]:
    """What the data set's refs file holds: its evaluation splits (val, testA, testB, testC, test), then the others.

    Raises:
        DataError: as load_refer.
    """
    held = sorted({ref["split"] for ref in _tree(Path(root), dataset).refs})
    own = [split for split in EVALUATION_SPLITS if split in held or (split[:-1] == "test" and any(map(_chooser(split), held)))]
    return own, [split for split in held if split not in own]


def load_refer(root: str | Path, dataset: str, split: str) -> list[Sample]:
    """Read one split.

    Args:
        root: the folder that holds Refer_Segm, or Refer_Segm itself.
        dataset: folder below Refer_Segm, e.g. 'refcoco+'; 'refcocog(google)' names another author's splits.
        split: 'val', 'train', 'testA' (every split field with an A, as the REFER API has it), 'testB', 'testC',
            'test' (every split field that contains it), or any other split field, literally.

    Returns:
        One sample per image, ordered by image id.

    Raises:
        DataError: folders or files are missing or damaged, the data set or split is unknown, ids do not resolve.
    """
    root = Path(root)
    tree = _tree(root, dataset)
    chosen = _chooser(split)
    refs = [ref for ref in tree.refs if chosen(ref["split"])]
    if not refs:
        held = sorted({ref["split"] for ref in tree.refs})
        raise DataError(f"{dataset} has no split '{split}', it has {', '.join(held)}.{nearest(split, held)}")
    by_image: dict[int, list[dict[str, Any]]] = {}
    for ref in refs:
        by_image.setdefault(ref["image_id"], []).append(ref)
    _check_ids(dataset, refs, tree)
    folder = _base(root) / IMAGES
    samples = [_sample(dataset, split, folder, tree.images[image_id], by_image[image_id], tree) for image_id in sorted(by_image)]
    absent = [sample.path for sample in samples if not sample.path.is_file()]
    if absent:
        raise DataError(
            f"{len(absent)} of {len(samples)} images of {dataset}:{split} are missing, the first is '{absent[0]}'; "
            f"{expected(root, dataset)}."
        )
    return samples


def _sample(dataset: str, split: str, folder: Path, image: dict[str, Any], refs: list[dict[str, Any]], tree: _Tree) -> Sample:
    expressions, targets = [], []
    for ref in refs:
        target = tuple(tree.annotations[number] for number in _annotation_ids(ref))
        for sentence in ref["sentences"]:
            expressions.append(Expression(sentence["sent_id"], sentence["sent"], ref["ref_id"]))
            targets.append(target)
    return Sample(
        id=f"{dataset}:{split}:{image['id']}",
        dataset=dataset,
        split=split,
        image_id=image["id"],
        path=folder / image["file_name"],
        expressions=tuple(expressions),
        height=image["height"],
        width=image["width"],
        targets=tuple(targets),
    )


def _chooser(split: str) -> Callable[[str], bool]:
    """Which split fields belong to a split, as the REFER API decides it."""
    if split in ("testA", "testB", "testC"):
        return lambda held: split[-1] in held
    if split == "test":
        return lambda held: split in held
    return lambda held: split == held


def _annotation_ids(ref: dict[str, Any]) -> list[int]:
    """Annotations of a ref; gRefCOCO gives a list, in which -1 means no target."""
    ids = ref["ann_id"] if isinstance(ref["ann_id"], list) else [ref["ann_id"]]
    return [] if NO_TARGET in ids else ids


def _check_ids(dataset: str, refs: list[dict[str, Any]], tree: _Tree) -> None:
    lost = [f"image {ref['image_id']} (ref {ref['ref_id']})" for ref in refs if ref["image_id"] not in tree.images]
    for ref in refs:
        absent = [number for number in _annotation_ids(ref) if number not in tree.annotations]
        lost += [f"annotation {number} (ref {ref['ref_id']})" for number in absent]
    if lost:
        more = f" and {len(lost) - 3} more" if len(lost) > 3 else ""
        raise DataError(
            f"refs of {dataset} name {', '.join(lost[:3])}{more}, which instances.json does not hold; "
            "take both files from the same download."
        )


def _held(base: Path) -> list[str]:
    return sorted({file.parent.name for kind in ("instances.json", "refs(*).p") for file in base.glob(f"*/{kind}")})


def _base(root: Path) -> Path:
    if (root / FOLDER).is_dir():
        return root / FOLDER
    if root.is_dir() and (root.name == FOLDER or _held(root)):
        return root
    what = f"holds no folder {FOLDER}" if root.is_dir() else "is no folder"
    raise DataError(f"Data folder '{root}' {what}; {expected(root, 'refcoco')}.")


def _tree(root: Path, dataset: str) -> _Tree:
    folder_name, author = split_name(dataset)
    folder = _base(root) / folder_name
    if not folder.is_dir():
        held = _held(folder.parent)
        raise DataError(
            f"Data set '{dataset}' is not in '{folder.parent}', which holds {', '.join(held) or 'none'}."
            f"{nearest(dataset, held)} It is {expected(root, dataset)}."
        )
    refs, instances = folder / f"refs({author}).p", folder / "instances.json"
    for path in (refs, instances):
        if not path.is_file():
            others = sorted(other.name[5:-3] for other in folder.glob("refs(*).p")) if path is refs else []
            hint = f", or ask for {folder_name}({others[0]})" if others else ""
            raise DataError(f"File '{path}' is missing; {expected(root, dataset)}{hint}.")
    return _read(refs, instances, _stamp(refs), _stamp(instances))


def _stamp(path: Path) -> tuple[int, int]:
    state = path.stat()
    return state.st_mtime_ns, state.st_size


@lru_cache(maxsize=4)
def _read(refs_path: Path, instances_path: Path, *stamps: tuple[int, int]) -> _Tree:
    """Both files; the stamps only make the memory forget a file that has changed."""
    refs = _read_refs(refs_path)
    instances = _read_instances(instances_path)
    named = {number for ref in refs for number in _annotation_ids(ref)}
    try:
        images = {_whole(image, "id"): image for image in instances["images"]}
        for image in images.values():
            height, width = _whole(image, "height"), _whole(image, "width")
            if min(height, width) < 1 or height * width > MOST_PIXELS or not _plain_name(image["file_name"]):
                raise ValueError(f"image {image['id']} has no usable size or file name")
        annotations = {
            entry["id"]: Annotation(entry["id"], entry["segmentation"])
            for entry in instances["annotations"]
            if _whole(entry, "id") in named
        }
    except (KeyError, TypeError, ValueError) as error:
        what = f"no {error}" if isinstance(error, KeyError) else str(error)
        raise DataError(f"'{instances_path}' is not a COCO instances file ({what}); download it again.") from None
    return _Tree(refs, images, annotations)


def _whole(record: Any, key: str) -> int:
    value = record[key]
    if type(value) is not int:
        raise ValueError(f"'{key}' is {value!r}, not a whole number")
    return value


def _plain_name(name: Any) -> bool:
    """A file name that stays inside the image folder."""
    return isinstance(name, str) and bool(name) and Path(name).name == name and name not in (".", "..")


def _read_instances(path: Path) -> Any:
    try:
        with path.open(encoding="utf-8") as file:
            return json.load(file)
    except (ValueError, RecursionError) as error:
        raise DataError(f"'{path}' is not valid JSON ({error}); download it again.") from None
    except OSError as error:
        raise DataError(f"'{path}' cannot be read ({error.strerror}).") from None


def _unpickle(data: bytes) -> Any:
    """Load plain containers, and refuse what would run code or exhaust memory before it can."""
    for opcode, argument, _ in pickletools.genops(data):
        # the C unpickler fills a table as long as the largest memo index; an honest index is below the file's length
        if opcode.name in ("PUT", "BINPUT", "LONG_BINPUT") and argument is not None and argument > len(data):
            raise pickle.UnpicklingError(f"it counts {argument} objects in {len(data)} bytes")
    # latin-1 takes every byte string that Python 2 may have written
    return _PlainUnpickler(io.BytesIO(data), encoding="latin-1").load()


def _read_refs(path: Path) -> list[dict[str, Any]]:
    """Refs of all splits; nothing in the file can run."""
    try:
        refs = _unpickle(path.read_bytes())
    except OSError as error:
        raise DataError(f"'{path}' cannot be read ({error.strerror}).") from None
    except Exception as error:  # a damaged pickle can raise nearly anything
        raise DataError(
            f"'{path}' is not a refs file of plain lists, dicts, text and numbers ({error}); it was not loaded, "
            "download it again."
        ) from None
    if not isinstance(refs, list):
        raise DataError(f"'{path}' holds a {type(refs).__name__}, not the list of refs; download it again.")
    for number, ref in enumerate(refs):
        for key, kinds in FIELDS.items():
            if not isinstance(ref, dict) or not isinstance(ref.get(key), kinds):
                raise DataError(f"Ref {number} of '{path}' has no usable '{key}'; download it again.")
        if not all(type(a) is int for a in (ref["ann_id"] if isinstance(ref["ann_id"], list) else [ref["ann_id"]])):
            raise DataError(f"Ref {number} of '{path}' has an 'ann_id' that is no number; download it again.")
        for sentence in ref["sentences"]:
            if not (
                isinstance(sentence, dict) and isinstance(sentence.get("sent"), str) and isinstance(sentence.get("sent_id"), int)
            ):
                raise DataError(f"Ref {number} of '{path}' has a sentence without text or id; download it again.")
    return refs
