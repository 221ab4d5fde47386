"""The reader of the REFER layout: official files, both segmentation kinds, splits, damaged and malicious files."""

from __future__ import annotations

import json
import os
import pickle
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst
from PIL import Image
from pycocotools import mask as coco_mask

from harness.data import COLUMNS, REFSHAPES_COLUMNS, DataError, fingerprint, load, load_refer, parse_datasets
from harness.data.sample import Annotation, rasterise
from pruners.base import UserError

HEIGHT, WIDTH = 40, 64  # not square: a swapped axis shows
SQUARE = [10.0, 5.0, 30.0, 5.0, 30.0, 25.0, 10.0, 25.0]  # x 10..29, y 5..24
SHIFTED = [20.0, 15.0, 40.0, 15.0, 40.0, 35.0, 20.0, 35.0]  # overlaps it in x 20..29, y 15..24


def ref(number: int, image: int, ann: int | list[int], split: str, *texts: str) -> dict[str, Any]:
    sentences = [
        {"sent_id": number * 10 + k, "sent": text, "raw": text, "tokens": text.split()} for k, text in enumerate(texts)
    ]
    return {"ref_id": number, "ann_id": ann, "image_id": image, "split": split, "sentences": sentences}


def write_tree(
    root: Path,
    refs: Any,
    annotations: dict[int, Any] | None = None,
    dataset: str = "refcoco",
    author: str = "unc",
    images: tuple[int, ...] = (1, 2),
) -> Path:
    folder, pixels = root / "Refer_Segm" / dataset, root / "Refer_Segm" / "coco_2014" / "train2014"
    folder.mkdir(parents=True)
    pixels.mkdir(parents=True, exist_ok=True)
    for image in images:
        Image.fromarray(np.full((HEIGHT, WIDTH, 3), image, dtype=np.uint8)).save(pixels / f"{image}.png")
    (folder / f"refs({author}).p").write_bytes(pickle.dumps(refs, protocol=2))
    instances = {
        "images": [{"id": i, "file_name": f"{i}.png", "height": HEIGHT, "width": WIDTH} for i in images],
        "annotations": [{"id": k, "segmentation": s} for k, s in (annotations or {11: [SQUARE]}).items()],
    }
    (folder / "instances.json").write_text(json.dumps(instances))
    return root


def only_mask(root: Path, dataset: str = "refcoco") -> np.ndarray:
    (sample,) = load_refer(root, dataset, "val")
    (mask,) = sample.masks()
    return mask


def box(*corners: tuple[int, int, int, int]) -> np.ndarray:
    """Sum of filled boxes (x0, y0, x1, y1), ends excluded, painted without pycocotools."""
    mask = np.zeros((HEIGHT, WIDTH), dtype=np.uint8)
    for x0, y0, x1, y1 in corners:
        mask[y0:y1, x0:x1] += 1
    return mask


# --- the official files -------------------------------------------------------------------------------------------


def test_golden_tree(golden_glamm_dir: Path) -> None:
    root = golden_glamm_dir / "refer"
    samples = load_refer(root, "refcoco", "val")
    assert [s.image_id for s in samples] == [11, 22, 33]
    assert samples == load_refer(root / "Refer_Segm", "refcoco", "val")
    assert "train only" not in [e.text for s in samples for e in s.expressions]
    assert [e.text for e in samples[1].expressions] == [
        "left dog",
        "dog on far left",
        "second bowl from the right",
        "bowl near the tree",
        "blue car",
    ]
    for sample in samples:
        stored = np.load(golden_glamm_dir / f"img{sample.image_id}_inputs.npz")
        assert (sample.image() == stored["image_rgb"]).all()
        texts, masks = [e.text for e in sample.expressions], sample.masks()
        assert masks.dtype == np.uint8 and masks.shape == (len(texts), *stored["original_hw"])
        for sentence, truth in zip(stored["sentences"], stored["gt_masks"], strict=True):
            assert (masks[texts.index(str(sentence))] == truth).all()


