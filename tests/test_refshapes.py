"""RefShapes: painted, written in the REFER layout, and read back by the reader of RefCOCO."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst
from PIL import Image

from harness.data import (
    REFSHAPES_COLUMNS,
    DataError,
    fingerprint,
    load_refer,
    load_samples,
    parse_datasets,
    prepare_refshapes,
)
from harness.data.refshapes import writer
from harness.data.refshapes.scenes import generate
from harness.data.sample import Annotation, rasterise


@pytest.fixture(scope="module")
def refshapes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return prepare_refshapes(tmp_path_factory.mktemp("refshapes"), images=4, train=3)


def tree_bytes(root: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(root)): path.read_bytes() for path in sorted(root.rglob("*")) if path.is_file()
    }


def test_refshapes_reads_back_what_was_painted(refshapes: Path) -> None:
    rings = 0
    for family, split in (*REFSHAPES_COLUMNS, ("refshapes", "train")):
        for sample in load_refer(refshapes, family, split):
            scene = writer.scene(split, sample.image_id % 1_000_000)
            assert (sample.image() == scene.image).all()
            texts = {text: target for target, text in scene.expressions[family]}
            assert sorted(e.text for e in sample.expressions) == sorted(texts)
            for expression, mask in zip(sample.expressions, sample.masks(), strict=True):
                thing = scene.objects[texts[expression.text]]
                assert (mask == thing.mask).all()
                rings += thing.shape == "ring"
    assert rings  # so that run lengths were read too


def test_refshapes_crowds_differ_as_the_real_splits_do(refshapes: Path) -> None:
    counts: dict[str, list[int]] = {}
    instances = json.loads((refshapes / "Refer_Segm" / "refshapes" / "instances.json").read_text())
    for image in instances["images"]:
        split = {v: k for k, v in writer.NUMBER.items()}[image["id"] // 1_000_000]
        owned = [a for a in instances["annotations"] if a["image_id"] == image["id"]]
        counts.setdefault(split, []).append(len(owned))
        for annotation in owned:
            mask = rasterise(Annotation(0, annotation["segmentation"]), image["height"], image["width"])
            ys, xs = np.nonzero(mask)
            x, y, width, height = annotation["bbox"]
            assert (xs.min(), ys.min(), xs.max() + 1, ys.max() + 1) == (x, y, x + width, y + height)
            assert annotation["area"] == mask.sum()
    assert max(counts["testA"]) <= 4 < 5 <= min(counts["testB"])


def test_refshapes_train_is_what_the_model_trains_on(refshapes: Path) -> None:
    data = pytest.importorskip("backbones.mini.training.data")
    for sample in load_refer(refshapes, "refshapes", "train"):
        assert (sample.image() == data.train_scene(sample.image_id % 1_000_000).image).all()
    seeds = {writer.scene_seed(split, k) for split in writer.NUMBER for k in range(1000)}
    assert len(seeds) == 1000 * len(writer.NUMBER)


def test_refshapes_is_the_same_byte_for_byte_and_processes_may_race(refshapes: Path, tmp_path: Path) -> None:
    code = (
        "import sys; from harness.data import prepare_refshapes; "
        "print(prepare_refshapes(sys.argv[1], images=4, train=3))"
    )
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[1])}
    racers = [
        subprocess.Popen(
            [sys.executable, "-c", code, str(tmp_path)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=environment | {"PYTHONHASHSEED": str(k)},
        )
        for k in range(2)
    ]
    outputs = [racer.communicate() for racer in racers]
    assert [racer.returncode for racer in racers] == [0, 0], outputs
    assert {out.strip() for out, _ in outputs} == {str(tmp_path / refshapes.name)}
    # no bar where there is no terminal
    assert {err for _, err in outputs} <= {"", "painting RefShapes: 19 images ...\n"}
    assert os.listdir(tmp_path) == [refshapes.name]
    assert tree_bytes(tmp_path / refshapes.name) == tree_bytes(refshapes)


def test_refshapes_records_fingerprints(refshapes: Path) -> None:
    manifest = json.loads((refshapes / writer.MANIFEST).read_text())
    assert manifest["generator"] in refshapes.name
    for column, stored in manifest["fingerprints"].items():
        assert fingerprint(load_refer(refshapes, *column.split(":"))) == stored
    assert set(manifest["fingerprints"]) >= {"refshapes:val", "refshapes:testB", "refshapes:train"}


def test_refshapes_is_not_painted_twice(refshapes: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(writer, "generate", None)
    assert prepare_refshapes(refshapes.parent, images=4, train=3) == refshapes


def test_an_interrupted_writer_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def stop(*_: Any) -> Any:
        raise KeyboardInterrupt

    monkeypatch.setattr(writer, "generate", stop)
    with pytest.raises(KeyboardInterrupt):
        prepare_refshapes(tmp_path, images=2)
    assert os.listdir(tmp_path) == []


def test_caches_that_cannot_be_used(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match="set GROUNDPRUNE_CACHE to a writable folder"):
        prepare_refshapes(tmp_path / "file", images=1)
    with pytest.raises(DataError, match="1 to 999999 images"):
        prepare_refshapes(tmp_path, images=0)
    half = tmp_path / f"refshapes-{writer.version()}-1"
    (half / "Refer_Segm").mkdir(parents=True)
    with pytest.raises(DataError, match="is incomplete; delete it"):
        prepare_refshapes(tmp_path, images=1)


def test_the_default_cache_follows_the_environment(
    refshapes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GROUNDPRUNE_CACHE", str(tmp_path))
    assert writer.cache_folder() == tmp_path
    monkeypatch.setattr(writer, "IMAGES_PER_SPLIT", 4)
    shutil.copytree(refshapes, tmp_path / f"refshapes-{writer.version()}-200")
    assert prepare_refshapes(images=200) == tmp_path / f"refshapes-{writer.version()}-200"
    monkeypatch.delenv("GROUNDPRUNE_CACHE")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert writer.cache_folder() == tmp_path / ".cache" / "groundprune"


def test_load_prefers_the_root_that_holds_refshapes(refshapes: Path) -> None:
    assert len(load_samples("refshapes", "train", refshapes)) == 3
    assert parse_datasets("all", refshapes) == list(REFSHAPES_COLUMNS)


@given(npst.arrays(np.uint8, st.tuples(st.integers(1, 150), st.integers(1, 250), st.just(3))))
@settings(max_examples=25, deadline=None)
def test_png_is_what_other_readers_read(tmp_path_factory: pytest.TempPathFactory, image: np.ndarray) -> None:
    path = tmp_path_factory.mktemp("png") / "image.png"
    path.write_bytes(writer.png(image))
    with Image.open(path) as opened:
        opened.load()
        assert (np.asarray(opened) == image).all()


def test_scenes_that_are_not_square(tmp_path: Path) -> None:
    scene = generate(5, "normal", height=120, width=200)
    folder, images = (
        tmp_path / "Refer_Segm" / "refshapes",
        tmp_path / "Refer_Segm" / "coco_2014" / "train2014",
    )
    family = writer._Family("refshapes")
    family.add(scene, "val", 1, "wide.png")
    images.mkdir(parents=True)
    family.write(folder)
    (images / "wide.png").write_bytes(writer.png(scene.image))
    (sample,) = load_refer(tmp_path, "refshapes", "val")
    assert (sample.image() == scene.image).all() and sample.masks().shape[1:] == (120, 200)
    texts = {text: target for target, text in scene.expressions["refshapes"]}
    for expression, mask in zip(sample.expressions, sample.masks(), strict=True):
        assert (mask == scene.objects[texts[expression.text]].mask).all()


def test_scenes_are_the_same_on_every_machine() -> None:
    """Stored results rest on these pixels and words; a new generator needs new baselines and a new model
    card."""
    digests = {}
    for split in writer.NUMBER:
        scene = writer.scene(split, 0)
        digest = hashlib.sha256(scene.image.tobytes())
        for thing in scene.objects:
            digest.update(np.packbits(thing.mask).tobytes())
        digest.update(json.dumps(scene.expressions, sort_keys=True).encode())
        digests[split] = digest.hexdigest()[:16]
    assert digests == {
        "val": "04fe1684c424dcbf",
        "testA": "83b0c4871ba4ae4f",
        "testB": "aaf245df63763550",
        "test": "a02bbee32adad5aa",
        "train": "1521ab86bea7b0fe",
    }
