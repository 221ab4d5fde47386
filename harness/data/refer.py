"""Reader of the official REFER layout, as GLaMM and as LISA lay it out.

    DIR/Refer_Segm/refcoco/{refs(unc).p, instances.json}
    DIR/Refer_Segm/coco_2014/train2014/<images>

    DIR/refer_seg/refcoco/{refs(unc).p, instances.json}
    DIR/refer_seg/images/mscoco/images/train2014/<images>

The same for refcoco+, refcocog (`refs(umd).p`), grefcoco (`grefs(unc).json`) and RefShapes. Split rules are
those of the REFER API (https://github.com/lichengunc/refer) as mbzuai-oryx/groundingLMM uses it.

gRefCOCO has rules of its own (G_REFER of https://github.com/henghuiding/ReLA): an expression means any number
of objects, `ann_id` [-1] stands for none, splits are taken literally, crowds are left out, and parts that
overlap are one.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from harness.data.coco import Picture, load_instances, picture, shallow, whole
from harness.data.dataset import DataSet, Splits
from harness.data.refs import Ref, read_refs
from harness.data.sample import Annotation, DataError, Expression, Joined, Sample
from pruners.base import nearest

FOLDER = "Refer_Segm"
# what an image is known by, wherever it lies: rows of all layouts are drawn together
IMAGES = Path("coco_2014") / "train2014"
# folders of a data folder, GLaMM's and LISA's, and where the images lie in each
LAYOUTS = {FOLDER: IMAGES, "refer_seg": Path("images") / "mscoco" / "images" / "train2014"}
# any of them will do; the last one is ReLA's
IMAGE_FOLDERS = (*LAYOUTS.values(), Path("images") / "train2014")
# which some releases write before an image's name
PREFIXES = (*IMAGES.parts, "images", "mscoco", "images", "train2014")
GENERALISED = "grefcoco"
EVALUATION_SPLITS = ("val", "testA", "testB", "testC", "test")
SPLIT_BY = {"refcocog": "umd", "refshapesg": "umd"}  # all others: unc, as the official evaluation has it
PUBLISHED = ("refcoco", "refcoco+", "refcocog", GENERALISED)


class Refer(DataSet):
    """The data sets of a folder in the REFER layout."""

    name = "refer"
    reference = "https://github.com/lichengunc/refer"
    told = "refcoco, refcoco+ (val, testA, testB), refcocog (val, test), grefcoco; read from --data DIR"

    def names(self, root: Path | None) -> list[str]:
        return [] if root is None or not _is_layout(root) else refer_names(root)

    def holds(self, dataset: str, root: Path | None) -> bool:
        return split_name(dataset)[0] in self.names(root)

    def splits(self, dataset: str, root: Path | None) -> Splits:
        found = splits(Path(root or ""), dataset)
        return Splits(*found) if _generalised(dataset) else with_all_tests(*found)

    def load(self, dataset: str, split: str, root: Path | None) -> list[Sample]:
        return load_refer(Path(root or ""), dataset, split)


def with_all_tests(evaluation: list[str], others: list[str]) -> Splits:
    """Splits of the REFER API, which takes 'test' for all tests together."""
    together = "test" not in evaluation and any(name.startswith("test") for name in evaluation)
    return Splits(evaluation, [*others, *(["test"] if together else [])])


@dataclass(frozen=True)
class _Tree:
    """The two files of a data set: refs of all splits, the image records and the annotations that any of them
    names."""

    refs: list[Ref]
    images: dict[int, Picture]
    annotations: dict[int, Annotation]


def split_name(dataset: str) -> tuple[str, str]:
    """Folder and author of the split: 'refcocog' -> ('refcocog', 'umd'), 'refcocog(google)' -> ('refcocog',
    'google').

    Raises:
        DataError: not of the form `name` or `name(author)`.
    """
    match = re.fullmatch(r"([\w+.-]+)(?:\((\w+)\))?", dataset)
    if not match or set(match[1]) == {"."}:
        raise DataError(f"Data set '{dataset}' is not a name like refcoco or refcocog(google).")
    return match[1], match[2] or SPLIT_BY.get(match[1], "unc")


def _generalised(dataset: str) -> bool:
    """Whether it follows the rules of gRefCOCO."""
    return split_name(dataset)[0] == GENERALISED


def expected(root: Path, dataset: str) -> str:
    """The trees that a data set may lie in, on one line; that of a layout which is there alone."""
    folder, author = split_name(dataset)
    refs = f"grefs({author}).json" if folder == GENERALISED else f"refs({author}).p"
    there = [name for name in LAYOUTS if name == root.name or (root / name).is_dir()]
    trees = [
        f"{root if name == root.name else root / name}/{{{folder}/{{{refs}, instances.json}}, "
        f"{LAYOUTS[name].as_posix()}/<images>}}"
        for name in there or LAYOUTS
    ]
    return f"expected {' or '.join(trees)}"


def refer_names(root: Path) -> list[str]:
    """Data sets below `root` (DIR, or the folder of a layout), sorted: folders with an instances.json or a
    refs file.

    Raises:
        DataError: there is no such folder.
    """
    return sorted({name for base in bases(root) for name in _held(base)})


def splits(root: Path, dataset: str) -> tuple[list[str], list[str]]:
    """What the data set's refs file holds: its evaluation splits (val, testA, testB, testC, test), then the
    others.

    Raises:
        DataError: as load_refer.
    """
    held = sorted({ref.split for ref in _tree(Path(root), dataset).refs})
    own = [
        split
        for split in EVALUATION_SPLITS
        if split in held or (split[:-1] == "test" and any(map(_chooser(dataset, split), held)))
    ]
    return own, [split for split in held if split not in own]


def load_refer(root: str | Path, dataset: str, split: str) -> list[Sample]:
    """Read one split.

    Args:
        root: the folder that holds Refer_Segm or refer_seg, or one of these itself. Of two that hold the data
            set, Refer_Segm is read.
        dataset: folder below it, e.g. 'refcoco+'; 'refcocog(google)' names another author's splits.
        split: 'val', 'train', 'testA' (every split field with an A, as the REFER API has it), 'testB',
            'testC', 'test' (every split field that contains it), or any other split field, literally. Those
            of grefcoco are all taken literally.

    Returns:
        One sample per image, ordered by image id.

    Raises:
        DataError: folders or files are missing or damaged, the data set or split is unknown, ids do not
            resolve.
    """
    root = Path(root)
    tree = _tree(root, dataset)
    chosen = _chooser(dataset, split)
    refs = [ref for ref in tree.refs if chosen(ref.split)]
    if not refs:
        held = sorted({ref.split for ref in tree.refs})
        raise DataError(
            f"{dataset} has no split {split!r}, it has {', '.join(held) or 'none'}.{nearest(split, held)}"
        )
    if ".." in re.split(r"[/\\]", split) or split.startswith(("/", "\\")):
        raise DataError(
            f"The split {split!r} of {dataset} is a path; give it another name in {_files(root, dataset)[0]}."
        )
    by_image: dict[int, list[Ref]] = {}
    for ref in refs:
        if ref.sentences:  # as officially, an image that nothing is said about is left out
            by_image.setdefault(ref.image, []).append(ref)
    if not by_image:
        raise DataError(f"No ref of {dataset}:{split} has a sentence; take the refs file of the release.")
    _check_ids(dataset, refs, tree)
    _check_sentences(dataset, by_image)
    folder = _images(_base(root, dataset))
    samples = [
        _sample(dataset, split, folder, tree.images[image_id], by_image[image_id], tree)
        for image_id in sorted(by_image)
    ]
    absent = [sample.frames[0] for sample in samples if not sample.frames[0].is_file()]
    if absent:
        raise DataError(
            f"{len(absent)} of {len(samples)} images of {dataset}:{split} are missing, the first is "
            f"'{absent[0]}'; "
            f"{expected(root, dataset)}."
        )
    return samples


def _sample(dataset: str, split: str, folder: Path, image: Picture, refs: list[Ref], tree: _Tree) -> Sample:
    expressions, targets = [], []
    for ref in refs:
        target = tuple(tree.annotations[number] for number in ref.annotations)
        for number, text in ref.sentences:
            expressions.append(Expression(number, text, ref.id))
            targets.append(target)
    return Sample(
        id=f"{dataset}:{split}:{image.id}",
        dataset=dataset,
        split=split,
        image_id=image.id,
        frames=(folder / image.name,),
        expressions=tuple(expressions),
        height=image.height,
        width=image.width,
        targets=tuple(targets),
        cluster=f"{IMAGES.as_posix()}/{image.name}",
    )


def _chooser(dataset: str, split: str) -> Callable[[str], bool]:
    """Which split fields belong to a split, as the data set's own API decides it."""
    if _generalised(dataset):
        return lambda held: split == held
    if split in ("testA", "testB", "testC"):
        return lambda held: split[-1] in held
    if split == "test":
        return lambda held: split in held
    return lambda held: split == held