# --- masks ----------------------------------------------------------------------------------------------------------


def test_overlapping_parts_sum_to_two(tmp_path: Path) -> None:
    write_tree(tmp_path, [ref(1, 1, 11, "val", "it")], {11: [SQUARE, SHIFTED]})
    mask = only_mask(tmp_path)
    assert mask.max() == 2
    assert (mask == box((10, 5, 30, 25), (20, 15, 40, 35))).all()


def test_empty_segmentation_is_an_empty_mask(tmp_path: Path) -> None:
    write_tree(tmp_path, [ref(1, 1, 11, "val", "it")], {11: []})
    assert (only_mask(tmp_path) == np.zeros((HEIGHT, WIDTH))).all()


def test_grefcoco_joins_targets_and_knows_none(tmp_path: Path) -> None:
    refs = [ref(1, 1, [11, 12], "val", "both"), ref(2, 1, [-1], "val", "none"), ref(3, 1, [12], "val", "one")]
    write_tree(tmp_path, refs, {11: [SQUARE], 12: [SHIFTED]}, dataset="grefcoco")
    (sample,) = load_refer(tmp_path, "grefcoco", "val")
    first, second = box((10, 5, 30, 25)), box((20, 15, 40, 35))
    assert (sample.masks() == np.stack([first | second, np.zeros_like(first), second])).all()


@given(st.data())
@settings(max_examples=60)
def test_rectangles_fill_their_pixels(data: st.DataObject) -> None:
    height, width = data.draw(st.integers(1, 30)), data.draw(st.integers(1, 30))
    parts, expected = [], np.zeros((height, width), dtype=np.uint8)
    for _ in range(data.draw(st.integers(1, 3))):
        x0, y0 = data.draw(st.integers(0, width - 1)), data.draw(st.integers(0, height - 1))
        x1, y1 = data.draw(st.integers(x0 + 1, width)), data.draw(st.integers(y0 + 1, height))
        parts.append([x0, y0, x1, y0, x1, y1, x0, y1])
        expected[y0:y1, x0:x1] += 1
    assert (rasterise(Annotation(1, parts), height, width) == expected).all()


def runs(mask: np.ndarray) -> list[int]:
    """COCO run lengths told from their definition: column by column, background first."""
    counts, value = [0], False
    for pixel in mask.T.ravel():
        if bool(pixel) != value:
            counts.append(0)
            value = not value
        counts[-1] += 1
    return counts


@given(npst.array_shapes(min_dims=2, max_dims=2, max_side=12).flatmap(lambda s: npst.arrays(np.bool_, s)))
def test_run_lengths_of_every_kind(mask: np.ndarray) -> None:
    height, width = mask.shape
    plain = {"size": [height, width], "counts": runs(mask)}
    packed = coco_mask.encode(np.asfortranarray(mask, dtype=np.uint8))
    text = {"size": [height, width], "counts": packed["counts"].decode()}
    for segmentation in (plain, [plain], text, [text]):
        before = json.dumps(segmentation)
        assert (rasterise(Annotation(1, segmentation), height, width) == mask).all()
        assert json.dumps(segmentation) == before
    assert (rasterise(Annotation(1, [text, plain]), height, width) == 2 * mask).all()


@pytest.mark.parametrize(
    "segmentation",
    [
        "text",
        7,
        [7],
        [[1.0, 2.0, 3.0]],
        [[0.0, 0.0, 1e300, 0.0, 1.0, 1.0]],
        [[0.0, 0.0, float("nan"), 0.0, 1.0, 1.0]],
        [["0", "0", "1", "0", "1", "1"]],
        [SQUARE, {"size": [HEIGHT, WIDTH], "counts": [HEIGHT * WIDTH]}],
        {"counts": [5]},
        {"size": [WIDTH, HEIGHT], "counts": [HEIGHT * WIDTH]},
        {"size": [HEIGHT, WIDTH], "counts": [5, -5, HEIGHT * WIDTH]},
        {"size": [HEIGHT, WIDTH], "counts": [5]},
        {"size": [HEIGHT, WIDTH], "counts": None},
        {"size": [HEIGHT, WIDTH], "counts": "é"},
    ],
)
def test_damaged_segmentations_name_their_annotation(segmentation: Any) -> None:
    with pytest.raises(DataError, match="annotation 11 is damaged"):
        rasterise(Annotation(11, segmentation), HEIGHT, WIDTH)


