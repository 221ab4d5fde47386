"""The reader of the REFER layout: official files, both segmentation kinds, splits, names."""

from __future__ import annotations

import json
import pickle
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst
from PIL import Image
from pycocotools import mask as coco_mask

from harness.data import (
    COLUMNS,
    REFSHAPES_COLUMNS,
    DataError,
    fingerprint,
    load_refer,
    load_samples,
    parse_datasets,
)
from harness.data.sample import Annotation, rasterise
from pruners.base import UserError
from tests.refer_tree import HEIGHT, SHIFTED, SQUARE, WIDTH, ref, write_tree


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


# --- the official files
# -------------------------------------------------------------------------------------------


def test_golden_tree(golden_glamm_dir: Path) -> None:
    root = golden_glamm_dir / "refer"
    stored = {int(path.stem[3:-7]): np.load(path) for path in golden_glamm_dir.glob("img*_inputs.npz")}
    samples = load_refer(root, "refcoco", "val")
    assert samples == load_refer(root / "Refer_Segm", "refcoco", "val")
    assert [sample.image_id for sample in samples] == sorted(stored)
    refs = pickle.loads((root / "Refer_Segm" / "refcoco" / "refs(unc).p").read_bytes())
    for sample in samples:
        arrays = stored[sample.image_id]
        assert (sample.image() == arrays["image_rgb"]).all()
        texts, masks = [e.text for e in sample.expressions], sample.masks()
        own = [ref for ref in refs if ref["image_id"] == sample.image_id and ref["split"] == "val"]
        assert texts == [sentence["sent"] for ref in own for sentence in ref["sentences"]]
        assert masks.dtype == np.uint8 and masks.shape == (len(texts), *arrays["original_hw"])
        for sentence, truth in zip(arrays["sentences"], arrays["gt_masks"], strict=True):
            named = [mask for text, mask in zip(texts, masks, strict=True) if text == sentence]
            assert any((mask == truth).all() for mask in named)


def as_lisa(root: Path) -> Path:
    """Move a tree to where LISA's README has it."""
    base = root / "refer_seg"
    (root / "Refer_Segm").rename(base)
    (base / "images" / "mscoco" / "images").mkdir(parents=True)
    (base / "coco_2014" / "train2014").rename(base / "images" / "mscoco" / "images" / "train2014")
    return base


@pytest.mark.parametrize("below", ["", "refer_seg"])
def test_the_layout_of_lisa(tmp_path: Path, below: str) -> None:
    refs = [ref(1, 1, 11, "val", "it"), ref(2, 2, 11, "testA", "that")]
    official = load_refer(write_tree(tmp_path / "glamm", refs), "refcoco", "val")
    as_lisa(write_tree(tmp_path / "lisa", refs))
    root = tmp_path / "lisa" / below
    assert parse_datasets("refcoco", root) == [("refcoco", "val"), ("refcoco", "testA")]
    found = load_samples("refcoco", "val", root)
    assert "refer_seg/images/mscoco/images/train2014/1.png" in found[0].frames[0].as_posix()
    assert fingerprint(found) == fingerprint(official)
    assert [sample.cluster for sample in found] == [sample.cluster for sample in official]
    assert (found[0].masks() == official[0].masks()).all() and found[0].image().shape == (HEIGHT, WIDTH, 3)
    found[0].frames[0].unlink()
    with pytest.raises(DataError, match=r"lisa/refer_seg/\{refcoco/.*, images/mscoco/images/train2014/<im"):
        load_refer(root, "refcoco", "val")


@pytest.mark.parametrize("images", ["images/mscoco/images/train2014", "images/train2014"])
def test_layouts_without_a_folder_of_their_own(tmp_path: Path, images: str) -> None:
    """`refer/data` of REFER, and ReLA's `datasets`."""
    base = write_tree(tmp_path, [ref(1, 1, 11, "val", "it")]) / "data"
    (tmp_path / "Refer_Segm").rename(base)
    (base / images).parent.mkdir(parents=True)
    (base / "coco_2014" / "train2014").rename(base / images)
    (sample,) = load_samples("refcoco", "val", base)
    assert sample.image().shape == (HEIGHT, WIDTH, 3)


def test_both_layouts_in_one_folder(tmp_path: Path) -> None:
    as_lisa(write_tree(tmp_path, [ref(1, 1, 11, "val", "lisa's")]))
    write_tree(tmp_path, [ref(1, 1, 11, "val", "glamm's")], dataset="refcoco+")
    texts = [load_refer(tmp_path, name, "val")[0].expressions[0].text for name in ("refcoco", "refcoco+")]
    assert texts == ["lisa's", "glamm's"]
    with pytest.raises(DataError, match=r"'refcocog' is not in .* which holds refcoco, refcoco\+\."):
        load_refer(tmp_path, "refcocog", "val")
    with pytest.raises(DataError, match=r"expected .*/Refer_Segm/\{refcoco/.* or .*/refer_seg/\{refcoco/"):
        load_refer(tmp_path / "nowhere", "refcoco", "val")


# --- masks
# ----------------------------------------------------------------------------------------------------------


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


# --- splits
# ----------------------------------------------------------------------------------------------------------


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
    (tmp_path / "Refer_Segm" / "refcoco" / "refs(unc).p").write_bytes(
        pickle.dumps([ref(1, 1, 11, "val", "newer")])
    )
    assert load_refer(tmp_path, "refcoco", "val")[0].expressions[0].text == "newer"


# --- names
# ----------------------------------------------------------------------------------------------------------


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
    # `all` stays the eight columns of the tables, whatever a folder lacks: the reader then names what is
    # missing
    write_tree(
        tmp_path, [ref(1, 1, 11, "val", "it"), ref(2, 1, 11, "testB", "it"), ref(3, 1, 11, "train", "it")]
    )
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
    assert len(load_samples("mine", "val", own)) == 1


@pytest.mark.parametrize(
    ("text", "root", "said"),
    [
        (
            "refshape:val",
            False,
            r"Unknown data set 'refshape', there are refshapes, .* Did you mean 'refshapes'\?",
        ),
        ("refshape:val", True, r"Unknown data set 'refshape', .* Did you mean 'refshapes'\?"),
        (
            "refshapes:vall",
            False,
            r"refshapes has no split 'vall', it has val, testA, testB.* Did you mean 'val'\?",
        ),
        ("refshapes:", False, "refshapes has no split ''"),
        ("refshapes:train", False, "refshapes has no split 'train'"),
        (
            "refcoco:val",
            False,
            r"refcoco is not shipped; name the folder that holds Refer_Segm/refcoco with --data",
        ),
        ("refcoco:testA", True, r"refcoco has no split 'testA', it has val"),
        (
            "refcoco+:val",
            True,
            r"'refcoco\+' is not in .*, which holds refcoco\. Did you mean 'refcoco'\? It is expected",
        ),
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
    Image.fromarray(np.full((HEIGHT, WIDTH, 3), 99, dtype=np.uint8)).save(copied[0].frames[0])
    assert fingerprint(copied) != fingerprint(samples)
    copied[0].frames[0].unlink()
    assert fingerprint(copied) != fingerprint(samples)  # missing, which the run records as failed
