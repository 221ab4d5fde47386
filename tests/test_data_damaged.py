"""Files that lie: damaged or malicious data are refused in one sentence, and nothing in them runs."""

from __future__ import annotations

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
        ("no refs", r"refs\(unc\)\.p' is missing; expected .*Refer_Segm/\{refcoco/\{refs\(unc\)\.p, instances\.json\}"),
        ("no instances", r"instances\.json' is missing; expected .*coco_2014/train2014/<images>\}"),
        ("no image", r"1 of 1 images of refcoco:val are missing, the first is '.*1\.png'; expected "),
        ("no images", "1 of 1 images .* expected"),
        ("bad json", r"instances\.json' is not valid JSON \(.*line 1 column"),
        ("binary json", "is not valid JSON"),
        ("deep json", "is not valid JSON"),
        ("other json", "not a COCO instances file"),
        ("other name", "image 1: no usable file name: '../../secret.png'"),
        ("no size", "'height' is '40', not a whole number"),
        ("lost annotation", r"annotation 500 \(ref 0\), annotation 501 \(ref 1\), .* and 2 more, which instances"),
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