def _check_ids(dataset: str, refs: list[Ref], tree: _Tree) -> None:
    lost = [f"image {ref.image} (ref {ref.id})" for ref in refs if ref.image not in tree.images]
    for ref in refs:
        lost += [
            f"annotation {number} (ref {ref.id})"
            for number in ref.annotations
            if number not in tree.annotations
        ]
    if lost:
        more = f" and {len(lost) - 3} more" if len(lost) > 3 else ""
        raise DataError(
            f"refs of {dataset} name {', '.join(lost[:3])}{more}, which instances.json does not hold; "
            "take both files from the same download."
        )


def _check_sentences(dataset: str, by_image: dict[int, list[Ref]]) -> None:
    """A sentence's id is its record's key within the image."""
    for image, refs in by_image.items():
        first: dict[int, int] = {}
        for ref in refs:
            for number, _ in ref.sentences:
                if number in first:
                    raise DataError(
                        f"refs of {dataset} give the sentence id {number} twice in image {image} (refs "
                        f"{first[number]} and "
                        f"{ref.id}), and results are kept by it; number the sentences of the refs file "
                        f"from 0 on."
                    )
                first[number] = ref.id


def _held(base: Path) -> list[str]:
    kinds = ("instances.json", "refs(*).p", "grefs(*).p", "grefs(*).json")
    return sorted({file.parent.name for kind in kinds for file in base.glob(f"*/{kind}")})


