"""Clean labels: files as they are released, joined to a run's expressions; boards and differences by hand."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from pycocotools import mask as coco_mask

from harness import cli
from harness.labels import Labels, answered, join, read_labels, rescore
from harness.labels.base import plain
from harness.labels.join import DROPPED, ELSEWHERE, KEPT, UNKNOWN, Joined
from harness.store import records
from pruners.errors import UserError
from reports.clean import ALL, CLEAN, LOST, NEW, SAME, STILL, TURNED, CleanTable, clean_tables
from reports.clean_text import finding
from reports.gather import gather
from tests.label_files import (
    IMAGES,
    METHODS,
    an_object,
    answer,
    corner,
    digests,
    runs_of,
    text,
    truth,
    write_ref_l4,
    write_refcoco_m,
    write_run,
)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_run(tmp_path_factory.mktemp("run"))


def joined(run: Path, file: Path) -> tuple[Labels, Joined]:
    labels = read_labels(file)
    return labels, join(labels, answered(records.samples(run), records.load_records(run)))


def tables_of(run: Path, file: Path, metric: str | None = None) -> list[CleanTable]:
    runs = gather([run])
    return clean_tables(runs, rescore([run], join(read_labels(file), runs.samples), runs.samples), metric)


def ciou(pruner: str, pairs: list[tuple[int, int, np.ndarray[Any, Any]]]) -> float:
    """Of answers against masks, from pixels."""
    both = [(answer(pruner, image, place), mask) for image, place, mask in pairs]
    return sum((a & b).sum() for a, b in both) / sum((a | b).sum() for a, b in both)


# -- RefCOCO-M


def drawn_anew(place: int) -> np.ndarray[Any, Any]:
    mask = truth(place)
    mask[:, :8] = False
    return mask


@pytest.fixture(scope="module")
def refcoco_m(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Left objects of all images and right ones of the first four, two of them with other masks."""
    rows = {
        image: [
            an_object(10 * image, image, 0, runs_of(drawn_anew(0))),
            *([an_object(10 * image + 1, image, 1)] if image < 4 else []),
        ]
        for image in range(IMAGES)
    }
    rows[900] = [an_object(9000, 900, 0)]  # an image of which the run knows nothing
    return write_refcoco_m(tmp_path_factory.mktemp("labels"), rows)


def test_sentences_and_boxes_join_refcoco_m(run: Path, refcoco_m: Path) -> None:
    labels, found = joined(run, refcoco_m)
    assert labels.redraws and labels.count == IMAGES + 4 + 1 and labels.licence == "MIT"
    assert found.found == {KEPT: IMAGES + 4, UNKNOWN: 4} and found.columns == (("refcoco", "val"),)
    assert (
        "the right man's hat 4" in found.examples[UNKNOWN][0]
        and "refcoco:val:4, 41" in found.examples[UNKNOWN][0]
    )
    assert found.unused == 1 and "image 900" in found.lost[0]
    mask = coco_mask.decode({"size": [48, 64], "counts": found.truths["refcoco:val:0", 0].encode()})
    assert (mask.astype(bool) == drawn_anew(0)).all()


def test_recorded_masks_are_counted_on_new_truths(run: Path, refcoco_m: Path) -> None:
    (table,) = tables_of(run, refcoco_m)
    assert table.boards == (ALL, SAME, CLEAN)
    assert table.counts == {
        ALL: (2 * IMAGES, IMAGES),
        SAME: (IMAGES + 4, IMAGES),
        CLEAN: (IMAGES + 4, IMAGES),
    }
    every = [(image, place, truth(place)) for image in range(IMAGES) for place in range(2)]
    same = [one for one in every if one[1] == 0 or one[0] < 4]
    clean = [(image, place, truth(1) if place else drawn_anew(0)) for image, place, _ in same]
    rows = {row.pruner: row for row in table.rows}
    assert set(rows) == set(METHODS)
    for pruner, row in rows.items():
        for board, pairs in ((ALL, every), (SAME, same), (CLEAN, clean)):
            assert row.scores[board].value == pytest.approx(ciou(pruner, pairs)), (pruner, board)
            assert row.scores[board].low <= row.scores[board].value <= row.scores[board].high
        assert row.moved.value == pytest.approx(ciou(pruner, clean) - ciou(pruner, every))
        assert row.relabelled is not None
        assert row.relabelled.value == pytest.approx(ciou(pruner, clean) - ciou(pruner, same))
    best = rows["litelvlm"].ranks, rows["fastv(layer=3)"].ranks
    assert best[0][CLEAN] == 1 and rows["none"].ranks == {}, "left expressions are litelvlm's"