# --- splits ----------------------------------------------------------------------------------------------------------


def test_splits_match_as_in_the_refer_api(tmp_path: Path) -> None:
    fields = ("train", "val", "testA", "testB", "testAB", "test")
    write_tree(tmp_path, [ref(k, 1, 11, field, field) for k, field in enumerate(fields)])

    def texts(split: str) -> list[str]:
        return [e.text for s in load_refer(tmp_path, "refcoco", split) for e in s.expressions]

    assert texts("testA") == ["testA", "testAB"]
    assert texts("testB") == ["testB", "testAB"]
    assert texts("test") == ["testA", "testB", "testAB", "test"]
    assert texts("val") == ["val"]
    assert texts("train") == ["train"]
    assert texts("testAB") == ["testAB"]


def test_samples_are_images_in_order_with_all_sentences(tmp_path: Path) -> None:
    refs = [ref(4, 2, 12, "val", "b", "c"), ref(2, 1, 11, "val", "a"), ref(3, 2, 11, "val", "d")]
    write_tree(tmp_path, refs, {11: [SQUARE], 12: [SHIFTED]})
    one, two = load_refer(tmp_path, "refcoco", "val")
    assert (one.id, two.id) == ("refcoco:val:1", "refcoco:val:2")
    assert [(e.id, e.text, e.ref_id) for e in two.expressions] == [(40, "b", 4), (41, "c", 4), (30, "d", 3)]
    assert (two.masks() == np.stack([box((20, 15, 40, 35))] * 2 + [box((10, 5, 30, 25))])).all()
    assert two.image().shape == (HEIGHT, WIDTH, 3) and (two.image() == 2).all()


def test_refcocog_takes_umd_unless_told(tmp_path: Path) -> None:
    refs = [ref(1, 1, 11, "val", "umd")]
    write_tree(tmp_path, refs, dataset="refcocog", author="umd")
    other = tmp_path / "Refer_Segm" / "refcocog" / "refs(google).p"
    other.write_bytes(pickle.dumps([ref(1, 1, 11, "val", "google")]))
    assert load_refer(tmp_path, "refcocog", "val")[0].expressions[0].text == "umd"
    assert load_refer(tmp_path, "refcocog(google)", "val")[0].expressions[0].text == "google"
    (tmp_path / "Refer_Segm" / "refcocog" / "refs(umd).p").unlink()
    with pytest.raises(DataError, match=r"ask for refcocog\(google\)"):
        load_refer(tmp_path, "refcocog", "val")


def test_a_changed_file_is_read_again(tmp_path: Path) -> None:
    write_tree(tmp_path, [ref(1, 1, 11, "val", "old")])
    load_refer(tmp_path, "refcoco", "val")
    (tmp_path / "Refer_Segm" / "refcoco" / "refs(unc).p").write_bytes(pickle.dumps([ref(1, 1, 11, "val", "newer")]))
    assert load_refer(tmp_path, "refcoco", "val")[0].expressions[0].text == "newer"


# --- files that lie -----------------------------------------------------------------------------------------------