def _is_layout(root: Path) -> bool:
    """Whether a folder is laid out as REFER is."""
    if any((root / name).is_dir() for name in LAYOUTS):
        return True
    return root.is_dir() and (root.name in LAYOUTS or bool(_held(root)))


def bases(root: Path) -> list[Path]:
    """The folders that data sets lie in: those of the layouts below `root`, or `root` itself.

    Raises:
        DataError: there is none.
    """
    if _is_layout(root):
        return [root / name for name in LAYOUTS if (root / name).is_dir()] or [root]
    what = f"holds no folder {FOLDER}" if root.is_dir() else "is no folder"
    raise DataError(f"Data folder '{root}' {what}; {expected(root, 'refcoco')}.")


def _base(root: Path, dataset: str) -> Path:
    """The first of `bases` that holds a data set; the first one if none does."""
    found = bases(root)
    return next((base for base in found if (base / split_name(dataset)[0]).is_dir()), found[0])


def _images(base: Path) -> Path:
    """Where the images of a base lie; where its layout has them if they lie nowhere."""
    usual = base / LAYOUTS.get(base.name, IMAGES)
    return next((base / place for place in IMAGE_FOLDERS if (base / place).is_dir()), usual)


def _tree(root: Path, dataset: str) -> _Tree:
    refs, instances = _files(root, dataset)
    folder = refs.parent
    if not folder.is_dir():
        held = refer_names(root)
        raise DataError(
            f"Data set '{dataset}' is not in '{folder.parent}', which holds {', '.join(held) or 'none'}."
            f"{nearest(dataset, held)} It is {expected(root, dataset)}."
        )
    for path in (refs, instances):
        if not path.is_file():
            others = sorted(other.name[5:-3] for other in folder.glob("refs(*).p")) if path is refs else []
            hint = f", or ask for {folder.name}({others[0]})" if others else ""
            raise DataError(f"File '{path}' is missing; {expected(root, dataset)}{hint}.")
    return _read(refs, instances, _generalised(dataset), _stamp(refs), _stamp(instances))


def _files(root: Path, dataset: str) -> tuple[Path, Path]:
    """The data set's refs file and its instances.json.

    gRefCOCO's is released as `grefs(unc).json`, and its own code takes a `grefs(unc).p` first. One under the
    name that all other data sets have was put there by hand, and comes before both.
    """
    folder_name, author = split_name(dataset)
    folder = _base(root, dataset) / folder_name
    refs = folder / f"refs({author}).p"
    if _generalised(dataset):
        released = folder / f"grefs({author}).json"
        refs = next((path for path in (refs, released.with_suffix(".p")) if path.is_file()), released)
    return refs, folder / "instances.json"


def _stamp(path: Path) -> tuple[int, int]:
    state = path.stat()
    return state.st_mtime_ns, state.st_size


@lru_cache(maxsize=4)
def _read(refs_path: Path, instances_path: Path, generalised: bool, *stamps: tuple[int, int]) -> _Tree:
    """Both files; the stamps only make the memory forget a file that has changed."""
    refs = read_refs(refs_path)
    return _Tree(refs, *_instances(instances_path, refs, generalised))


def _instances(
    path: Path, refs: list[Ref], generalised: bool
) -> tuple[dict[int, Picture], dict[int, Annotation]]:
    """Image records and annotations that refs name; what is named by none may be as it likes."""
    wanted = {ref.image for ref in refs}
    using: dict[int, set[int]] = {}
    for ref in refs:
        for number in ref.annotations:
            using.setdefault(number, set()).add(ref.image)
    images: dict[int, Picture] = {}
    annotations: dict[int, Annotation] = {}
    with load_instances(path) as content:
        for record in content["images"]:
            if (number := whole(record, "id")) in wanted:
                images[number] = picture(number, record, PREFIXES)
        for record in content["annotations"]:
            if (number := whole(record, "id")) in using:
                _check_owner(number, record, using[number])
                parts = shallow(number, record["segmentation"])
                if generalised:
                    annotations[number] = Joined(number, [] if record.get("iscrowd") else parts)
                else:
                    annotations[number] = Annotation(number, parts)
    return images, annotations


def _check_owner(number: int, record: Any, users: set[int]) -> None:
    """Ids that resolve by chance, as 1 to N do in any two files, show where no ref of the annotation's image
    names it."""
    if "image_id" in record and (owner := whole(record, "image_id")) not in users:
        raise DataError(
            f"instances.json has annotation {number} in image {owner}, and refs name it for image "
            f"{min(users)} alone; "
            "take both files from the same download."
        )