def test_masks_are_never_decoded_together(
    run: Path, refcoco_m: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs = gather([run])
    found = join(read_labels(refcoco_m), runs.samples)
    monkeypatch.setattr(coco_mask, "decode", lambda *_: pytest.fail("a mask was made dense"))
    counted = rescore([run], found, runs.samples)
    assert counted.counts is not None and counted.recounted == len(METHODS) * (IMAGES + 4)
    assert not counted.differing, "recorded masks give the recorded counts"


def test_an_unfinished_run_gives_the_same_counts(run: Path, refcoco_m: Path, tmp_path: Path) -> None:
    open_run = write_run(tmp_path / "open", finished=False)
    counts = []
    for folder in (run, open_run):
        asked = records.samples(folder)
        found = rescore([folder], join(read_labels(refcoco_m), asked), asked).counts
        assert found is not None
        counts.append(found.sort_values(["cell", "sample", "expression"], ignore_index=True))
    one, other = counts
    pd.testing.assert_frame_equal(one, other)


def test_an_object_elsewhere_is_another_one(run: Path, tmp_path: Path) -> None:
    """The words of the left object, and the box of the right one."""
    rows = {0: [an_object(1, 0, 0), an_object(2, 0, 1)], 1: [an_object(3, 1, 0, bbox=corner(1))]}
    _, found = joined(run, write_refcoco_m(tmp_path / "m", rows, shards=1))
    assert found.found == {KEPT: 2, ELSEWHERE: 1, UNKNOWN: 2 * IMAGES - 3}


def test_equal_words_about_two_objects_are_told_apart_by_their_boxes(run: Path, tmp_path: Path) -> None:
    words = {"sentences": [text(0, 0), text(0, 1)]}
    objects = [an_object(1, 0, 1, **words), an_object(2, 0, 0, **words)]
    _, found = joined(run, write_refcoco_m(tmp_path / "m", {0: objects}, shards=1))
    assert found.truths == {("refcoco:val:0", place): runs_of(truth(place))["counts"] for place in range(2)}


def test_words_are_joined_whatever_their_case_and_marks() -> None:
    assert plain("  The LEFT man's hat. ") == plain("the left man s hat") != plain("the left man hat")
    assert plain("?!") == "?!" and plain("Ünder") == plain("ünder")


# -- Ref-L4


@pytest.mark.parametrize("key", ["annotation", "annotations"])
def test_ref_l4_keeps_what_its_reviewers_kept(run: Path, tmp_path: Path, key: str) -> None:
    rows = [(image, place, int(image > 0)) for image in range(IMAGES - 1) for place in range(2)]
    labels, found = joined(run, write_ref_l4(tmp_path / "refcoco_val_reviewed.json", rows, key))
    assert "BY-NC" in labels.licence and not labels.redraws
    assert found.found == {KEPT: 2 * (IMAGES - 2), DROPPED: 2, UNKNOWN: 2} and not found.truths
    assert ("refcoco:val:1", 10) in found.kept and ("refcoco:val:0", 0) not in found.kept


def test_a_sentence_said_twice_takes_its_labels_in_order(run: Path, tmp_path: Path) -> None:
    """As the joiner of the release does: a ref's sentences by their ids, in the order of the file."""
    asked = records.samples(run)
    again = asked[asked["expression"] == 0].assign(expression=5)
    labels = read_labels(
        write_ref_l4(tmp_path / "refcoco_val_reviewed.json", [(0, 0, 1), (0, 0, 0), (1, 0, 1)])
    )
    found = join(labels, pd.concat([asked, again]))
    assert ("refcoco:val:0", 0) in found.kept and ("refcoco:val:0", 5) not in found.kept


def test_one_subset_has_two_boards(run: Path, tmp_path: Path) -> None:
    rows = [(image, place, int(place == 0)) for image in range(IMAGES) for place in range(2)]
    (table,) = tables_of(run, write_ref_l4(tmp_path / "refcoco_val_reviewed.json", rows))
    assert table.boards == (ALL, CLEAN) and table.counts[CLEAN] == (IMAGES, IMAGES)
    left = [(image, 0, truth(0)) for image in range(IMAGES)]
    row = next(row for row in table.rows if row.pruner == "fastv(layer=3)")
    assert row.scores[CLEAN].value == pytest.approx(ciou("fastv(layer=3)", left)) and row.relabelled is None


# -- lists


@pytest.mark.parametrize(
    ("name", "content", "kept"),
    [
        ("l.csv", "sample,expression\nrefcoco:val:1,10\nrefcoco:val:2,21\n", {10, 21}),
        ("l.csv", "\ufeffnote , sample\nx,refcoco:val:1\n", {10, 11}),
        ("l.csv", "expression\n10\n\n31\n", {10, 31}),
        ("l.json", [10, "refcoco:val:2", {"sample": "refcoco:val:3", "expression": 30}], {10, 20, 21, 30}),
    ],
)
def test_lists_name_samples_or_expressions(
    run: Path, tmp_path: Path, name: str, content: Any, kept: set[int]
) -> None:
    file = tmp_path / name
    file.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
    _, found = joined(run, file)
    assert {expression for _, expression in found.kept} == kept
    assert found.found == {KEPT: len(kept), UNKNOWN: 2 * IMAGES - len(kept)}


def test_a_list_may_bring_masks_of_its_own(run: Path, tmp_path: Path) -> None:
    square = [3.0, 4.0, 20.0, 4.0, 20.0, 20.0, 3.0, 20.0]
    entries = [
        {"sample": f"refcoco:val:{image}", "expression": 10 * image, "truth": truth}
        for image, truth in enumerate([[square], runs_of(drawn_anew(0)), [square], [square], [square]])
    ]
    (tmp_path / "l.json").write_text(json.dumps(entries))
    (table,) = tables_of(run, tmp_path / "l.json")
    assert table.boards == (ALL, SAME, CLEAN) and table.counts[CLEAN] == (5, 5)


def test_what_the_run_lacks_is_said(run: Path, tmp_path: Path) -> None:
    (tmp_path / "l.json").write_text(json.dumps(["refcoco:val:1", "refcoco:val:99", 77]))
    _, found = joined(run, tmp_path / "l.json")
    assert found.unused == 2 and found.lost == ["refcoco:val:99", "77"]


# -- what survives


def test_differences_survive_turn_or_are_lost(run: Path, tmp_path: Path) -> None:
    """On all expressions litelvlm and fastv are equal; on the left ones litelvlm is ahead, of the right ones
    fastv, and both beat one of the halves that random gets."""
    (tmp_path / "left.json").write_text(json.dumps([10 * image for image in range(IMAGES)]))
    (table,) = tables_of(run, tmp_path / "left.json")
    verdicts = {frozenset((pair.first, pair.second)): pair.verdict for pair in table.pairs}
    assert verdicts[frozenset(("litelvlm", "fastv(layer=3)"))] == NEW
    assert "newly apart" in finding(table) and sum(table.verdicts.values()) == len(table.pairs) == 3
    pair = next(pair for pair in table.pairs if pair.verdict == NEW)
    assert pair.apart[ALL] is False and pair.apart[CLEAN] is True and pair.moved.low > 0


@pytest.mark.parametrize(
    ("before", "was", "after", "stays", "verdict"),
    [
        (1, True, 1, True, STILL),
        (1, True, -1, True, TURNED),
        (1, True, 1, False, LOST),
        (1, False, -1, True, NEW),
    ],
)
def test_verdicts(before: int, was: bool, after: int, stays: bool, verdict: str) -> None:
    from harness.metrics.bootstrap import Estimate
    from reports.clean import _verdict

    one, other = (Estimate(value, value, value, 0.0, 9) for value in (before, after))
    assert _verdict(one, was, other, stays) == verdict


def test_a_metric_of_other_counts_is_refused(run: Path, refcoco_m: Path) -> None:
    assert tables_of(run, refcoco_m, "giou")[0].metric.name == "giou"
    with pytest.raises(UserError, match="n-acc"):
        tables_of(run, refcoco_m, "n-acc")


# -- the command


def command(monkeypatch: pytest.MonkeyPatch, *words: object) -> int:
    monkeypatch.setattr(sys, "argv", ["python -m harness", *map(str, words)])
    return cli.main()


def test_the_command_leaves_the_run_as_it_was(
    run: Path,
    refcoco_m: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    before = digests(run)
    words = ("report", run, "--subset", refcoco_m, "--out", tmp_path / "o", "--export", tmp_path / "t.json")
    assert command(monkeypatch, *words) == 0
    printed = capsys.readouterr().out
    assert digests(run) == before and sorted(path.name for path in (tmp_path / "o").iterdir()) == [
        "clean-pairs.csv",
        "clean.csv",
        "clean.md",
    ]
    text = (tmp_path / "o" / "clean.md").read_text()
    assert "Of 16 answered expressions of refcoco:val: 12 kept, 4 not in the file." in text
    assert "all of them give the recorded counts" in text and "Licence of the labels: MIT" in text
    assert finding(tables_of(run, refcoco_m)[0]) in text and "1 labels have no expression" in printed
    board = pd.read_csv(tmp_path / "o" / "clean.csv")
    assert len(board) == 3 * len(METHODS) and set(board["board"]) == {ALL, SAME, CLEAN}
    assert len(json.loads((tmp_path / "t.json").read_text())["rows"]) == len(board)
    assert command(monkeypatch, *words[:-2], "--against", "random") == 2
    assert "--against has no meaning with --subset" in capsys.readouterr().err


# -- bad files


def cut(path: Path) -> Path:
    path.write_bytes(path.read_bytes()[:-20])
    return path


WRONG_SIZE = runs_of(np.ones((64, 48), dtype=bool))
TORN = {"counts": runs_of(truth(0))["counts"][:-2], "size": [48, 64]}
BAD: dict[str, tuple[Any, str]] = {
    "missing": (lambda at: at / "nowhere.json", "There is no"),
    "suffix": (lambda at: _text(at / "l.txt", "1"), "ends in '.txt'"),
    "no json": (lambda at: _text(at / "l.json", "{"), "not readable json"),
    "other json": (lambda at: _text(at / "l.json", '{"refs": []}'), "holds refs, which is no layout"),
    "empty list": (lambda at: _text(at / "l.json", "[]"), "names no expression"),
    "empty folder": (lambda at: at, "There is no .parquet file"),
    "no parquet": (lambda at: _text(at / "l.parquet", "x"), "cannot be read as Parquet"),
    "cut": (lambda at: cut(next(_m(at).rglob("*.parquet"))), "cannot be read as Parquet"),
    "shard lost": (lambda at: _without_shard(at), "1 of 2 files of RefCOCO-M are missing"),
    "column lost": (lambda at: _renamed(at), "has no column 'samples'"),
    "size": (lambda at: _m(at, mask=WRONG_SIZE), r"none of refcoco:val:0, 64x48 px \(run lengths of size"),
    "torn runs": (lambda at: _m(at, mask=TORN), "none of refcoco:val:0, 64x48 px"),
    "no counts": (lambda at: _m(at, mask={"size": [48, 64]}), "has no counts or no size"),
    "endless number": (lambda at: _text(at / "l.json", '[{"expression": 1e999}]'), "is 'inf', no whole"),
    "box": (lambda at: _m(at, bbox=[1.0, 2.0, 3.0]), "its bbox is"),
    "twice": (lambda at: _m(at, id=7), "holds the object 7 twice"),
    "nothing": (lambda at: _m(at, sentences=["nobody said this"]), "None of the 2 labels"),
    "l4 name": (lambda at: write_ref_l4(at / "reviewed.json", [(0, 0, 1)]), "does not say which data set"),
    "l4 split": (
        lambda at: write_ref_l4(at / "refcoco_testA_reviewed.json", [(0, 0, 1)]),
        "is about refcoco:testA, which the run does not have; it has refcoco:val",
    ),
    "l4 quality": (lambda at: write_ref_l4(_val(at), [(0, 0, 2)]), "caption_quality is 2"),
    "l4 number": (
        lambda at: write_ref_l4(_val(at), [(0, 0, float("inf"))]),
        "caption_quality is 'inf', no whole",
    ),
    "l4 row": (lambda at: write_ref_l4(_val(at), [(0, 0, 1)], images=[]), "which images does not hold"),
    "l4 dropped": (lambda at: write_ref_l4(_val(at), [(0, 0, 0)]), "None of the 1 labels"),
    "csv columns": (lambda at: _text(at / "l.csv", "id,text\n1,x\n"), "neither a column sample"),
    "csv number": (lambda at: _text(at / "l.csv", "expression\nx1\n"), "line 2 .* no whole number"),
    "csv signs": (lambda at: _text(at / "l.csv", "expression\n--5\n"), "line 2 .* no whole number"),
    "csv script": (lambda at: _text(at / "l.csv", "expression\n²\n"), "line 2 .* no whole number"),
    "csv digits": (lambda at: _text(at / "l.csv", "expression\n" + "9" * 5000), "no whole number"),
    "csv size": (lambda at: _sparse(at / "l.csv"), "has 65 MiB, more than the 64 of a list"),
    "sample": (lambda at: _list(at, "val:1"), "not like refcoco:val:17"),
    "split": (lambda at: _list(at, "refcoco:vla:1"), "Did you mean 'refcoco:val'"),
    "entry twice": (lambda at: _list(at, 10, 11, 10), "named before, at entry 0"),
    "whole and part": (
        lambda at: _list(at, "refcoco:val:1", 10),
        "names expression 10 of refcoco:val:1 again",
    ),
    "field": (lambda at: _list(at, {"sampel": "refcoco:val:1"}), "it has 'sampel'"),
    "null": (lambda at: _list(at, None), "names no expression"),
    "some masks": (
        lambda at: _list(at, 20, {"sample": "refcoco:val:1", "expression": 10, "truth": runs_of(truth(0))}),
        "gives masks of 1 expressions and none of 1",
    ),
}


def _text(path: Path, content: str) -> Path:
    path.write_text(content)
    return path


def _sparse(path: Path) -> Path:
    with path.open("wb") as file:
        file.truncate(65 << 20)
    return path


def _val(at: Path) -> Path:
    return at / "refcoco_val_reviewed.json"


def _list(at: Path, *entries: Any) -> Path:
    return _text(at / "l.json", json.dumps(entries))


def _m(at: Path, **wrong: Any) -> Path:
    return write_refcoco_m(at / "m", {image: [an_object(image, image, 0) | wrong] for image in range(2)})


def _without_shard(at: Path) -> Path:
    next(_m(at).rglob("*00000-of*")).unlink()
    return at / "m"


def _renamed(at: Path) -> Path:
    import pyarrow
    from pyarrow import parquet

    parquet.write_table(pyarrow.table({"image_id": [1], "objects": [[1]]}), at / "m.parquet")
    return at / "m.parquet"


@pytest.mark.parametrize("wrong", BAD)
def test_whatever_is_wrong_with_labels_is_one_sentence(run: Path, tmp_path: Path, wrong: str) -> None:
    make, told = BAD[wrong]
    with pytest.raises(UserError, match=told) as caught:
        joined(run, make(tmp_path))
    assert "\n" not in str(caught.value) and str(caught.value).endswith((".", "?"))


def test_runs_without_masks_cannot_be_counted_anew(run: Path, refcoco_m: Path, monkeypatch: Any) -> None:
    from harness.labels import rescore as module  # the function; its module's name is the same

    asked = records.samples(run)
    found = join(read_labels(refcoco_m), asked)
    bare = records.load_records(run).assign(mask="")
    monkeypatch.setattr(sys.modules[module.__module__], "answers", lambda *_: iter([bare]))
    with pytest.raises(UserError, match="keeps no masks of refcoco:val"):
        rescore([run], found, asked)