class Bomb:
    def __init__(self, call: Any, *arguments: Any) -> None:
        self.call, self.arguments = call, arguments

    def __reduce__(self) -> Any:
        return self.call, self.arguments


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
@pytest.mark.parametrize("kind", ["system", "eval", "path", "numpy"])
def test_a_malicious_pickle_is_refused_and_nothing_runs(tmp_path: Path, kind: str, protocol: int) -> None:
    mark = tmp_path / "ran"
    bombs = {
        "system": Bomb(os.system, f"touch '{mark}'"),
        "eval": Bomb(eval, f"open({str(mark)!r}, 'w').close()"),
        "path": Bomb(Path.touch, mark),
        "numpy": Bomb(np.zeros, 3),
    }
    payload = pickle.dumps([ref(1, 1, 11, "val", "it"), {"x": bombs[kind]}], protocol)
    if kind == "system":  # the bomb is a live one
        pickle.loads(payload)
        assert mark.exists()
        mark.unlink()
    write_tree(tmp_path, [])
    (tmp_path / "Refer_Segm" / "refcoco" / "refs(unc).p").write_bytes(payload)
    with pytest.raises(DataError, match="not loaded") as caught:
        load_refer(tmp_path, "refcoco", "val")
    assert not mark.exists()
    assert "\n" not in str(caught.value)


def test_python_2_pickles_are_read(tmp_path: Path) -> None:
    write_tree(tmp_path, [])
    text = b"(lp0\n(dp1\nS'ref_id'\nI1\nsS'ann_id'\nL11L\nsS'image_id'\nI1\nsS'split'\nS'val'\ns"
    text += b"S'sentences'\n(lp2\n(dp3\nS'sent_id'\nI9\nsS'sent'\nVthe caf\\u00e9\nsasa."
    (tmp_path / "Refer_Segm" / "refcoco" / "refs(unc).p").write_bytes(text)
    (sample,) = load_refer(tmp_path, "refcoco", "val")
    assert sample.expressions[0].text == "the café"


@pytest.fixture(scope="module")
def fuzzed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tree(tmp_path_factory.mktemp("fuzz"), [ref(1, 1, 11, "val", "it", "that")])


@given(st.data())
@settings(max_examples=150, deadline=None)
def test_damaged_pickles_raise_nothing_but_data_errors(fuzzed: Path, data: st.DataObject) -> None:
    good = bytearray(pickle.dumps([ref(1, 1, 11, "val", "it", "that")], protocol=2))
    for _ in range(data.draw(st.integers(1, 4))):
        good[data.draw(st.integers(0, len(good) - 1))] = data.draw(st.integers(0, 255))
    cut = data.draw(st.integers(0, len(good)))
    path = fuzzed / "Refer_Segm" / "refcoco" / "refs(unc).p"
    path.write_bytes(bytes(good) if data.draw(st.booleans()) else bytes(good[:cut]))
    try:
        load_refer(fuzzed, "refcoco", "val")
    except DataError as error:
        assert str(path.parent) in str(error) or "refcoco" in str(error)


