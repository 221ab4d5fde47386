"""Referring video segmentation from disk: where it is found, what its masks mean, and both layouts of
Ref-DAVIS-17 alike."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco

from harness.data import DataError, fingerprint, parse_datasets
from harness.data.video import youtube as refer_youtube
from harness.data.video.davis import annotated, convert_davis
from harness.data.video.painted import palette
from harness.data.video.places import FILES
from harness.data.video.writer import Said, Video, write_davis, write_mevis, write_youtube
from pruners import UserError
from tests.video_trees import (
    DAVIS,
    HEIGHT,
    HELD_OUT,
    MEVIS,
    VOID,
    WIDTH,
    YOUTUBE,
    boxes,
    change,
    clip,
    davis,
    load,
    mevis,
    plain,
    youtube,
)

GOLDEN = Path(__file__).parent / "golden" / "video" / "mevis_expressions.npz"


# --- where it is


def test_all_three_in_one_folder(tmp_path: Path) -> None:
    for write in (davis, youtube, mevis):
        write(tmp_path)
    pairs = [("ref-davis17", "val"), ("ref-youtube-vos", "valid"), ("mevis", "valid_u")]
    assert parse_datasets("all", tmp_path) == pairs
    assert parse_datasets("ref-davis17,ref-youtube-vos,mevis", tmp_path) == pairs
    others = "mevis:valid,ref-youtube-vos:heldout,ref-youtube-vos:train"
    assert parse_datasets(others, tmp_path) == [tuple(one.split(":")) for one in others.split(",")]


@pytest.mark.parametrize("which", [DAVIS, YOUTUBE, MEVIS])
def test_a_data_folder_may_be_the_data_set_itself(tmp_path: Path, which: str) -> None:
    write = {DAVIS: davis, YOUTUBE: youtube, MEVIS: mevis}[which]
    folder = write(tmp_path).rename(tmp_path / "anything")
    assert parse_datasets("all", folder) == [tuple(which.split(":"))]
    assert load(folder, which)


@pytest.mark.parametrize(
    "place", ["ref-davis", "refer_davis/2017", "processed/refer_davis/2017", "2017", "x"]
)
def test_a_converted_ref_davis_is_no_youtube(tmp_path: Path, place: str) -> None:
    davis(tmp_path / "raw")
    convert_davis(tmp_path / "raw", tmp_path / place)
    root = tmp_path / place if place == "x" else tmp_path
    if root == tmp_path:
        shutil.rmtree(tmp_path / "raw")
    assert parse_datasets("all", root) == [("ref-davis17", "val")]
    assert parse_datasets("all", tmp_path / place) == [("ref-davis17", "val")]


@pytest.mark.parametrize(
    ("text", "there", "said"),
    [
        (
            "ref-davis17",
            False,
            "ref-davis17 is not shipped; name the folder that holds ref-davis with --data",
        ),
        ("mevis", False, "mevis is not shipped"),
        ("ref-youtube-vos", False, "ref-youtube-vos is not shipped"),
        ("ref-davis17", True, r"ref-davis17 is not in .*; expected .*/ref-davis/\{DAVIS/\{JPEGImages/480p"),
        (
            "mevis:valid_v",
            True,
            r"mevis has no split 'valid_v', it has valid_u, valid\. Did you mean 'valid",
        ),
        ("mevi", True, r"Unknown data set 'mevi'.* Did you mean 'mevis'"),
    ],
)
def test_what_is_not_there(tmp_path: Path, text: str, there: bool, said: str) -> None:
    mevis(tmp_path)
    with pytest.raises(UserError, match=said):
        parse_datasets(text, tmp_path if there else None)


def test_a_folder_without_data_is_told_where_they_would_lie(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"Video is '.*/ref-davis', '.*/ref-youtube-vos', '.*/mevis'\."):
        parse_datasets("mevis", tmp_path)


# --- Ref-DAVIS-17


def test_ref_davis_as_it_is_downloaded(tmp_path: Path) -> None:
    davis(tmp_path)
    bear, cat = load(tmp_path, DAVIS)
    assert (bear.id, bear.image_id, cat.image_id) == ("ref-davis17:val:bear", 0, 1)
    assert (bear.height, bear.width, bear.window, bear.cluster) == (HEIGHT, WIDTH, 64, "ref-davis17/bear")
    assert [path.name for path in bear.frames] == ["00000.jpg", "00001.jpg", "00002.jpg"]
    assert [(one.id, one.ref_id, one.group) for one in bear.expressions] == [
        (4 * k + a, k + 1, f"anno_{a}") for k in range(2) for a in range(4)
    ]
    assert [one.text for one in bear.expressions[4:]] == [f"bear, 2, in {file}" for file in FILES]
    ids = boxes(3, 2)
    for place in range(3):
        masks = bear.masks(place)
        assert masks.shape == (8, HEIGHT, WIDTH) and masks.dtype == np.uint8
        for expression, mask in zip(bear.expressions, masks, strict=True):
            assert ((mask == 1) == (ids[place] == expression.ref_id)).all()
            assert ((mask == 255) == (ids[place] == 255)).all() and set(np.unique(mask)) <= {0, 1, 255}
    assert not (bear.masks(2)[4] == 1).any() and (bear.masks(2)[4, VOID] == 255).all()


def test_both_layouts_are_the_same_samples(tmp_path: Path) -> None:
    write_davis(tmp_path / "raw", [clip("many", 4, 11), clip("cat"), clip("bear")])
    write_davis(tmp_path / "raw", [clip("old")], "train")
    assert convert_davis(tmp_path / "raw", tmp_path / "made" / "ref-davis") == ["val", "train"]
    for split in ("val", "train"):
        raw, made = (load(tmp_path / one, f"ref-davis17:{split}") for one in ("raw", "made"))
        assert fingerprint(raw) == fingerprint(made)
        for one, other in zip(raw, made, strict=True):
            assert (one.id, one.expressions, one.window) == (other.id, other.expressions, other.window)
            assert all((one.masks(k) == other.masks(k)).all() for k in range(len(one.frames)))
    folder = tmp_path / "made" / "ref-davis"
    listed = json.loads((folder / "meta_expressions" / "valid" / "meta_expressions.json").read_text())
    assert listed["videos"]["cat"]["frames"] == ["00000", "00001", "00002"]
    assert listed["videos"]["cat"]["expressions"]["5"] == {
        "exp": "cat, 2, in Davis17_annot1_full_video",
        "obj_id": "2",
    }
    meta = json.loads((folder / "valid" / "meta.json").read_text())
    assert meta["videos"]["cat"]["objects"] == {"1": {"category": "object"}, "2": {"category": "object"}}
    with pytest.raises(DataError, match="is converted already"):
        convert_davis(tmp_path / "made", tmp_path / "again")


def test_objects_are_sorted_as_texts(tmp_path: Path) -> None:
    write_davis(tmp_path, [clip("many", 4, 11)])
    (sample,) = load(tmp_path, DAVIS)
    objects = [one.ref_id for one in sample.expressions if one.group == "anno_2"]
    assert objects == [1, 10, 11, 2, 3, 4, 5, 6, 7, 8, 9]
    assert [one.id for one in sample.expressions] == list(range(44))
    ids = boxes(4, 11)[1]
    for expression, mask in zip(sample.expressions, sample.masks(1), strict=True):
        assert ((mask == 1) == (ids == expression.ref_id)).all()


def test_three_videos_are_misspelt(tmp_path: Path) -> None:
    names = {"classic-car": "clasic-car", "dogs-scale": "dog-scale", "motorbike": "motor-bike"}
    folder = davis(tmp_path, *names)
    for file, encoding in FILES.items():
        path = folder / "davis_text_annotations" / f"{file}.txt"
        text = path.read_text(encoding)
        for right, wrong in names.items():
            text = text.replace(f"{right} ", f"{wrong} ")
        path.write_text(text, encoding)
    assert [sample.id.split(":")[2] for sample in load(tmp_path, DAVIS)] == list(names)


def test_the_second_person_wrote_latin_1(tmp_path: Path) -> None:
    said = tuple(
        Said("caf\xe9 \x85 \u20ac" if encoding == "utf-8" else "caf\xe9 \x85 end", (1,), file)
        for file, encoding in FILES.items()
    )
    folder = write_davis(tmp_path, [clip("one", objects=1, said=said)])
    assert b"caf\xe9" in (folder / "davis_text_annotations" / "Davis17_annot2.txt").read_bytes()
    (sample,) = load(tmp_path, DAVIS)
    # \x85 is white space to Python, and the official converter joins words by one blank
    assert [one.text for one in sample.expressions] == [
        "caf\xe9 \u20ac",
        "caf\xe9 \u20ac",
        "caf\xe9 end",
        "caf\xe9 end",
    ]


def test_objects_that_nobody_speaks_of_are_counted(tmp_path: Path) -> None:
    said = tuple(Said("it", (1,), file) for file in FILES)
    folder = write_davis(tmp_path, [clip("one", objects=1, said=said)])
    ids = boxes(3, 3)
    for place in range(3):
        picture = Image.fromarray(ids[place], "P")
        picture.putpalette(palette())
        picture.save(folder / "DAVIS" / "Annotations_unsupervised" / "480p" / "one" / f"{place:05d}.png")
    (sample,) = load(tmp_path, DAVIS)
    tracks = annotated(sample)
    assert len(sample.expressions) == 4 and [track.id for track in tracks] == [1, 2, 3]
    assert ((tracks[2].mask(HEIGHT, WIDTH, 1) == 1) == (ids[1] == 3)).all()


def test_masks_are_a_part_of_what_data_are_known_by_and_folders_are_not(tmp_path: Path) -> None:
    marks = []
    for name in ("here", "there"):
        davis(tmp_path / name)
        marks.append(fingerprint(load(tmp_path / name, DAVIS)))
    path = tmp_path / "there/ref-davis/DAVIS/Annotations_unsupervised/480p/bear/00002.png"
    picture = Image.open(path)
    picture.putpixel((0, 0), 2)
    picture.save(path)
    marks.append(fingerprint(load(tmp_path / "there", DAVIS)))
    path.unlink()
    assert marks[0] == marks[1] != marks[2]


def test_masks_are_read_when_asked_for_and_not_kept(tmp_path: Path) -> None:
    davis(tmp_path)
    bear, _ = load(tmp_path, DAVIS)
    assert (bear.masks(1) == 1).any()
    (tmp_path / "ref-davis/DAVIS/Annotations_unsupervised/480p/bear/00001.png").unlink()
    with pytest.raises(DataError, match=r"00001\.png' is gone; mend Annotations") as caught:
        bear.masks(1)
    assert "\n" not in str(caught.value) and (bear.masks(0) == 1).any()


def test_the_palette_is_that_of_davis() -> None:
    assert palette()[:15] == [0, 0, 0, 128, 0, 0, 0, 128, 0, 128, 128, 0, 0, 0, 128]
    assert palette()[3 * 8 : 3 * 9] == [64, 0, 0] and palette()[-3:] == [224, 224, 192]


# --- Refer-YouTube-VOS


def test_refer_youtube_leaves_the_test_videos_out(tmp_path: Path) -> None:
    youtube(tmp_path)
    ant, dog = load(tmp_path, YOUTUBE)
    assert (ant.id, dog.id) == ("ref-youtube-vos:valid:ant", "ref-youtube-vos:valid:dog")
    assert [path.name for path in dog.frames] == ["00000.jpg", "00005.jpg", "00010.jpg", "00015.jpg"]
    assert (dog.scored, dog.window, dog.targets) == (False, 0, ((), ()))
    assert [(one.id, one.text, one.group) for one in dog.expressions] == [
        (0, "first in dog", ""),
        (1, "second in dog", ""),
    ]


def test_a_list_of_all_videos_needs_the_list_of_test(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = youtube(tmp_path)
    (folder / "meta_expressions/test/meta_expressions.json").unlink()
    with pytest.raises(DataError, match=r"3 of 10 frames of ref-youtube-vos:valid are missing"):
        load(tmp_path, YOUTUBE)  # those of the test video
    monkeypatch.setattr(refer_youtube, "VIDEOS", 2)
    with pytest.raises(DataError, match=r"names 3 videos, those of test among them, and there is no '.*tes"):
        load(tmp_path, YOUTUBE)


def test_train_and_what_is_held_out_of_it(tmp_path: Path) -> None:
    youtube(tmp_path)
    train, (held,) = load(tmp_path, "ref-youtube-vos:train"), load(tmp_path, "ref-youtube-vos:heldout")
    assert [sample.id for sample in train] == [
        "ref-youtube-vos:train:v1",
        f"ref-youtube-vos:train:{HELD_OUT}",
    ]
    assert held.id == f"ref-youtube-vos:heldout:{HELD_OUT}" and held.cluster == train[1].cluster
    assert held.scored and [one.ref_id for one in held.expressions] == [1, 2]
    ids = plain(HELD_OUT).ids
    for place in range(3):
        assert (held.masks(place) == np.stack([ids[place] == 1, ids[place] == 2])).all()
    names = [f"{number:010x}" for number in range(3471)]
    assert 150 < sum(map(refer_youtube.is_held_out, names)) < 280


def test_255_is_no_void_in_youtube(tmp_path: Path) -> None:
    write_youtube(tmp_path, [clip("v", said=(Said("it", (1,)),))], "train")
    (sample,) = load(tmp_path, "ref-youtube-vos:train")
    assert set(np.unique(sample.masks(0))) == {0, 1}


def test_valid_is_scored_where_its_masks_are(tmp_path: Path) -> None:
    folder = write_youtube(tmp_path, [plain("dog"), plain("ant")], "valid", masks=True)
    _, dog = load(tmp_path, YOUTUBE)
    assert dog.scored and (dog.masks(1)[1] == (plain("dog").ids[1] == 2)).all()
    scored = fingerprint([dog])
    shutil.rmtree(folder / "valid" / "Annotations" / "ant")
    with pytest.raises(DataError, match=r"3 of 6 masks of ref-youtube-vos:valid are missing, .*ant/0000"):
        load(tmp_path, YOUTUBE)
    shutil.rmtree(folder / "valid" / "Annotations")
    _, dog = load(tmp_path, YOUTUBE)
    assert not dog.scored and fingerprint([dog]) != scored


# --- MeViS


def test_mevis_joins_all_annotations_of_an_expression(tmp_path: Path) -> None:
    mevis(tmp_path)
    bird, runner = load(tmp_path, MEVIS)
    assert (bird.id, len(bird.frames), runner.scored) == ("mevis:valid_u:bird", 2, True)
    assert [one.text for one in runner.expressions[2:]] == ["both of them", "nobody"]
    ids = plain("runner").ids
    for place in range(3):
        first, second = ids[place] == 1, ids[place] == 2
        wanted = np.stack([first, second, first | second, np.zeros_like(first)])
        assert (runner.masks(place) == wanted).all()
    assert not runner.masks(2)[1].any(), "null: not to be seen"
    (fish,) = load(tmp_path, "mevis:valid")
    assert not fish.scored and fish.targets == ((), ())


def test_the_lists_name_tells_the_versions_apart(tmp_path: Path) -> None:
    folder = mevis(tmp_path) / "valid_u"
    first = fingerprint(load(tmp_path, MEVIS))
    shutil.copy(folder / "meta_expressions.json", folder / "meta_expressions_v2.json")
    with pytest.raises(DataError, match=r"holds meta_expressions\.json and meta_expressions_v2\.json, two"):
        load(tmp_path, MEVIS)
    (folder / "meta_expressions.json").unlink()
    assert fingerprint(load(tmp_path, MEVIS)) == first
    change(folder / "meta_expressions_v2.json", lambda all_: all_["videos"]["bird"]["expressions"].pop("1"))
    assert fingerprint(load(tmp_path, MEVIS)) != first


def test_golden_expressions_through_the_reader(tmp_path: Path) -> None:
    """Files and scores of the official code: its target of every frame is ours."""
    golden = np.load(GOLDEN)
    listed = json.loads(str(golden["meta_expressions_json"]))["videos"]
    runs = json.loads(str(golden["mask_dict_json"]))
    made = []
    for name, video in listed.items():
        frames, height, width = golden[f"{name}_0_shape"]
        pixels = np.zeros((frames, height, width, 3), dtype=np.uint8)
        made.append(Video(name, pixels, pixels[..., 0], (Said("x", ()),)))
        assert len(video["frames"]) == frames
    folder = write_mevis(tmp_path, made) / "valid_u"
    (folder / "meta_expressions.json").write_text(str(golden["meta_expressions_json"]))
    (folder / "mask_dict.json").write_text(str(golden["mask_dict_json"]))
    seen = 0
    for sample in load(tmp_path, MEVIS):
        name = sample.id.split(":")[2]
        for place in range(len(sample.frames)):
            for expression, mask in zip(sample.expressions, sample.masks(place), strict=True):
                key = f"{name}_{expression.id}"
                record = listed[name]["expressions"][str(expression.id)]
                assert expression.text == record["exp"]
                parts = [runs[str(one)][place] for one in record["anno_id"]]
                union = sum(coco.decode(part) for part in parts if part) + np.zeros(mask.shape, np.uint8)
                assert (mask == (union > 0)).all()
                shape = golden[f"{key}_shape"]
                predicted = (
                    np.unpackbits(golden[f"{key}_pred"], count=shape.prod()).reshape(shape)[place] == 1
                )
                inner, outer = (predicted & (mask == 1)).sum(), (predicted | (mask == 1)).sum()
                assert (inner / outer if outer else 1.0) == golden[f"{key}_Jt"][place]
                seen += 1
    assert seen == sum(len(golden[f"{key}_Jt"]) for key in golden["expressions"])
