"""Files that lie: damaged or malicious data are refused in one sentence, and nothing in them runs."""

from __future__ import annotations

import json
import os
import pickle
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from pycocotools import mask as coco_mask

from harness.data import DataError, load_refer
from harness.data.sample import Annotation, rasterise
from tests.refer_tree import HEIGHT, SQUARE, WIDTH, ref, write_tree


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


@pytest.mark.parametrize("payload", [b"\x80\x02]r\xff\xff\xff\xff.", b"(lp4000000000\n."])
def test_a_pickle_that_would_fill_the_memory_is_refused(tmp_path: Path, payload: bytes) -> None:
    write_tree(tmp_path, [])
    (tmp_path / "Refer_Segm" / "refcoco" / "refs(unc).p").write_bytes(payload)
    with pytest.raises(DataError, match=r"it counts \d+ objects in \d+ bytes"):
        load_refer(tmp_path, "refcoco", "val")


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
        (
            "no refs",
            r"refs\(unc\)\.p' is missing; "
            r"expected .*Refer_Segm/\{refcoco/\{refs\(unc\)\.p, instances\.json\}",
        ),
        ("no instances", r"instances\.json' is missing; expected .*coco_2014/train2014/<images>\}"),
        ("no image", r"1 of 1 images of refcoco:val are missing, the first is '.*1\.png'; expected "),
        ("no images", "1 of 1 images .* expected"),
        ("bad json", r"instances\.json' is not valid JSON \(.*line 1 column"),
        ("binary json", "is not valid JSON"),
        ("deep json", "is not valid JSON"),
        ("other json", "not a COCO instances file"),
        ("other name", "image 1: no usable file name: '../../secret.png'"),
        ("no size", "'height' is '40', not a whole number"),
        (
            "lost annotation",
            r"annotation 500 \(ref 0\), annotation 501 \(ref 1\), .* and 2 more, which instances",
        ),
        ("lost image", r"image 77 \(ref 3\), which instances\.json does not hold"),
        ("not a list", "holds a dict"),
        ("no split", "Ref 0 of .* has no usable 'split'"),
        ("no text", "Ref 0 of .* sentence without text"),
        ("odd annotation", r"Ref 0 of .*\('ann_id' is None, not a whole number"),
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
    Image.fromarray(np.full((HEIGHT, WIDTH), 9, dtype=np.uint8)).save(sample.frames[0])
    # grey images become RGB
    assert (sample.image() == 9).all() and sample.image().shape == (HEIGHT, WIDTH, 3)
    Image.fromarray(np.zeros((WIDTH, HEIGHT, 3), dtype=np.uint8)).save(sample.frames[0])
    with pytest.raises(DataError, match="is 40x64 px, but its annotations are for 64x40"):
        sample.image()
    sample.frames[0].write_bytes(b"no image")
    with pytest.raises(DataError, match="cannot be read"):
        sample.image()
    sample.frames[0].unlink()
    with pytest.raises(DataError, match="is gone"):
        sample.image()


def write_refs(root: Path, payload: bytes | list[Any]) -> None:
    content = payload if isinstance(payload, bytes) else pickle.dumps(payload, protocol=2)
    (root / "Refer_Segm" / "refcoco" / "refs(unc).p").write_bytes(content)


def nested_tuples() -> bytes:
    """A dict whose key is a tuple of twice a tuple of twice ..., 60 deep: hashing it takes 2**60 steps."""
    double = b"".join(b"0h" + bytes([k]) + b"h" + bytes([k]) + b"\x86q" + bytes([k + 1]) for k in range(60))
    return b"\x80\x02]}K\x01\x85q\x00" + double + b"K\x01sa."


def shared(key: str, value: Any, times: int = 5000) -> list[Any]:
    return [ref(1, 1, 11, "val", "it") | {key: value}] * times


@pytest.mark.parametrize(
    ("payload", "said"),
    [
        (shared("sentences", [{"sent_id": 1, "sent": "it"}] * 5000), "unfold to more than .* objects"),
        (shared("ann_id", [11] * 5000), "unfold to more than .* objects"),
        (shared("sentences", [{"sent_id": 1, "sent": "x" * 10**6}]), "unfold to more than .* characters"),
        (nested_tuples(), "asks for TUPLE1"),
        (shared("ref_id", 10**6000, 1), "'ref_id' is a number of 19932 bits, not a whole number"),
        (shared("image_id", True, 1), "'image_id' is True, not a whole number"),
        (shared("image_id", 1.5, 1), "'image_id' is 1.5, not a whole number"),
        (shared("sentences", [{"sent_id": 1, "sent": "the \ud83d star"}], 1), "half a character"),
        (shared("ref_id", np.int64(1), 1), r"numpy.*convert numpy's values with int\(\)"),
        (
            [ref(1, 1, 11, "val", "it"), ref(1, 1, 11, "val", "it")],
            r"sentence id 10 twice in image 1 \(refs 1 and 1\)",
        ),
        ([ref(1, 1, 11, "val")], "No ref of refcoco:val has a sentence"),
        ([], "it has none"),
    ],
)
def test_refs_files_that_explode_or_contradict_themselves(
    tmp_path: Path, payload: bytes | list[Any], said: str
) -> None:
    write_tree(tmp_path, [])
    write_refs(tmp_path, payload)
    with pytest.raises(DataError, match=said) as caught:
        load_refer(tmp_path, "refcoco", "val")
    assert "\n" not in str(caught.value)


def test_an_image_that_nothing_is_said_about_is_left_out(tmp_path: Path) -> None:
    write_tree(tmp_path, [ref(1, 1, 11, "val", "it"), ref(2, 2, 11, "val")])
    assert [sample.image_id for sample in load_refer(tmp_path, "refcoco", "val")] == [1]


