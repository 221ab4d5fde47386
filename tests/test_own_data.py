"""Own data: every line of the list of expressions is used, or refused in a sentence that names it."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from harness import cli, data, doctor
from harness.data import DataError, expressions, own
from harness.store import records
from tests.fake_backbone import known
from tests.own_tree import ROWS, as_csv, instances, write_own
from tests.refer_tree import HEIGHT, SQUARE, WIDTH, ref, write_tree


def refused(root: Path, name: str = "mine") -> str:
    with pytest.raises(DataError) as caught:
        data.load_samples(name, "val", root)
    assert "\n" not in str(caught.value)
    return str(caught.value)


# --- what is read


def test_splits_samples_and_masks(tmp_path: Path) -> None:
    write_own(tmp_path)
    assert data.parse_datasets("mine", tmp_path) == [("mine", "val"), ("mine", "test")]
    assert data.parse_datasets("all", tmp_path) == [("mine", "val"), ("mine", "test")]
    one, two = data.load_samples("mine", "val", tmp_path)
    assert (one.id, two.id) == ("mine:val:7", "mine:val:8")
    assert one.cluster == "mine/images/a.png"
    assert [(e.id, e.text) for e in one.expressions] == [(2, "the left square"), (3, "both squares")]
    left, both = one.masks()
    assert (left == 1).sum() == 400 and left[5:25, 10:30].all()
    assert (both == 1).sum() == 400 + 400 - 100  # two objects are joined
    assert two.masks().sum() == 0  # nothing is meant
    assert one.image().shape == (HEIGHT, WIDTH, 3)
    (other,) = data.load_samples("mine", "test", tmp_path)
    assert (other.masks() == 1).sum() == 700  # parts of one object are joined where they overlap
    assert other.cluster == two.cluster  # splits share media


def test_train_is_no_evaluation_split(tmp_path: Path) -> None:
    write_own(tmp_path, as_csv([*ROWS, ("train", "a.png", "it", "11", "")]))
    assert data.parse_datasets("mine", tmp_path) == [("mine", "val"), ("mine", "test")]
    assert data.parse_datasets("mine:train", tmp_path) == [("mine", "train")]


LINES = [
    {"split": "val", "image": "a.png", "expression": "the left square", "annotations": [11]},
    {"split": "val", "image": "a.png", "expression": "both squares", "annotations": [11, 12.0], "note": "x"},
    {"split": "val", "image": "b.png", "expression": "a cat", "annotations": []},
    {"split": "test", "image": "b.png", "expression": "the square", "annotations": 21, "group": None},
]


@pytest.mark.parametrize(
    ("kind", "content"),
    [
        ("csv", "﻿" + as_csv()),
        ("csv", as_csv().replace("\n", "\r\n")),
        ("csv", as_csv().replace("\n", "\r\n").rstrip()),
        ("csv", as_csv() + "\n\n,,,,\n"),
        ("csv", as_csv().replace("11 12", '"11, 12"').replace(",21,", ",21.0,")),
        ("csv", as_csv().replace("11 12", "11;12").replace("a.png", "images/a.png")),
        ("csv", as_csv().replace("val,a.png", " val , a.png ")),
        (
            "csv",
            as_csv(
                [(*row, "seen, twice") for row in ROWS],
                ("split", "image", "expression", "annotations", "group", "note"),
            ),
        ),
        ("csv", as_csv([row[:4] for row in ROWS], ("split", "image", "expression", "annotations"))),
        ("jsonl", "\n".join(map(json.dumps, LINES))),
        ("jsonl", "﻿" + "\r\n".join(map(json.dumps, LINES)) + "\r\n\r\n"),
    ],
)
def test_the_same_rows_as_tools_write_them(tmp_path: Path, kind: str, content: str) -> None:
    write_own(tmp_path / "plain")
    write_own(tmp_path / "other", content, kind=kind)
    for split in ("val", "test"):
        plain, other = (data.load_samples("mine", split, tmp_path / name) for name in ("plain", "other"))
        assert [s.id for s in plain] == [s.id for s in other]
        for one, two in zip(plain, other, strict=True):
            assert [e.text for e in one.expressions] == [e.text for e in two.expressions]
            assert (one.masks() == two.masks()).all()


def test_an_expression_may_hold_commas_quotes_and_line_ends(tmp_path: Path) -> None:
    text = 'the "red", big\none; left'
    write_own(tmp_path, as_csv([("val", "a.png", text, "11", ""), ("val", "a.png", "it", "12", "anna")]))
    (sample,) = data.load_samples("mine", "val", tmp_path)
    assert [(e.id, e.text, e.group) for e in sample.expressions] == [(2, text, ""), (4, "it", "anna")]


def test_content_is_of_one_sample(tmp_path: Path) -> None:
    for name in ("one", "two"):
        write_own(tmp_path / name)
    one, two = (
        [data.content(s) for s in data.load_samples("mine", "val", tmp_path / name)]
        for name in ("one", "two")
    )
    assert one == two and len(set(one)) == 2 and all(len(text) == 16 for text in one)
    path = tmp_path / "two" / "mine" / "images" / "a.png"
    Image.fromarray(np.zeros((HEIGHT, WIDTH, 3), dtype=np.uint8)).save(path)
    now = [data.content(s) for s in data.load_samples("mine", "val", tmp_path / "two")]
    assert now[0] != one[0] and now[1] == one[1]
    write_own(tmp_path / "three", as_csv([(*row[:4], "anna") for row in ROWS]))
    assert data.content(data.load_samples("mine", "val", tmp_path / "three")[0]) != one[0]


# --- what is refused


@pytest.mark.parametrize(
    ("row", "said"),
    [
        (("val", "a.jgp", "it", "11", ""), "names the image 'a.jgp', which annotations.json does not list"),
        (("val", "A.PNG", "it", "11", ""), "does not list (there is 'a.png')"),
        (("val", "../a.png", "it", "11", ""), "no usable file name: '../a.png'"),
        (("val", "/etc/hosts", "it", "11", ""), "no usable file name"),
        (("val", "a.png", "it", "13", ""), "names annotation 13, which annotations.json does not hold"),
        (
            ("val", "a.png", "it", "-1", ""),
            "has the annotations '-1'; write annotation ids separated by spaces",
        ),
        (("val", "a.png", "it", "11.5", ""), "has the annotations '11.5'"),
        (("val", "a.png", "it", "[11]", ""), "has the annotations '[11]'"),
        (("val", "a.png", "it", "11 11", ""), "names an annotation twice (11 11)"),
        (
            ("val", "a.png", "it", "21", ""),
            "names annotation 21 for the image 'a.png', which annotations.json has in the image 'b.png'",
        ),
        (("val", "a.png", "  ", "11", ""), "has no expression"),
        (("", "a.png", "it", "11", ""), "has no split"),
        (("val", "", "it", "11", ""), "has no image"),
        (("val:a", "a.png", "it", "11", ""), "has the split 'val:a'; a split is named with letters"),
        (("Val", "a.png", "it", "11", ""), "has the split 'Val', which line 2 writes 'val'"),
        (("val", "a.png", "the left square ", "11", ""), "says the same as line 2"),
    ],
)
def test_a_row_that_cannot_be_used_is_named_by_file_and_line(
    tmp_path: Path, row: tuple[str, ...], said: str
) -> None:
    path = write_own(tmp_path, as_csv([*ROWS, row]))
    told = refused(tmp_path)
    assert told.startswith(f"{path}:6 ") and said in told, told
    assert list(own.faults(tmp_path, "mine")) == [told]


@pytest.mark.parametrize(
    ("content", "line", "said"),
    [
        (as_csv().replace(",", ";"), 1, "separates its columns with ';'; save it with commas"),
        (as_csv().replace(",", "\t"), 1, "separates its columns with tabs"),
        (
            as_csv().replace("annotations", "anotations"),
            1,
            "lacks 'annotations' (perhaps written 'anotations')",
        ),
        (
            as_csv().replace("split,", "Split,"),
            1,
            "lacks 'split' (perhaps written 'Split'); it names 'Split', 'image'",
        ),
        (
            as_csv().replace("group", "groups"),
            1,
            "names 'groups', which is not read; perhaps 'group' is meant",
        ),
        (as_csv().replace("group", "image"), 1, "names the column 'image' twice"),
        (as_csv().replace("a cat", "a cät").encode("latin-1"), 4, "is no UTF-8 (byte 0xe4)"),
        (as_csv().encode("utf-16"), 1, "is written in UTF-16"),
        (
            as_csv().replace("split,", '"spl\nit",'),
            1,
            r"(perhaps written 'spl\nit'); it names 'spl\nit', 'image'",
        ),
        (as_csv() + "val,a.png,the small, round one,11,\n", 6, "has 6 columns where the first line has 5"),
        (as_csv() + "val,a.png,it\n", 6, "has 3 columns where the first line has 5"),
        (as_csv() + 'val,a.png,"the "red" one",11,\n', 6, "cannot be read as CSV"),
        (as_csv() + 'val,a.png,"the red one,11,\nval,a.png,it,11,\n', 6, "cannot be read as CSV"),
    ],
)
def test_lists_as_tools_should_not_write_them(
    tmp_path: Path, content: str | bytes, line: int, said: str
) -> None:
    path = write_own(tmp_path, content)
    told = refused(tmp_path)
    assert told.startswith(f"{path}:{line} ") and said in told, told


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("{", "is no JSON"),
        ("[1]", "holds a list where an object is expected"),
        ("[" * 100_000, "is no JSON (nested too deeply)"),
        (json.dumps(LINES[0] | {"annotations": None}), "'annotations' is None"),
        (json.dumps(LINES[0] | {"annotations": [True]}), "'annotations' is True"),
        (json.dumps(LINES[0] | {"annotations": ["11"]}), "'annotations' is '11'"),
        (json.dumps(LINES[0] | {"expression": 5}), "has 5 as its expression, which is no text"),
        (json.dumps(LINES[0] | {"expression": "\ud83d"}), "half a character in its expression"),
        (
            json.dumps({"split": "val", "image": "a.png", "text": "it", "annotations": []}),
            "lacks 'expression'; it names 'split'",
        ),
        (json.dumps(LINES[0] | {"goup": "a"}), "names 'goup', which is not read; perhaps 'group' is meant"),
    ],
)
def test_json_lines_that_cannot_be_used(tmp_path: Path, line: str, said: str) -> None:
    path = write_own(tmp_path, "\n".join([*map(json.dumps, LINES), "", line]), kind="jsonl")
    told = refused(tmp_path)
    assert told.startswith(f"{path}:6 ") and said in told, told


def edited(root: Path, **changes: Any) -> None:
    path = root / "mine" / "annotations.json"
    path.write_text(json.dumps(instances() | changes))


def test_annotations_that_contradict_themselves(tmp_path: Path) -> None:
    write_own(tmp_path)
    whole = instances()
    for changes, said in (
        (
            {"images": whole["images"] + [whole["images"][0] | {"file_name": "c.png"}]},
            "two images have the id 7",
        ),
        (
            {"images": whole["images"] + [whole["images"][0] | {"id": 1}]},
            "images 7 and 1 are both named 'a.png'",
        ),
        ({"annotations": whole["annotations"] * 2}, "two annotations have the id 11"),
        ({"annotations": [{"id": 11, "segmentation": []}]}, "no 'image_id'"),
        ({"images": [whole["images"][0] | {"height": "40"}]}, "'height' is '40', not a whole number"),
    ):
        edited(tmp_path, **changes)
        told = refused(tmp_path)
        assert "annotations.json' is not a COCO instances file" in told and said in told
    edited(tmp_path, images=[*whole["images"], {"id": 99, "file_name": None}])  # named by no row
    assert len(data.load_samples("mine", "val", tmp_path)) == 2


def test_files_that_are_missing_or_too_many(tmp_path: Path) -> None:
    path = write_own(tmp_path)
    folder = path.parent
    (folder / "images" / "a.png").rename(folder / "images" / "a.PNG")
    assert (
        f"{path}:2 names the image 'a.png', which is not in '{folder / 'images'}' (there is 'a.PNG')"
        in refused(tmp_path)
    )
    assert "(1 more lines cannot be used; `python -m harness doctor --data" in refused(tmp_path)
    (folder / "images" / "a.PNG").rename(folder / "images" / "a.png")
    (folder / "expressions.jsonl").write_text("")
    assert "holds both expressions.csv and expressions.jsonl" in refused(tmp_path)
    path.unlink()
    assert "lists no expression" in refused(tmp_path)
    (folder / "expressions.jsonl").unlink()
    assert "holds no expressions.csv or expressions.jsonl" in refused(tmp_path)
    path.write_text("")
    assert "is empty; its first line names the columns" in refused(tmp_path)
    path.write_text(as_csv())
    (folder / "annotations.json").rename(folder / "instances2.json")
    assert "annotations.json' is missing, and there is instances2.json; expected" in refused(tmp_path)


def test_an_image_of_another_size(tmp_path: Path) -> None:
    path = write_own(tmp_path)
    Image.fromarray(np.zeros((WIDTH, HEIGHT, 3), dtype=np.uint8)).save(path.parent / "images" / "a.png")
    sample = data.load_samples("mine", "val", tmp_path)[0]
    with pytest.raises(
        DataError, match=r"is 40x64 px, but its annotations are for 64x40; take images and annotations\.json"
    ):
        sample.image()
    edited(
        tmp_path,
        annotations=[{"id": k, "image_id": 7, "segmentation": [[1, 2, 3]]} for k in (11, 12)]
        + [{"id": 21, "image_id": 8, "segmentation": [SQUARE]}],
    )
    with pytest.raises(DataError, match=r"annotation 11 is damaged .*; mend annotations\.json"):
        data.load_samples("mine", "val", tmp_path)[0].masks()


def test_folders_and_names(tmp_path: Path) -> None:
    write_own(tmp_path / "a", name="mine")
    with pytest.raises(DataError, match=r"is itself own data: give --data its parent, '.*/a'"):
        data.parse_datasets("mine", tmp_path / "a" / "mine")
    with pytest.raises(DataError, match="Own data need --data DIR"):
        data.parse_datasets("mine")
    with pytest.raises(DataError, match=r"mine has no split 'vall', it has val, test. Did you mean 'val'"):
        data.parse_datasets("mine:vall", tmp_path / "a")
    with pytest.raises(DataError, match=r"Unknown data set 'mne', .* Did you mean 'mine'"):
        data.parse_datasets("mne", tmp_path / "a")
    write_own(tmp_path / "b", name="refcoco")
    with pytest.raises(DataError, match="has the name of a published data set"):
        data.parse_datasets("refcoco", tmp_path / "b")
    write_own(tmp_path / "c", name="refshapes")
    with pytest.raises(DataError, match="'refshapes' is a data set of refshapes and one of own"):
        data.parse_datasets("refshapes", tmp_path / "c")
    write_own(tmp_path / "d", name="my data")
    with pytest.raises(DataError, match="'my data' is not a name like"):
        data.parse_datasets("all", tmp_path / "d")
    write_tree(tmp_path / "a", [ref(1, 1, 11, "val", "it")])  # both layouts side by side
    assert data.parse_datasets("mine:val,refcoco", tmp_path / "a") == [("mine", "val"), ("refcoco", "val")]


# --- whatever stands there

CELLS = st.sampled_from(
    [
        "val",
        "test",
        "a.png",
        "b.png",
        "11",
        "12",
        "21",
        "11 12",
        "",
        " ",
        '"',
        ";",
        ",",
        "the cat",
        "é",
        "﻿",
        "\x00",
        "-1",
        "1e9",
        "../x",
        "99999999999999999999",
    ]
)
TEXTS = st.lists(st.lists(CELLS, max_size=6).map(",".join), max_size=8).map("\n".join)
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | CELLS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(CELLS, inner, max_size=2),
    max_leaves=4,
)
OBJECTS = st.fixed_dictionaries(
    {}, optional={name: VALUES for name in ("split", "image", "expression", "annotations", "group", "goup")}
)


@pytest.mark.parametrize("kind", ["csv", "jsonl"])
@given(st.data())
@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
def test_every_line_is_used_or_refused(
    tmp_path_factory: pytest.TempPathFactory, kind: str, data: st.DataObject
) -> None:
    """Raw bytes, cells in any order, lines with any values: one kind of error comes of it, and no line is
    silently lost."""
    header = data.draw(st.sampled_from([",".join(("split", "image", "expression", "annotations")), ""]))
    body: str = data.draw(
        st.one_of(TEXTS, st.text(max_size=60))
        if kind == "csv"
        else st.one_of(
            TEXTS, st.lists(OBJECTS, max_size=5).map(lambda rows: "\n".join(map(json.dumps, rows)))
        )
    )
    raw = data.draw(
        st.one_of(st.just(f"{header}\n{body}".encode("utf-8", "surrogatepass")), st.binary(max_size=60))
    )
    path = tmp_path_factory.mktemp("list") / f"expressions.{kind}"
    path.write_bytes(raw)
    try:
        rows, faults = expressions.read_expressions(path)
    except DataError as error:
        assert str(path) in str(error) and "\n" not in str(error)
        return
    used = {row.line for row in rows} | {fault.line for fault in faults}
    lines = raw.decode("utf-8-sig").replace("\r\n", "\n").replace("\r", "\n").split("\n")
    assert used <= set(range(1, len(lines) + 1)) and len(used) == len(rows) + len(faults)
    if kind == "jsonl" or '"' not in raw.decode():  # a quoted cell may go on over lines
        first = 1 if kind == "jsonl" else 2
        blank = {number for number, line in enumerate(lines, 1) if not line.replace(",", "").strip()}
        told = {number for number in range(first, len(lines) + 1)} - used - blank
        # a table whose first lines are blank has its header later
        assert kind == "csv" or not told
        assert len(told) <= 1
    for row in rows:
        assert row.split and row.image and row.expression.strip() and ".." not in row.image.split("/")


@given(
    st.lists(
        st.tuples(
            st.sampled_from(["val", "test"]),
            st.sampled_from(["a.png", "b.png"]),
            st.text(min_size=1).filter(lambda text: text.strip() and text.isprintable()),
            st.lists(st.integers(0, 10**9), max_size=3, unique=True),
            st.sampled_from(["", "anna", "ben"]),
        ),
        min_size=1,
        max_size=6,
    )
)
@settings(max_examples=60, deadline=None)
def test_what_is_written_comes_back(tmp_path_factory: pytest.TempPathFactory, rows: list[Any]) -> None:
    folder = tmp_path_factory.mktemp("list")
    written = as_csv([(*row[:3], " ".join(map(str, row[3])), row[4]) for row in rows])
    (folder / "a.csv").write_text(written, encoding="utf-8")
    names = ("split", "image", "expression", "annotations", "group")
    (folder / "a.jsonl").write_text("\n".join(json.dumps(dict(zip(names, row, strict=True))) for row in rows))
    for name in ("a.csv", "a.jsonl"):
        found, faults = expressions.read_expressions(folder / name)
        assert not faults
        assert [(r.split, r.image, r.expression, list(r.annotations), r.group) for r in found] == [
            tuple(row) for row in rows
        ]


# --- through the commands


def command(monkeypatch: pytest.MonkeyPatch, *words: object) -> int:
    monkeypatch.setattr(sys, "argv", ["python -m harness", *map(str, words)])
    return cli.main()


def test_a_run_of_own_data(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    write_own(tmp_path / "data", as_csv([(*row[:4], "anna") for row in ROWS]))
    known(monkeypatch)
    words = ("--backbones", "fake", "--pruners", "none,uniform", "--budgets", 8, "--datasets", "mine:val")
    assert (
        command(
            monkeypatch,
            *words,
            "--full",
            "--data",
            tmp_path / "data",
            "--out",
            tmp_path / "run",
            "--costs",
            "off",
        )
        == 0
    )
    assert "| mine val |" in " ".join(capsys.readouterr().out.split())
    frame, asked = records.load_records(tmp_path / "run"), records.samples(tmp_path / "run")
    assert set(frame["cluster"]) == {"mine/images/a.png", "mine/images/b.png"}
    assert set(frame["group"]) == {"anna"} and set(frame["expression"]) == {2, 3, 4}
    samples = {
        sample.id: data.content(sample) for sample in data.load_samples("mine", "val", tmp_path / "data")
    }
    assert dict(zip(asked["sample"], asked["content"], strict=True)) == samples
    nothing = frame[frame["text"] == "a cat"]
    assert (nothing["intersection"] == 0).all() and nothing["coverage"].isna().all()


def test_doctor_knows_own_data(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write_own(tmp_path)
    assert [finding.level for finding in doctor._data(tmp_path)] == ["ok", "ok"]
    path.write_text(as_csv([*ROWS, ("val", "c.png", "it", "11", ""), ("val", "a.png", "", "11", "")]))
    told = [str(finding) for finding in doctor._data(tmp_path)]
    assert len(told) == 2 and all(line.startswith("wrong") for line in told)
    assert f"{path}:6 names the image 'c.png'" in told[0] and f"{path}:7 has no expression" in told[1]
    path.write_text(as_csv([("val", "c.png", f"it {k}", "11", "") for k in range(50)]))
    told = [str(finding) for finding in doctor._data(tmp_path)]
    assert len(told) == doctor.NAMED + 1 and "30 more lines cannot be used" in told[-1]
    path.write_text(as_csv())
    Image.fromarray(np.zeros((WIDTH, HEIGHT, 3), dtype=np.uint8)).save(path.parent / "images" / "b.png")
    told = [str(finding) for finding in doctor._data(tmp_path)]
    assert [line.split()[0] for line in told] == ["wrong", "wrong"]
    assert "mine:val: 1 of 2 images" in told[0]
