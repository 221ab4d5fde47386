"""ReasonSeg from disk: where it is found, what its shapes mean, and damaged files, which cost their image
alone."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from harness import doctor
from harness.data import DataError, Sample, fingerprint, load_samples, parse_datasets
from harness.data.reasonseg import FARTHEST, Shapes, shapes_of
from harness.engine.runner import Plan, prepare, run
from harness.store import records
from pruners import UserError
from tests.fake_backbone import FakeBackbone
from tests.refer_tree import HEIGHT, WIDTH, ref, write_tree

cv2 = pytest.importorskip("cv2")
BOX = [[10, 5], [30, 5], [30, 25], [10, 25]]  # outline included: x 10..30, y 5..25


def shape(label: str, points: Any) -> dict[str, Any]:
    return {"label": label, "points": points}


def write(
    root: Path, name: str = "one", shapes: Any = (), split: str = "val", text: Any = None, **more: Any
) -> Path:
    """One image with its file; returns the file."""
    folder = root / "reason_seg" / "ReasonSeg" / split
    folder.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(len(name)).integers(0, 256, (HEIGHT, WIDTH, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(folder / f"{name}.jpg")
    path = folder / f"{name}.json"
    held = {"text": text or ["What is it?", "unasked"], "is_sentence": True, "shapes": list(shapes)} | more
    path.write_text(json.dumps(held))
    return path


def box(x0: int, y0: int, x1: int, y1: int) -> list[list[int]]:
    return [[x0, y0], [x1, y0], [x1, y1], [x0, y1]]


def mask_of(*shapes: dict[str, Any]) -> np.ndarray:
    return Shapes(1, shapes_of(list(shapes))).mask(HEIGHT, WIDTH)


# --- where it is


@pytest.mark.parametrize("below", ["", "reason_seg", "reason_seg/ReasonSeg"])
def test_it_is_found_below_the_data_folder(tmp_path: Path, below: str) -> None:
    for split in ("train", "val", "test"):
        write(tmp_path, f"of {split}", split=split)
    root = tmp_path / below
    assert parse_datasets("reasonseg", root) == [("reasonseg", "val"), ("reasonseg", "test")]
    assert parse_datasets("all", root) == [("reasonseg", "val"), ("reasonseg", "test")]
    assert parse_datasets("reasonseg:train", root) == [("reasonseg", "train")]
    (sample,) = load_samples("reasonseg", "test", root)
    assert (sample.id, sample.cluster) == ("reasonseg:test:of test", "ReasonSeg/test/of test.jpg")
    assert [(one.id, one.text, one.form) for one in sample.expressions] == [(0, "What is it?", "sentence")]


def test_refer_beside_it(tmp_path: Path) -> None:
    write(tmp_path)
    write_tree(tmp_path, [ref(1, 1, 11, "val", "it")])
    assert parse_datasets("reasonseg,refcoco:val", tmp_path) == [("reasonseg", "val"), ("refcoco", "val")]


@pytest.mark.parametrize(
    ("text", "there", "said"),
    [
        (
            "reasonseg",
            None,
            "reasonseg is not shipped; name the folder that holds reason_seg/ReasonSeg with --data DIR",
        ),
        ("reasonseg", "refer", r"reasonseg is not in .*; expected .*/reason_seg/ReasonSeg/\{train, val, tes"),
        ("reasonseg:tset", "reason", r"reasonseg has no split 'tset', it has val\."),
        ("reasonsg", "reason", r"Unknown data set 'reasonsg', .* Did you mean 'reasonseg'\?"),
    ],
)
def test_what_is_not_there(tmp_path: Path, text: str, there: str | None, said: str) -> None:
    if there == "refer":
        write_tree(tmp_path, [ref(1, 1, 11, "val", "it")])
    if there == "reason":
        write(tmp_path)
    with pytest.raises(UserError, match=said):
        parse_datasets(text, tmp_path if there else None)


def test_a_folder_without_data_is_told_where_it_would_lie(tmp_path: Path) -> None:
    with pytest.raises(
        UserError, match=r"Refer_Segm.* ReasonSeg is '.*/reason_seg/ReasonSeg/\{train, val, t"
    ):
        parse_datasets("reasonseg", tmp_path)


def test_own_data_may_not_take_its_name(tmp_path: Path) -> None:
    (tmp_path / "reasonseg").mkdir()
    (tmp_path / "reasonseg" / "expressions.csv").write_text("split,image,expression,annotations\n")
    with pytest.raises(UserError, match="'reasonseg' is a data set of"):
        parse_datasets("reasonseg", tmp_path)


# --- what shapes mean


def test_shapes() -> None:
    target = mask_of(shape("target", BOX))
    assert target.sum() == 21 * 21 and set(target[5:26, 10:31].ravel()) == {1}
    inside = mask_of(
        shape("an IGNORED one", box(12, 7, 20, 15)), shape("x", BOX), shape("FLAG", box(0, 0, 60, 39))
    )
    assert (inside == 255).sum() == 81, "the smaller one lies on top, whatever comes first"
    around = mask_of(shape("target", BOX), shape("ignore", box(0, 0, 60, 39)))
    assert (around == 1).sum() == 441 and (around == 255).sum() == 61 * 40 - 441
    assert mask_of().sum() == mask_of(shape("target", [])).sum() == 0
    assert (mask_of(shape("target", [[-0.9, 3.9], [5.9, 3.9]])) == 1).nonzero()[1].tolist() == [*range(6)]


@pytest.mark.parametrize("turned", [False, True])
def test_of_equal_areas_the_first_lies_on_top(turned: bool) -> None:
    shapes = [shape("target", BOX), *(shape("ignore", box(0, y, 6, y + 6)) for y in (0, 8)), shape("no", BOX)]
    shapes[-1]["label"] = "ignored"
    value = 255 if turned else 1
    mask = mask_of(*(shapes[::-1] if turned else shapes))
    assert set(mask[5:26, 10:31].ravel()) == {value}


def test_no_polygons_are_an_empty_target(tmp_path: Path) -> None:
    write(tmp_path)
    (sample,) = load_samples("reasonseg", "val", tmp_path)
    assert sample.targets == ((),) and sample.masks().sum() == 0


@pytest.mark.parametrize("orientation", [1, 3, 6, 8])
def test_masks_lie_on_the_image_as_it_is_turned(tmp_path: Path, orientation: int) -> None:
    path = write(tmp_path, shapes=[shape("target", BOX)]).with_suffix(".jpg")
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.open(path).save(path, exif=exif)
    (sample,) = load_samples("reasonseg", "val", tmp_path)
    size = (WIDTH, HEIGHT) if orientation > 4 else (HEIGHT, WIDTH)
    assert sample.masks().shape[1:] == sample.image().shape[:2] == size


def test_a_mask_and_a_form_are_a_part_of_what_data_are_known_by(tmp_path: Path) -> None:
    marks = set()
    for shapes, sentence in (
        ([shape("target", BOX)], True),
        ([shape("ignore", BOX)], True),
        ([shape("target", BOX)], False),
    ):
        write(tmp_path, shapes=shapes, is_sentence=sentence)
        marks.add(fingerprint(load_samples("reasonseg", "val", tmp_path)))
    assert len(marks) == 3


# --- OpenCV


def test_without_opencv(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path, shapes=[shape("target", BOX)])
    monkeypatch.setitem(sys.modules, "cv2", None)
    with pytest.raises(DataError, match=r"drawn by OpenCV .*; pip install 'groundprune\[reasonseg\]'"):
        load_samples("reasonseg", "val", tmp_path)
    assert parse_datasets("reasonseg", tmp_path) == [("reasonseg", "val")], "no other command needs it"


@pytest.mark.parametrize("version", ["4.11.0", "4.14.0", "5.0.0"])
def test_an_opencv_that_fills_otherwise(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, version: str
) -> None:
    write(tmp_path)
    monkeypatch.setitem(sys.modules, "cv2", SimpleNamespace(__version__=version))
    with pytest.raises(DataError, match=rf"OpenCV {version} fills polygons otherwise .*; pip install"):
        load_samples("reasonseg", "val", tmp_path)


# --- damaged files


def with_shapes(*shapes: Any) -> Callable[[Path], object]:
    return lambda path: path.write_text(
        json.dumps({"text": ["it"], "is_sentence": False, "shapes": list(shapes)})
    )


def with_field(**change: Any) -> Callable[[Path], object]:
    return lambda path: path.write_text(json.dumps(json.loads(path.read_text()) | change))


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (Path.unlink, "No such file"),
        (lambda path: path.write_text('{"text": ['), "line 1 column"),
        (lambda path: path.write_bytes(b'{"text": "\x81"}'), "0x81"),
        (lambda path: path.write_text("[" * 10**5), "nested too deeply"),
        (lambda path: path.write_text("[1]"), "it holds a list"),
        (lambda path: path.write_text("9" * 5000), "digits"),
        (lambda path: path.write_text(" " * 2**22 + "{}"), "it has 4 MiB"),
        (lambda path: path.write_text("{}"), "it has no 'text'"),
        (with_field(text="it"), "'text' is 'it'"),
        (with_field(text=[]), r"'text' is \[\]"),
        (with_field(text=[" "]), r"'text' is \[' '\]"),
        (with_field(text=[3]), r"'text' is \[3\]"),
        (with_field(text=["\ud83d"]), "surrogate"),
        (with_field(is_sentence="no"), "'is_sentence' is 'no', neither true nor false"),
        (with_field(shapes={}), "'shapes' are no list"),
        (with_field(shapes=[{}] * 1001), "no list of at most 1000"),
        (with_shapes({"points": []}), "it has no 'label'"),
        (with_shapes(7), "not subscriptable"),
        (with_shapes(shape("target", 3)), "3 as points"),
        (with_shapes({"label": None, "points": []}), "the label None"),
        (with_shapes(shape("target", [[1, 2, 3]])), r"the point \[1, 2, 3\], which is no pixel position"),
        (with_shapes(shape("target", [["1", "2"]])), r"the point \['1', '2'\]"),
        (with_shapes(shape("target", [[float("nan"), 2]])), r"the point \[nan, 2\]"),
        (with_shapes(shape("target", [[True, 2]])), r"the point \[True, 2\]"),
        (with_shapes(shape("target", [[FARTHEST + 1, 2]])), r"the point \[100001, 2\]"),
    ],
)
def test_a_damaged_file_costs_its_image_alone(
    tmp_path: Path, damage: Callable[[Path], object], said: str
) -> None:
    damage(write(tmp_path, "bad", [shape("target", BOX)]))
    write(tmp_path, "good", [shape("target", BOX)])
    bad, good = load_samples("reasonseg", "val", tmp_path)
    with pytest.raises(DataError, match=rf"bad\.json' cannot be used \(.*{said}.*; mend bad\.json") as caught:
        bad.masks()
    assert "\n" not in str(caught.value)
    assert (good.masks() == 1).sum() == 441


def test_a_damaged_file_is_known_by_what_is_wrong_and_not_by_its_folder(tmp_path: Path) -> None:
    for name in ("here", "there"):
        with_field(text=[])(write(tmp_path / name))
    one, two = (load_samples("reasonseg", "val", tmp_path / name) for name in ("here", "there"))
    assert fingerprint(one) == fingerprint(two)


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (Path.unlink, "is gone"),
        (lambda path: path.write_bytes(b"no image"), "cannot be read"),
        (lambda path: path.write_bytes(path.read_bytes()[:600]), "cannot be read"),
    ],
)
def test_a_damaged_image_costs_itself_alone(
    tmp_path: Path, damage: Callable[[Path], object], said: str
) -> None:
    damage(write(tmp_path, "bad", [shape("target", BOX)]).with_suffix(".jpg"))
    write(tmp_path, "good", [shape("target", BOX)])
    bad, good = load_samples("reasonseg", "val", tmp_path)
    with pytest.raises(DataError, match=rf"bad\.jpg' .*{said}"):
        bad.image()
    assert good.image().shape == (HEIGHT, WIDTH, 3)


def test_a_run_goes_on_without_the_damaged(tmp_path: Path) -> None:
    for number in range(30):
        write(tmp_path, f"image {number:02}", [shape("target", BOX)])
    place = tmp_path / "reason_seg" / "ReasonSeg" / "val"
    (place / "image 03.json").write_text("{")
    (place / "._image 04.jpg").write_bytes(b"what a Mac leaves behind")
    plan = Plan("none,uniform", (8,), "reasonseg:val", data=str(tmp_path))
    backbone = FakeBackbone()
    assert run(plan, backbone, prepare(plan, backbone), tmp_path / "run")
    frame = records.load_records(tmp_path / "run")
    assert frame["sample"].nunique() == 29 and len(frame) == 58
    ((name, why),) = records.failures(tmp_path / "run").items()
    assert name == "reasonseg:val:image 03" and "mend image 03.json" in why


@pytest.fixture(scope="module")
def fuzzed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("fuzz")
    write(root, shapes=[shape("target", BOX), shape("ignore", box(0, 0, 9, 9))])
    return root


@given(st.data())
@settings(max_examples=100, deadline=None)
def test_damaged_files_raise_nothing_but_data_errors(fuzzed: Path, data: st.DataObject) -> None:
    path = fuzzed / "reason_seg" / "ReasonSeg" / "val" / "one.json"
    whole = {
        "text": ["it"],
        "is_sentence": False,
        "shapes": [shape("target", BOX), shape("ignore", box(0, 0, 9, 9))],
    }
    good = bytearray(json.dumps(whole).encode())
    for _ in range(data.draw(st.integers(1, 4))):
        good[data.draw(st.integers(0, len(good) - 1))] = data.draw(st.integers(0, 255))
    path.write_bytes(bytes(good))
    (sample,) = load_samples("reasonseg", "val", fuzzed)
    try:
        assert set(sample.masks().ravel()) <= {0, 1, 255}
    except DataError as error:
        assert "one.json" in str(error)


@given(st.lists(st.tuples(st.integers(-99, 99), st.integers(-99, 99)), min_size=1, max_size=9))
@settings(deadline=None)
def test_any_polygon_stays_inside_and_fills_its_own_corners(points: list[tuple[int, int]]) -> None:
    mask = mask_of(shape("target", [list(point) for point in points]))
    assert set(mask.ravel()) <= {0, 1}
    assert all(mask[y, x] for x, y in points if 0 <= x < WIDTH and 0 <= y < HEIGHT)


# --- the doctor


def test_the_doctor_counts_and_warns(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "REASONSEG", {"val": 2, "test": 3, "train": 1})
    for split in ("val", "test"):
        for name in ("one", "two"):
            write(tmp_path, name, [shape("target", BOX)], split)
    told = [(finding.level, finding.what) for finding in doctor._data(tmp_path)]
    assert told[0][0] == "ok" and told[0][1].startswith("reasonseg:val: 2 images, 2 refs, 2 expressions as p")
    assert told[1][0] == "wrong" and "has 2 images" in told[1][1] and "unpack the release's zip" in told[1][1]
    assert told[2] == (
        "note",
        "reasonseg:val was trained on by LISA's v1 models; compare them on its test split",
    )
    assert len(told) == 3
    shutil.rmtree(tmp_path / "reason_seg")
    write_tree(tmp_path, [ref(1, 1, 11, "val", "it")])
    notes = [finding.what for finding in doctor._data(tmp_path) if finding.level == "note"]
    for line in (
        "expected {root}/Refer_Segm/{{refcocog/{{refs(umd).p, instances.json}}, "
        "coco_2014/train2014/<images>}}",
        "expected {root}/Refer_Segm/{{grefcoco/{{grefs(unc).json, instances.json}}, "
        "coco_2014/train2014/<images>}}",
        "expected {root}/reason_seg/ReasonSeg/{{train, val, test}}/{{NAME.jpg, NAME.json}}",
    ):
        assert any(line.format(root=tmp_path) in note for note in notes), line


def test_the_published_counts() -> None:
    assert doctor.REASONSEG == {"train": 239, "val": 200, "test": 779}


def test_samples_are_equal_however_often_they_are_read(tmp_path: Path) -> None:
    write(tmp_path, shapes=[shape("target", BOX)])
    one, two = (load_samples("reasonseg", "val", tmp_path) for _ in range(2))
    assert one == two and all(isinstance(sample, Sample) for sample in one)