@pytest.mark.parametrize("split", ["../x", "x/../../y", "/x", "..\\x"])
def test_a_split_that_leaves_its_folder(tmp_path: Path, split: str) -> None:
    write_tree(tmp_path, [ref(1, 1, 11, split, "it")])
    with pytest.raises(DataError, match="is a path"):
        load_refer(tmp_path, "refcoco", split)


@pytest.mark.parametrize("split", ["val/unseen", "val 2", "val..b", "ünseen", "%2e%2e"])
def test_odd_splits_are_data(tmp_path: Path, split: str) -> None:
    write_tree(tmp_path, [ref(1, 1, 11, split, "it\x00\n\u202e")])
    (sample,) = load_refer(tmp_path, "refcoco", split)
    assert sample.split == split and sample.expressions[0].text == "it\x00\n\u202e"


def edited(root: Path, change: Any) -> None:
    path = root / "Refer_Segm" / "refcoco" / "instances.json"
    content = json.loads(path.read_text())
    path.write_bytes(change(content) or json.dumps(content).encode())


@pytest.mark.parametrize(
    "change",
    [
        lambda content: content["images"][0].update(height=float(HEIGHT), id=1.0),
        lambda content: content["annotations"][0].update(id=11.0),
        lambda content: content["images"].append({"id": 9, "file_name": "../9", "height": 0, "width": "0"}),
        lambda content: content["images"][0].update(file_name="train2014/1.png"),
        lambda content: content["images"][0].update(file_name="coco_2014\\train2014\\1.png"),
        lambda content: content["annotations"][0].update(image_id=1),
        lambda content: b"\xef\xbb\xbf" + json.dumps(content).encode(),
    ],
)
def test_instances_as_other_tools_write_them(tmp_path: Path, change: Any) -> None:
    write_tree(tmp_path, [ref(1, 1, 11, "val", "it")])
    edited(tmp_path, change)
    (sample,) = load_refer(tmp_path, "refcoco", "val")
    assert sample.image().shape == (HEIGHT, WIDTH, 3) and (sample.masks() == 1).sum() == 400


def nest(depth: int) -> Any:
    return [nest(depth - 1)] if depth else []


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (
            lambda content: content["annotations"][0].update(image_id=2),
            "annotation 11 in image 2, and refs name it for image 1",
        ),
        (
            lambda content: content["annotations"][0].update(segmentation=nest(500)),
            "annotation 11 is nested too deeply",
        ),
        (
            lambda content: content["images"][0].update(width=10**9),
            "image 1 has no usable size: it has 1000000000x40 px",
        ),
        (lambda content: content["images"][0].update(file_name="/etc/hosts"), "image 1: no usable file name"),
        (lambda content: b"null", "not a COCO instances file"),
        (lambda content: b'{"images": ' + b"9" * 5000 + b"}", "not valid JSON"),
        (lambda content: b"[" + b"[]," * 10**6 + b"[]]", "not valid JSON .it is made of brackets"),
    ],
)
def test_instances_that_explode_or_contradict_the_refs(tmp_path: Path, change: Any, said: str) -> None:
    write_tree(tmp_path, [ref(1, 1, 11, "val", "it")])
    edited(tmp_path, change)
    with pytest.raises(DataError, match=said) as caught:
        load_refer(tmp_path, "refcoco", "val")
    assert "\n" not in str(caught.value)


def test_masks_that_do_not_fit_together(tmp_path: Path) -> None:
    write_tree(tmp_path, [ref(1, 1, 11, "val", *["it"] * 2000)])
    edited(tmp_path, lambda content: content["images"][0].update(height=8000, width=8000))
    (sample,) = load_refer(tmp_path, "refcoco", "val")
    with pytest.raises(DataError, match="2000 masks of 8000x8000 px"):
        sample.masks()


def packed(mask: np.ndarray) -> str:
    return coco_mask.encode(np.asfortranarray(mask, dtype=np.uint8))["counts"].decode()  # type: ignore[no-any-return]


def test_compressed_run_lengths_of_another_size(tmp_path: Path) -> None:
    """pycocotools decodes too few into memory that nobody has written."""
    mask = np.zeros((HEIGHT, WIDTH), dtype=np.uint8)
    mask[2:5, 2:5] = 1
    whole = packed(mask)
    assert (rasterise(Annotation(1, {"size": [HEIGHT, WIDTH], "counts": whole}), HEIGHT, WIDTH) == mask).all()
    for counts in (
        packed(mask[:10, :10]),
        packed(np.pad(mask, 9)),
        whole[:-3],
        whole[:-1],
        whole + "1",
        "~~~",
        "",
    ):
        with pytest.raises(DataError, match="annotation 1 is damaged"):
            rasterise(Annotation(1, {"size": [HEIGHT, WIDTH], "counts": counts}), HEIGHT, WIDTH)


def test_two_corners_are_no_box() -> None:
    line, square = [40.0, 10.0, 50.0, 20.0], SQUARE
    assert rasterise(Annotation(1, [line]), HEIGHT, WIDTH).sum() == 0
    alone = rasterise(Annotation(1, [square]), HEIGHT, WIDTH)
    for parts in ([line, square], [square, line]):
        assert (rasterise(Annotation(1, parts), HEIGHT, WIDTH) == alone).all()


def test_an_endless_outline_is_refused() -> None:
    with pytest.raises(DataError, match="an outline of more than"):
        rasterise(Annotation(1, [[0, 0, 99_999, 99_999] * 200]), HEIGHT, WIDTH)
