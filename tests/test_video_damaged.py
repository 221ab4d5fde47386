"""Damaged video data: one sentence that names the file, and never a number."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from harness.data import DataError
from harness.data.video import members as parts
from harness.data.video.davis import convert_davis
from harness.data.video.members import members
from harness.data.video.places import FILES
from harness.data.video.writer import Said, Video, write_davis, write_youtube
from tests.video_trees import DAVIS, HEIGHT, MEVIS, WIDTH, YOUTUBE, change, clip, davis, load, mevis, youtube

RAW = Path("ref-davis/DAVIS")
IDS, JPEGS = RAW / "Annotations_unsupervised/480p/bear", RAW / "JPEGImages/480p/bear"
VAL = RAW / "ImageSets/2017/val.txt"
TEXTS = Path("ref-davis/davis_text_annotations")
LIST = Path("mevis/valid_u/meta_expressions.json")
MASKS = Path("mevis/valid_u/mask_dict.json")
Damage = Callable[[Path], object]


def one_sentence(caught: pytest.ExceptionInfo[DataError]) -> None:
    assert "\n" not in str(caught.value) and str(caught.value).endswith(".")


def all_pixels(root: Path, which: str) -> None:
    for sample in load(root, which):
        for place in range(len(sample.frames)):
            sample.image(place)
            sample.masks(place)


def resized(path: Path) -> None:
    opened = Image.open(path)
    opened.resize((WIDTH - 1, HEIGHT)).save(path)


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-30])


def text_of(old: bytes, new: bytes, file: str = "Davis17_annot2") -> Damage:
    def edit(root: Path) -> None:
        path = root / TEXTS / f"{file}.txt"
        assert old in path.read_bytes()
        path.write_bytes(path.read_bytes().replace(old, new))

    return edit


# --- Ref-DAVIS-17


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda root: (root / JPEGS / "00001.jpg").unlink(), r"the frame '00002\.jpg' where 00001\.jpg is"),
        (lambda root: (root / JPEGS / "00002.jpg").unlink(), r"the mask '.*/00002\.png' without a frame"),
        (lambda root: (root / IDS / "00001.png").unlink(), r"1 of 6 masks .* missing, .*bear/00001\.png"),
        (
            lambda root: [path.unlink() for path in (root / JPEGS).iterdir()],
            "1 of 2 videos of ref-davis17:val have no frames, the first is '.*bear'",
        ),
        (lambda root: resized(root / JPEGS / "00001.jpg"), r"00001\.jpg' is 63x40 px, but .* 64x40"),
        (lambda root: resized(root / IDS / "00001.png"), r"00001\.png' cannot .*\(it has 63x40 px, and"),
        (lambda root: (root / IDS / "00001.png").write_bytes(b"no"), r"00001\.png' cannot be used"),
        (
            lambda root: Image.new("RGB", (WIDTH, HEIGHT)).save(root / IDS / "00001.png"),
            "has the mode RGB, and object ids need a palette",
        ),
        (lambda root: (root / JPEGS / "00001.jpg").write_bytes(b"no"), r"00001\.jpg' .* cannot be read"),
        (lambda root: (root / JPEGS / "00000.jpg").write_bytes(b"no"), r"00000\.jpg' .* cannot be read"),
        (lambda root: (root / VAL).write_text("../../etc\n"), "'../../etc' is no name"),
        (lambda root: (root / VAL).write_text(""), "it names no video"),
        (lambda root: (root / VAL).write_text("cat\ncat"), "names a video twice"),
        (lambda root: (root / VAL).write_bytes(b"\xff"), r"val\.txt' cannot be used"),
        (lambda root: (root / TEXTS / "Davis17_annot2.txt").unlink(), r"annot2\.txt' cannot be read"),
        (text_of(b"bear 2", b"cat 7"), r"annot2\.txt' speaks of the objects 1 of video bear, .* of 1, 2"),
        (text_of(b"bear 2", b"bear 1"), r"speaks of the objects 1, 1 of video bear"),
        (text_of(b"bear ", b"Bear "), r"speaks of the objects none of video bear"),
        (text_of(b"bear 2", b"bear two"), r"the object of line 2 is 'two', no whole number from 0 to 254"),
        (text_of(b"bear 2", b"bear 255"), r"the object of line 2 is '255', no whole"),
        (text_of(b"bear 2", b"bear " + b"9" * 5000), r"the object of line 2 is '9999"),
        (text_of(b"bear 2 ", b"bear2"), "the object of line 2 is"),
        (text_of(b'bear, 2, in Davis17_annot2', b""), "line 2 has no text"),
        (text_of(b"bear 2", b"bear \xff", "Davis17_annot1"), r"annot1\.txt' cannot be used .*utf-8"),
        (
            lambda root: [text_of(b" 2 ", b" 0 ", file)(root) for file in FILES],
            "'obj_id' is 0, which is no object",
        ),
    ],
)  # fmt: skip
def test_damaged_downloads_of_ref_davis(tmp_path: Path, damage: Damage, said: str) -> None:
    davis(tmp_path)
    all_pixels(tmp_path, DAVIS)
    damage(tmp_path)
    with pytest.raises(DataError, match=said) as caught:
        all_pixels(tmp_path, DAVIS)
    one_sentence(caught)


def videos(edit: Callable[[Any], object]) -> Damage:
    return lambda path: change(path, lambda content: edit(content["videos"]))


def expression(**fields: Any) -> Damage:
    return videos(lambda held: held["bear"]["expressions"]["2"].update(fields))


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda path: path.write_text(path.read_text()[:-9]), "cannot be used .*line 1 column"),
        (lambda path: path.write_text("[" * 10**5), "nested too deeply"),
        (lambda path: path.write_text("[1]"), "it is a list, not a dict"),
        (lambda path: path.write_text("{}"), "no 'videos'"),
        (lambda path: path.write_text('{"videos": {"x": 1}}'), "video x: it is a int, not a dict"),
        (videos(lambda held: held["bear"].pop("expressions")), "video bear has no 'expressions'"),
        (videos(lambda held: held["bear"].pop("frames")), "video bear has no frames"),
        (videos(lambda held: held["bear"].update(frames="00000")), "bear: 'frames' is a str, not a list"),
        (videos(lambda held: held["bear"]["frames"].reverse()), "has frames that are not in order"),
        (videos(lambda held: held["bear"]["frames"].append("00002")), "has frames that are not in order"),
        (videos(lambda held: held["bear"]["frames"].append("../../x")), "'../../x' is no name of a frame"),
        (videos(lambda held: held["bear"]["frames"].append(3)), "'3' is no name of a frame"),
        (videos(lambda held: held["bear"]["frames"].append("00003")), "1 of 7 frames of .* are missing"),
        (videos(lambda held: held["bear"]["frames"].pop()), r"has the mask '.*00002\.png' without a frame"),
        (videos(lambda held: held.update({"../up": held["cat"]})), r"'\.\./up' is no name of a video"),
        (videos(lambda held: held.update({".hidden": held["cat"]})), r"'\.hidden' is no name of a video"),
        (videos(lambda held: held.update({"a/b": held["cat"]})), "'a/b' is no name of a video"),
        (videos(lambda held: held["bear"]["expressions"].pop("7")), "not 4 of each, one behind the other"),
        (videos(lambda held: held["bear"]["expressions"].update(x={"exp": "it"})), "of expression 'x'"),
        (videos(lambda held: held["bear"]["expressions"].update({"01": {"exp": "it"}})), "is '01', no whole"),
        (videos(lambda held: held["bear"]["expressions"].update({"8": 7})), "expression '8' .* has no text"),
        (expression(exp=3), "has no text 'exp'"),
        (expression(exp=" "), "has no text 'exp'"),
        (expression(exp="\ud83d"), "half a character"),
        (expression(obj_id="2"), r"has expressions of the objects \[1, 1, 2, 1, "),
        (expression(obj_id=True), "'obj_id' is True, no whole number from 0 to 254"),
        (expression(obj_id=None), "'obj_id' is None"),
        (expression(obj_id=1.5), "'obj_id' is 1.5"),
        (expression(obj_id=-1), "'obj_id' is a number of 1 bits"),
        (expression(obj_id=10**4000), "'obj_id' is a number of 13288 bits"),
        (expression(obj_id="9" * 4000), "'obj_id' is '9999"),
    ],
)  # fmt: skip
def test_damaged_lists(tmp_path: Path, damage: Damage, said: str) -> None:
    davis(tmp_path / "raw")
    convert_davis(tmp_path / "raw", tmp_path / "ref-davis")
    all_pixels(tmp_path, DAVIS)
    damage(tmp_path / "ref-davis/meta_expressions/valid/meta_expressions.json")
    with pytest.raises(DataError, match=said) as caught:
        all_pixels(tmp_path, DAVIS)
    one_sentence(caught)


def test_what_cannot_be_converted_is_told(tmp_path: Path) -> None:
    davis(tmp_path)
    (tmp_path / RAW / "davis_semantics.json").write_text('{"bear": 1}')
    with pytest.raises(DataError, match=r"davis_semantics\.json' cannot .*; unpack DAVIS-2017_semantics"):
        convert_davis(tmp_path, tmp_path / "made")
    assert not (tmp_path / "made").exists()


# --- Refer-YouTube-VOS


def test_damaged_refer_youtube(tmp_path: Path) -> None:
    folder = youtube(tmp_path)
    (folder / "valid/JPEGImages/dog/00005.jpg").rename(folder / "valid/JPEGImages/dog/00001.jpg")
    with pytest.raises(DataError, match=r"1 of 7 frames of .*valid are missing, .*dog/00005\.jpg"):
        load(tmp_path, YOUTUBE)
    (folder / "train/Annotations/v1/00005.png").unlink()
    with pytest.raises(DataError, match=r"1 of 6 masks of .*train are missing, .*v1/00005\.png"):
        load(tmp_path, "ref-youtube-vos:train")
    path = folder / "meta_expressions/train/meta_expressions.json"
    change(path, lambda all_: all_["videos"]["v1"]["expressions"]["0"].update(obj_id="256"))
    with pytest.raises(DataError, match="'obj_id' of expression 0 of video v1 is '256', no whole number"):
        load(tmp_path, "ref-youtube-vos:train")
    change(path, lambda all_: all_["videos"]["v1"]["expressions"]["0"].pop("obj_id"))
    with pytest.raises(DataError, match="'obj_id' of expression 0 of video v1 is None"):
        load(tmp_path, "ref-youtube-vos:train")
    change(path, lambda all_: all_["videos"].pop("v2"))
    with pytest.raises(DataError, match=r"None of the 1 videos of .* is held out \(one of 16 is\)"):
        load(tmp_path, "ref-youtube-vos:heldout")


# --- MeViS


def masks_(edit: Callable[[Any], object]) -> Damage:
    return lambda root: change(root / MASKS, edit)


def listed(**fields: Any) -> Damage:
    def edit(root: Path) -> None:
        change(root / LIST, lambda all_: all_["videos"]["runner"]["expressions"]["0"].update(fields))

    return edit


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda root: (root / MASKS).unlink(), r"mask_dict\.json' cannot be read \(No such file"),
        (lambda root: cut(root / MASKS), "mask_dict.json' cannot be used"),
        (lambda root: (root / MASKS).write_bytes(b"\xff\xfe{}"), "mask_dict.json' cannot be used"),
        (lambda root: (root / MASKS).write_text("[]"), "at character 0 is '\\[' where one of '{' is due"),
        (masks_(lambda held: held.pop("0")), "means annotation 0, which .* does not hold; take both"),
        (masks_(lambda held: held.update({"0": {}})), "annotation 0 is a dict, not a list"),
        (masks_(lambda held: held["0"].pop()), "Annotation 0 has masks of 2 frames, and its clip has 3"),
        (masks_(lambda held: held["0"].append(None)), "Annotation 0 has masks of 4 frames"),
        (masks_(lambda held: held["0"].insert(1, 0)), "annotation 0 in frame 1 is a int, not a dict"),
        (masks_(lambda held: held["0"].insert(1, False)), "annotation 0 in frame 1 is a bool, not a dict"),
        (masks_(lambda held: held["0"].insert(1, {})), "annotation 0 has no run lengths in frame 1"),
        (masks_(lambda held: held["0"][1].update(size=[1, 2])), r"run lengths of size \[1, 2\]"),
        (masks_(lambda held: held["0"][1].update(size=["a", 2])), "annotation 0 has no run lengths"),
        (masks_(lambda held: held["0"][1].update(counts="!!")), "a character that they cannot have"),
        (masks_(lambda held: held["0"][1].update(counts=[5])), "do not add up to 2560 pixels"),
        (masks_(lambda held: held["0"][1].update(counts=7)), "annotation 0 has no run lengths in frame 1"),
        (listed(anno_id=None), "'anno_id' of expression 0 of video runner is a NoneType, not a list"),
        (listed(anno_id=[1.5]), "'anno_id' of expression 0 of video runner is 1.5, no whole number"),
        (listed(anno_id=[10**9 + 1]), "'anno_id' of expression 0 of video runner is a number of 30 bits"),
        (listed(anno_id=[99]), "means annotation 99, which"),
        (
            lambda root: (root / "mevis/valid_u/JPEGImages/bird/00001.jpg").unlink(),
            r"1 of 5 frames of mevis:valid_u are missing, .*bird/00001\.jpg'; unpack its JPEGImages",
        ),
    ],
)  # fmt: skip
def test_damaged_mevis(tmp_path: Path, damage: Damage, said: str) -> None:
    mevis(tmp_path)
    all_pixels(tmp_path, MEVIS)
    damage(tmp_path)
    with pytest.raises(DataError, match=said) as caught:
        all_pixels(tmp_path, MEVIS)
    one_sentence(caught)


def test_masks_of_another_length_cost_their_video_alone(tmp_path: Path) -> None:
    mevis(tmp_path)
    masks_(lambda held: held["0"].pop())(tmp_path)
    bird, runner = load(tmp_path, MEVIS)
    assert (bird.masks(1) == 1).any()
    with pytest.raises(DataError):
        runner.masks(0)


@pytest.fixture(scope="module")
def fuzzed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("fuzz")
    mevis(root)
    return root


@given(st.data())
@settings(max_examples=60, deadline=None)
def test_damaged_bytes_raise_nothing_but_data_errors(fuzzed: Path, data: st.DataObject) -> None:
    path = fuzzed / data.draw(st.sampled_from([LIST, MASKS]))
    good = path.read_bytes()
    bad = bytearray(good)
    for _ in range(data.draw(st.integers(1, 4))):
        bad[data.draw(st.integers(0, len(bad) - 1))] = data.draw(st.integers(0, 255))
    path.write_bytes(bytes(bad))
    try:
        all_pixels(fuzzed, MEVIS)
    except DataError as error:
        assert "\n" not in str(error)
    finally:
        path.write_bytes(good)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=6,
)


@given(place=st.integers(0, 4), value=JSON)
@settings(max_examples=60, deadline=None)
def test_absurd_types_raise_nothing_but_data_errors(fuzzed: Path, place: int, value: Any) -> None:
    path = fuzzed / LIST
    good = path.read_bytes()
    content = json.loads(good)
    video = content["videos"]["runner"]
    record = video["expressions"]["0"]
    holder, key = [
        (content, "videos"),
        (video, "frames"),
        (video, "expressions"),
        (record, "exp"),
        (record, "anno_id"),
    ][place]
    holder[key] = value
    path.write_text(json.dumps(content))
    try:
        all_pixels(fuzzed, MEVIS)
    except DataError as error:
        assert "\n" not in str(error)
    finally:
        path.write_bytes(good)


# --- members of a large object


@given(st.dictionaries(st.text(max_size=4), JSON, max_size=5), st.integers(1, 7), st.sampled_from([None, 1]))
@settings(max_examples=80, deadline=None)
def test_members_are_those_of_the_whole(
    tmp_path_factory: pytest.TempPathFactory, content: dict[str, Any], chunk: int, indent: int | None
) -> None:
    path = tmp_path_factory.mktemp("members") / "x.json"
    path.write_text(json.dumps(content, indent=indent), encoding="utf-8-sig")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(parts, "CHUNK", chunk)
        assert dict(members(path)) == content


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "at character 0 is '' where"),
        ('{"a": 1', "at character 7 is ''"),
        ('{"a": 1} x', "goes on behind its end, at character 9"),
        ('{"a": 1, "a": 2}', "it has twice 'a'"),
        ("{1: 2}", "has as a name '1'"),
        ('{"a" 1}', "at character 5 is '1'"),
        ('{"a": nul}', "at character 6"),
        ('{"a": ' + "[" * 10**5, "nested too deeply"),
        ('{"a": [' + "[]," * 2**19 + "[]]}", "made of brackets"),
    ],
)
def test_damaged_members(tmp_path: Path, text: str, said: str) -> None:
    (tmp_path / "x.json").write_text(text)
    with pytest.raises(ValueError, match=said):
        list(members(tmp_path / "x.json"))


def test_one_member_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parts, "CHUNK", 16)
    monkeypatch.setattr(parts, "MOST_OF_ONE", 64)
    (tmp_path / "x.json").write_text(json.dumps({"a": [1] * 10, "b": "x" * 500}))
    with pytest.raises(ValueError, match=r"what begins at character .* is longer than"):
        list(members(tmp_path / "x.json"))


# --- the writers


def test_writers_refuse_what_no_layout_can_hold(tmp_path: Path) -> None:
    made = clip("one")
    with pytest.raises(DataError, match="Object 1 of the clip 'one' has 0 texts in Davis17_annot1; Ref-D"):
        write_davis(tmp_path, [clip("one", said=(Said("it", (1,)),))])
    with pytest.raises(DataError, match="'both' means 2 objects; Refer-YouTube-VOS wants one"):
        write_youtube(tmp_path, [clip("one", said=(Said("both", (1, 2)),))])
    with pytest.raises(DataError, match=r"frames of shape \(3, 40, 64, 3\) and ids of shape \(2, 40, 64\)"):
        Video("one", made.frames, made.ids[:2], made.said)
    with pytest.raises(DataError, match="not uint8"):
        Video("one", made.frames, made.ids.astype(np.int64), made.said)