def broken(change: str, root: Path) -> None:
    """Spoil one thing of a good tree."""
    folder, images = root / "Refer_Segm" / "refcoco", root / "Refer_Segm" / "coco_2014" / "train2014"
    refs, instances = folder / "refs(unc).p", folder / "instances.json"
    if change == "no refs":
        refs.unlink()
    elif change == "no instances":
        instances.unlink()
    elif change == "no image":
        (images / "1.png").unlink()
    elif change == "no images":
        shutil.rmtree(images)
    elif change == "bad json":
        instances.write_text('{"images": [')
    elif change == "binary json":
        instances.write_bytes(b"\xff\xfe\x00")
    elif change == "deep json":
        instances.write_text("[" * 100_000)
    elif change == "other json":
        instances.write_text("[1, 2]")
    elif change == "other name":
        instances.write_text(instances.read_text().replace('"1.png"', '"../../secret.png"'))
    elif change == "no size":
        instances.write_text(instances.read_text().replace('"height": 40', '"height": "40"'))
    elif change == "lost annotation":
        refs.write_bytes(pickle.dumps([ref(k, 1, 500 + k, "val", "it") for k in range(5)]))
    elif change == "lost image":
        refs.write_bytes(pickle.dumps([ref(3, 77, 11, "val", "it")]))
    elif change == "not a list":
        refs.write_bytes(pickle.dumps({"refs": []}))
    elif change == "no split":
        refs.write_bytes(pickle.dumps([{**ref(1, 1, 11, "val", "it"), "split": None}]))
    elif change == "no text":
        refs.write_bytes(pickle.dumps([{**ref(1, 1, 11, "val"), "sentences": [{"sent_id": 1}]}]))
    elif change == "odd annotation":
        refs.write_bytes(pickle.dumps([ref(1, 1, [None], "val", "it")]))  # type: ignore[list-item]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ("no refs", r"refs\(unc\)\.p' is missing; expected .*Refer_Segm/\{refcoco/\{refs\(unc\)\.p, instances\.json\}"),
        ("no instances", r"instances\.json' is missing; expected .*coco_2014/train2014/<images>\}"),
        ("no image", r"1 of 1 images of refcoco:val are missing, the first is '.*1\.png'; expected "),
        ("no images", "1 of 1 images .* expected"),
        ("bad json", r"instances\.json' is not valid JSON \(.*line 1 column"),
        ("binary json", "is not valid JSON"),
        ("deep json", "is not valid JSON"),
        ("other json", "not a COCO instances file"),
        ("other name", "image 1 has no usable size or file name"),
        ("no size", "'height' is '40', not a whole number"),
        ("lost annotation", r"annotation 500 \(ref 0\), annotation 501 \(ref 1\), .* and 2 more, which instances"),
        ("lost image", r"image 77 \(ref 3\), which instances\.json does not hold"),
        ("not a list", "holds a dict"),
        ("no split", "Ref 0 of .* has no usable 'split'"),
        ("no text", "Ref 0 of .* sentence without text"),
        ("odd annotation", "Ref 0 of .* 'ann_id'"),
    ],
)
def test_damaged_trees_are_named_in_one_sentence(tmp_path: Path, change: str, said: str) -> None:
    write_tree(tmp_path, [ref(1, 1, 11, "val", "it")])
    assert len(load_refer(tmp_path, "refcoco", "val")) == 1
    broken(change, tmp_path)
    with pytest.raises(DataError, match=said) as caught:
        load_refer(tmp_path, "refcoco", "val")
    assert "\n" not in str(caught.value)


def test_images_of_another_size_or_kind(tmp_path: Path) -> None:
    write_tree(tmp_path, [ref(1, 1, 11, "val", "it")])
    (sample,) = load_refer(tmp_path, "refcoco", "val")
    Image.fromarray(np.full((HEIGHT, WIDTH), 9, dtype=np.uint8)).save(sample.path)
    assert (sample.image() == 9).all() and sample.image().shape == (HEIGHT, WIDTH, 3)  # grey images become RGB
    Image.fromarray(np.zeros((WIDTH, HEIGHT, 3), dtype=np.uint8)).save(sample.path)
    with pytest.raises(DataError, match="is 40x64 px, but its annotations are for 64x40"):
        sample.image()
    sample.path.write_bytes(b"no image")
    with pytest.raises(DataError, match="cannot be read"):
        sample.image()
    sample.path.unlink()
    with pytest.raises(DataError, match="is gone"):
        sample.image()


# --- names ----------------------------------------------------------------------------------------------------------


def test_parse_without_a_root() -> None:
    assert parse_datasets("all") == list(REFSHAPES_COLUMNS)
    assert len(REFSHAPES_COLUMNS) == len(COLUMNS) == 8
    assert [split for _, split in REFSHAPES_COLUMNS] == [split for _, split in COLUMNS]
    assert parse_datasets("refshapesg") == [("refshapesg", "val"), ("refshapesg", "test")]
    assert parse_datasets(" refshapes+:testB , refshapes:val,refshapes+:testB") == [
        ("refshapes+", "testB"),
        ("refshapes", "val"),
    ]


def test_parse_with_a_root(tmp_path: Path) -> None:
    # `all` stays the eight columns of the tables, whatever a folder lacks: the reader then names what is missing
    write_tree(tmp_path, [ref(1, 1, 11, "val", "it"), ref(2, 1, 11, "testB", "it"), ref(3, 1, 11, "train", "it")])
    assert parse_datasets("refcoco", tmp_path) == [("refcoco", "val"), ("refcoco", "testB")]
    assert parse_datasets("refcoco:train,refcoco:test,refshapes:val", tmp_path) == [
        ("refcoco", "train"),
        ("refcoco", "test"),
        ("refshapes", "val"),
    ]
    assert parse_datasets("all", tmp_path) == list(COLUMNS)
    own = tmp_path / "own"
    write_tree(own, [ref(1, 1, 11, "val", "it")], dataset="mine")
    assert parse_datasets("mine", own) == [("mine", "val")]
    assert len(load("mine", "val", own)) == 1


@pytest.mark.parametrize(
    ("text", "root", "said"),
    [
        ("refshape:val", False, r"Unknown data set 'refshape', there are refshapes, .* Did you mean 'refshapes'\?"),
        ("refshape:val", True, r"Unknown data set 'refshape', .* Did you mean 'refshapes'\?"),
        ("refshapes:vall", False, r"refshapes has no split 'vall', it has val, testA, testB.* Did you mean 'val'\?"),
        ("refshapes:", False, "refshapes has no split ''"),
        ("refshapes:train", False, "refshapes has no split 'train'"),
        ("refcoco:val", False, r"refcoco is not shipped; name the folder that holds Refer_Segm/refcoco with --data"),
        ("refcoco:testA", True, r"refcoco has no split 'testA', it has val"),
        ("refcoco+:val", True, r"'refcoco\+' is not in .*, which holds refcoco\. Did you mean 'refcoco'\? Expected"),
        ("../etc:val", True, "is not a name like"),
        (" , ", False, "No data set is named"),
    ],
)
def test_unknown_names(tmp_path: Path, text: str, root: bool, said: str) -> None:
    write_tree(tmp_path, [ref(1, 1, 11, "val", "it")])
    with pytest.raises(UserError, match=said):
        parse_datasets(text, tmp_path if root else None)


def test_roots_without_data(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"is no folder; expected .*/Refer_Segm/\{refcoco/"):
        parse_datasets("refcoco:val", tmp_path / "nowhere")
    with pytest.raises(DataError, match="holds no folder Refer_Segm; expected"):
        parse_datasets("refcoco:val", tmp_path)


def test_fingerprint_sees_all_that_a_run_reads(tmp_path: Path) -> None:
    refs = [ref(1, 1, 11, "val", "it"), ref(2, 2, 11, "val", "it")]
    write_tree(tmp_path / "one", refs)
    samples = load_refer(tmp_path / "one", "refcoco", "val")
    shutil.copytree(tmp_path / "one", tmp_path / "two")
    assert fingerprint(load_refer(tmp_path / "two", "refcoco", "val")) == fingerprint(samples)
    assert fingerprint(samples) != fingerprint(samples[:1])
    said = replace(samples[0].expressions[0], text="that")
    assert fingerprint([replace(samples[0], expressions=(said,)), samples[1]]) != fingerprint(samples)
    meant = ((Annotation(11, [SHIFTED]),),)
    assert fingerprint([replace(samples[0], targets=meant), samples[1]]) != fingerprint(samples)
    copied = load_refer(tmp_path / "two", "refcoco", "val")
    Image.fromarray(np.full((HEIGHT, WIDTH, 3), 99, dtype=np.uint8)).save(copied[0].path)
    assert fingerprint(copied) != fingerprint(samples)
    copied[0].path.unlink()
    with pytest.raises(DataError, match="cannot be read"):
        fingerprint(copied)
